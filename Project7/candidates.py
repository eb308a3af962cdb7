"""Several answers to one photo: which one is shown, and how far it is moved towards their mean.

A single sample of a diffusion model is bold, and now and then entirely wrong; the mean of many samples is right more
often, but pale. People prefer something in between.
"""

from torch import Tensor

_STRONGEST = 1.6  # largest factor by which a mean's chroma is raised to that of the answers


def choose(samples: Tensor, likelihood: Tensor | None = None) -> Tensor:
    """The indices (B,) of the answers to show, among samples (B, K, 2, h, w) in Lab units.

    With a likelihood (B, K), the likeliest answer; without one, the answer with the smallest mean distance to the
    others (the medoid). Neither uses the true colours.
    """
    if likelihood is not None:
        return likelihood.argmax(dim=1)
    differences = samples[:, :, None] - samples[:, None]  # (B, K, K, 2, h, w)
    return differences.square().mean(dim=(3, 4, 5)).sqrt().sum(dim=2).argmin(dim=1)


def calmed(chosen: Tensor, mean: Tensor, samples: Tensor, calm: float) -> Tensor:
    """chosen (B, 2, h, w), moved by `calm` in [0, 1] towards the mean (B, 2, h, w) of the answers, but not made pale.

    Opposite colours cancel in a mean, so the result is scaled to the mean chroma of the samples (B, K, 2, h, w).
    """
    if not calm:
        return chosen
    blend = chosen + calm * (mean - chosen)
    wanted = chroma(samples.flatten(0, 1)).view(len(samples), -1).mean(dim=1)
    gain = (wanted / chroma(blend).clamp(min=1e-3)).clamp(1, _STRONGEST)
    return blend * gain[:, None, None, None]


def chroma(ab: Tensor) -> Tensor:
    """ab (B, 2, h, w) in Lab units -> (B,), the root mean square distance from gray."""
    return ab.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
