"""Perceptual terms: the distance between two pictures in the features of VGG16 (Simonyan & Zisserman 2015) or of the
toolkit's own TinyVGG, and LPIPS.

Features after relu1_2, relu2_2, relu3_3 and relu4_3, as Johnson et al. 2016 take them (of TinyVGG: the last of each
size), each brought to unit length over its channels as in LPIPS (Zhang et al. 2018, eq. 1, without its learnt
weights): so every layer counts alike, and a network that was never trained still compares on the same scale. The
distance itself is not squared: estimates at low noise are near the truth, and squares of small errors would teach
nothing beside the squared error.

Weights come from torchvision's cache or download, from a file, with the package (TinyVGG's), or are random by name;
never silently another.
"""

import socket
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from Project7 import color
from Project7.discriminator import MultiScalePatchGAN
from Project7.errors import ProjectError, sentence
from Project7.feature_networks import MEAN, STD, FeaturesMissing, TinyVGG, digest, load_network

__all__ = ["LPIPS", "MultiScalePatchGAN", "PerceptualLoss", "WeightsMissing", "load_lpips", "load_perceptual"]

_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512)  # up to relu4_3
_LAYERS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3 and relu4_3: positions in torchvision's `features`
_URLS = {  # torchvision's VGG16_Weights and AlexNet_Weights.IMAGENET1K_V1
    "VGG16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "AlexNet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
_LAST_WAYS = "take untrained features with --perceptual-net random (weaker), or none with --perceptual-weight 0"
_SILENCE = 30  # seconds without a byte, and the download is given up
_SMOOTH = 0.01  # a distance below it counts by its square: the root's slope at 0 is infinite
_LARGEST_AB = 128.0  # Lab units; no estimate of a colour lies beyond


class WeightsMissing(ProjectError):
    """The features of a network cannot be had. The message names the ways to go on."""


class PerceptualLoss(nn.Module):
    """A frozen VGG, and the distance between the features of two pictures.

    name: what the log, the history and the comparison of objectives call it. features: its layers, VGG16's up to
    relu4_3 if None; positions: those whose output is compared.
    """

    def __init__(self, name: str, features: nn.Sequential | None = None, positions: Collection[int] = _LAYERS):
        super().__init__()
        self.name, self.positions = name, positions
        self.features = make_features() if features is None else features
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
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
        return self(*(picture(color.join(L, chroma, ab_mean, ab_std)) for chroma in (ab, truth)))

    def extract(self, rgb: Tensor) -> list[Tensor]:
        x = (rgb - self.mean) / self.std
        found = []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in self.positions:
                found.append(x)
        return found


class LPIPS(nn.Module):
    """Learned Perceptual Image Patch Similarity (Zhang et al. 2018, eq. 1), with the weights of the `lpips` package.

    The sum over five layers of w . (f - f_true)^2, the mean over places, f of unit length over the channels. The
    package's own `forward` divides by a length whose slope is infinite at 0 (NaN in the features, which only the ReLU
    before them hides, and a gradient without bound near it), which is why the sum is written out here.
    name: what the log and the history call it.
    """

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self.network, self.name = network, name  # a lpips.LPIPS
        self.requires_grad_(False)

    def forward(self, rgb: Tensor, truth: Tensor) -> Tensor:
        """sRGB (B, 3, H, W) in [0, 1], H and W of 32 or more -> (B,); differentiable in `rgb`."""
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
    """Lab (B, 3, H, W) -> sRGB to compare, differentiable: colours beyond all that exist are brought back first."""
    return color.lab_to_rgb(torch.cat([lab[:, :1], lab[:, 1:].clamp(-_LARGEST_AB, _LARGEST_AB)], dim=1))


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
    if net == "tiny":
        return load_tiny(weights)
    loss = PerceptualLoss("VGG16")
    with naming_the_ways("VGG16", "take the small network that comes with the toolkit with --perceptual-net tiny"):
        source = fill(dict(loss.features.named_parameters()), weights, "VGG16")
    loss.name = f"VGG16{source}"
    return loss.eval()


def load_tiny(weights: str | None) -> PerceptualLoss:
    """The same on TinyVGG, which comes with the package; or on one that benchmarks/train_features.py has trained."""
    try:
        network = load_network("tiny-vgg", None if weights is None else Path(weights).expanduser())
    except FeaturesMissing as error:
        raise WeightsMissing(f"{error} Or take VGG16 (--perceptual-net vgg16), {_LAST_WAYS}.") from None
    source = "" if weights is None else f" from a file ({digest(network.state_dict())[:8]})"
    return PerceptualLoss(f"tiny-vgg{source}", network.features, TinyVGG.LAYERS).eval()


@cache
def load_lpips(net: str, weights: str | None = None) -> LPIPS:
    """LPIPS by the settings `perceptual_net` (alex, vgg, random) and `perceptual_weights` of a LossConfig.

    random: an untrained AlexNet, all of whose channels count alike. Raises WeightsMissing as load_perceptual does.
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
    """The usual initialization of VGG (He et al. 2015), from a generator of its own: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)


