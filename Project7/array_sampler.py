"""samplers.py and candidates.py for NumPy arrays, without torch and diffusers: the noise that torch draws, the steps of
DPM-Solver++, and the choice among answers. Tests compare them.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_NOISE = -4.5  # natural log(signal / noise): 1 % of signal, as good as none
CHUNK = 1024  # cells that are compared with all others at once, so that memory stays bounded on large grids
_FIELD = 256  # side, in cells, of the noise that all sizes of a grid share
# Strength of the colours (benchmarks/RESULTS.md): their mean chroma is this many times what a palette head expects,
STRENGTH = 1.245
STRONGEST = 2.0  # but at most so many times what it was;
LIKELY = 0.9  # no cell is stronger than so much of the head's distribution there,
KNEE = 0.8  # a bound that begins to be felt at this part of it.
STRONGEST_HEADLESS = 1.6  # without such a head: the largest factor by which a mean is raised to the answers' chroma
# Places take the colour of cells within this distance of what the network sees of them, in units of the typical one,
# this difference of L in [-1, 1], and this part of the photo's longer side, and less of cells in which the standard
# deviation of L is greater than around them by about the last number.
ALIKE, ALIKE_L, NEAR, MIXED = 0.23, 0.05, 1.0, 0.2
_MANY = 16  # cells along the shorter side: a small photo has fewer, and has been enlarged
EVEN = 2  # how fast colours are shared with growing calm
RESCALE = 0.7  # how far guidance keeps the strength of the colours
_NEIGHBOURS, _SIGMA = 5, 5.0  # of the soft encoding of a colour by a palette (Zhang et al. 2016, section 2.2)


# -- noise -----------------------------------------------------------------------------------------------------------


class Noise:
    """The numbers that torch's generator draws on a CPU for the same key: a Mersenne Twister and Box & Muller 1958."""

    def __init__(self, key: str):
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def normal(self, *shape: int) -> np.ndarray:
        """float32 with unit variance. Raises ValueError for fewer than 16 numbers, which torch draws differently."""
        count = math.prod(shape)
        if count < 16:
            raise ValueError("torch draws fewer than 16 numbers differently")
        uniform = self._uniform(count)
        made = uniform.copy()
        whole = count - count % 16
        made[:whole] = _box_muller(uniform[:whole])
        if count % 16:  # the last 16 are drawn anew
            made[-16:] = _box_muller(self._uniform(16))
        return made.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        """Uniform numbers in [0, 1), from 24 bits each."""
        bits = np.frombuffer(self._twister.bytes(4 * count), dtype="<u4")
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Normal numbers in blocks of 16: the first half of a block gives the radii, the second the angles."""
    first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def scalable_noise(shape: tuple[int, int, int], noise: Noise) -> np.ndarray:
    """White noise (C, h, w) whose coarse part is the same for every grid size, as samplers.scalable_noise gives it."""
    sides = [_FIELD * math.ceil(side / _FIELD) for side in shape[1:]]
    field = noise.normal(shape[0], *sides).astype(np.float64)
    for axis, (side, cells) in enumerate(zip(sides, shape[1:], strict=True), start=1):
        ends = np.arange(cells + 1) * side // cells
        sums = np.add.reduceat(field, ends[:-1], axis=axis)
        counts = np.sqrt(np.diff(ends))
        field = sums / (counts[:, None] if axis == 1 else counts)
    return field.astype(np.float32)


# -- steps -----------------------------------------------------------------------------------------------------------


def even_places(abar: np.ndarray, steps: int) -> list[int]:
    """The timesteps of DPM-Solver++ for abar (T,): `steps` of them, falling, evenly spaced in log-SNR.

    This is the spacing of Lu et al. 2022 (section 4); with trailing spacing, few steps of any solver give too little
    spread, which is muted colour. If the last timestep is pure noise, its log-SNR is minus infinity (diffusers uses
    2^-24); from there to a signal of 1 % nothing is learnt, so it takes one step and not a third of them
    (benchmarks/RESULTS.md).
    """
    abar = np.asarray(abar, dtype=np.float64)
    last, log_snr = len(abar) - 1, np.log(abar / (1 - abar)) / 2
    noise = [last] if log_snr[last] < _NOISE else []
    first = _NOISE if noise else float(log_snr[last])
    wanted = np.linspace(first, float(log_snr[0]), steps - len(noise))
    nearest = np.abs(log_snr[None] - wanted[:, None]).argmin(axis=1)  # (steps,)
    return distinct([*noise, *nearest.tolist()])


def distinct(timesteps: list[int]) -> list[int]:
    """Falling timesteps, some of them equal -> as many distinct ones, moved as little as necessary."""
    apart = itertools.accumulate((t + k for k, t in enumerate(timesteps)), min)
    return [max(t - k, len(timesteps) - 1 - k) for k, t in enumerate(apart)]


def sample(
    denoise: Callable[[np.ndarray, int], np.ndarray],
    noise: np.ndarray,
    abar: np.ndarray,
    timesteps: Sequence[int],
    *,
    predicts: str = "v_prediction",
) -> np.ndarray:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, midpoint), with a last step of first order.

    noise: (B, C, h, w); the result is x_0. denoise(x_t, t) predicts v, or the noise if `predicts` is "epsilon". abar:
    (T,).
    """
    signal = np.sqrt(abar.astype(np.float64))[list(timesteps)]
    sigma = np.sqrt(1 - signal**2)
    log_snr = np.log(signal) - np.log(sigma)
    x, before = noise, None
    for n, t in enumerate(timesteps):
        predicted = denoise(x, t)
        clean = (
            signal[n] * x - sigma[n] * predicted if predicts != "epsilon" else (x - sigma[n] * predicted) / signal[n]
        )
        if n == len(timesteps) - 1:
            return clean.astype(np.float32)
        step = log_snr[n + 1] - log_snr[n]
        towards = clean
        if before is not None:
            towards = clean + step / (log_snr[n] - log_snr[n - 1]) / 2 * (clean - before)
        x = (sigma[n + 1] / sigma[n] * x - signal[n + 1] * math.expm1(-step) * towards).astype(np.float32)
        before = clean
    return x


