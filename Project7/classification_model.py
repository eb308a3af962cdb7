"""ClassificationColorizer: every pixel's colour as one of 313 classes, decoded by the annealed mean.

After Zhang et al. 2016 (Colorful Image Colorization), on a U-Net whose encoder is ResNet34 (He et al. 2016):

    L -> encoder -> self-attention -> histogram of the whole picture -> decoder (gated skips, FiLM) -> three heads
    ab_class (Q classes), ab_residual (a bounded offset), confidence (is the decoded colour within 10 Lab units?)
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7 import color, encoder
from Project7.answer_options import METHOD_OPTIONS
from Project7.batch import Batch, BatchRandom, Estimate, Step
from Project7.download import bounded
from Project7.encoder import Encoder, Maps
from Project7.errors import ProjectError, sentence
from Project7.export_parts import ExportParts, one_pass
from Project7.guided_filter import expand, pad_to_multiple, shrink
from Project7.layers import AttentionGate, FiLM, ResBlock, SelfAttention2d, group_norm
from Project7.model_config import ClassificationConfig
from Project7.palette import Palette, SoftEncoder, annealed_mean, palette_weights, rarity_weights

HISTOGRAM_BINS = 64  # per channel
_REACH = 110.0  # Lab units: the histograms cover [-110, 110]
_NUDGE = 10.0  # Lab units: bound of the residual, about the distance between two rare centres
_CLOSE = 10.0  # Lab units: for the confidence, a smaller error counts as right
_WEIGHTS = {"class": 1.0, "residual": 1.0, "confidence": 0.1, "histogram": 0.1}  # of the terms of the loss
_WAVES = 64  # random Fourier features of the noise that makes variants
_COLOUR_SCALE = 25.0  # Lab units: classes nearer than this get nearly the same noise
_PATCH = 8  # cells: parts of the picture nearer than this get nearly the same noise


class GlobalColorContextHead(nn.Module):
    """Predicts the histograms of a and b over the whole picture: (B, C, H, W) -> logits (B, 2, 64).

    Their softmax conditions the decoder.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 512), nn.ReLU(), nn.Linear(512, 2 * HISTOGRAM_BINS))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3))).unflatten(1, (2, HISTOGRAM_BINS))


class DecoderStage(nn.Module):
    """x (B, C, h, w) and a skip connection (B, S, 2h, 2w) -> (B, C', 2h, 2w), modulated by the picture's histograms."""

    def __init__(self, before: int, skip: int, after: int):
        super().__init__()
        self.gate = AttentionGate(skip, before)
        self.block = ResBlock(before + skip, after)
        self.film = FiLM(2 * HISTOGRAM_BINS, after)

    def forward(self, x: Tensor, skip: Tensor, context: Tensor) -> Tensor:
        gated = self.gate(skip, x)
        x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
        return self.film(self.block(torch.cat([x, gated], dim=1)), context)


