"""Several answers to one photo: which one is shown, how far it is calmed, towards their mean and towards one colour for
what looks alike, and how strong its colours are.

A single sample of a diffusion model is bold, and now and then entirely wrong; the mean of many samples is right more
often, but pale. People prefer something in between, no blotches in a sky or on a wall, and no red faces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7.array_sampler import (
    ALIKE,
    ALIKE_L,
    CHUNK,
    KNEE,
    MIXED,
    NEAR,
    STRENGTH,
    STRONGEST,
    STRONGEST_HEADLESS,
    even_share,
    place_side,
)
from Project7.guided_filter import enlarge, expand, pad_to_multiple, shrink


def choose(samples: Tensor, likelihood: Tensor | None = None) -> Tensor:
    """The indices (B,) of the answers to show, among samples (B, K, 2, h, w) in Lab units.

    With a likelihood (B, K), the likeliest answer; without one, the answer with the smallest mean distance to the
    others (the medoid). Neither uses the true colours.
    """
    if likelihood is not None:
        return likelihood.argmax(dim=1)
    differences = samples[:, :, None] - samples[:, None]  # (B, K, K, 2, h, w)
    return differences.square().mean(dim=(3, 4, 5)).sqrt().sum(dim=2).argmin(dim=1)


def calmed(
    chosen: Tensor,
    mean: Tensor,
    samples: Tensor,
    calm: float,
    likely: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """chosen (B, 2, h, w), moved by `calm` in [0, 1] towards the mean (B, 2, h, w) of the answers, but not made pale.

    Opposite colours cancel in a mean, so the result is `strengthened` to what is likely: (B, h, w) twice, the expected
    and the largest likely chroma. If nothing is known of that, it is scaled to the mean chroma of the samples
    (B, K, 2, h, w).
    """
    if not calm:
        return chosen
    blend = chosen + calm * (mean - chosen)
    if likely is not None:
        return blend + even_share(calm) * (strengthened(blend, *likely) - blend)
    wanted = chroma(samples.flatten(0, 1)).view(len(samples), -1).mean(dim=1)
    gain = (wanted / chroma(blend).clamp(min=1e-3)).clamp(1, STRONGEST_HEADLESS)
    return blend * gain[:, None, None, None]


def strengthened(ab: Tensor, expected: Tensor, largest: Tensor) -> Tensor:
    """ab (B, 2, h, w) with a little more chroma than is expected (B, h, w) in the mean over a picture, but in no cell
    with more than the largest (B, h, w) that is likely there. All in Lab units.

    Where a cell is too strong it is gaudy, not only wrong: red faces, halos in skies. The bound is a soft one, so that
    different colours stay different.
    """
    strength = ab.norm(dim=1)
    wanted = STRENGTH * expected.mean(dim=(1, 2)) / strength.mean(dim=(1, 2)).clamp(min=1e-3)
    raised = wanted.clamp(max=STRONGEST)[:, None, None] * strength
    knee, room = KNEE * largest, ((1 - KNEE) * largest).clamp(min=1e-3)
    bounded = torch.minimum(raised, knee + room * -torch.expm1(-(raised - knee).clamp(min=0) / room))
    return ab * (bounded / strength.clamp(min=1e-3))[:, None]


def spread(ab: Tensor, features: Tensor, L: Tensor, scale: int, share: float) -> Tensor:
    """ab (B, 2, h, w) in Lab units, of cells of scale x scale pixels -> (B, 2, H, W), along the edges of L
    (B, 1, H, W) and, by a share in [0, 1], each place with the colour of what looks like it (`evened`).

    A cell at an edge holds some of both sides, and its colour would become a halo: a place beside the edge looks like
    one of them. The mean chroma stays. features: (B, C, h, w), what the network sees of the cells.
    """
    full = pad_to_multiple(L, scale)
    plain = expand(ab, full, scale)
    even = expand(evened(ab, *appearance(features, full, scale)), full, place_side(ab.shape[-2:], scale))
    mixed = plain + share * (even - plain)
    before, after = (one.norm(dim=1).mean(dim=(1, 2)) for one in (plain, mixed))
    gain = (before / after.clamp(min=1e-3)).clamp(1, STRONGEST_HEADLESS)
    return (gain[:, None, None, None] * mixed)[..., : L.shape[-2], : L.shape[-1]]


def appearance(features: Tensor, L: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """What the cells (B, C + 2, h, w) and the places in them (B, C + 2, H, W) look like, in units in which two at a
    distance of 1 are alike. features: (B, C, h, w), what the network sees of the cells; it is enlarged along edges for
    the places (`place_side`). L: the lightness, (B, 1, H', W') in [-1, 1], scale x scale pixels to a cell.

    The network's features of a clear sky change towards whatever stands in it; lightness does not. Lightness varies
    more in a cell at an edge than in its neighbours: it is like no place, so that its mixed colour goes nowhere.
    """
    side = place_side(features.shape[-2:], scale)
    seen = features.float() - features.float().mean(dim=(2, 3), keepdim=True)
    typical = (2 * seen.square().sum(dim=1).mean(dim=(1, 2))).sqrt()[:, None, None, None]  # distance of two cells
    seen = seen / (ALIKE * typical).clamp(min=1e-6)
    light = L.float() - L.float().mean(dim=(2, 3), keepdim=True)
    of_cells, of_places = shrink(light, scale), shrink(light, side)
    mixed = (shrink(light.square(), scale) - of_cells.square()).clamp(min=0).sqrt() / MIXED
    texture = F.interpolate(-F.max_pool2d(-mixed, 3, stride=1, padding=1), of_places.shape[-2:], mode="nearest")
    cells = torch.cat([seen, of_cells / ALIKE_L, mixed], dim=1)
    return cells, torch.cat([enlarge(seen, of_cells, of_places), of_places / ALIKE_L, texture], dim=1)


def evened(ab: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """ab (B, 2, h, w) of cells that look like `cells` (B, C, h, w) -> (B, 2, H, W), for places that look like `places`
    (B, C, H, W) each the mean colour of the cells that look like it and lie near: a joint bilateral filter (Tomasi &
    Manduchi 1998; Kopf et al. 2007) on what the network sees, which does not depend on the noise."""
    longest = NEAR * max(cells.shape[-2:])
    here, there = (
        torch.cat([x.float(), (_middles(x, cells) / longest).expand(len(x), -1, -1, -1)], dim=1).flatten(2).mT
        for x in (places, cells)
    )  # (B, N, C + 2)
    colours, squares = ab.float().flatten(2).mT, there.square().sum(dim=2)[:, None] / 2
    with torch.autocast(ab.device.type, enabled=False):
        # softmax(-|p - q|^2 / 2) over q is softmax(p q - |q|^2 / 2).
        means = [(part @ there.mT - squares).softmax(dim=2) @ colours for part in here.split(CHUNK, dim=1)]
    return torch.cat(means, dim=1).mT.unflatten(2, places.shape[-2:])


def _middles(x: Tensor, cells: Tensor) -> Tensor:
    """(2, H, W): where the middle of each place of x (..., H, W) is, in cells."""
    lines = [
        (torch.arange(n, device=x.device) + 0.5) * (k / n) for n, k in zip(x.shape[-2:], cells.shape[-2:], strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def chroma(ab: Tensor) -> Tensor:
    """ab (B, 2, h, w) in Lab units -> (B,), the root mean square distance from gray."""
    return ab.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