# -- which answer ----------------------------------------------------------------------------------------------------


def choose(samples: np.ndarray, likelihood: np.ndarray | None = None) -> int:
    """The place of the answer to show among samples (K, 2, h, w) in Lab units: candidates.choose."""
    if likelihood is not None:
        return int(likelihood.argmax())
    differences = samples[:, None] - samples[None]  # (K, K, 2, h, w)
    return int(np.sqrt((differences**2).mean(axis=(2, 3, 4))).sum(axis=1).argmin())


def guide(seeing: Any, unseeing: Any, weight: float) -> Any:
    """Two predictions (B, C, h, w) of the network, with and without what the encoder sees -> the guided one; arrays of
    NumPy or tensors of torch.

    unseeing + weight (seeing - unseeing) is classifier-free guidance (Ho & Salimans 2022, eq. 6). It makes colours
    gaudy, so each picture's prediction is scaled most of the way back to the standard deviation of `seeing` (Lin et al.
    2024, eq. 15 and 16).
    """
    guided = unseeing + weight * (seeing - unseeing)
    seen, made = (part.std(axis=(1, 2, 3), keepdims=True) for part in (seeing, guided))
    return guided * (RESCALE * seen / (made + 1e-8) + 1 - RESCALE)


def log_likelihood(logits: np.ndarray, colours: np.ndarray, ab: np.ndarray) -> float:
    """The mean over cells of the log-probability of the palette's colours (Q, 2) around ab (2, h, w), in Lab units.
    logits: (Q, h, w)."""
    flat, logits = ab.reshape(2, -1).T, logits.reshape(len(logits), -1).T  # (N, 2), (N, Q)
    squared = ((flat[:, None] - colours[None]) ** 2).sum(axis=-1)  # (N, Q)
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :_NEIGHBOURS]
    weights = softmax(-np.take_along_axis(squared, nearest, axis=1) / (2 * _SIGMA**2))
    most = logits.max(axis=1, keepdims=True)
    log_p = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
    return float((weights * np.take_along_axis(log_p, nearest, axis=1)).sum(axis=1).mean())


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def likely_chroma(logits: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The expected and the largest likely chroma of each cell, (h, w) twice: ColorHead.likely_chroma. logits:
    (Q, h, w), colours: (Q, 2) in Lab units."""
    chroma = np.linalg.norm(colours, axis=1)
    order = chroma.argsort()
    probability = softmax(np.moveaxis(logits, 0, -1).astype(np.float32))[..., order]  # (h, w, Q)
    place = (probability.cumsum(axis=-1) < LIKELY).sum(axis=-1).clip(max=len(order) - 1)
    return probability @ chroma[order], chroma[order][place]


def calmed(
    chosen: np.ndarray,
    mean: np.ndarray,
    samples: np.ndarray,
    calm: float,
    likely: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """chosen (2, h, w), drawn by `calm` towards the mean (2, h, w) of the answers, not its paleness: candidates.calmed.
    samples: (K, 2, h, w); likely: of `likely_chroma`."""
    if not calm:
        return chosen
    blend = chosen + calm * (mean - chosen)
    if likely is not None:
        return blend + even_share(calm) * (strengthened(blend, *likely) - blend)
    wanted = np.mean([chroma(one) for one in samples])
    return blend * min(max(wanted / max(chroma(blend), 1e-3), 1.0), STRONGEST_HEADLESS)


def even_share(calm: float) -> float:
    """How far what looks alike shares its colour, and colours get the strength that is likely: wholly, from a calm of a
    half on."""
    return min(1.0, EVEN * calm)


def place_side(cells: tuple[int, ...], scale: int) -> int:
    """The side in pixels of the places that share a colour, in cells (h, w) of scale x scale pixels: a quarter of a
    cell's, and half of it in a small photo, whose edges are no sharper. At least a pixel."""
    return max(1, scale // (4 if min(cells) >= _MANY else 2))


def strengthened(ab: np.ndarray, expected: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """ab (2, h, w) with the chroma that is likely, (h, w) twice: candidates.strengthened."""
    strength = np.linalg.norm(ab, axis=0)
    raised = strength * min(STRENGTH * expected.mean() / max(strength.mean(), 1e-3), STRONGEST)
    knee, room = KNEE * largest, np.maximum((1 - KNEE) * largest, 1e-3)
    bounded = np.minimum(raised, knee - room * np.expm1(-np.maximum(raised - knee, 0) / room))
    return ab * (bounded / np.maximum(strength, 1e-3))


def chroma(ab: np.ndarray) -> float:
    """(2, h, w) in Lab units -> the root mean square of the distance from gray."""
    return float(np.sqrt((ab**2).sum(axis=0).mean()))