class ClassificationColorizer(nn.Module):
    """`forward` is a training step; `colorize` colours pictures of any size in one pass.

    The palette is part of the weights: a new model has none before `set_palette`.
    """

    OPTIONS = METHOD_OPTIONS["classification"]  # of colorize
    LOSS = "classification"
    METRICS = ()  # further metrics of a step that validation reports

    centres: Tensor  # (Q, 2), ab in Lab units
    counts: Tensor  # (Q,)
    ab_mean: Tensor  # (2,)
    ab_std: Tensor

    def __init__(self, config: ClassificationConfig):
        super().__init__()
        self.config = config
        width = config.width
        if config.encoder:
            self.encoder: Any = Encoder(config.encoder, config.encoder_size)
            self.levels = FrozenLevels(self.encoder.channels, config)
        else:
            self.encoder = ResNet34(config)
        self.attention = SelfAttention2d(8 * width)
        self.context = GlobalColorContextHead(8 * width)
        channels = (8 * width, 4 * width, 2 * width, width)
        self.decoder = nn.ModuleList(DecoderStage(before, after, after) for before, after in pairwise(channels))
        self.ab_class = nn.Conv2d(width, config.bins, 1)
        self.ab_residual = nn.Conv2d(width, 2, 1)
        self.confidence_head = nn.Conv2d(width, 1, 1)
        self.register_buffer("centres", torch.zeros(config.bins, 2))
        self.register_buffer("counts", torch.zeros(config.bins))
        self.tables: tuple[SoftEncoder, Tensor] | None = None  # made from the palette at first use
        with torch.device("cpu"):  # constants have values even if the weights are on the meta device, see rebuild
            constants = {"ab_mean": torch.tensor(config.ab_mean), "ab_std": torch.tensor(config.ab_std)}
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @staticmethod
    def first_weights(config: ClassificationConfig, make_palette: Callable[[], Palette]) -> dict[str, Tensor]:
        """The weights of a new model that are not random: those of the encoder, if wanted, and the palette."""
        found = encoder.first_weights(config.encoder, config.encoder_weights)
        if config.encoder_weights and not config.encoder:
            found = encoder_start(load_resnet34(config.encoder_weights))
        return found | palette_weights("", make_palette())

    def comparison_options(self) -> dict[str, Any]:
        """Options of `colorize` for the comparison pictures of a run."""
        return {}

    def shown(self, L: Tensor, random: BatchRandom) -> Tensor:
        """The network's input for a training photo: L itself."""
        return L

    def export_parts(self) -> ExportParts:
        """One graph: L -> ab, by the annealed mean at the model's own temperature, and the confidence."""

        def classify(L: Tensor, view: Tensor | None = None) -> tuple[Tensor, Tensor]:
            logits, residual, confidence, _ = self.network(L, None if view is None else self.encoder(view))
            ab = self.from_lab(annealed_mean(logits, self.centres, self.config.temperature) + residual)
            return self.expand(ab, L), F.interpolate(torch.sigmoid(confidence), L.shape[-2:], mode="bilinear")

        outputs = {"ab": ("a", "b"), "confidence": ("probability",)}
        return one_pass(classify, outputs, sees=bool(self.config.encoder))

    def set_palette(self, palette: Palette) -> None:
        self.centres.copy_(palette.centres)
        self.counts.copy_(palette.counts)
        self.tables = None

    # -- training ----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Step:
        """The loss of the three heads and of the histograms; see `losses`."""
        truth = self.to_lab(self.shrink(batch.ab))  # (B, 2, h, w), Lab units
        maps = self.look(batch.seen) if batch.maps is None else batch.maps
        logits, residual, confidence, histograms = self.network(batch.L, maps)
        terms = self.losses(logits, residual, confidence, histograms, truth)
        loss = sum(_WEIGHTS[name] * value for name, value in terms.items())
        estimate = None
        if batch.image_share:
            places = (batch.random.spread("image samples") < batch.image_share).nonzero()[:, 0].to(loss.device)
            ab = self.from_lab(annealed_mean(logits[places], self.centres, self.config.temperature) + residual[places])
            L, true_ab = batch.L[places], self.from_lab(truth[places])
            weight = torch.full_like(loss[places].detach(), 1 / batch.image_share)
            estimate = Estimate(self.expand(ab, L), self.expand(true_ab, L), L, weight)
        return Step(loss, {name: value.detach() for name, value in terms.items()}, estimate)

    def losses(self, logits: Tensor, residual: Tensor, confidence: Tensor, histograms: Tensor, truth: Tensor):
        """The terms of the loss, name -> (B,). truth: (B, 2, h, w) in Lab units.

        class: cross-entropy with the soft target, rebalanced and focal (Zhang et al. 2016, eq. 2; Lin et al. 2017,
        eq. 4). residual: L1 between the decoded colour plus the residual and the truth, in units of ab's standard
        deviation; the decoded colour is detached, so that only the cross-entropy trains the classes.
        confidence: the log score (a proper scoring rule) of the probability that the answer is within 10 Lab units.
        histogram: cross-entropy with the true histograms of a and of b.
        """
        decoded = annealed_mean(logits.detach(), self.centres, self.config.temperature)
        off = decoded + residual - truth
        close = (off.detach().norm(dim=1, keepdim=True) < _CLOSE).float()
        log_histograms = torch.log_softmax(histograms.float(), dim=-1)
        return {
            "class": self.class_loss(logits, truth).mean(dim=(1, 2)),
            "residual": (off / self.ab_std[:, None, None]).abs().mean(dim=(1, 2, 3)),
            "confidence": F.binary_cross_entropy_with_logits(confidence.float(), close, reduction="none").mean(
                [1, 2, 3]
            ),
            "histogram": -(true_histograms(truth) * log_histograms).sum(dim=-1).mean(dim=1),
        }

    def class_loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(B, h, w): - w sum_k z_k (1 - p_k)^gamma log p_k over the 5 classes k around the true colour."""
        encode, rarity = self.encoding(truth)
        classes, soft = encode(truth)  # (B, 5, h, w) twice, the nearest class first
        log_p = logits.float().gather(1, classes) - logits.float().logsumexp(dim=1, keepdim=True)
        if self.config.focal_gamma:
            soft = soft * (1 - log_p.exp()).clamp(min=1e-6) ** self.config.focal_gamma
        return rarity[classes[:, 0]] * -(soft * log_p).sum(dim=1)

    def encoding(self, ab: Tensor) -> tuple[SoftEncoder, Tensor]:
        """The soft encoding of colours in Lab units (classes and weights), and the rarity weight of each class (Q,)."""
        if self.tables is None:
            weights = rarity_weights(Palette(self.centres.cpu(), self.counts.cpu()), 1 - self.config.rebalance)
            self.tables = (SoftEncoder(self.centres.cpu()).to(ab.device), weights.to(ab.device))
        return self.tables

    # -- use ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def colorize(
        self,
        L: Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        hints: tuple[Tensor, Tensor] | None = None,
        maps: Maps | None = None,
        temperature: float | None = None,
        variety: float = 0.0,
        watch_confidence: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """L (B, 1, H, W) in [-1, 1] -> ab (B, 2, H, W), in the network's range, in one pass of the network.

        temperature: of the annealed mean; None is the model's own. variety: 0 gives the likeliest answer; above 0,
        noise from `generator` (one for all pictures, or one per picture) changes classes, by regions rather than by
        pixels. maps: the result of `look`, for the photo itself if that is larger than L; None: of L.
        watch_confidence: called with the result of `confidence`, without a second pass of the network.
        """
        if hints is not None:
            raise ValueError("a classification model cannot take colour hints")
        logits, residual, confidence, _ = self.network(L, maps)
        if watch_confidence:
            watch_confidence(self.probability(confidence, L))
        if variety:
            logits = logits + variety * class_noise(self.centres, len(L), logits.shape[-2:], generator).to(logits)
        temperature = self.config.temperature if temperature is None else temperature
        return self.expand(self.from_lab(annealed_mean(logits, self.centres, temperature) + residual), L)

    @torch.no_grad()
    def distribution(self, L: Tensor, maps: Maps | None, hints: None = None) -> tuple[Tensor, Tensor]:
        """The distribution over the palette: logits (B, Q, h, w), and the colours (Q, 2) in Lab units."""
        return self.network(L, maps)[0], self.centres

    @torch.no_grad()
    def confidence(self, L: Tensor, maps: Maps | None = None) -> Tensor:
        """L (B, 1, H, W) -> (B, 1, H, W): the probability that a pixel's colour is within 10 Lab units of the truth."""
        return self.probability(self.network(L, maps)[2], L)

    def probability(self, confidence: Tensor, L: Tensor) -> Tensor:
        """The output of the confidence head (B, 1, h, w) -> probabilities (B, 1, H, W) in [0, 1], at the size of L."""
        return F.interpolate(torch.sigmoid(confidence.float()), L.shape[-2:], mode="bilinear", align_corners=False)

    # -- the network -------------------------------------------------------------------------------------------------

    def look(self, view: Tensor) -> Maps | None:
        """The feature maps of a frozen encoder for L (B, 1, H, W) of any size; None for the own ResNet34."""
        return self.encoder(self.encoder.view(view)) if self.config.encoder else None

    def network(self, L: Tensor, maps: Maps | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """L (B, 1, H, W) -> logits (B, Q, h, w), residual (B, 2, h, w) in Lab units, confidence (B, 1, h, w) before
        the sigmoid, histograms (B, 2, 64) before the softmax; h = H / stem_stride, rounded up."""
        stride = self.config.stem_stride
        # Integer arithmetic: math.ceil would make the size of the picture a constant in an ONNX graph.
        h, w = ((side + stride - 1) // stride for side in L.shape[-2:])
        if self.config.encoder:
            x, *skips = reversed(self.levels(self.look(L) if maps is None else maps, L))
        else:
            x, *skips = reversed(self.encoder(pad_to_multiple(L, 8 * stride)))
        x = self.attention(x)
        histograms = self.context(x)
        context = torch.softmax(histograms.float(), dim=-1).flatten(1)
        for stage, skip in zip(self.decoder, skips, strict=True):
            x = stage(x, skip, context)
        x = x[..., :h, :w]
        return self.ab_class(x), _NUDGE * torch.tanh(self.ab_residual(x).float()), self.confidence_head(x), histograms

    def to_lab(self, ab: Tensor) -> Tensor:
        return color.to_lab_units(ab, self.ab_mean, self.ab_std)

    def from_lab(self, ab: Tensor) -> Tensor:
        return color.to_network_range(ab, self.ab_mean, self.ab_std)

    def shrink(self, ab: Tensor) -> Tensor:
        """ab at the resolution of the heads."""
        return shrink(ab, self.config.stem_stride)

    def expand(self, ab: Tensor, L: Tensor) -> Tensor:
        """ab (B, 2, h, w) -> (B, 2, H, W), along the edges of L."""
        return expand(ab, L, self.config.stem_stride)


class FrozenLevels(nn.Module):
    """Turns a frozen encoder's maps into the decoder's inputs: 1, 2, 4 and 8 times the width, fine to coarse.

    The finest level is computed from L on the grid of the heads: the encoder has no map of this resolution.
    """

    def __init__(self, channels: tuple[int, ...], config: ClassificationConfig):
        super().__init__()
        self.stride, width = config.stem_stride, config.width
        self.details = nn.Sequential(nn.Conv2d(self.stride**2, width, 3, padding=1), ResBlock(width, width))
        finest, *coarser = channels
        self.to_cells = nn.Sequential(nn.GroupNorm(1, finest), nn.Conv2d(finest, 2 * width, 2))  # maps lie on corners
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, count), nn.Conv2d(count, factor * width, 1))
            for count, factor in zip(coarser, (4, 8), strict=True)
        )

    def forward(self, maps: Maps, L: Tensor) -> list[Tensor]:
        cells = F.pixel_unshuffle(pad_to_multiple(L, self.stride), self.stride)
        finest, *coarser = maps
        found = [lateral(part) for lateral, part in zip(self.lateral, coarser, strict=True)]
        return [self.details(cells), self.to_cells(finest), *found]


