"""The parts of a diffusion model's export: diffusers' own folders, a graph for one prediction of the U-Net, and a graph
for what is known of a photo before the first step."""

from pathlib import Path
from typing import Any

from torch import Tensor

from Project7.answer_config import GUIDED, STEPS
from Project7.array_sampler import RESCALE
from Project7.encoder import Maps
from Project7.export_parts import VIEW, Channels, ExportGraph, ExportParts
from Project7.guided_filter import pad_to_multiple
from Project7.model_config import DiffusionConfig
from Project7.samplers import make_sampler

Model = Any  # a diffusion_model.DiffusionColorizer, whose module imports this one

FINEST = 4  # side in pixels at which the network sees L within a cell; larger cells are averaged to it


def export_parts(model: Model) -> ExportParts:
    def save_for_diffusers(folder: Path) -> None:
        model.unet.save_pretrained(folder / "unet", safe_serialization=True)
        ready_scheduler(model).save_pretrained(folder / "scheduler")

    graphs = {"onnx": prediction_graph(model)} | ({"context": context_graph(model)} if model.config.encoder else {})
    return ExportParts(graphs, facts(model), save_for_diffusers)


def prediction_graph(model: Model) -> ExportGraph:
    config = model.config
    multiple = 2 ** (len(config.features) - 1)

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        h, w = sample.shape[-2:]
        return model.unet(pad_to_multiple(sample, multiple), timestep).sample[..., :h, :w]

    predicted = "v" if config.prediction_type == "v_prediction" else "noise"
    inputs: Channels = {"sample": sample_channels(config), "timestep": ()}
    return ExportGraph(predict, inputs, {"prediction": (f"{predicted} of a", f"{predicted} of b")})


def context_graph(model: Model) -> ExportGraph:
    """A graph of the encoder, the neck and the head, run once per photo: what is known, what would be known if the
    encoder saw nothing, and how likely the head finds each colour of its palette."""

    def told(maps: Maps, details: Tensor) -> Tensor:
        known = model.neck(maps, details)
        return model.told(known, None if model.head is None else model.head(known))

    def look(view: Tensor, details: Tensor) -> tuple[Tensor, ...]:
        maps = model.encoder(view)
        both = told(maps, details), told(tuple(part * 0 for part in maps), details)
        return (*both, model.head(model.neck(maps, details))) if likely else both

    hints = 3 if model.config.hints else 0
    details = sample_channels(model.config)[2 : 2 + cell_side(model.config) ** 2 + hints]
    known = known_channels(model.config)
    outputs: Channels = {"known": known, "blind": known}
    likely = model.config.head == "classes"
    if likely:  # by which answers are ranked
        outputs["logits"] = tuple(f"palette {n}" for n in range(model.config.bins))
    return ExportGraph(look, {VIEW: ("L",), "details": details}, outputs)


def ready_scheduler(model: Model):
    """The DPM-Solver++ that colorize uses, on the model's noise schedule, both restorable from its configuration alone.

    diffusers replaces a zero at the end of abar by 2^-24, and samplers.py mends the result if that is more than the
    abar before it. A configuration cannot express this, but betas can: the last one is then 1 - abar_T / abar_{T-1}.
    """
    steps = min(STEPS, model.config.timesteps)
    sampler = make_sampler("dpm++", model.noise_scheduler, steps=steps)
    plain = type(sampler).from_config(sampler.config)
    if not plain.alphas_cumprod.equal(sampler.alphas_cumprod):
        betas = model.noise_scheduler.betas.clone()
        betas[-1] = 1 - sampler.alphas_cumprod[-1] / sampler.alphas_cumprod[-2]
        schedule = {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
        plain = type(sampler).from_config(sampler.config, **schedule)
    plain.set_timesteps(timesteps=sampler.timesteps.tolist())
    return plain


def facts(model: Model) -> dict[str, Any]:
    config, scheduler = model.config, ready_scheduler(model)
    return {
        "chroma_scale": config.chroma_scale,
        "cell_side": cell_side(config),
        "sides_multiple_of": config.chroma_scale * 2 ** (len(config.features) - 1),
        "sample_channels": sample_channels(config),
        "hint_channels": 3 if config.hints else 0,
        "guidance": model.usual["guidance"],
        "guided": [share * config.timesteps for share in GUIDED],
        "rescale": RESCALE,
        "usual": model.usual,
        "headed": bool(config.encoder) and config.head != "none",
        "palette": model.head.centres.tolist() if config.encoder and config.head == "classes" else None,
        "prediction_type": config.prediction_type,
        "timesteps": scheduler.timesteps.tolist(),
        "alphas_cumprod": scheduler.alphas_cumprod.tolist(),
    }


def cell_side(config: DiffusionConfig) -> int:
    """The side in pixels at which the network sees L within a cell."""
    return min(config.chroma_scale, FINEST)


def known_channels(config: DiffusionConfig) -> tuple[str, ...]:
    if not config.encoder:
        return ()
    told = ["mean a", "mean b"] if config.head != "none" else []
    return (*(f"known {n}" for n in range(config.neck_width)), *told, *["entropy"] * config.head_entropy)


def sample_channels(config: DiffusionConfig) -> tuple[str, ...]:
    """The names of the U-Net's input channels, in order: noisy ab, the L of a cell's pixels row by row, hints, and the
    output of context.onnx."""
    cells = range(cell_side(config))
    lightness = [f"L of row {row}, column {column} of a cell" for row in cells for column in cells]
    hints = ["hinted a", "hinted b", "1 where a hint is"] if config.hints else []
    return ("noisy a", "noisy b", *(lightness if len(cells) > 1 else ["L"]), *hints, *known_channels(config))
