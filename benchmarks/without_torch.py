#!/usr/bin/env python
"""How far the pictures of onnxruntime and NumPy are from those of torch, in levels of 255, photo by photo.

python benchmarks/without_torch.py PHOTOS --model base --limit 6
python benchmarks/without_torch.py PHOTOS --hint 40,50,#c03020 --hint 90,20,steelblue
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from Project7.colorize import Colorizer
from Project7.export import export_model
from Project7.model_folder import default_models_dir, find_weights
from Project7.onnx_colorizer import OnnxColorizer
from Project7.photo import open_photo
from Project7.photo_files import LeftOut, find_photos
from Project7.provenance import parse_hint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--model", default="base-classification")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--hint", action="append", default=[], metavar="X,Y,COLOUR")
    arguments = parser.parse_args()
    weights = find_weights(arguments.model, default_models_dir())
    found = [path for path, _ in find_photos(arguments.photos, left_out=LeftOut())]
    how = {"seeds": [0], "hints": [parse_hint(text) for text in arguments.hint]}
    with tempfile.TemporaryDirectory() as place:
        export_model(weights, Path(place, "export"), half=True)
        colorizers = Colorizer.load(weights, device="cpu"), OnnxColorizer(Path(place, "export"))
        largest, beyond = [], []
        for path in found[:: max(1, len(found) // arguments.limit)][: arguments.limit]:
            photo = open_photo(path)
            usual = getattr(colorizers[0].model, "usual", {})
            pictures = [one.colorize_photos([photo], **how, **usual)[0][0].astype(int) for one in colorizers]
            off = np.abs(pictures[0] - pictures[1])
            largest.append(int(off.max()))
            beyond.append(float((off > 1).mean()))
            print(f"{path.name}: at most {largest[-1]}, beyond one level {beyond[-1]:.1e}")
    print(f"{len(largest)} photos: at most {max(largest)} levels; beyond one level {np.mean(beyond):.1e} of all values")


if __name__ == "__main__":
    main()