class ResNet34(nn.Module):
    """ResNet34 for one channel: (B, 1, H, W) -> four maps of 1, 2, 4 and 8 times the width, each half as large."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, config: ClassificationConfig):
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(1, width, 7, stride=min(2, config.stem_stride), padding=3, bias=False)
        self.norm1 = group_norm(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if config.stem_stride == 4 else nn.Identity()
        before = width
        for number, blocks in enumerate(config.blocks):
            after = width * 2**number
            setattr(self, f"layer{number + 1}", make_layer(before, after, blocks, stride=1 if number == 0 else 2))
            before = after

    def forward(self, L: Tensor) -> list[Tensor]:
        x = self.pool(F.relu(self.norm1(self.conv1(L))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def make_layer(before: int, after: int, blocks: int, *, stride: int) -> nn.Sequential:
    """torchvision's residual blocks with GroupNorm in place of BatchNorm, named as in its ResNet34."""
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), group_norm(after))
    first = BasicBlock(before, after, stride, shortcut, norm_layer=group_norm)
    return nn.Sequential(first, *(BasicBlock(after, after, norm_layer=group_norm) for _ in range(blocks - 1)))


def true_histograms(ab: Tensor) -> Tensor:
    """ab (B, 2, h, w) in Lab units -> (B, 2, 64): the share of pixels in each of 64 equal bins of [-110, 110]."""
    place = ((ab + _REACH) / (2 * _REACH) * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1).flatten(2)
    counts = torch.zeros(*ab.shape[:2], HISTOGRAM_BINS, device=ab.device)
    return counts.scatter_add_(2, place, torch.ones_like(place, dtype=counts.dtype)) / place.shape[2]


