"""The validation loss of the averaged weights, with fixed noise and timesteps, without the discriminator's terms."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from Project7 import color
from Project7.batch import Batch, BatchRandom, reduced, view
from Project7.methods import Method
from Project7.objective import Objective

VALIDATION_BATCH = 32  # fixed, because the noise of validation is keyed by it


def validate(
    model: Method, objective: Objective, images: np.ndarray, size: int, *, seed: int, accelerator: Accelerator
) -> Iterator[dict[str, float]]:
    """Yields the running means over the pictures (N, V, V, 3), which the network sees at `size`: "loss", each of its
    terms, the method's own measures.

    The processes share the batches; all of them get the same means.
    """
    names = ["loss", *objective.validation_weights(), *model.METRICS, "count"]
    total = torch.zeros(len(names))
    starts = list(range(0, len(images), VALIDATION_BATCH))
    for number in range(0, len(starts), accelerator.num_processes):
        mine = starts[number : number + accelerator.num_processes][accelerator.process_index :][:1]
        part = torch.zeros(len(names), device=accelerator.device)
        for start in mine:
            part = validation_sums(model, objective, images, start, size, seed=seed, accelerator=accelerator)
        total += accelerator.reduce(part, "sum").cpu()
        yield dict(zip(names, (total / total[-1]).tolist(), strict=True))


@torch.no_grad()
def validation_sums(
    model: Method,
    objective: Objective,
    images: np.ndarray,
    start: int,
    size: int,
    *,
    seed: int,
    accelerator: Accelerator,
) -> Tensor:
    """Sums over the batch that begins at picture `start`: the loss, its terms, the measures, the number of samples."""
    rgb = torch.from_numpy(np.array(images[start : start + VALIDATION_BATCH]))
    rgb = rgb.to(accelerator.device).movedim(-1, 1)
    random = BatchRandom(seed, -1 - start, 0, len(rgb), len(rgb), str(accelerator.device))
    constants, weights = (model.ab_mean, model.ab_std), objective.validation_weights()
    pictures = color.split(reduced(rgb, size), *constants)
    batch = Batch(*pictures, random, objective.image_share, view=view(rgb, size))
    with accelerator.autocast():
        step = model(batch)
        terms = objective.terms(step, *constants, weights)
    sums = torch.stack([terms[name].float().sum() for name in weights])
    loss = sum(weight * value for weight, value in zip(weights.values(), sums, strict=True))
    measured = [step.metrics[name].float().sum()[None] for name in model.METRICS]
    return torch.cat([loss[None], sums, *measured, torch.full_like(sums[:1], len(rgb))])
