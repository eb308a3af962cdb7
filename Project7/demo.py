"""`project7 demo`: colours real photos without any download, with the shipped model, or with `--train` with a small
model that is trained on the spot and has not seen them.
"""

import shutil
from pathlib import Path

import numpy as np
from rich.console import Console

from Project7 import model_folder, recipe
from Project7.config import RunConfig
from Project7.console import make_console
from Project7.invocation import command
from Project7.model_config import DiffusionConfig
from Project7.model_folder import ModelFolder
from Project7.training_config import DataConfig, TrainingConfig

# The photos that a model trained here colours, and is never trained on, with what it can know of them.
HELD_OUT = {
    "motorcycle_right": "seen by the second of two cameras; the first one's photo was trained on",
    "coffee": "nothing like it was trained on, so its colours are guesses",
}
_SECONDS = 200  # of training, after which it stops; the weights of the best epoch are used
_CONFIG = RunConfig(
    model=DiffusionConfig.model_validate({"features": (32, 64, 128), "chroma_scale": 2}),
    data=DataConfig(crops=(500,), val_limit=1),
    training=TrainingConfig(
        epochs=100, batch_size=32, learning_rate=5e-4, ema_decay=0.99, image_interval=0, mixed_precision="auto"
    ),
)


def run_demo(output: Path, models_dir: Path, *, train: bool = False) -> int:
    """Writes gray | colour | truth and the full-size colour picture of each photo to `output`. Returns an exit code."""
    console = make_console(wrap=False)
    output.mkdir(parents=True, exist_ok=True)
    if train:
        folder = ModelFolder(output / "models" / "demo")
        stopped = train_small(folder, output / "photos", console)
        if stopped:
            return stopped
    else:
        folder = model_folder.existing_folder(models_dir, "base")
        console.print(f"Colouring with the shipped model {folder.path}, which has seen none of these photos.")
    show_photos(folder, output, console, trained=train)
    return 0


def train_small(folder: ModelFolder, photos: Path, console: Console) -> int:
    """Trains a small model on crops of the sample photos that are not held out, in three to four minutes.

    Returns the exit code, which is not 0 if training was stopped.
    """
    if folder.best.exists():
        console.print(f"Colouring with the model that an earlier demo trained: {folder.path}.")
        return 0
    with console.status("Starting ..."):
        from Project7.photo_source import sample_photos
        from Project7.precision import settle_precision
        from Project7.trainer import make_accelerator, train

    kept = {name: path for name, path in sample_photos().items() if name not in HELD_OUT}
    console.print(
        f"A small model is trained first, on crops of {len(kept)} photos ({', '.join(kept)}). "
        f"The photos it will colour ({', '.join(HELD_OUT)}) are not among them.",
    )
    lay_out(photos, kept)
    config = _CONFIG.model_copy(update={"data": _CONFIG.data.model_copy(update={"data": (str(photos),)})})
    config, said = settle_precision(config)
    console.print(said)
    images = recipe.open_images(config, None, console)
    model_folder.create(folder)
    accelerator = make_accelerator(config.training)
    run = train(config, folder, images, accelerator=accelerator)
    _, stop = recipe.watch(run, folder, config, accelerator, console, seconds=_SECONDS)
    return stop.exit_code


def lay_out(photos: Path, kept: dict[str, Path]) -> None:
    """Lays out a data set of the kept photos: all for training, and the first one also for validation."""
    shutil.rmtree(photos, ignore_errors=True)
    for part, paths in {"train": list(kept.values()), "val": list(kept.values())[:1]}.items():
        (photos / part).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, photos / part)


def show_photos(folder: ModelFolder, output: Path, console: Console, *, trained: bool) -> None:
    """Colours the sample photos, or if the model was trained on some of them the others, and says where the pictures
    are."""
    from Project7.color import channels_first, channels_last, gray
    from Project7.colorize import Colorizer
    from Project7.photo import open_photo, save_png
    from Project7.photo_source import sample_photos
    from Project7.sheet import side_by_side

    samples = sample_photos()
    if trained:
        place = samples["coffee"].parent
        samples = {name: place / f"{name}.png" for name in HELD_OUT}
    with console.status("Colouring ..."):
        colorizer = Colorizer.load(folder.best)
        for name, path in samples.items():
            photo = open_photo(path)
            picture = np.asarray(colorizer.colorize(photo))
            without = channels_last(gray(channels_first(photo.rgb)[None]))[0]
            save_png(output / f"{name}.png", picture)
            save_png(output / f"{name}-gray-colour-truth.png", side_by_side([without, picture, photo.rgb]))
    for name in samples:
        console.print(f"\n{name}{f': {HELD_OUT[name]}' if trained else ''}")
        console.print(f"  gray | colour | truth   {output / f'{name}-gray-colour-truth.png'}")
        console.print(f"  in colour, full size    {output / f'{name}.png'}")
    more = "A model that has seen more knows more: python Project7/train_diffusion.py"
    program = command()
    yours = f"Your photos: {program} colorize PHOTO\nIn the browser: {program} serve --open\n"
    yours += f"A model of your own from a few photos: {program} demo --train"
    console.print(f"\n{more if trained else yours}")
