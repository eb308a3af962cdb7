"""Two small classifiers of Tiny ImageNet, used for their features: TinyVGG in a loss, JudgeResNet in a measure.

`--perceptual-net tiny` compares pictures in the features of TinyVGG, also on a machine without a network connection.
The Fréchet distance of `project7 evaluate` is measured in the features of JudgeResNet. It is never part of a loss, and
has a different architecture: a model may learn to exploit the weaknesses of the network in its loss, and must not score
better for that.

Their weights are in Project7/weights/ in half precision, made by benchmarks/train_features.py. The header of each file
gives the data, the command and the accuracy.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from Project7.atomic_file import replacing
from Project7.errors import ProjectError, sentence

SIZE = 64  # pixels: side of the photos that both networks were trained with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of each channel of ImageNet's sRGB in [0, 1]
WEIGHTS = Path(__file__).parent / "weights"
_WIDEST = 256  # channels at the end of TinyVGG
_VGG = (32, None, 64, None, 128, 128, None, 256, _WIDEST)  # channels; None is max pooling
_LEVELS = ((32, 1), (64, 1), (128, 1), (192, 2))  # of JudgeResNet: channels and blocks, each at half the size


class FeaturesMissing(ProjectError):
    """The weights of a feature network are missing or unusable."""


def vgg_features(widths: Sequence[int | None], *, norm: bool = False) -> nn.Sequential:
    """The convolutions of a VGG for sRGB, numbered as in torchvision. widths: their channels; None is max pooling."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        before = width
    return nn.Sequential(*layers)


class TinyVGG(nn.Module):
    """A VGG (Simonyan & Zisserman 2015) with six convolutions and 1.2 M weights, for pictures of 64 px.

    norm: with BatchNorm (Ioffe & Szegedy 2015) after each convolution, as in its training; `folded` removes it.
    """

    LAYERS = (1, 4, 9, 14)  # relu1, relu2, relu3_2 and relu4_2: positions in `features`, without norms

    def __init__(self, classes: int = 200, *, norm: bool = False):
        super().__init__()
        self.features = vgg_features(_VGG, norm=norm)
        self.classifier = nn.Linear(_WIDEST, classes)

    def forward(self, rgb: Tensor) -> Tensor:
        """sRGB (B, 3, H, W), uint8 or float in [0, 1] -> logits (B, classes)."""
        return self.classifier(self.features(standardize(rgb)).mean(dim=(2, 3)))


