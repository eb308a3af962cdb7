"""DiffusionColorizer: a DDPM U-Net (Ho et al. 2020) that learns ab given L.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps        the forward process, x_0 = ab
eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0   what the U-Net predicts from (x_t, t, L)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7.batch import Batch, BatchRandom, Estimate, Step
from Project7.config import STEPS, DiffusionConfig
from Project7.guided_filter import expand, pad_to_multiple, shrink
from Project7.samplers import make_noise_scheduler, make_sampler, sample

_WEIGHT_FLOOR = 0.05  # of the min-SNR weight: at zero SNR it would be 0 and the last steps go untrained


class DiffusionColorizer(nn.Module):
    """`forward` is a training step, `colorize` colours. Any picture size: padding and cropping happen inside."""

    OPTIONS = ("sampler", "steps")  # of colorize
    LOSS = "mse"

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.config = config
        self.unet = make_unet(config)
        with torch.device("cpu"):  # constants are real even where the weights are not yet: checkpoints.rebuild
            self.noise_scheduler = make_noise_scheduler(config)
            constants = {
                "alphas_cumprod": self.noise_scheduler.alphas_cumprod.clone(),  # abar, (T,)
                "ab_mean": torch.tensor(config.ab_mean),
                "ab_std": torch.tensor(config.ab_std),
            }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Batch) -> Step:
        """The mean squared error of the prediction at one random timestep a sample (Ho et al. 2020, eq. 14)."""
        x_0 = self.shrink(batch.ab)  # (B, 2, h, w)
        t_cpu = (batch.random.spread("timestep") * self.config.timesteps).long()
        t = t_cpu.to(x_0.device, non_blocking=True)  # (B,)
        noise = batch.random.normal("noise", tuple(x_0.shape[1:]))
        signal, sigma = self.signal_and_noise(t)
        x_t = signal * x_0 + sigma * noise

        hints = self.draw_hints(x_0, batch.random) if self.config.hints else None
        prediction = self.denoise(x_t, t, batch.L, hints).float()

        target = noise if self.config.prediction_type == "epsilon" else signal * noise - sigma * x_0
        mse = (prediction - target).square().mean(dim=(1, 2, 3))
        estimate = None
        if batch.image_share:
            low = (t_cpu < self.image_timesteps(batch.image_share)).nonzero()[:, 0].to(t.device, non_blocking=True)
            x_0_hat, L = self.x_0_hat(prediction[low], x_t[low], t[low]), batch.L[low]
            weight = self.image_weight(t[low], batch.image_share)
            estimate = Estimate(self.expand(x_0_hat, L), self.expand(x_0[low], L), low, weight)
        return Step(self.loss_weight(t) * mse, {"mse": mse.detach()}, estimate)

    def image_timesteps(self, share: float) -> int:
        """Image-space terms act below this timestep: the `share` of the schedule with the least noise."""
        return max(1, round(share * self.config.timesteps))

    def image_weight(self, t: Tensor, share: float) -> Tensor:
        """(K,) abar_t over its mean over the whole schedule, where timesteps without an image-space term count as 0.

        The estimate from a noisy x_t is a blur of all plausible colours, which a comparison of pictures would punish
        for being honest; so the noise decides how much it counts. Divided by the mean, the weight of a term means
        the same whatever the share and the schedule are.
        """
        count = self.image_timesteps(share)
        mean = self.alphas_cumprod[:count].sum() / self.config.timesteps
        return self.alphas_cumprod[t] / mean

    @torch.no_grad()
    def colorize(
        self,
        L: Tensor,
        *,
        generator: torch.Generator | list[torch.Generator],
        hints: tuple[Tensor, Tensor] | None = None,
        sampler: str = "dpm++",
        steps: int = STEPS,
    ) -> Tensor:
        """L (B, 1, H, W) in [-1, 1] -> a sample of ab (B, 2, H, W), in the network's range.

        hints: ab (B, 2, H, W) and a mask (B, 1, H, W) that is 1 where it is given; ValueError if the model was not
        trained with hints. generator: one for all, or one a picture.
        """
        if hints is not None and not self.config.hints:
            raise ValueError("this model was trained without colour hints (--hints), and cannot take any")
        if self.config.hints:
            hints = self.shrink_hints(*hints) if hints else self.no_hints(L)
        scheduler = make_sampler(sampler, self.noise_scheduler, steps=steps)
        shape = (len(L), 2, *(math.ceil(side / self.config.chroma_scale) for side in L.shape[-2:]))
        x_0 = sample(
            lambda x_t, t: self.denoise(x_t, t.expand(len(L)), L, hints).float(),
            scheduler,
            shape,
            generator=generator,
            device=L.device,
        )
        return self.expand(x_0, L)

    def denoise(self, x_t: Tensor, t: Tensor, L: Tensor, hints: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The network: x_t (B, 2, h, w), t (B,), L (B, 1, H, W) -> its prediction (B, 2, h, w)."""
        h, w = x_t.shape[-2:]
        lightness = F.pixel_unshuffle(self.fit(L), self.config.chroma_scale)  # (B, scale^2, h, w)
        inputs = torch.cat([x_t, lightness, *(hints or ())], dim=1)
        multiple = 2 ** (len(self.config.features) - 1)  # the U-Net halves the picture once a level
        return self.unet(pad_to_multiple(inputs, multiple), t).sample[..., :h, :w]

    def x_0_hat(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean chroma that a prediction implies, kept within what ab can be.

        From eps: x_0 = (x_t - sigma eps) / signal, which explodes at high noise, so it is clamped;
        from v: x_0 = signal x_t - sigma v (Salimans & Ho 2022, appendix D).
        """
        signal, sigma = self.signal_and_noise(t)
        if self.config.prediction_type == "v_prediction":
            return signal * x_t - sigma * prediction
        largest = (128 / min(self.config.ab_std)) + 1
        return ((x_t - sigma * prediction) / signal).clamp(-largest, largest)

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) min-SNR weights (Hang et al. 2023, eq. 5 and appendix), or ones. Floored for zero terminal SNR."""
        gamma = self.config.min_snr_gamma
        if not gamma:
            return torch.ones_like(t, dtype=torch.float32)
        abar = self.alphas_cumprod[t]
        snr = abar / (1 - abar)
        over = snr if self.config.prediction_type == "epsilon" else snr + 1
        return (snr.clamp(max=gamma) / over).clamp(min=_WEIGHT_FLOOR)

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (B, 1, 1, 1)."""
        abar = self.alphas_cumprod[t][:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()

    def fit(self, x: Tensor) -> Tensor:
        """Pads a picture so that the chroma scale divides its sides."""
        return pad_to_multiple(x, self.config.chroma_scale)

    def shrink(self, ab: Tensor) -> Tensor:
        """ab (B, 2, H, W) -> x_0 (B, 2, h, w), at the resolution at which chroma is learnt."""
        return shrink(ab, self.config.chroma_scale)

    def expand(self, x_0: Tensor, L: Tensor) -> Tensor:
        """x_0 (B, 2, h, w) -> ab (B, 2, H, W), along the edges of L."""
        return expand(x_0, L, self.config.chroma_scale)

    def draw_hints(self, x_0: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """True colours at random points: for half of the samples none, for the others about 1 to 64 (log-uniform).

        After Zhang et al. 2017, Real-Time User-Guided Image Colorization, section 3.2.
        """
        h, w = x_0.shape[-2:]
        draw = random.uniform("hints")[:, None, None, None]  # (B, 1, 1, 1); its upper half asks for points
        points = 2 ** ((draw - 0.5) * 12)
        share = torch.where(draw < 0.5, 0.0, points / (h * w))
        mask = (random.uniform("hint places", (1, h, w)) < share).to(x_0.dtype)
        return x_0 * mask, mask

    def shrink_hints(self, ab: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hints at full resolution -> at that of x_0: the mean of the hints in a cell."""
        ab, mask = self.shrink(ab * mask), self.shrink(mask)
        return torch.where(mask > 0, ab / mask.clamp(min=1e-6), 0.0), (mask > 0).to(ab.dtype)

    def no_hints(self, L: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros_like(self.shrink(L))
        return mask.expand(-1, 2, -1, -1), mask


def make_unet(config: DiffusionConfig):
    """diffusers' UNet2DModel: residual blocks on every level, self-attention on the lowest one.

    Group counts follow the width: the largest that divides every level, at most 32, with two channels a group.
    """
    from diffusers import UNet2DModel

    plain = len(config.features) - 1
    common = math.gcd(*config.features)
    groups = max(g for g in range(1, 33) if common % g == 0 and (g <= common // 2 or g == 1))
    heads = math.gcd(64, config.features[-1])
    return UNet2DModel(
        in_channels=2 + config.chroma_scale**2 + (3 if config.hints else 0),
        out_channels=2,
        block_out_channels=config.features,
        layers_per_block=config.layers,
        down_block_types=["DownBlock2D"] * plain + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * plain,
        time_embedding_dim=config.time_dim,
        norm_num_groups=groups,
        attention_head_dim=heads,
    )
