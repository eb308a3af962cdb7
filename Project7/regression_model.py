"""RegressionColorizer: a U-Net (Ronneberger et al. 2015) directly from L to ab, or to all of Lab.

It predicts one colour per pixel, the average of the plausible ones: safer and more muted than a diffusion model. With
outputs `lab` it also learns to restore the lightness of a faded photo.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7 import encoder
from Project7.answer_options import METHOD_OPTIONS
from Project7.batch import Batch, BatchRandom, Estimate, Step
from Project7.encoder import Encoder, Maps
from Project7.export_parts import Channels, ExportParts, one_pass
from Project7.guided_filter import expand, pad_to_multiple, shrink
from Project7.layers import ResBlock, SelfAttention2d, group_norm
from Project7.model_config import RegressionConfig
from Project7.neck import Neck, drop_features


class RegressionColorizer(nn.Module):
    """`forward` is a training step, `colorize` colours in one pass. Pictures may have any size."""

    OPTIONS = METHOD_OPTIONS["regression"]  # of colorize
    LOSS = "mse"
    METRICS = ()  # further measures of a step that validation reports

    ab_mean: Tensor  # (2,)
    ab_std: Tensor

    def __init__(self, config: RegressionConfig):
        super().__init__()
        self.config = config
        widths = [multiplier * config.model_channels for multiplier in config.channel_multipliers]
        inputs = config.chroma_scale**2
        self.encoder: Any = None
        self.neck: Any = None
        if config.encoder:
            self.encoder = Encoder(config.encoder, config.encoder_size)
            self.neck = Neck(self.encoder.channels, inputs, config.neck_width)
            inputs += config.neck_width
        self.unet = UNet(inputs, 3 if self.restores else 2, widths, config.layers)
        with torch.device("cpu"):  # checkpoints.rebuild builds the network without memory, but needs the constants
            constants = {"ab_mean": torch.tensor(config.ab_mean), "ab_std": torch.tensor(config.ab_std)}
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def restores(self) -> bool:
        """Whether the model changes lightness too."""
        return self.config.outputs == "lab"

    @staticmethod
    def first_weights(config: RegressionConfig, make_palette: Callable[[], Any]) -> dict[str, Tensor]:
        """What a new model starts with besides random weights."""
        return encoder.first_weights(config.encoder, config.encoder_weights)

    def comparison_options(self) -> dict[str, Any]:
        """Options of `colorize` for the comparison pictures of a run."""
        return {}

    def export_parts(self) -> ExportParts:
        """One graph: L -> ab, preceded by the change of L if lightness is restored."""

        def answer(L: Tensor, view: Tensor | None = None) -> Tensor:
            return self.answer(L, None if view is None else self.encoder(view))

        outputs: Channels = {"dL_ab": ("change of L", "a", "b")} if self.restores else {"ab": ("a", "b")}
        return one_pass(answer, outputs, sees=bool(self.config.encoder))

    def forward(self, batch: Batch) -> Step:
        """The mean squared error of ab, and of L if it is restored; the losses of losses.py act on the estimate."""
        L = self.shown(batch.L, batch.random)
        seen = L if batch.view is None else self.shown(batch.view, batch.random)
        maps = self.look(seen) if batch.maps is None else batch.maps
        if maps is not None and self.training:
            maps = drop_features(maps, self.config.feature_dropout, batch.random)
        answer = self.answer(L, maps).float()
        ab_hat, truth = answer[:, -2:], self.expand(self.shrink(batch.ab), batch.L)
        mse = (ab_hat - truth).square().mean(dim=(1, 2, 3))
        L_hat = None
        if self.restores:
            L_hat = L + answer[:, :1]
            mse = mse + (L_hat - batch.L).square().mean(dim=(1, 2, 3))
        estimate = None
        if batch.image_share:
            estimate = Estimate(ab_hat, truth, batch.L, torch.ones_like(mse.detach()), L_hat)
        return Step(mse, {"mse": mse.detach()}, estimate)

    @torch.no_grad()
    def colorize(
        self,
        L: Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        hints: tuple[Tensor, Tensor] | None = None,
        maps: Maps | None = None,
    ) -> Tensor:
        """L (B, 1, H, W) in [-1, 1] -> ab (B, 2, H, W), in the network's range; the same for every generator.

        With outputs `lab`, (B, 3, H, W): first the change of L, for color.join. maps: the result of `look`, from the
        photo itself if that is larger than L; None computes it from L. Raises ValueError if hints are given.
        """
        if hints is not None:
            raise ValueError("a regression model cannot take colour hints")
        return self.answer(L, self.look(L) if maps is None else maps)

    def look(self, view: Tensor) -> Maps | None:
        """The encoder's maps of L (B, 1, H, W) of any size; None without an encoder. Needed only once per photo."""
        return None if self.encoder is None else self.encoder(self.encoder.view(view))

    def answer(self, L: Tensor, maps: Maps | None = None) -> Tensor:
        """L (B, 1, H, W) -> (B, 2 or 3, H, W): ab, preceded by the change of L if it is restored."""
        full = pad_to_multiple(L, self.config.chroma_scale)
        inputs = F.pixel_unshuffle(full, self.config.chroma_scale)  # (B, scale^2, h, w)
        if self.neck is not None:
            inputs = torch.cat([inputs, self.neck(maps, inputs)], dim=1)
        return self.expand(self.unet(inputs), L)

    def shown(self, L: Tensor, random: BatchRandom) -> Tensor:
        """The lightness that the network sees of a training photo: L itself, or an artificially faded L if the model
        restores lightness.

        contrast L + (1 - contrast) level, with contrast between 1 - fade and 1, and level between black and white.
        """
        if not self.restores:
            return L
        contrast = 1 - self.config.fade * random.uniform("contrast")[:, None, None, None]
        level = 2 * random.uniform("level")[:, None, None, None] - 1
        return contrast * L + (1 - contrast) * level

    def shrink(self, ab: Tensor) -> Tensor:
        """ab (B, 2, H, W) -> ab (B, 2, h, w) at the resolution at which it is learnt."""
        return shrink(ab, self.config.chroma_scale)

    def expand(self, ab: Tensor, L: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W), enlarged along the edges of L."""
        return expand(ab, L, self.config.chroma_scale)


class UNet(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W), any H and W: residual blocks, self-attention on the coarsest level.

    widths: channels of the levels, fine to coarse; each level has half the resolution of the one before.
    """

    def __init__(self, inputs: int, outputs: int, widths: list[int], layers: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
        finer = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(blocks(before, width, layers) for before, width in zip(finer, widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = nn.Sequential(SelfAttention2d(widths[-1]), ResBlock(widths[-1], widths[-1]))
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(blocks(before + width, width, layers) for before, width in upwards)
        self.leave = nn.Sequential(group_norm(widths[0]), nn.ReLU(), nn.Conv2d(widths[0], outputs, 3, padding=1))
        with torch.no_grad():  # the first answers are nearly the mean colour, not noise
            weight, bias = self.leave[-1].parameters()
            weight.mul_(0.1)
            bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.enter(pad_to_multiple(x, 2 ** len(self.shrink)))
        skips = []
        for level, halve in zip(self.down, self.shrink, strict=False):
            x = level(x)
            skips.append(x)
            x = halve(x)
        x = self.middle(self.down[-1](x))
        for level in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = level(torch.cat([x, skips.pop()], dim=1))
        return self.leave(x)[..., :height, :width]


def blocks(before: int, after: int, count: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(before, after), *(ResBlock(after, after) for _ in range(count - 1)))
