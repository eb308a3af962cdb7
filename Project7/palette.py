"""The palette of the classification generator: ab centres by K-means, and conversions between colours and classes.

Zhang et al. 2016 (Colorful Image Colorization) classify each pixel's colour. Their 313 classes form a grid; these are
the K-means centres of real pixels, dense where the colours of photos are. All ab here are in Lab units.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from Project7 import color
from Project7.atomic_file import replacing
from Project7.counting import Counting
from Project7.errors import ProjectError, UsageError
from Project7.image_set import Pictures

NEIGHBOURS = 5  # centres that share a pixel in the soft encoding
SIGMA = 5.0  # Lab units: width of the soft encoding and of the smoothing of the frequencies (Zhang et al. 2016)
_LARGEST = 128  # |a| and |b| of every sRGB colour are below it
_STEP = 0.5  # Lab units: side of the cells in which pixels are counted before K-means
_BATCH = 64  # photos whose colours are counted at a time
_LARGEST_FILE = 1 << 22  # bytes of a palette file, unpacked
_GRAY = 2.0  # a set whose colours all lie within this of gray has no palette


class Palette(NamedTuple):
    centres: Tensor  # (Q, 2) float32, ab in Lab units, the most frequent first
    counts: Tensor  # (Q,) float64, number of pixels of the data set that are nearest to each centre


def palette_weights(prefix: str, palette: Palette) -> dict[str, Tensor]:
    """A palette as the buffers of a model, under their names there."""
    return {f"{prefix}centres": palette.centres, f"{prefix}counts": palette.counts.float()}


def fit_palette(
    images: Pictures, bins: int = 313, *, photos: int = 20_000, seed: int = 0, progress: Counting | None = None
) -> Palette:
    """K-means on the colours of up to `photos` photos, (N, S, S, 3) uint8; every pixel of them counts.

    Pixels are first counted in cells of 0.5 Lab units, and K-means runs on the cells with their counts as weights:
    tens of thousands of points stand for millions of pixels, at an error far below the distance between two centres.
    Raises UsageError for fewer than 2 bins, for more bins than there are colours, and for a set of gray photos.
    """
    if bins < 2:
        raise UsageError(f"--bins {bins}: a palette has at least 2 colours; 313 is the usual number.")
    order = np.random.default_rng(seed).permutation(len(images))[:photos]
    points, counts = count_colours(images, np.sort(order), progress)
    if np.abs(points).max() <= _GRAY:
        raise UsageError("The photos are all gray, so that no palette can be made from them; use colour photos.")
    if bins > len(points):
        raise UsageError(
            f"--bins {bins} is more than the {len(points)} distinct colours of these photos; use fewer bins, or more "
            "photos."
        )
    centres, nearest = k_means(points, counts, bins, seed)
    mass = np.bincount(nearest, counts, minlength=bins)
    by_frequency = np.argsort(-mass, kind="stable")
    return Palette(torch.tensor(centres[by_frequency], dtype=torch.float32), torch.tensor(mass[by_frequency]))


def count_colours(images: Pictures, order: np.ndarray, progress: Counting | None) -> tuple[np.ndarray, np.ndarray]:
    """The middles of the cells of ab that occur, (P, 2), and the number of pixels in each, (P,)."""
    side = round(2 * _LARGEST / _STEP)
    counts = torch.zeros(side * side, dtype=torch.float64)
    for start in range(0, len(order), _BATCH):
        rgb = color.channels_first(images[order[start : start + _BATCH]])
        ab = color.rgb_to_lab(rgb)[:, 1:].movedim(1, -1).reshape(-1, 2)
        cell = ((ab + _LARGEST) / _STEP).long().clamp(0, side - 1)
        counts += torch.bincount(cell[:, 0] * side + cell[:, 1], minlength=side * side)
        if progress:
            progress("counting colours", min(start + _BATCH, len(order)), len(order))
    found = counts.nonzero()[:, 0]
    place = torch.stack([found // side, found % side], dim=1)
    return ((place + 0.5) * _STEP - _LARGEST).double().numpy(), counts[found].numpy()


def k_means(points: np.ndarray, weights: np.ndarray, bins: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres (Q, 2), and the index of the centre nearest to each point (P,). Lloyd's algorithm, started by seeded
    k-means++."""
    from sklearn.cluster import KMeans  # seconds to import

    with warnings.catch_warnings(action="ignore"):  # about fewer distinct points than clusters: checked above
        found = KMeans(bins, n_init=1, max_iter=100, tol=1e-5, random_state=seed % 2**32).fit(
            points, sample_weight=weights
        )
    return found.cluster_centers_, found.labels_