def class_noise(centres: Tensor, count: int, size: tuple[int, ...], generator) -> Tensor:
    """(B, Q, h, w): Gaussian noise with about the variance of Gumbel noise, smooth over the picture and the ab plane.

    Adding Gumbel noise to logits and taking the best class samples a class by its probability (Gumbel-max), but
    independent noise for each pixel and class would give colour confetti. Here neighbouring pixels and similar colours
    share their noise (random Fourier features, Rahimi & Recht 2007), so that whole regions change colour together.
    """
    fixed = torch.Generator().manual_seed(0)
    frequency = torch.randn(2, _WAVES, generator=fixed) / _COLOUR_SCALE
    phase = torch.rand(_WAVES, generator=fixed) * 2 * math.pi
    waves = (2 / _WAVES) ** 0.5 * torch.cos(centres.float().cpu() @ frequency + phase)  # (Q, K)
    grid = [math.ceil(side / _PATCH) + 1 for side in size]
    generators = generator if isinstance(generator, list) else [generator] * count
    coarse = torch.stack([torch.randn(_WAVES, *grid, generator=g) for g in generators])
    fields = F.interpolate(coarse, size, mode="bicubic", align_corners=True)  # (B, K, h, w)
    return math.pi / 6**0.5 * torch.einsum("qk,bkhw->bqhw", waves, fields)


