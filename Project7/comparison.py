"""Comparison pictures: the same few validation photos, coloured with the same noise at every look."""

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from Project7 import color
from Project7.batch import BatchRandom, reduced, view
from Project7.methods import Method
from Project7.metrics import colorfulness, psnr

PICTURES = 8


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The fixed validation photos, coloured with the averaged (EMA) weights and fixed noise."""

    gray: np.ndarray  # (K, H, W, 3) uint8
    colour: np.ndarray
    truth: np.ndarray
    psnr: float  # dB, mean over the photos
    colorfulness: float
    colorfulness_truth: float
    mean_ab: tuple[float, ...]  # (2,) in Lab units
    mean_ab_truth: tuple[float, ...]
    picture_ab: list[list[float]]  # (K, 2): mean ab of each photo
    picture_ab_truth: list[list[float]]
    ab_spread: float  # standard deviation within a photo, over both channels
    ab_spread_truth: float

    def numbers(self) -> dict[str, object]:
        """The values that the history keeps: all fields but the pictures."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}


def fixed_pictures(images: np.ndarray) -> Tensor:
    """The first few pictures (K, 3, V, V) uint8 of the validation set (N, V, V, 3), the same every time."""
    return color.channels_first(np.array(images[:PICTURES]))


@torch.no_grad()
def compare(model: Method, truth: Tensor, size: int, *, seed: int, accelerator: Accelerator) -> Comparison:
    """Colours pictures (K, 3, V, V) uint8 at `size` with a model; the noise of picture k has the seed `seed` + k."""
    truth = truth.to(accelerator.device)
    seen, truth = view(truth, size), reduced(truth, size)
    L, _ = color.split(truth, model.ab_mean, model.ab_std)
    random = BatchRandom(seed, -1, 0, len(L), len(L), str(L.device))
    shown = model.shown(L, random)
    gray = color.gray(truth) if shown is L else color.without_chroma(shown)
    noise = [torch.Generator().manual_seed(seed + k) for k in range(len(L))]
    with accelerator.autocast():
        maps = {} if seen is None else {"maps": model.look(model.shown(seen, random))}
        ab = model.colorize(shown, generator=noise, **maps, **model.comparison_options())
    lab = color.join(shown, ab, model.ab_mean, model.ab_std)
    colour, true = color.channels_last(color.show(lab)), color.channels_last(truth)
    ab, ab_truth = lab[:, 1:], color.rgb_to_lab(truth)[:, 1:]
    return Comparison(
        gray=color.channels_last(gray),
        colour=colour,
        truth=true,
        psnr=float(psnr(colour, true).mean()),
        colorfulness=float(colorfulness(colour).mean()),
        colorfulness_truth=float(colorfulness(true).mean()),
        mean_ab=tuple(ab.mean(dim=(0, 2, 3)).tolist()),
        mean_ab_truth=tuple(ab_truth.mean(dim=(0, 2, 3)).tolist()),
        picture_ab=ab.mean(dim=(2, 3)).tolist(),
        picture_ab_truth=ab_truth.mean(dim=(2, 3)).tolist(),
        ab_spread=_spread(ab),
        ab_spread_truth=_spread(ab_truth),
    )


def _spread(ab: Tensor) -> float:
    return float(ab.var(dim=(2, 3), correction=0).mean().sqrt())
