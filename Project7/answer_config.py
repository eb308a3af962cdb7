"""The settings that say how a trained model answers, for `colorize` and `evaluate`."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel

from Project7.settings import SETTINGS, setting

STEPS = 10  # denoising steps: more bring no gain (benchmarks/RESULTS.md)
# Defaults of models with an encoder (benchmarks/RESULTS.md); other models keep the behaviour of earlier versions.
GUIDANCE = 5.0
CANDIDATES = 4
CALM = 0.5
GUIDED = 0.1, 0.9  # guidance acts between these shares of the timesteps: above it changes little, below it blotches
FAST_STEPS = 5  # denoising steps of --fast: nearly as good as ten
SamplerName = Literal["ddim", "ddpm", "dpm++", "dpm++-sde", "euler", "euler-a", "unipc"]
SAMPLERS = get_args(SamplerName)
# Settings that `colorize` and `evaluate` share.
Steps = Annotated[int, setting(STEPS, "denoising steps of a diffusion model", ge=1, le=10_000)]
Sampler = Annotated[
    SamplerName,
    setting("dpm++", "sampler of a diffusion model"),
]
Guidance = Annotated[
    float | None,
    setting(
        None,
        "guidance scale: how strongly a diffusion model follows what its encoder sees; 1 is as trained, more is bolder "
        f"(default: {GUIDANCE:g} for models with an encoder)",
        ge=1,
        le=10,
    ),
]
Candidates = Annotated[
    int | None,
    setting(
        None,
        "answers that a diffusion model draws; the one that its head finds likeliest is shown "
        f"(default: {CANDIDATES} for models with an encoder, else 1)",
        ge=1,
        le=64,
    ),
]
Calm = Annotated[
    float | None,
    setting(
        None,
        "how far a diffusion model's answer moves towards the mean, and what looks alike towards one colour: 0 is "
        "boldest, 1 is right more often but plainer "
        f"(default: {CALM:g} for models with an encoder, else 0)",
        ge=0,
        le=1,
    ),
]
Saturation = Annotated[
    float, setting(1.0, "strength of the colours: 0 is gray, 1 as the model answers, 2 twice as strong", ge=0, le=2)
]
Warmth = Annotated[
    float, setting(0.0, "shift of all colours towards yellow, in Lab units; below 0 towards blue", ge=-30, le=30)
]
Denoise = Annotated[
    float,
    setting(
        0.0,
        "how much grain and dust is removed from the copy that the network sees; the output keeps them",
        ge=0,
        le=1,
    ),
]
LevelsName = Literal["off", "network", "auto"]
Levels = Annotated[
    LevelsName,
    setting(
        "off",
        "make the darkest percent of a faded photo black and the lightest white: only for the network, or in the "
        "output too (auto)",
    ),
]
Temperature = Annotated[
    float | None,
    setting(
        None,
        "temperature of a classification model's annealed mean: 1 gives the mean, 0 the mode (default: as trained)",
        ge=0,
        le=10,
    ),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    setting(
        "fp32", "precision of the network: float32, or autocast to bfloat16 (twice as fast where hardware supports it)"
    ),
]
Together = Annotated[int, setting(32, "pictures that go through the network at once", ge=1, le=4096)]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], setting("auto", "device to compute on")]


class ColorizeConfig(BaseModel):
    """How a trained model colours a photo."""

    model_config = SETTINGS

    seed: int = setting(0, "random seed: the same seed gives the same colours", ge=0, lt=2**63)
    variants: int = setting(1, "number of different answers per photo", ge=1, le=1000)
    guidance: Guidance
    candidates: Candidates
    calm: Calm
    saturation: Saturation
    warmth: Warmth
    denoise: Denoise
    levels: Levels
    mark: bool = setting(False, 'write "colourised" into the lower right corner, and into the metadata of the file')
    steps: Steps
    fast: bool = setting(False, f"one candidate in {FAST_STEPS} denoising steps: a fraction of the time")
    sampler: Sampler
    temperature: Temperature
    variety: float | None = setting(
        None,
        "how far a classification model departs from its likeliest answer (default: 0, or 1 for several --variants)",
        ge=0,
        le=10,
    )
    format: Literal["png", "tif", "jpg", "webp"] = setting(
        "png",
        "file format of the pictures: png and tif are lossless, and keep the 16 "
        "bits of a scan; jpg and webp are smaller",
    )
    skip_colour: bool = setting(False, "skip photos that are in colour already")
    confidence: bool = setting(False, "also write a map of where a classification model is sure (white)")
    precision: Precision
    working_size: int | None = setting(
        None,
        "short side in pixels of the picture that the network sees (default: the training size; less for small photos)",
        ge=8,
        le=4096,
    )
    batch_size: Together
    device: Device


class EvaluateConfig(BaseModel):
    """How models are measured."""

    model_config = SETTINGS

    limit: int | None = setting(None, "use only this many photos", ge=2)
    size: int | None = setting(
        None,
        "side of the centre squares in pixels (default: that of the first model's training squares)",
        ge=16,
        le=1024,
    )
    samples: int = setting(1, "answers per photo; more than 1 also gives best-of-K and diversity", ge=1, le=1000)
    seed: int = setting(0, "random seed of the answers", ge=0, lt=2**63)
    guidance: Guidance
    candidates: Candidates
    calm: Calm
    saturation: Saturation
    steps: Steps
    sampler: Sampler
    temperature: Temperature
    hints: int = setting(
        0, "random pixels per photo whose true colours are given as hints (models trained with --hints)", ge=0, le=4096
    )
    precision: Precision
    lpips_weights: str | None = setting(
        None, "file of torchvision's AlexNet for LPIPS (default: torchvision's cache; never downloaded)", min_length=1
    )
    inception_weights: str | None = setting(
        None, "file of torch-fidelity's Inception-v3 for FID (default: torch's cache; never downloaded)", min_length=1
    )
    batch_size: Together
    device: Device