def load_resnet34(source: str) -> dict[str, Tensor]:
    """torchvision's ResNet34 state dict: for 'imagenet' from its cache or a download, else from a file of that format.

    Raises ProjectError if it cannot be loaded.
    """
    from torchvision.models import ResNet34_Weights, resnet34

    try:
        if source == "imagenet":
            url = ResNet34_Weights.IMAGENET1K_V1.url
            with bounded():
                weights = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", check_hash=True, weights_only=True
                )
        else:
            weights = torch.load(Path(source).expanduser(), map_location="cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in weights.items() if tensor.ndim == 4}
    except Exception as error:  # urllib, pickle and torch raise a dozen kinds
        raise ProjectError(
            f"--encoder-weights {source} cannot be loaded ({sentence(error)[:120]}); give a file of torchvision's "
            "ResNet34, or leave the flag out to train from scratch."
        ) from None
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in resnet34().state_dict().items() if tensor.ndim == 4}
    if found != expected:
        raise ProjectError(f"--encoder-weights {source} does not hold ResNet34; give a file of torchvision's.")
    return weights


def encoder_start(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions of torchvision's ResNet34 by their names here, with the three kernels of the stem added up.

    A gray picture has R = G = B, so the sum of the three kernels gives the same result. Norms are left out, because
    their statistics are those of RGB.
    """
    convolutions = {name: tensor.float() for name, tensor in weights.items() if tensor.ndim == 4}
    convolutions["conv1.weight"] = convolutions["conv1.weight"].sum(dim=1, keepdim=True)
    return {f"encoder.{name}": tensor for name, tensor in convolutions.items()}
