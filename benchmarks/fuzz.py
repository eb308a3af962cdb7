#!/usr/bin/env python
"""Gives damaged files to every reader, and checks that each returns a sound result or raises one clear sentence.

python benchmarks/fuzz.py --images 5000 --checkpoints 1000 --json 600

Images of nine kinds, checkpoints, and config.json with its history are mutated: bytes are changed, cut, repeated and
moved. Checksums inside a file (those of the chunks of a PNG and of the members of a zip) are then repaired, so that the
damage is not caught by them. Anything but a photo, a model that answers with numbers, or a ProjectError is a fault.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from Project7 import program
from Project7.checkpoints import save_checkpoint
from Project7.colorize import Colorizer
from Project7.config import RunConfig, from_json, to_json
from Project7.errors import ProjectError
from Project7.methods import build_model
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder, read_history, summarize
from Project7.photo import open_photo, read_small

SLOW = 20.0  # seconds: a small file that takes longer is a fault too
KINDS = {
    "PNG": {}, "JPEG": {"quality": 90}, "WEBP": {}, "BMP": {}, "AVIF": {}, "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"}, "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "JPEG exif": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
}  # fmt: skip
SMALL = {
    "diffusion": DiffusionConfig(features=(8, 16), time_dim=16, timesteps=20),
    "classification": ClassificationConfig(width=8, blocks=(1, 1, 1, 1), bins=16),
    "regression": RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in (("images", 5000), ("checkpoints", 1000), ("json", 600)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, faults = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        for name, count, cases in (
            ("images", arguments.images, images()),
            ("checkpoints", arguments.checkpoints, checkpoints(Path(place))),
            ("json", arguments.json, texts(Path(place))),
        ):
            ends: Counter[str] = Counter()
            for _ in range(count):
                label, content, door = next(cases)
                end = tried(door, mutated(content, chance))
                ends[end.split(":")[0]] += 1
                if end.startswith("fault"):
                    faults += 1
                    print(f"{name}, {label}: {end}", flush=True)
            print(f"{count} {name}: {', '.join(f'{n} {what}' for what, n in ends.most_common())}", flush=True)
    return 1 if faults else 0


def tried(door: Callable[[bytes], None], content: bytes) -> str:
    """The outcome for a file: accepted, refused, or a fault."""
    begin = time.monotonic()
    try:
        with warnings.catch_warnings(action="ignore"):
            door(content)
        end = "accepted"
    except ProjectError as error:
        end = "refused" if str(error).strip() else "fault: an empty message"
    except Exception as error:
        end = f"fault: {type(error).__name__}: {error}"
    return f"fault: {time.monotonic() - begin:.0f} s" if time.monotonic() - begin > SLOW else end


# -- mutations -------------------------------------------------------------------------------------------------------


def mutated(content: bytes, chance: random.Random) -> bytes:
    if content[:4] == b"PK\x03\x04":
        return mutated_zip(content, chance)
    if content[:4] == b"\x89PNG" and chance.random() < 0.7:
        return mutated_png(content, chance)
    return damaged(content, chance)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with a few bytes changed; sometimes a piece is cut out or repeated, or the end is cut off."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8, 40])):
        data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
    way, a, b = chance.random(), *sorted(chance.randrange(len(data) + 1) for _ in range(2))
    if way < 0.1:
        del data[a:]
    elif way < 0.2:
        del data[a:b]
    elif way < 0.3:
        data[a:a] = data[a:b]
    return bytes(data)


def mutated_png(content: bytes, chance: random.Random) -> bytes:
    """A PNG with one chunk damaged and its checksum repaired, or with a chunk left out or repeated."""
    chunks, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = chance.randrange(len(chunks))
    kind, data = chunks[number]
    if data and chance.random() < 0.8:
        chunks[number] = kind, damaged(data, chance)
    elif chance.random() < 0.5:
        del chunks[number]
    else:
        chunks.insert(chance.randrange(len(chunks)), chunks[number])
    return content[:8] + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
    )


def mutated_zip(content: bytes, chance: random.Random) -> bytes:
    """A zip with one member damaged, most often the pickle that describes the others, and its checksums repaired."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in members if n.endswith("data.pkl")) if chance.random() < 0.6 else chance.choice([*members])
    if members[name]:
        members[name] = damaged(members[name], chance)
    if chance.random() < 0.05:
        del members[chance.choice([*members])]
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


# -- doors -----------------------------------------------------------------------------------------------------------


def images() -> Iterator[tuple[str, bytes, Callable[[bytes], None]]]:
    ramp = np.arange(40 * 30 * 4, dtype=np.uint32).reshape(40, 30, 4) * 13 % 251
    written = {}
    for kind, options in KINDS.items():
        for mode in ("RGB", "L", "RGBA", "P", "I;16", "1"):
            picture = Image.fromarray(ramp.astype(np.uint8))
            picture = Image.fromarray(ramp[..., 0].astype(np.uint16) * 250) if mode == "I;16" else picture.convert(mode)
            content = io.BytesIO()
            try:
                picture.save(content, kind.split()[0], **options)
            except OSError:  # this format has no such pictures
                continue
            written[f"{kind} {mode}"] = content.getvalue()
    while True:
        for label, content in written.items():
            yield label, content, photo_door


def photo_door(content: bytes) -> None:
    read_small_door(content)
    photo = open_photo(content)
    assert photo.rgb.dtype == np.uint8
    assert photo.rgb.ndim == 3


def read_small_door(content: bytes) -> None:
    """The fast reader for training. Its caller translates what it raises, so here only an endless wait is a fault."""
    try:
        picture = read_small(content, 16)
        if picture:
            picture.load()
    except Exception as error:
        if isinstance(error, MemoryError):
            raise


def checkpoints(place: Path) -> Iterator[tuple[str, bytes, Callable[[bytes], None]]]:
    path, written, gray = place / "model.pth", {}, np.full((16, 16, 3), 99, np.uint8)
    for name, config in SMALL.items():
        model = build_model(config)
        if hasattr(model, "set_palette"):
            from Project7.palette import Palette

            model.set_palette(Palette(torch.randn(16, 2) * 30, torch.ones(16, dtype=torch.float64)))
        stored = {"epoch": 1, "model_state_dict": model.state_dict(), "history": [{"epoch": 1, "val_loss": 0.5}]}
        save_checkpoint(path, stored | {"config": RunConfig(model=config).model_dump(mode="json")})
        written[name] = path.read_bytes()

    def door(content: bytes) -> None:
        path.write_bytes(content)
        Colorizer.load(path, device="cpu").colorize(gray)

    while True:
        for label, content in written.items():
            yield label, content, door


def texts(place: Path) -> Iterator[tuple[str, bytes, Callable[[bytes], None]]]:
    folder = ModelFolder(place / "m")
    folder.path.mkdir(exist_ok=True)
    config = to_json(RunConfig(model=SMALL["diffusion"])).encode()
    entry = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.4, "windows": [[10, 10, 0.5, 0.1, 1.0, 2.0, 0]]}
    history = json.dumps([entry, entry | {"epoch": 2}]).encode()

    def config_door(content: bytes) -> None:
        folder.config.write_bytes(content)
        folder.history.write_bytes(history)
        summarize(folder)
        from_json(content.decode("utf-8", "replace"), folder.config)

    def history_door(content: bytes) -> None:
        folder.config.write_bytes(config)
        folder.history.write_bytes(content)
        summarize(folder)
        read_history(folder)

    while True:
        yield "config.json", config, config_door
        yield "training_history.json", history, history_door


if __name__ == "__main__":
    sys.exit(program.run(main))
