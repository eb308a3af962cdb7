"""A frozen network of timm that looks at the photo: it recognizes sky, faces and lawns before any training here.

The encoder was trained on ImageNet and sees the gray picture made from L, once per photo, at an input size of its own.
EfficientNet-Lite2 (Tan & Le 2019, without its squeeze-and-excitation) comes with the toolkit; the weights of other
networks come from timm's download, its cache or a file.

A view is the encoder's input: L with sides of 32 n + 1 pixels. At such sides every stride-2 convolution pads both edges
alike, so that mirroring the photo mirrors the maps, and place i of the map of stride s lies at pixel s i of the view.
"""

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from Project7 import color
from Project7.download import bounded_hub
from Project7.errors import UsageError, sentence
from Project7.feature_networks import FeaturesMissing, digest, read_weights, save_weights, shipped
from Project7.model_config import ENCODER
from Project7.working_size import view_shape

SHIPPED = ENCODER
STRIDES = (8, 16, 32)  # of the maps, fine to coarse
Maps = tuple[Tensor, ...]  # (B, C_k, h_k, w_k) for each stride


class Encoder(nn.Module):
    """view (B, 1, 32 n + 1, 32 m + 1) in [-1, 1] -> maps at strides 8, 16 and 32. It stays frozen, in evaluation mode.

    The weights of the shipped encoder are part of the toolkit and not of checkpoints; those of any other encoder are
    stored in checkpoints, so that `best_model.pth` and the toolkit are all that another machine needs.
    """

    def __init__(self, name: str, size: int):
        super().__init__()
        self.name, self.size = name, size
        if name == SHIPPED:
            with torch.device("cpu"):  # it has values even if the model around it is on the meta device, see rebuild
                self._constant = [shipped_network()]  # in a list, so that nn.Module does not register it
        else:
            self.network = make_network(name).requires_grad_(False)
        network = self._frozen()
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        cfg = network.default_cfg
        self.mean, self.std = float(sum(cfg["mean"]) / 3), float(sum(cfg["std"]) / 3)

    def fingerprint(self) -> str:
        """A digest of the weights, equal for the same encoder on every machine."""
        return digest(self._frozen().state_dict())

    def _frozen(self) -> Any:
        return self._constant[0] if self.name == SHIPPED else self.network

    def _apply(self, fn, recurse=True):
        """Moves the shipped network along to another device or memory format."""
        if self.name == SHIPPED:
            self._constant[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Encoder":
        """Leaves the frozen network in evaluation mode: BatchNorm keeps the statistics of ImageNet."""
        super().train(mode)
        self._frozen().eval()
        return self

    @torch.no_grad()
    def forward(self, view: Tensor) -> Maps:
        gray = color.gray_level(view)  # (B, 1, H, W) in [0, 1]
        rgb = ((gray - self.mean) / self.std).expand(-1, 3, -1, -1)
        return tuple(self._frozen()(rgb.contiguous(memory_format=torch.channels_last)))

    def view(self, L: Tensor) -> Tensor:
        """L (B, 1, H, W) of a photo of any size -> the encoder's input."""
        return resize(L, view_shape(L.shape[-2:], self.size))


def resize(L: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(L.shape[-2:]) == tuple(size):
        return L
    return F.interpolate(L.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)


# -- networks and their weights --------------------------------------------------------------------------------------


def make_network(name: str) -> Any:
    """timm's network with random weights that gives maps at STRIDES. Raises UsageError if it cannot."""
    import timm  # seconds

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:4])
        raise UsageError(
            f"--encoder {name} is not a network of timm; use {SHIPPED}, none, or a name of timm.list_models()"
            f"{f', such as {close}' if close else ''}."
        )
    try:
        with torch.random.fork_rng(devices=[]):  # its random weights must not change those of the model around it
            whole: Any = timm.create_model(name, pretrained=False, features_only=True)
            levels = whole.feature_info.reduction()
            places = tuple(levels.index(stride) for stride in STRIDES)
            network = timm.create_model(name, pretrained=False, features_only=True, out_indices=places)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--encoder {name} does not give maps at strides 8, 16 and 32 ({sentence(error)[:100]}); use a "
            f"convolutional network of timm, such as {SHIPPED} or resnet34."
        ) from None
    return network.eval()