# -- colours <-> classes ---------------------------------------------------------------------------------------------


class SoftEncoder(nn.Module):
    """ab -> its 5 nearest centres, with Gaussian weights that sum to 1 (Zhang et al. 2016, section 2.2).

    This is exact without computing the distances to all Q centres: for each unit cell of ab, a table lists every centre
    that can be among the nearest of a colour in the cell, and only those distances are computed.
    """

    centres: Tensor  # (Q, 2)
    candidates: Tensor  # (cells, K) classes

    def __init__(self, centres: Tensor):
        super().__init__()
        self.register_buffer("centres", centres.float(), persistent=False)
        self.register_buffer("candidates", nearest_candidates(centres, min(NEIGHBOURS, len(centres))), persistent=False)

    def forward(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """ab (B, 2, H, W) -> classes (B, 5, H, W) long, weights (B, 5, H, W)."""
        flat = ab.movedim(1, -1)  # (B, H, W, 2)
        cell = (flat + _LARGEST).long().clamp(0, 2 * _LARGEST - 1)
        candidates = self.candidates[cell[..., 0] * 2 * _LARGEST + cell[..., 1]]  # (B, H, W, K)
        squared = (flat.unsqueeze(-2) - self.centres[candidates]).square().sum(dim=-1)
        nearest, place = squared.topk(min(NEIGHBOURS, len(self.centres)), dim=-1, largest=False)
        weights = torch.softmax(-nearest / (2 * SIGMA**2), dim=-1)
        return candidates.gather(-1, place).movedim(-1, 1), weights.movedim(-1, 1)


def nearest_candidates(centres: Tensor, neighbours: int) -> Tensor:
    """(256 * 256, K): for each unit cell of ab, all centres that can be among the `neighbours` nearest of its colours.

    If the n-th nearest centre of the cell's middle is d away, no centre farther than d + 2 r can be among the n nearest
    of a colour within r of the middle. Shorter rows are filled up with the next nearest centres.
    """
    from scipy.spatial import cKDTree

    radius = 0.5 * 2**0.5 + 1e-4
    axis = np.arange(-_LARGEST, _LARGEST) + 0.5
    middles = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    tree = cKDTree(centres.double().numpy())
    farthest = tree.query(middles, k=[neighbours])[0][:, 0]
    most = int(tree.query_ball_point(middles, farthest + 2 * radius, return_length=True).max())
    return torch.from_numpy(tree.query(middles, k=range(1, most + 1))[1])


def rarity_weights(palette: Palette, mixing: float = 0.5) -> Tensor:
    """(Q,) w_q = ((1 - A) P(q) + A / Q)^-1, scaled so that sum_q P(q) w_q = 1 (Zhang et al. 2016, eq. 4).

    P is the frequency of the centres, smoothed by a Gaussian of 5 Lab units. mixing: A; 1 means no rebalancing.
    """
    frequency = smoothed_frequencies(palette).clamp(min=1e-9)
    weights = 1 / ((1 - mixing) * frequency + mixing / len(frequency))
    return (weights / (frequency * weights).sum()).float()


def smoothed_frequencies(palette: Palette) -> Tensor:
    """(Q,) float64: each centre's share of the pixels, smoothed over the centres around it."""
    distance = torch.cdist(palette.centres.double(), palette.centres.double())
    spread = torch.exp(-distance.square() / (2 * SIGMA**2))
    shares = palette.counts.double() / palette.counts.sum()
    return (spread / spread.sum(dim=0)) @ shares


def annealed_mean(logits: Tensor, centres: Tensor, temperature: float = 0.38) -> Tensor:
    """(B, Q, H, W) -> ab (B, 2, H, W): the mean of the centres under softmax(z / T) (Zhang et al. 2016, eq. 5).

    T = 1 is the mean, T = 0 the mode: the centre of the likeliest class.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (the mode) or more, and 1 is the mean")
    if temperature < 1e-6:
        return centres[logits.argmax(dim=1)].permute(0, 3, 1, 2)
    with torch.autocast(logits.device.type, enabled=False):
        probability = torch.softmax(logits.float() / temperature, dim=1)
        return torch.einsum("bqhw,qc->bchw", probability, centres)


def class_spread(logits: Tensor, centres: Tensor) -> Tensor:
    """Logits (B, Q, H, W) -> (B, 1, H, W): the root mean square distance of the centres from their mean, weighted by
    their probabilities."""
    with torch.autocast(logits.device.type, enabled=False):
        probability = torch.softmax(logits.float(), dim=1)
        square = torch.einsum("bqhw,q->bhw", probability, centres.square().sum(dim=1))
        mean = torch.einsum("bqhw,qc->bchw", probability, centres)
        return (square - mean.square().sum(dim=1)).clamp(min=0).sqrt()[:, None]


def unlike_colours(
    shares: Tensor, colours: Tensor, count: int, apart: float
) -> list[tuple[tuple[float, float], float]]:
    """At most `count` of the colours ab (Q, 2), in Lab units, each with the share around it, the largest first.

    shares: (Q,), the share of each colour. Colours within `apart` Lab units of a chosen one count as that one."""
    left, found = shares, []
    for _ in range(count):
        best = int(left.argmax())
        near = (colours - colours[best]).norm(dim=1) < apart
        found.append((tuple(colours[best].tolist()), float(left[near].sum())))
        left = left.masked_fill(near, 0.0)
        if not left.any():
            break
    return sorted(found, key=lambda one: -one[1])


# -- files and a picture ---------------------------------------------------------------------------------------------


def save_palette(path: Path, palette: Palette) -> None:
    with replacing(path) as file:
        np.savez(file, centres=palette.centres.numpy(), counts=palette.counts.numpy())


def load_palette(path: Path, *, bins: int | None = None) -> Palette:
    """Reads a file written by `save_palette`, which must have `bins` colours if that is given.

    Raises ProjectError, which says what is wrong with it.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if sum(member.file_size for member in file.zip.infolist()) > _LARGEST_FILE:
                raise ValueError("it would take too much memory")
            centres, counts = (
                np.asarray(file[name].astype(float, casting="same_kind")) for name in ("centres", "counts")
            )
    except FileNotFoundError:
        raise ProjectError(
            f"{path} does not exist; make it with: project7 palette --data PATH --output {path}"
        ) from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        raise ProjectError(
            f"{path} is not a palette of this toolkit ({type(error).__name__}); make a new one."
        ) from None
    if centres.ndim != 2 or centres.shape[1:] != (2,) or counts.shape != centres.shape[:1] or len(centres) < 2:
        raise ProjectError(f"{path} holds centres {centres.shape} and counts {counts.shape}; expected (Q, 2) and (Q,).")
    if not (
        np.isfinite(centres).all()
        and np.abs(centres).max() <= _LARGEST
        and np.isfinite(counts).all()
        and (counts >= 0).all()
        and counts.any()
    ):
        raise ProjectError(f"{path} holds centres that are not colours, or counts that are not valid; make a new one.")
    if bins not in (None, len(centres)):
        raise ProjectError(f"{path} has {len(centres)} colours, and --bins is {bins}; use --bins {len(centres)}.")
    return Palette(torch.tensor(centres, dtype=torch.float32), torch.tensor(counts, dtype=torch.float64))


def draw_palette(palette: Palette, *, side: int = 800) -> np.ndarray:
    """(side, side, 3) uint8: the centres in the ab plane, in their colours at L = 65, with areas that grow with the
    frequencies."""
    from PIL import Image, ImageDraw

    reach = float(palette.centres.abs().max()) * 1.1
    lab = torch.cat([torch.full((len(palette.centres), 1), 65.0), palette.centres], dim=1)
    colours = color.show(lab[:, :, None, None])[:, :, 0, 0].tolist()
    radii = (palette.counts / palette.counts.max()).sqrt() * side / 30 + side / 250
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    middle = side / 2
    draw.line([(0, middle), (side, middle)], fill="lightgray")
    draw.line([(middle, 0), (middle, side)], fill="lightgray")
    draw.text((side - 70, middle + 4), f"a = {reach:.0f}", fill="gray")
    draw.text((middle + 4, 4), f"b = {reach:.0f}", fill="gray")
    for (a, b), colour, radius in zip(palette.centres.tolist(), colours, radii.tolist(), strict=True):
        x, y = middle + a / reach * middle, middle - b / reach * middle
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tuple(colour), outline="dimgray")
    return np.asarray(picture)
