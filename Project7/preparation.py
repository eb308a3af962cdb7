"""What a run needs before its first step: images, features, a palette, and a person's agreement."""

from pathlib import Path
from typing import Any

from rich.console import Console

from Project7 import prompts
from Project7.config import RunConfig
from Project7.errors import UsageError
from Project7.model_folder import ModelFolder
from Project7.settings import parse_settings


def settle(
    config: RunConfig, cache_dir: Path | None, console: Console, checkpoint: dict[str, Any] | None, *, asking: bool
) -> RunConfig:
    """The configuration with what depends on this machine and on the photos. checkpoint: of the run that goes on."""
    config = settle_perceptual(config, console, asking=asking)
    if checkpoint and not checkpoint["config"].get("shipped"):  # a shipped model goes on with other photos
        return config
    return settle_view(config, cache_dir)


def settle_view(config: RunConfig, cache_dir: Path | None) -> RunConfig:
    """Sets --view-size of a new model with an encoder, if it was not given (dataset.view_side). Several processes,
    whose disks may differ, follow the first."""
    model, data = config.model, config.data
    if data.view_size or not model.encoder:
        return config
    from accelerate.utils import broadcast_object_list

    from Project7.dataset import view_side

    side = view_side(data, model.encoder_size, seed=config.training.seed, cache_dir=cache_dir)
    side = broadcast_object_list([side])[0]
    return config.model_copy(update={"data": data.model_copy(update={"view_size": side})})


def open_images(config: RunConfig, cache_dir: Path | None, console: Console):
    from Project7.counting import counting
    from Project7.dataset import open_dataset

    with counting(console) as progress:
        images = open_dataset(
            config.data, seed=config.training.seed, cache_dir=cache_dir, progress=progress, say=console.print
        )
    for part in images:
        for line in part.summary.lines():
            console.print(line)
    return images


def warnings(config: RunConfig, images, cache_dir: Path | None, accelerator, checkpoint: dict[str, Any] | None):
    """Lines about what is wrong with the settings, and about what would train faster. images: those to train on."""
    from Project7 import feature_cache, precision
    from Project7.run_history import batch_processes
    from Project7.run_summary import warnings_of

    processes = batch_processes(checkpoint, now=accelerator.num_processes)
    done = checkpoint.get("epoch", 0) if checkpoint else 0
    faster = [
        precision.advice(config.training.mixed_precision, accelerator.device, new=not checkpoint),
        feature_cache.advice(config, images, accelerator.device, cache_dir, done=done),
    ]
    said = warnings_of(config, training=len(images.images), processes=processes, done=done)
    return [*said, *filter(None, faster)]


def describe(folder: ModelFolder, config: RunConfig, images, accelerator):
    from Project7.run_summary import run_table

    return run_table(
        folder, config, training=len(images[0].images), validation=len(images[1].images), device=str(accelerator.device)
    )


def refuse_gray(training) -> None:
    """Raises UsageError if all photos are gray, because there is no colour in them to learn."""
    from Project7.metrics import ALL_GRAY, colorfulness

    some = training.images[:: max(1, len(training.images) // 256)]
    if (colorfulness(some) < ALL_GRAY).all():
        raise UsageError(
            f"All {len(some)} of the {len(training.images)} training photos that were checked are gray: there is no "
            "colour in them to learn; give photos in colour with --data."
        )


def settle_perceptual(config: RunConfig, console: Console, *, asking: bool) -> RunConfig:
    """Makes sure that the features of the perceptual term are available before anything else is done.

    If they are not, a person is asked how to go on; if nobody can be asked, WeightsMissing ends the run.
    """
    from Project7.perceptual_loss import WeightsMissing, load_lpips, load_perceptual

    part, load = ("loss", load_lpips) if config.loss else ("objective", load_perceptual)
    while (settings := getattr(config, part)) and settings.perceptual_weight:
        try:
            with console.status("Loading the features of the perceptual term ..."):
                load(settings.perceptual_net, settings.perceptual_weights)
            break
        except WeightsMissing as error:
            if not asking:
                raise
            network = {"alex": "AlexNet", "tiny": "TinyVGG"}.get(settings.perceptual_net, "VGG16")
            tiny = part == "objective" and settings.perceptual_net != "tiny"
            answers = prompts.ask_perceptual(str(error), network, tiny)
            config = config.model_copy(update={part: parse_settings(type(settings), settings.model_dump() | answers)})
    return config


def starting_weights(config: RunConfig, images, console: Console) -> dict[str, Any] | None:
    """What a new model starts with besides random weights: a palette, a pretrained encoder; None for nothing."""
    from Project7.methods import METHODS

    method = METHODS[config.model.method]
    return method.first_weights(config.model, lambda: make_palette(config, images, console)) or None


def make_palette(config: RunConfig, images, console: Console):
    """The palette: read from a file, or fitted to the training images."""
    from Project7.counting import counting
    from Project7.palette import fit_palette, load_palette

    model = config.model
    if model.palette:
        return load_palette(Path(model.palette).expanduser(), bins=model.bins)
    with counting(console) as progress:
        palette = fit_palette(images[0].images, model.bins, seed=config.training.seed, progress=progress)
    line = f"palette: {model.bins} colours, from {palette.counts.sum():,.0f} pixels of the training images"
    console.print(line)
    return palette


def look_at(config: RunConfig, images, weights: dict[str, Any], cache_dir: Path | None, console: Console):
    """The cached maps of the encoder for the training images with --cache-features; else None.

    weights: those that the model begins with, among them those of an encoder that does not come with the toolkit.
    """
    if not config.training.cache_features:
        return None
    from Project7.counting import counting
    from Project7.encoder import Encoder
    from Project7.feature_cache import open_features

    encoder = Encoder(config.model.encoder, config.model.encoder_size)
    begin = "encoder."
    encoder.load_state_dict({key.removeprefix(begin): weights[key] for key in weights if key.startswith(begin)})
    with counting(console) as progress:
        mirror = config.training.mirror
        return open_features(encoder, images, mirror=mirror, cache_dir=cache_dir, progress=progress)


def confirmed(config: RunConfig, images, how: dict[str, Any], console: Console) -> bool:
    """Says how long the run will take, and asks whether to start."""
    from rich.text import Text

    from Project7.run_time import in_words, measure

    with console.status("Measuring a few steps ..."):
        measured = measure(config, images, **how)
    console.print(Text.assemble(("time", "bold"), f"       {in_words(measured)}\n"))
    return prompts.agreed()
