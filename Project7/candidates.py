"""Several answers to one photo: which one is shown, how far it is calmed, towards their mean and towards one colour for
what looks alike, and how strong its colours are.

A single sample of a diffusion model is bold, and now and then entirely wrong; the mean of many samples is right more
often, but pale. People prefer something in between, no blotches in a sky or on a wall, and no red faces.
"""

import torch
from torch import Tensor

from Project7.array_sampler import (
    ALIKE,
    ALIKE_L,
    CHUNK,
    EVEN,
    FINE,
    KNEE,
    NEAR,
    STRENGTH,
    STRONGEST,
    STRONGEST_HEADLESS,
)


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
    looks: Tensor | None = None,
    likely: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """chosen (B, 2, h, w), moved by `calm` in [0, 1] towards the mean (B, 2, h, w) of the answers, but not made pale.

    looks: (B, C, h, w), the `appearance` by which cells that look alike are `evened`. Opposite colours cancel in a
    mean, so the result is `strengthened` to what is likely: (B, h, w) twice, the expected and the largest likely
    chroma. If nothing is known of that, it is scaled to the mean chroma of the samples (B, K, 2, h, w).
    """
    if not calm:
        return chosen
    blend, share = chosen + calm * (mean - chosen), min(1, EVEN * calm)
    if looks is not None:
        blend = blend + share * (evened(blend, looks) - blend)
    if likely is not None:
        return blend + share * (strengthened(blend, *likely) - blend)
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


def appearance(features: Tensor, L: Tensor) -> Tensor:
    """What each cell looks like, (B, C + 1, h, w), in units in which two cells at a distance of 1 are alike: what the
    network sees there, features (B, C, h, w), and the lightness, L (B, 1, h, w) in [-1, 1].

    The network's features of a clear sky change towards whatever stands in it; lightness does not. Where the grid is
    coarser than in training, it must agree more closely, since more lies in a cell (benchmarks/RESULTS.md).
    """
    seen, light = (x.float() - x.float().mean(dim=(2, 3), keepdim=True) for x in (features, L))
    typical = (2 * seen.square().sum(dim=1).mean(dim=(1, 2))).sqrt()[:, None, None, None]  # distance of two cells
    near = ALIKE_L * min(1.0, max(L.shape[-2:]) / FINE)
    return torch.cat([seen / (ALIKE * typical).clamp(min=1e-6), light / near], dim=1)


def evened(ab: Tensor, looks: Tensor) -> Tensor:
    """ab (B, 2, h, w) in which each cell has the mean colour of the cells that look like it, by their `appearance`
    (B, C, h, w), and lie near: a bilateral filter (Tomasi & Manduchi 1998) on what the network sees, which does not
    depend on the noise."""
    h, w = ab.shape[-2:]
    rows, columns = torch.arange(h, device=ab.device), torch.arange(w, device=ab.device)
    places = torch.cartesian_prod(rows, columns) / (NEAR * max(h, w))  # (N, 2)
    seen = looks.float().flatten(2).transpose(1, 2)  # (B, N, C)
    points = torch.cat([seen, places.expand(len(ab), -1, -1)], dim=2)
    colours, squares = ab.float().flatten(2).transpose(1, 2), points.square().sum(dim=2)[:, None] / 2
    with torch.autocast(ab.device.type, enabled=False):
        # softmax(-|p - q|^2 / 2) over q is softmax(p q - |q|^2 / 2).
        means = [(part @ points.mT - squares).softmax(dim=2) @ colours for part in points.split(CHUNK, dim=1)]
    return torch.cat(means, dim=1).transpose(1, 2).reshape(ab.shape)


def chroma(ab: Tensor) -> Tensor:
    """ab (B, 2, h, w) in Lab units -> (B,), the root mean square distance from gray."""
    return ab.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