def download(trunk: str) -> dict[str, Tensor]:
    """torchvision's weights of VGG16 or AlexNet, from its cache ($TORCH_HOME) or its address, checked by their hash."""
    url, before = _URLS[trunk], socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)  # torch.hub sets none, and would wait for ever
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # urllib, http, ssl, pickle and torch raise a dozen kinds
        kept = cached(trunk)
        if kept.exists():  # torch.hub puts it there whole, or not at all
            raise WeightsMissing(f"{kept} cannot be read ({sentence(error)[:120]}): remove it") from None
        raise WeightsMissing(f"The weights of {trunk} cannot be downloaded from {url} ({sentence(error)})") from None
    finally:
        socket.setdefaulttimeout(before)


def cached(trunk: str) -> Path:
    """Where torchvision keeps that network."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _URLS[trunk].rsplit("/", 1)[1]


def read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsMissing(f"--perceptual-weights {path} does not exist") from None
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        reason = f"--perceptual-weights {path} cannot be read as a state dict ({sentence(error)[:120]})"
        raise WeightsMissing(reason) from None


@torch.no_grad()
def fill(parameters: dict[str, Tensor], file: str | None, trunk: str) -> str:
    """Puts a network's weights, of `file` or of torchvision, into `parameters`, named as in its `features`.

    A file holds `features.0.weight` ..., or `0.weight` ...; a classifier in it is left out. Returns what to say of
    where they came from.
    """
    source = str(cached(trunk)) if file is None else file
    state = download(trunk) if file is None else read(Path(file).expanduser())
    state = state if isinstance(state, dict) else {}
    found = {name: state.get(f"features.{name}", state.get(name)) for name in parameters}
    wrong = [n for n, t in found.items() if not _is_plain(t) or t.shape != parameters[n].shape]
    if wrong:
        raise WeightsMissing(f"{source} does not hold {trunk} (it has no features.{wrong[0]} of the right shape)")
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise WeightsMissing(f"{source} holds NaN or infinity")
    for name, parameter in parameters.items():
        parameter.copy_(found[name])
    return "" if file is None else f" from a file ({digest(parameters)[:8]})"


def _is_plain(tensor: object) -> bool:
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return plain and not tensor.is_meta and tensor.is_floating_point()


@contextmanager
def naming_the_ways(trunk: str, first: str = "") -> Iterator[None]:
    """Adds to a WeightsMissing, which says the reason, the ways to go on; `first` is one before all others."""
    try:
        yield
    except WeightsMissing as error:
        put = f"put torchvision's {cached(trunk).name} into {torch.hub.get_dir()}/checkpoints or name it with"
        ways = ", ".join([first] * bool(first) + [f"{put} --perceptual-weights FILE", _LAST_WAYS])
        raise WeightsMissing(f"{error}. {ways[0].upper()}{ways[1:]}.") from None
