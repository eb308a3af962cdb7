"""Colour hints for spots of a photo: checks them, gives them to models trained with hints, and enforces them.

A diffusion model follows a hint only roughly. Its error at the spot is corrected there and on the surface around it, as
far as the lightness is continuous (after Levin et al. 2004, Colorization using Optimization: neighbours of similar
lightness have similar colours). So a hinted pixel keeps its colour, colour ends at edges, and every model takes hints.

A model trained with hints also changes the rest of the photo. If the hinted colour was to be expected, that improves
the whole answer; a surprising colour says something about one object only, and the rest stays as it was.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from Project7 import color
from Project7.array_hints import Hint, Spot, closeness, path_costs, places


def find_spots(hints: Sequence[Hint], photo: tuple[int, int], L: Tensor) -> list[Spot]:
    """Hints in pixels of a photo (H, W) -> spots of its working picture L (1, 1, h, w).

    Raises UsageError if a hint is outside the photo, or its colour is not one. If two share a pixel, the last counts.
    """
    spots = []
    for row, column, rgb in places(hints, photo, L.shape[-2:]):
        lab = color.rgb_to_lab(torch.from_numpy(rgb)[:, None, None])
        lab[0] = color.level(L[0, 0, row, column])
        a, b = color.into_gamut(lab)[1:, 0, 0].tolist()
        spots.append(Spot(row, column, (a, b)))
    return spots


def hint_maps(
    spots: Sequence[Spot], size: tuple[int, int], ab_mean: Tensor, ab_std: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Spots as the network's input: ab (B, 2, h, w) in its range, and a mask (B, 1, h, w)."""
    ab, mask = torch.zeros(1, 2, *size), torch.zeros(1, 1, *size)
    for spot in spots:
        ab[0, :, spot.row, spot.column] = (torch.tensor(spot.ab) - ab_mean) / ab_std
        mask[0, 0, spot.row, spot.column] = 1
    return ab.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1)


def hold(ab: Tensor, L: Tensor, spots: Sequence[Spot], shares: Tensor | None = None) -> Tensor:
    """Answers ab (B, 2, h, w) in Lab units, with the hinted colours at the spots and on the surfaces around them.

    L: (1, 1, h, w) in [-1, 1], of the photo of all answers. Between several spots their colours are weighted by
    nearness (Shepard 1968), so that each spot has its colour exactly. shares: the `surfaces` of the spots, if known.
    """
    if not spots:
        return ab
    shares = surfaces(nearness(L, spots)) if shares is None else shares
    told = torch.tensor([spot.ab for spot in spots])  # (K, 2)
    return loosened(ab, shares) + torch.einsum("khw,kc->chw", shares, told)


def loosened(ab: Tensor, shares: Tensor) -> Tensor:
    """Answers ab (B, 2, h, w) in Lab units without their own colours on the surfaces of the spots, to which `hold` adds
    the hinted ones. It is linear in ab, so the strength of an answer may change before or after it."""
    return ab * (1 - shares.sum(dim=0))


def surfaces(near: Sequence[Tensor]) -> Tensor:
    """`nearness` of each of K spots -> (K, h, w): the share of each spot at each place, 1 at the spot itself."""
    nearest = torch.stack(list(near))  # (K, h, w) in (0, 1], 1 at the spot
    weights = nearest / (nearest.log().neg().sqrt() + 1e-6)  # by the inverse of a power of the cost
    return weights / weights.sum(dim=0) * nearest.amax(dim=0)


def nearness(L: Tensor, spots: Sequence[Spot]) -> list[Tensor]:
    """For each spot, (h, w) in (0, 1]: how much a place belongs to its surface, by the cheapest path to it over L.

    L: (1, 1, h, w). A path costs its length plus the contrast that it crosses, except for texture. The high power of
    the cost keeps a surface whole and then falls steeply.
    """
    from skimage.graph import MCP_Geometric

    costs = path_costs(L[0, 0].numpy())
    ways = [MCP_Geometric(costs).find_costs([(spot.row, spot.column)])[0] for spot in spots]
    return [torch.from_numpy(closeness(way)) for way in ways]
