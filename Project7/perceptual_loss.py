"""Perceptual terms: the distance between two pictures in the features of VGG16 (Simonyan & Zisserman 2015) or of the
toolkit's own TinyVGG, and LPIPS.

The features are those after relu1_2, relu2_2, relu3_3 and relu4_3, as in Johnson et al. 2016 (for TinyVGG: the last at
each size), each normalized to unit length over its channels as in LPIPS (Zhang et al. 2018, eq. 1, without its learnt
weights). So every layer has the same weight, and an untrained network compares on the same scale. The distance is not
squared: estimates at low noise are close to the truth, and the squares of such small errors would vanish beside the
squared error of the method.

Weights come from torchvision's cache or its download, from a file, or with the package (TinyVGG's); random ones are
used only if they are asked for by name.
"""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Project7 import color
from Project7.discriminator import MultiScalePatchGAN
from Project7.download import bounded
from Project7.errors import ProjectError, sentence
from Project7.feature_networks import (
    MEAN,
    STD,
    FeaturesMissing,
    TinyVGG,
    digest,
    is_plain,
    load_network,
    vgg_features,
)

__all__ = ["LPIPS", "MultiScalePatchGAN", "PerceptualLoss", "WeightsMissing", "load_lpips", "load_perceptual"]

_VGG16 = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512)  # up to relu4_3
_LAYERS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3 and relu4_3: positions in torchvision's `features`
_URLS = {  # torchvision's VGG16_Weights and AlexNet_Weights.IMAGENET1K_V1
    "VGG16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "AlexNet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
_LAST_WAYS = "take untrained features with --perceptual-net random (weaker), or none with --perceptual-weight 0"
_SMOOTH = 0.01  # below this the distance is nearly quadratic, because the slope of the square root is infinite at 0
_LARGEST_AB = 128.0  # Lab units: larger estimates are clamped


class WeightsMissing(ProjectError):
    """The weights of a feature network are not available. The message names the alternatives."""


class PerceptualLoss(nn.Module):
    """A frozen VGG, and the distance between its features of two pictures.

    name: as shown in the log, in the history and in comparisons of objectives. features: the layers (None: VGG16 up to
    relu4_3). positions: indices of the layers whose outputs are compared.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(self, name: str, features: Any = None, positions: Collection[int] = _LAYERS):
        super().__init__()
        self.name, self.positions = name, positions
        self.features = vgg_features(_VGG16) if features is None else features
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, rgb: Tensor, truth: Tensor) -> Tensor:
        """sRGB (B, 3, H, W) in [0, 1], H and W at least 8 -> (B,): the sum over layers of |f - f_true|, each 0 to 2.

        |f - f_true| is the mean over positions of the distance between unit features. Differentiable in `rgb`, and
        smooth where the two are equal.
        """
        with torch.no_grad():
            true_features = self.extract(truth)
        distances = [distance(found, true) for found, true in zip(self.extract(rgb), true_features, strict=True)]
        return torch.stack(distances).sum(dim=0)

    def of_chroma(self, L: Tensor, ab: Tensor, truth: Tensor, ab_mean: Tensor, ab_std: Tensor) -> Tensor:
        """(B,): the distance between a photo in the colours `ab` and the same photo in its true colours.

        L (B, 1, H, W), ab and truth (B, 2, H, W) in the network's range; ab_mean, ab_std: see color.join.
        """
        return self(*(picture(color.join(L, chroma, ab_mean, ab_std)) for chroma in (ab, truth)))

    def extract(self, rgb: Tensor) -> list[Tensor]:
        """The outputs of the layers at `positions`, (B, C_k, H_k, W_k) each."""
        x = (rgb - self.mean) / self.std
        found = []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in self.positions:
                found.append(x)
        return found


class LPIPS(nn.Module):
    """Learned Perceptual Image Patch Similarity (Zhang et al. 2018, eq. 1), with the weights of the `lpips` package.

    The sum over five layers of w . (f - f_true)^2, averaged over positions, with f of unit length over the channels.
    The package's own `forward` divides by a length whose slope is infinite at 0: the gradient of the features is NaN
    there, which only the ReLU before them hides, and has no bound nearby. So the sum is written out here.
    name: as shown in the log and in the history.
    """

    def __init__(self, network: Any, name: str):
        super().__init__()
        self.network, self.name = network, name  # a lpips.LPIPS
        self.requires_grad_(False)

    def forward(self, rgb: Tensor, truth: Tensor) -> Tensor:
        """sRGB (B, 3, H, W) in [0, 1], H and W at least 32 -> (B,); differentiable in `rgb`."""
        with torch.no_grad():
            true_features = self.extract(truth)
        distances = []
        for layer, (found, true) in enumerate(zip(self.extract(rgb), true_features, strict=True)):
            squared = (unit(found) - unit(true)).square()
            weighed = self.network.lins[layer](squared) if self.network.lpips else squared.sum(dim=1, keepdim=True)
            distances.append(weighed.float().mean(dim=(1, 2, 3)))
        return torch.stack(distances).sum(dim=0)

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)  # its layers have dropout

    def extract(self, rgb: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.net(self.network.scaling_layer(2 * rgb - 1)))


def picture(lab: Tensor) -> Tensor:
    """Lab (B, 3, H, W) -> sRGB (B, 3, H, W) to compare; differentiable. Impossible values of ab are clamped first."""
    return color.lab_to_rgb(torch.cat([lab[:, :1], lab[:, 1:].clamp(-_LARGEST_AB, _LARGEST_AB)], dim=1))


def distance(found: Tensor, true: Tensor) -> Tensor:
    """Features (B, C, h, w) twice -> (B,): the mean over positions of sqrt(d^2 + s^2) - s, where d is the distance
    between unit features and s = 0.01."""
    squared = (unit(found) - unit(true)).square().sum(dim=1)
    return ((squared + _SMOOTH**2).sqrt() - _SMOOTH).mean(dim=(1, 2))


def unit(features: Tensor) -> Tensor:
    """(B, C, h, w) -> the same in float32 with length 1 over the channels; zero stays zero."""
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-6).rsqrt()


# -- where the weights come from -------------------------------------------------------------------------------------


@cache
def load_perceptual(net: str, weights: str | None = None) -> PerceptualLoss:
    """The perceptual loss for the settings `perceptual_net` and `perceptual_weights`.

    Raises WeightsMissing, which names the alternatives, if the weights are not available.
    """
    if net == "random":
        loss = PerceptualLoss("random VGG16, untrained")
        initialize(loss.features, seed=0)
        return loss.eval()
    if net == "tiny":
        return load_tiny(weights)
    loss = PerceptualLoss("VGG16")
    with naming_the_ways("VGG16", "take the small network that comes with the toolkit with --perceptual-net tiny"):
        source = fill(dict(loss.features.named_parameters()), weights, "VGG16")
    loss.name = f"VGG16{source}"
    return loss.eval()


def load_tiny(weights: str | None) -> PerceptualLoss:
    """The perceptual loss on TinyVGG, with the weights of the package or from benchmarks/train_features.py."""
    try:
        network = load_network("tiny-vgg", None if weights is None else Path(weights).expanduser())
    except FeaturesMissing as error:
        raise WeightsMissing(f"{error} Or take VGG16 (--perceptual-net vgg16), {_LAST_WAYS}.") from None
    source = "" if weights is None else f" from a file ({digest(network.state_dict())[:8]})"
    return PerceptualLoss(f"tiny-vgg{source}", network.features, TinyVGG.LAYERS).eval()


@cache
def load_lpips(net: str, weights: str | None = None) -> LPIPS:
    """LPIPS for the settings `perceptual_net` (alex, vgg, random) and `perceptual_weights` of a LossConfig.

    random: an untrained AlexNet whose channels all have the same weight. Raises WeightsMissing as load_perceptual does.
    """
    import lpips

    trained = net != "random"
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # lpips calls torchvision the old way
        torch.manual_seed(0)
        network = lpips.LPIPS(net=net if trained else "alex", lpips=trained, pnet_rand=True, verbose=False)
    if not trained:
        return LPIPS(network, "LPIPS of a random AlexNet, untrained").eval()
    trunk = {"alex": "AlexNet", "vgg": "VGG16"}[net]
    with naming_the_ways(trunk):
        source = fill({name.split(".", 1)[1]: p for name, p in network.net.named_parameters()}, weights, trunk)
    return LPIPS(network, f"LPIPS of {trunk}{source}").eval()


def initialize(features: nn.Sequential, *, seed: int) -> None:
    """The usual initialization of VGG (He et al. 2015), from its own generator: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def download(trunk: str) -> dict[str, Tensor]:
    """torchvision's weights of VGG16 or AlexNet, from its cache ($TORCH_HOME) or downloaded, checked by their hash.

    Raises WeightsMissing if they are damaged or cannot be downloaded.
    """
    url = _URLS[trunk]
    try:
        with bounded():
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # urllib, http, ssl, pickle and torch raise a dozen kinds
        kept = cached(trunk)
        if kept.exists():  # torch.hub never leaves half a file there
            raise WeightsMissing(f"{kept} cannot be read ({sentence(error)[:120]}): remove it") from None
        raise WeightsMissing(f"The weights of {trunk} cannot be downloaded from {url} ({sentence(error)})") from None


def cached(trunk: str) -> Path:
    """The file in which torchvision caches this network."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _URLS[trunk].rsplit("/", 1)[1]


def read_file(path: Path) -> dict[str, Tensor]:
    """The state dict in the file of --perceptual-weights. Raises WeightsMissing if it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsMissing(f"--perceptual-weights {path} does not exist") from None
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        reason = f"--perceptual-weights {path} cannot be read as a state dict ({sentence(error)[:120]})"
        raise WeightsMissing(reason) from None


@torch.no_grad()
def fill(parameters: dict[str, Tensor], file: str | None, trunk: str) -> str:
    """Copies the weights of a network, from `file` or from torchvision, into `parameters`, named as in its `features`.

    The file holds `features.0.weight` ..., or `0.weight` ...; a classifier in it is ignored. Returns where the weights
    came from, in words. Raises WeightsMissing if they are missing, of other shapes, or not finite.
    """
    source = str(cached(trunk)) if file is None else file
    state = download(trunk) if file is None else read_file(Path(file).expanduser())
    state = state if isinstance(state, dict) else {}
    found: dict[str, Any] = {name: state.get(f"features.{name}", state.get(name)) for name in parameters}
    real = {name: t for name, t in found.items() if is_plain(t) and t.is_floating_point()}
    wrong = [name for name, own in parameters.items() if name not in real or real[name].shape != own.shape]
    if wrong:
        raise WeightsMissing(f"{source} does not hold {trunk} (it has no features.{wrong[0]} of the right shape)")
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise WeightsMissing(f"{source} holds NaN or infinity")
    for name, parameter in parameters.items():
        parameter.copy_(found[name])
    return "" if file is None else f" from a file ({digest(parameters)[:8]})"


@contextmanager
def naming_the_ways(trunk: str, first: str = "") -> Iterator[None]:
    """Adds the alternatives to the reason in a WeightsMissing; `first` is named before the others."""
    try:
        yield
    except WeightsMissing as error:
        put = f"put torchvision's {cached(trunk).name} into {torch.hub.get_dir()}/checkpoints or name it with"
        ways = ", ".join(way for way in (first, f"{put} --perceptual-weights FILE", _LAST_WAYS) if way)
        raise WeightsMissing(f"{error}. {ways[0].upper()}{ways[1:]}.") from None
