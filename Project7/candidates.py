"""Several answers to one photo: which one is shown, and how far it is drawn towards what they have in common.

A single draw from a diffusion model is bold, and now and then wrong all over; the mean of many is right more often and
pale. In between lies what a person keeps.
"""

from torch import Tensor

_STRONGEST = 1.6  # the most that a mean is strengthened to the chroma of the answers that it is made of


def choose(samples: Tensor, likelihood: Tensor | None = None, *, trust: float = 1.0) -> Tensor:
    """The places (B,) of the answers to show, among samples (B, K, 2, h, w) in Lab units.

    By agreement: the smallest mean distance to the others, in Lab units (the medoid); and by likelihood (B, K), in nats
    per cell, `trust` Lab units for each. Neither looks at the truth.
    """
    differences = samples[:, :, None] - samples[:, None]  # (B, K, K, 2, h, w)
    distance = differences.square().mean(dim=(3, 4, 5)).sqrt().sum(dim=2) / max(1, samples.shape[1] - 1)
    score = -distance if likelihood is None else trust * likelihood - distance
    return score.argmax(dim=1)


def calmed(chosen: Tensor, mean: Tensor, samples: Tensor, calm: float) -> Tensor:
    """chosen (B, 2, h, w), drawn by `calm` in [0, 1] towards the mean (B, 2, h, w) of the answers, not its paleness.

    Opposite colours cancel in a mean; the result is brought back to the chroma that the samples (B, K, 2, h, w) have.
    """
    if not calm:
        return chosen
    blend = chosen + calm * (mean - chosen)
    wanted = chroma(samples.flatten(0, 1)).view(len(samples), -1).mean(dim=1)
    gain = (wanted / chroma(blend).clamp(min=1e-3)).clamp(1, _STRONGEST)
    return blend * gain[:, None, None, None]


def chroma(ab: Tensor) -> Tensor:
    """(B, 2, h, w) in Lab units -> (B,) the root mean square of the distance from gray."""
    return ab.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