def encoder_weights(name: str, file: str | None) -> dict[str, Tensor]:
    """The weights of an encoder that does not come with the toolkit, by their names in `Encoder(name).state_dict()`.

    file: in timm's or torchvision's format, .pth or .safetensors; None uses timm's download or its cache.
    Raises FeaturesMissing, with the ways to get them, if they cannot be loaded.
    """
    import timm

    ways = (
        f"connect once to download it, give a file of timm's with --encoder-weights FILE, or use --encoder {SHIPPED}, "
        "which comes with the toolkit"
    )
    try:
        levels = make_network(name).feature_info.out_indices
        source: dict[str, Any] = {"pretrained": True}
        if file is not None:
            path = Path(file).expanduser()
            if not path.is_file():
                raise FeaturesMissing(f"--encoder-weights {file} does not exist; give a file of timm's weights.")
            source["pretrained_cfg_overlay"] = {"file": str(path)}
        with bounded_hub() if file is None else contextlib.nullcontext():
            network = timm.create_model(name, features_only=True, out_indices=levels, **source)
    except FeaturesMissing:
        raise
    except Exception as error:  # hub, urllib, pickle and torch raise a dozen kinds
        raise FeaturesMissing(
            f"The weights of --encoder {name} cannot be loaded ({sentence(error)[:120]}); {ways}."
        ) from None
    return {f"network.{key}": tensor for key, tensor in network.state_dict().items()}


def first_weights(name: str | None, file: str | None) -> dict[str, Tensor]:
    """The encoder's weights for a new model, by their names in the model; empty for the encoder of the toolkit."""
    found = {} if name in (None, SHIPPED) else encoder_weights(name, file)
    return {f"encoder.{key}": tensor for key, tensor in found.items()}


@functools.cache
def _shipped_network() -> Any:
    weights, _ = read_weights(shipped(SHIPPED))
    network = make_network(SHIPPED)
    here = {key: weights[key].float() for key in network.state_dict() if key in weights}  # not the classifier's
    counters = {key for key in network.state_dict() if key.endswith("num_batches_tracked")}
    faults = network.load_state_dict(here, strict=False)
    if set(faults.missing_keys) - counters:
        raise FeaturesMissing(f"{shipped(SHIPPED)} does not hold {SHIPPED}; take it from the repository again.")
    return fold_norms(network).requires_grad_(False).to(memory_format=torch.channels_last)


def shipped_network() -> Any:
    """The encoder that comes with the toolkit. Raises FeaturesMissing if its file is missing or damaged."""
    return copy.deepcopy(_shipped_network())


def fold_norms(network: nn.Module) -> nn.Module:
    """The same function with each BatchNorm folded into the convolution before it: a third faster on CPUs.

    timm registers layers in the order in which they run, and keeps the activation inside the norm. Raises ValueError if
    the result would not be the same function.
    """
    folded = copy.deepcopy(network).eval()
    for parent in list(folded.modules()):
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                before = name, child
            elif isinstance(child, nn.BatchNorm2d) and before:
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                before = None
    picture = torch.linspace(-1, 1, 3 * 65 * 65).view(1, 3, 65, 65)
    with torch.no_grad():
        pairs = zip(network(picture), folded(picture), strict=True)
        if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in pairs):
            raise ValueError("folding the norms changed the network")
    return folded


def write_weights(path: Path, weights: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes convolutions and matrices in half precision, the statistics of norms, with their larger range, in full."""
    kept = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    halves = {key: tensor.half() if tensor.ndim > 1 else tensor.float() for key, tensor in kept.items()}
    save_weights(path, halves, about)
