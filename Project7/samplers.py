"""Noise schedules and samplers by name, from diffusers, and the one denoising loop.

The U-Net and the schedulers take seconds to import, so they are imported where they are used.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7.answer_config import SAMPLERS
from Project7.array_sampler import even_places
from Project7.errors import UsageError
from Project7.model_config import DiffusionConfig

_PUBLISHED_STEPS = 1000  # number of timesteps of the published betas
_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}
_FIELD = 256  # cells per side of the noise that all sizes of a grid share
_LEFT_AT_THE_END = 0.02  # largest sqrt(abar_T): the share of the picture that may be left at the last step

# name -> diffusers' class and its settings. Trailing spacing starts at the last trained step, which is pure noise
# (Lin et al. 2023, section 3.3); leading spacing would start where some of the picture is still left.
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    # First-order DPM-Solver++ is DDIM (Lu et al. 2022, section 4.1). diffusers' own DDIMScheduler is wrong with
    # trailing spacing if the steps do not divide the timesteps: it rounds its step length down, but not its timesteps.
    "ddim": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),  # with its own timesteps: even_places
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def make_noise_scheduler(config: DiffusionConfig):
    """The forward process: a diffusers DDPMScheduler whose published betas are fitted to the number of timesteps.

    Raises UsageError if more than 2 % of the picture would be left at the last step (sqrt(abar_T) > 0.02).
    """
    from diffusers import DDPMScheduler

    beta_start, beta_end = _BETAS[config.beta_schedule]
    noise_scheduler: Any = DDPMScheduler(  # the types of diffusers lack its betas and its configuration
        num_train_timesteps=_PUBLISHED_STEPS,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    fitted: dict[str, Any] = {"rescale_betas_zero_snr": config.zero_terminal_snr}
    if config.timesteps != _PUBLISHED_STEPS:
        betas = respaced_betas(noise_scheduler.betas, config.timesteps)
        fitted |= {"num_train_timesteps": config.timesteps, "trained_betas": betas.tolist()}
    noise_scheduler = DDPMScheduler.from_config(noise_scheduler.config, **fitted)
    if config.noise_shift != 1:
        betas = shifted_betas(noise_scheduler.betas, config.noise_shift)
        noise_scheduler = DDPMScheduler.from_config(noise_scheduler.config, trained_betas=betas.tolist())
    left = noise_scheduler.alphas_cumprod[-1].item() ** 0.5
    if not left <= _LEFT_AT_THE_END:
        raise UsageError(
            f"--beta-schedule {config.beta_schedule} with --timesteps {config.timesteps} leaves {left:.0%} of the "
            "picture at the last step, which must be noise (at most 2 %); use --zero-terminal-snr."
        )
    return noise_scheduler


def respaced_betas(betas: Tensor, timesteps: int) -> Tensor:
    """(1000,) betas -> (timesteps,) betas that follow the same curve of abar, in fewer or more steps.

    As Nichol & Dhariwal 2021 (Improved DDPM, eq. 19) do for sampling: beta'_k = 1 - abar_{S_k} / abar_{S_{k-1}}, which
    is about 1000 / T times as large for a large T. Without this, T = 100 would leave 60 % of the picture.
    """
    log_abar = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - betas.double()).log().cumsum(0)])
    place = torch.arange(timesteps + 1, dtype=torch.float64) * (len(betas) / timesteps)
    low = place.floor().long().clamp(max=len(betas) - 1)
    respaced = torch.lerp(log_abar[low], log_abar[low + 1], place - low)
    return (1 - respaced.diff().exp()).clamp(max=0.9999).float()


def shifted_betas(betas: Tensor, shift: float) -> Tensor:
    """The schedule whose signal-to-noise ratio abar / (1 - abar) is divided by shift^2 at every timestep.

    As Hoogeboom et al. 2023 (Simple Diffusion, section 3.1) do for large pictures, whose smooth parts survive the
    noise. Chroma is smooth everywhere: without a shift the noisy picture reveals its colours at nearly every timestep,
    and the network hardly learns what L tells about them (benchmarks/RESULTS.md).
    """
    abar = (1 - betas.double()).cumprod(0)
    abar = abar / (abar + shift**2 * (1 - abar))
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return (1 - abar / before).float()


def make_sampler(name: str, noise_scheduler, *, steps: int):
    """diffusers' scheduler for the sampler `name`, with the noise schedule of the model, set to `steps` steps. Raises
    UsageError for an unknown sampler, or a number of steps out of range."""
    import diffusers

    if name not in _SCHEDULERS:
        raise UsageError(f"--sampler {name} is unknown; the samplers are {', '.join(SAMPLERS)}.")
    trained = noise_scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise UsageError(
            f"--steps {steps} is out of range; this model was trained with {trained} timesteps (1 to {trained})."
        )
    kind, settings = _SCHEDULERS[name]
    sampler = getattr(diffusers, kind).from_config(noise_scheduler.config, timestep_spacing="trailing", **settings)
    sampler = _falling(sampler)
    if name == "dpm++":
        sampler.set_timesteps(timesteps=even_places(sampler.alphas_cumprod.numpy(), steps))
    else:
        sampler.set_timesteps(steps)
    return sampler


def _falling(sampler):
    """The sampler with an abar that falls to its end: diffusers replaces the 0 there by 2^-24, and a shifted schedule
    may be below that one step earlier."""
    abar = sampler.alphas_cumprod
    if abar[-1] >= abar[-2]:
        abar[-1] = abar[-2] / 4
    return sampler


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sampler,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | list[torch.Generator],
    device: torch.device | str = "cpu",
    noise: Tensor | None = None,
) -> Tensor:
    """Denoises from x_T to x_0, (B, C, h, w). `denoise(x_t, t)` gives the network's prediction, of the type that the
    sampler expects (epsilon or v).

    With one generator per picture, a picture does not depend on the others in its batch. Generators on the CPU give the
    same noise on every device. noise: (B, C, h, w) to start from, instead of that of the generators.
    """
    from diffusers.utils.torch_utils import randn_tensor

    stochastic = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
    if noise is None:
        noise = randn_tensor(shape, generator=generator, device=torch.device(device))
    x_t = noise.to(device) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        prediction = denoise(sampler.scale_model_input(x_t, t), t.to(device))
        x_t = sampler.step(prediction, t, x_t, **stochastic).prev_sample
    return x_t


def scalable_noise(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """White noise (B, C, h, w) whose coarse part is the same at every size of the grid, so that a photo gets the same
    colours at another working size, in more or less detail.

    One field of 256 x 256 (or a multiple) covers every picture; a cell is the sum of the field over its own part of it,
    scaled to unit variance. The parts do not overlap, so the cells are independent.
    """
    height, width = shape[-2:]
    sides = [_FIELD * math.ceil(side / _FIELD) for side in (height, width)]
    fields = torch.stack([torch.randn(shape[1], *sides, generator=g) for g in generators])
    for dim, (side, cells) in enumerate(zip(sides, (height, width), strict=True), start=2):
        ends = torch.arange(cells + 1) * side // cells
        sums = F.pad(fields.double().cumsum(dim), (0, 0, 1, 0) if dim == 2 else (1, 0)).index_select(dim, ends)
        counts = ends.diff().double().sqrt()
        fields = sums.diff(dim=dim) / (counts[:, None] if dim == 2 else counts)
    return fields.float()