class JudgeResNet(nn.Module):
    """A ResNet with pre-activation (He et al. 2016) and 1.7 M weights, for pictures of 64 px.

    Unlike TinyVGG it starts with a 5 x 5 convolution of stride 2, shrinks by strides, and keeps its norms.
    """

    num_features = _LEVELS[-1][0]

    def __init__(self, classes: int = 200):
        super().__init__()
        before = _LEVELS[0][0]
        self.stem = nn.Conv2d(3, before, 5, stride=2, padding=2)
        blocks = []
        for level, (width, count) in enumerate(_LEVELS):
            for number in range(count):
                blocks.append(Block(before, width, stride=2 if level and number == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(before)
        self.classifier = nn.Linear(before, classes)

    def forward(self, rgb: Tensor) -> Tensor:
        """sRGB (B, 3, H, W), uint8 or float in [0, 1] -> logits (B, classes)."""
        return self.classifier(self.describe(rgb))

    def describe(self, rgb: Tensor) -> Tensor:
        """sRGB (B, 3, H, W), uint8 or float in [0, 1] -> features (B, 192), the mean over places."""
        x = self.blocks(self.stem(standardize(rgb)))
        return F.relu(self.norm(x)).mean(dim=(2, 3))


class JudgeFeatures(nn.Module):
    """The features of a JudgeResNet in the form that torchmetrics asks for. Photos of any size are resized to 64 px."""

    num_features = JudgeResNet.num_features

    def __init__(self, network: JudgeResNet):
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 192) float32."""
        rgb = rgb.float() / 255
        if rgb.shape[-2:] != (SIZE, SIZE):
            rgb = F.interpolate(rgb, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.network.describe(rgb)


class Block(nn.Module):
    """x plus two 3 x 3 convolutions of x, each after BatchNorm and ReLU. If the shape changes, x is projected."""

    def __init__(self, before: int, width: int, *, stride: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(before), nn.BatchNorm2d(width)])
        self.first = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = before == width and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, width, stride, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, width, H / stride, W / stride)."""
        inner = self.first(F.relu(self.norms[0](x)))
        return self.skip(x) + self.second(F.relu(self.norms[1](inner)))


NETWORKS = {"tiny-vgg": TinyVGG, "judge": JudgeResNet}


def standardize(rgb: Tensor) -> Tensor:
    """sRGB (B, 3, H, W), uint8 or float in [0, 1] -> about zero mean and unit variance over photos."""
    rgb = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb
    mean, std = (rgb.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (rgb - mean) / std


def folded(network: TinyVGG) -> TinyVGG:
    """The same function without BatchNorm: each norm, in evaluation mode, is folded into the convolution before it."""
    was_training = network.training
    layers = list(network.eval().features)
    plain = TinyVGG(network.classifier.out_features).eval()
    fused = [
        fuse_conv_bn_eval(conv, norm)
        for conv, norm in itertools.pairwise(layers)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]
    for ours, theirs in zip((m for m in plain.features if isinstance(m, nn.Conv2d)), fused, strict=True):
        ours.load_state_dict(theirs.state_dict())
    plain.classifier.load_state_dict(network.classifier.state_dict())
    network.train(was_training)
    return plain


# -- files -----------------------------------------------------------------------------------------------------------


def save_network(path: Path, name: str, network: nn.Module, about: Mapping[str, str]) -> None:
    """Writes the weights in half precision, with `about` (data, command, accuracy ... as text) in the file's header.

    Raises ProjectError if a weight is not finite, or too large for half precision.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    weights = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_weights(path, weights, {**about, "network": name})


def save_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes tensors unchanged, with their checksum in the header. Raises ProjectError for NaN or infinity."""
    from safetensors.torch import save

    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ProjectError(f"{path} was not written: the weights hold NaN or infinity; train the network again.")
    content = save({key: tensor.contiguous() for key, tensor in weights.items()}, {**about, "digest": digest(weights)})
    with replacing(path) as file:  # files from safetensors' own writer can be read by their owner only
        file.write(content)


def load_network(name: str, path: Path | None = None) -> nn.Module:
    """A network of NETWORKS with the weights of `path`, or with the shipped ones: float32, frozen, in evaluation mode.

    Raises FeaturesMissing, with one sentence, for a file that is missing, damaged or of another network.
    """
    path = shipped(name) if path is None else path
    weights, about = read_weights(path)
    try:
        if about.get("network") != name:
            raise ValueError(f"its header says network {about.get('network')!r}")
        network = NETWORKS[name](len(weights["classifier.bias"]))
        network.load_state_dict(weights, strict=True)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = sentence(error).removeprefix("ValueError: ")[:160]
        raise FeaturesMissing(f"{path} does not hold the network {name} ({reason}); {_cure(name)}.") from None
    return network.requires_grad_(False).eval()


def read_about(name: str, path: Path | None = None) -> dict[str, str]:
    """The header of a file of weights: data, command, accuracy. Raises FeaturesMissing as load_network does."""
    return read_weights(shipped(name) if path is None else path)[1]


def shipped(name: str) -> Path:
    """The file with the weights of a network in this package."""
    return WEIGHTS / f"{name}.safetensors"


def read_weights(path: Path, *, cure: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and the header of a file whose checksum is correct. Raises FeaturesMissing, with the cure, if the
    file is missing, unreadable or damaged."""
    from safetensors import SafetensorError, safe_open

    cure = cure or _cure(path.stem)
    if not path.is_file():
        raise FeaturesMissing(f"There is no {path}; {cure}.")
    try:
        with safe_open(path, "pt") as file:
            weights, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FeaturesMissing(f"{path} cannot be read ({sentence(error)[:120]}); {cure}.") from None
    if about.get("digest") != digest(weights):
        raise FeaturesMissing(f"{path} is damaged: its checksum does not match; {cure}.")
    return weights, about


def _cure(name: str) -> str:
    which = name if name in NETWORKS else "|".join(NETWORKS)
    again = f"python benchmarks/train_features.py --network {which} --data PATH"
    return f"take it from the repository again, or train it: {again}"


def is_plain(tensor: Any) -> bool:
    """Whether this is a dense tensor of real numbers with data."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        and not tensor.is_complex()
    )


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights in the order of their names, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for key in sorted(weights):
        found.update(json.dumps([key, list(weights[key].shape), str(weights[key].dtype)]).encode())
        found.update(weights[key].detach().flatten().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
