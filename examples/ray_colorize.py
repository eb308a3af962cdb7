#!/usr/bin/env python
"""Colours millions of photos with Ray Data: files are read, a pool of actors colours them, pictures are written.

    pip install "ray[data]"
    python examples/ray_colorize.py photos/ coloured/ --actors 2
    python examples/ray_colorize.py s3://bucket/photos s3://bucket/coloured --actors 64 --gpus 1 --model owner/name

photos/alps/lake.jpg becomes coloured/alps/lake.jpg.png, the picture that `project7 colorize` makes of it. A file that
is not a photo is reported, and the others are still coloured. The toolkit must be installed on every machine.
"""

import argparse
import io
import os
import posixpath
import sys

import pyarrow.fs
import ray


class Painter:
    """An actor, which loads the model once and colours batch after batch with it."""

    def __init__(self, model: str, photos: str, coloured: str):
        from Project7 import Colorizer  # torch, in the actors only

        on_the_hub = "/" in model and not os.path.exists(model)
        self.colorizer = Colorizer.from_pretrained(model) if on_the_hub else Colorizer.load(model)
        self.photos, (self.files, self.coloured) = photos, pyarrow.fs.FileSystem.from_uri(coloured)

    def __call__(self, batch: dict) -> dict:
        from Project7.errors import ProjectError
        from Project7.photo import open_photo

        readable, errors = {}, dict.fromkeys(batch["path"], "")
        for path, content in zip(batch["path"], batch["bytes"], strict=True):
            try:
                readable[path] = open_photo(content)
            except ProjectError as error:
                errors[path] = str(error)
        pictures = self.colorizer.colorize(list(readable.values()))
        for path, picture in zip(readable, pictures, strict=True):
            self.write(posixpath.join(self.coloured, f"{posixpath.relpath(path, self.photos)}.png"), picture)
        return {"path": list(errors), "error": list(errors.values())}

    def write(self, path: str, picture) -> None:
        content = io.BytesIO()
        picture.save(content, "png")
        self.files.create_dir(posixpath.dirname(path))
        with self.files.open_output_stream(path) as file:
            file.write(content.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(description="Colours millions of photos with Ray Data.")
    parser.add_argument("photos", help="a folder, or an address such as s3://bucket/photos")
    parser.add_argument("coloured", help="where the pictures go: a folder or an address")
    parser.add_argument("--model", default="base", help="a name, a path, or owner/name on the Hub (base)")
    parser.add_argument("--actors", type=int, default=2, help="processes that colour (2)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per actor; 0.5 lets two actors share one (0)")
    arguments = parser.parse_args()
    photos, coloured = (p if "://" in p else os.path.abspath(p) for p in (arguments.photos, arguments.coloured))
    root = pyarrow.fs.FileSystem.from_uri(photos)[1]
    # Reading takes a tenth of a core: if the actors took whole cores, none would be left to read, and all would wait.
    done = ray.data.read_binary_files(photos, include_paths=True, num_cpus=0.1).map_batches(
        Painter,
        fn_constructor_args=(arguments.model, root, coloured),
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_cpus=0.9,
        num_gpus=arguments.gpus,
    )
    failed = 0
    for row in done.iter_rows():
        if row["error"]:
            failed += 1
            print(f"{row['path']}: {row['error']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
