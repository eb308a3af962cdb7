"""The perceptual term: the distance between two pictures in the features of VGG16 (Simonyan & Zisserman 2015).

Features after relu1_2, relu2_2, relu3_3 and relu4_3, as Johnson et al. 2016 take them, each brought to unit length
over its channels as in LPIPS (Zhang et al. 2018, eq. 1, without its learnt weights): so every layer counts alike,
and a network that was never trained still compares on the same scale. The distance itself is not squared: estimates
at low noise are near the truth, and squares of small errors would teach nothing beside the squared error.

Weights come from torchvision's cache or download, from a file, or are random by name; never silently another.
"""

import hashlib
import socket
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from Project7 import color
from Project7.discriminator import MultiScalePatchGAN
from Project7.errors import ProjectError, sentence

__all__ = ["MultiScalePatchGAN", "PerceptualLoss", "WeightsMissing", "load_perceptual"]

_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512)  # up to relu4_3
_LAYERS = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3"}  # positions in torchvision's `features`
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's sRGB, as torchvision's weights expect
_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's VGG16_Weights.IMAGENET1K_V1
_SILENCE = 30  # seconds without a byte, and the download is given up
_SMOOTH = 0.01  # a distance below it counts by its square: the root's slope at 0 is infinite
_LARGEST_AB = 128.0  # Lab units; no estimate of a colour lies beyond


class WeightsMissing(ProjectError):
    """The features of VGG16 cannot be had. The message names the ways to go on."""


class PerceptualLoss(nn.Module):
    """A frozen VGG16 up to relu4_3, and the distance between the features of two pictures.

    name: what the log, the history and the comparison of objectives call it.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.features = make_features()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, rgb: Tensor, truth: Tensor) -> Tensor:
        """sRGB (B, 3, H, W) in [0, 1], H and W of 8 or more -> (B,): the sum over layers of |f - f_true|, 0 to 2 each.

        The mean over places of the distance between unit features; differentiable in `rgb`, smooth at equality.
        """
        with torch.no_grad():
            true_features = self.extract(truth)
        distances = [distance(found, true) for found, true in zip(self.extract(rgb), true_features, strict=True)]
        return torch.stack(distances).sum(dim=0)

    def of_chroma(self, L: Tensor, ab: Tensor, truth: Tensor, ab_mean: Tensor, ab_std: Tensor) -> Tensor:
        """(B,): the distance between a photo in the colours `ab` and in its true ones.

        L (B, 1, H, W), ab and truth (B, 2, H, W) in the network's range; ab_mean, ab_std: see color.join.
        """
        pictures = []
        for chroma in (ab, truth):
            lab = color.join(L, chroma, ab_mean, ab_std)
            lab = torch.cat([lab[:, :1], lab[:, 1:].clamp(-_LARGEST_AB, _LARGEST_AB)], dim=1)
            pictures.append(color.lab_to_rgb(lab))
        return self(*pictures)

    def extract(self, rgb: Tensor) -> list[Tensor]:
        x = (rgb - self.mean) / self.std
        found = []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in _LAYERS:
                found.append(x)
        return found


def distance(found: Tensor, true: Tensor) -> Tensor:
    """(B, C, h, w) twice -> (B,): the mean over places of sqrt(d^2 + s^2) - s, d the distance of the unit features."""
    squared = (unit(found) - unit(true)).square().sum(dim=1)
    return ((squared + _SMOOTH**2).sqrt() - _SMOOTH).mean(dim=(1, 2))


def unit(features: Tensor) -> Tensor:
    """(B, C, h, w) -> the same in float32, of length 1 over the channels; where there is nothing, nothing."""
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-6).rsqrt()


def make_features() -> nn.Sequential:
    """torchvision's vgg16().features up to relu4_3, numbered as there; without its classifier's 120 M weights."""
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG16:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers)


# -- where the weights come from -------------------------------------------------------------------------------------


@cache
def load_perceptual(net: str, weights: str | None = None) -> PerceptualLoss:
    """The perceptual loss by the settings `perceptual_net` and `perceptual_weights`.

    Raises WeightsMissing, which names the ways to go on, where the weights cannot be had.
    """
    if net == "random":
        loss = PerceptualLoss("random VGG16, untrained")
        initialize(loss.features, seed=0)
        return loss.eval()
    loss = PerceptualLoss("VGG16")
    if weights is None:
        fill(loss, download(), str(cached()))
    else:
        fill(loss, read(Path(weights).expanduser()), weights)
        loss.name = f"VGG16 from a file ({digest(loss.features)})"
    return loss.eval()


def initialize(features: nn.Sequential, *, seed: int) -> None:
    """The usual initialization of VGG (He et al. 2015), from a generator of its own: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)


def download() -> dict[str, Tensor]:
    """torchvision's weights of VGG16, from its cache ($TORCH_HOME) or its address, checked by their hash."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)  # torch.hub sets none, and would wait for ever
    try:
        return torch.hub.load_state_dict_from_url(_URL, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # urllib, http, ssl, pickle and torch raise a dozen kinds
        if cached().exists():  # torch.hub puts it there whole, or not at all
            raise missing(f"{cached()} cannot be read ({sentence(error)[:120]}): remove it") from None
        raise missing(f"The weights of VGG16 cannot be downloaded from {_URL} ({sentence(error)})") from None
    finally:
        socket.setdefaulttimeout(before)


def cached() -> Path:
    """Where torchvision keeps its VGG16."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _URL.rsplit("/", 1)[1]


def read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise missing(f"--perceptual-weights {path} does not exist") from None
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        raise missing(f"--perceptual-weights {path} cannot be read as a state dict ({sentence(error)[:120]})") from None


def fill(loss: PerceptualLoss, state: object, source: str) -> None:
    """Puts a VGG16's weights (`features.0.weight` ..., a classifier is left out) into `loss`."""
    expected = loss.features.state_dict()
    state = state if isinstance(state, dict) else {}
    found = {name: state.get(f"features.{name}", state.get(name)) for name in expected}
    wrong = [n for n, t in found.items() if not _is_plain(t) or t.shape != expected[n].shape]
    if wrong:
        raise missing(f"{source} does not hold VGG16 (it has no features.{wrong[0]} of the right shape)")
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise missing(f"{source} holds NaN or infinity")
    loss.features.load_state_dict({name: tensor.float() for name, tensor in found.items()})


def _is_plain(tensor: object) -> bool:
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return plain and not tensor.is_meta and tensor.is_floating_point()


def digest(features: nn.Module) -> str:
    """Eight hexadecimal digits of all weights: another file is another objective."""
    weights = hashlib.sha256()
    for tensor in features.state_dict().values():
        weights.update(tensor.numpy())
    return weights.hexdigest()[:8]


def missing(reason: str) -> WeightsMissing:
    return WeightsMissing(
        f"{reason}. Put torchvision's {_URL.rsplit('/', 1)[1]} into {torch.hub.get_dir()}/checkpoints or name it with "
        "--perceptual-weights FILE, take untrained features with --perceptual-net random (weaker), or none with "
        "--perceptual-weight 0."
    )
