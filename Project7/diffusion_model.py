"""DiffusionColorizer: a DDPM U-Net (Ho et al. 2020) that learns ab given L.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps        the forward process, x_0 = ab
eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0   what the U-Net predicts from (x_t, t, L)

With an encoder the U-Net gets more than L: L -> encoder (frozen) -> neck -> head (the mean colour, or a distribution),
of which it receives the neck's map and the head's mean. They are computed once per photo, not once per step.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7 import color, encoder
from Project7.answer_config import CALM, CANDIDATES, GUIDANCE, GUIDED, STEPS
from Project7.answer_options import METHOD_OPTIONS
from Project7.array_sampler import even_share, guide
from Project7.batch import Batch, BatchRandom, Estimate, Step
from Project7.candidates import calmed, choose, spread
from Project7.color_head import ColorHead, MeanHead
from Project7.diffusion_export import cell_side, export_parts, known_channels
from Project7.encoder import Encoder, Maps
from Project7.errors import UsageError
from Project7.export_parts import ExportParts
from Project7.guided_filter import expand, pad_to_multiple, shrink
from Project7.model_config import DiffusionConfig
from Project7.neck import Neck, drop_features
from Project7.palette import Palette, palette_weights
from Project7.samplers import make_noise_scheduler, make_sampler, sample, scalable_noise

_WEIGHT_FLOOR = 0.05  # of the min-SNR weight, which would be 0 at zero SNR and leave the last steps untrained
AS_DRAWN = {"guidance": 1.0, "candidates": 1, "calm": 0.0}  # one sample, unchanged
Hints = tuple[Tensor, Tensor]  # ab and a mask
# Called with the estimate of x_0 (B, 2, h, w) at each step; an exception from it ends the sampling.
Watch = Callable[[Tensor], None]


class Context(NamedTuple):
    """What is known before the first denoising step."""

    known: Tensor | None  # (B, C, h, w): further input of the U-Net; None without an encoder
    answer: Tensor | None  # of the head: logits (B, Q, h, w), or ab (B, 2, h, w); None without a head


class DiffusionColorizer(nn.Module):
    """`forward` is a training step; `colorize` colours pictures of any size, padded and cropped inside."""

    OPTIONS = METHOD_OPTIONS["diffusion"]  # of colorize

    alphas_cumprod: Tensor  # abar, (T,)
    ab_mean: Tensor  # (2,)
    ab_std: Tensor

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.config = config
        self.unet = make_unet(config)
        self.LOSS = config.own_loss
        self.METRICS = () if config.head == "none" else ("mse", "head", "unexplained")
        self.encoder: Any = None
        self.neck: Any = None
        self.head: Any = None  # a ColorHead or a MeanHead
        if config.encoder:
            self.encoder = Encoder(config.encoder, config.encoder_size)
            self.neck = Neck(self.encoder.channels, detail_channels(config), config.neck_width)
            if config.head == "classes":
                self.head = ColorHead(config.neck_width, config.bins, config.rebalance)
            elif config.head == "mean":
                self.head = MeanHead(config.neck_width, config.ab_mean, config.ab_std)
        with torch.device("cpu"):  # constants have values even if the weights are on the meta device, see rebuild
            self.noise_scheduler = make_noise_scheduler(config)
            constants = {
                "alphas_cumprod": self.noise_scheduler.alphas_cumprod.clone(),
                "ab_mean": torch.tensor(config.ab_mean),
                "ab_std": torch.tensor(config.ab_std),
            }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @staticmethod
    def first_weights(config: DiffusionConfig, make_palette: Callable[[], Palette]) -> dict[str, Tensor]:
        """The weights of a new model that are not random."""
        found = encoder.first_weights(config.encoder, config.encoder_weights)
        return found | (palette_weights("head.", make_palette()) if config.head == "classes" else {})

    def comparison_options(self) -> dict[str, Any]:
        """Options of `colorize` for the comparison pictures of a run: the default steps, at most as many as the model
        has, and one sample without guidance or choice, which shows what has been learnt."""
        return {"steps": min(STEPS, self.config.timesteps), **AS_DRAWN}

    def shown(self, L: Tensor, random: BatchRandom) -> Tensor:
        """The network's input for a training photo: L itself."""
        return L

    def export_parts(self) -> ExportParts:
        return export_parts(self)

    def forward(self, batch: Batch) -> Step:
        """The mean squared error of the prediction at one random timestep per sample (Ho et al. 2020, eq. 14), plus the
        loss of the head if there is one."""
        x_0 = self.shrink(batch.ab)  # (B, 2, h, w)
        t_cpu = (batch.random.spread("timestep") * self.config.timesteps).long()
        t = t_cpu.to(x_0.device, non_blocking=True)  # (B,)
        noise = batch.random.normal("noise", tuple(x_0.shape[1:]))
        signal, sigma = self.signal_and_noise(t)
        x_t = signal * x_0 + sigma * noise

        hints = self.draw_hints(x_0, batch.random) if self.config.hints else None
        maps = self.look(batch.seen) if batch.maps is None else batch.maps
        if maps is not None and self.training:
            maps = drop_features(maps, self.config.feature_dropout, batch.random)
        context = self.context(batch.L, maps, hints)
        prediction = self.denoise(x_t, t, batch.L, hints, context.known).float()

        target = noise if self.config.prediction_type == "epsilon" else signal * noise - sigma * x_0
        mse = (prediction - target).square().mean(dim=(1, 2, 3))
        loss, metrics = self.loss_weight(t) * mse, {"mse": mse.detach()}
        if self.head is not None:
            truth = self.to_lab(x_0)
            answer: Any = context.answer
            of_head = self.head.loss(answer, truth)
            off = (self.head.mean(answer.detach()) - truth) / self.ab_std[:, None, None]
            loss = loss + self.config.head_weight * of_head
            metrics |= {"head": of_head.detach(), "unexplained": off.square().mean(dim=(1, 2, 3)).detach()}
        estimate = None
        if batch.image_share:
            low = (t_cpu < self.image_timesteps(batch.image_share)).nonzero()[:, 0].to(t.device, non_blocking=True)
            x_0_hat, L = self.x_0_hat(prediction[low], x_t[low], t[low]), batch.L[low]
            weight = self.image_weight(t[low], batch.image_share)
            estimate = Estimate(self.expand(x_0_hat, L), self.expand(x_0[low], L), L, weight)
        return Step(loss, metrics, estimate)

    def look(self, view: Tensor) -> Maps | None:
        """The encoder's feature maps for L (B, 1, H, W) of any size; None without an encoder. Once per photo."""
        return None if self.encoder is None else self.encoder(self.encoder.view(view))

    def context(self, L: Tensor, maps: Maps | None, hints: Hints | None) -> Context:
        """The output of the neck and the head for the encoder's maps. The head's mean is detached: the denoiser's error
        must not train the head to predict anything but the true colours."""
        if self.neck is None:
            return Context(None, None)
        known = self.neck(maps, torch.cat([self.lightness(L), *(hints or ())], dim=1))
        answer = None if self.head is None else self.head(known)
        return Context(self.told(known, answer), answer)

    def told(self, known: Tensor, answer: Tensor | None) -> Tensor:
        """(B, C, h, w): the U-Net's input from the neck's map and the head's answer."""
        parts = [known]
        if answer is not None:
            parts.append(self.from_lab(self.head.mean(answer.detach())))
            if self.config.head_entropy:
                parts.append(self.head.entropy(answer.detach()))
        return torch.cat(parts, dim=1)

    def image_timesteps(self, share: float) -> int:
        """The timestep below which image-space terms are used: the `share` of the schedule with the least noise."""
        return max(1, round(share * self.config.timesteps))

    def image_weight(self, t: Tensor, share: float) -> Tensor:
        """(K,): abar_t divided by its mean over the whole schedule, where timesteps without an image-space term are 0.

        The estimate from a noisy x_t is a blur of all plausible colours, and a comparison of pictures would punish the
        blur; so noisier estimates count less. Because of the division by the mean, the weight of a term has the same
        effect for every share and schedule.
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
        hints: Hints | None = None,
        maps: Maps | None = None,
        sampler: str = "dpm++",
        steps: int = STEPS,
        guidance: float | None = None,
        candidates: int | None = None,
        calm: float | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """L (B, 1, H, W) in [-1, 1] -> a sample of ab (B, 2, H, W), in the network's range.

        hints: ab (B, 2, H, W) and a mask (B, 1, H, W) that is 1 at hints; raises ValueError if the model was not
        trained with hints. generator: one for all pictures, or one per picture. maps: the result of `look`, for the
        photo itself if it is larger than L; None: of L. guidance: scale of classifier-free guidance, 1 is as trained.
        candidates: the number of samples from which one is chosen; calm: how far it is moved towards their
        mean (candidates.py). If one of these three is None, it has the value of `usual`.
        """
        maps = self.look(L) if maps is None else maps
        asked = {"guidance": guidance, "candidates": candidates, "calm": calm}
        chosen = self.usual | {name: value for name, value in asked.items() if value is not None}
        calm = chosen.pop("calm")
        samples, context = self.draw(L, generator, hints, maps, sampler=sampler, steps=steps, watch=watch, **chosen)
        return self.spread(self.settle(samples, context, calm), context, L, calm)

    # -- what the head knows without any sampling --------------------------------------------------------------------

    @torch.no_grad()
    def knowledge(self, L: Tensor, maps: Maps | None = None, hints: Hints | None = None) -> Tensor:
        """The head's answer to L (B, 1, H, W), computed once for all of the methods below.

        Raises ValueError if the model has no head.
        """
        if self.head is None:
            raise ValueError("this model was trained without a head (--head), so it has no distribution of colours")
        if self.config.hints:
            hints = self.shrink_hints(*hints) if hints else self.no_hints(L)
        answer: Any = self.context(L, self.look(L) if maps is None else maps, hints).answer  # of the head
        return answer

    @torch.no_grad()
    def distribution(self, L: Tensor, maps: Maps | None, hints: Hints | None) -> tuple[Tensor, Tensor] | None:
        """The distribution over palette colours: logits (B, Q, h, w), and the colours (Q, 2) in Lab units; None if the
        model has no palette head."""
        if not isinstance(self.head, ColorHead):
            return None
        return self.knowledge(L, maps, hints), self.head.centres

    def mean(self, L: Tensor, answer: Tensor) -> Tensor:
        """The mean colour, in one pass: ab (B, 2, H, W) in the network's range."""
        return self.expand(self.from_lab(self.head.mean(answer)), L)

    def entropy(self, L: Tensor, answer: Tensor) -> Tensor:
        """How unsure the palette head is: (B, 1, H, W) in [0, 1]; 0 is certain, 1 is a uniform distribution."""
        return F.interpolate(self.head.entropy(answer), L.shape[-2:], mode="bilinear", align_corners=False)

    def suggest(self, answer: Tensor, x: float, y: float, count: int = 6):
        """The likely colours at a point of the first photo, by the palette head: each ab in Lab units with its
        probability. x and y are in [0, 1) from the upper left corner."""
        h, w = answer.shape[-2:]
        return self.head.suggest(answer[0, :, min(h - 1, int(y * h)), min(w - 1, int(x * w))], count)

    def log_likelihood(self, answer: Tensor, ab: Tensor) -> Tensor:
        """(B,): the log-likelihood of colours ab (B, 2, H, W) in the network's range, in nats per cell."""
        return self.head.log_likelihood(answer, self.to_lab(self.shrink(ab)))

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(
        self,
        L: Tensor,
        generator: torch.Generator | list[torch.Generator],
        hints: Hints | None,
        maps: Maps | None,
        *,
        sampler: str = "dpm++",
        steps: int = STEPS,
        guidance: float = 1.0,
        candidates: int = 1,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Context]:
        """Samples (B, K, 2, h, w) on the chroma grid, and the context. The arguments are those of `colorize`."""
        if hints is not None and not self.config.hints:
            raise ValueError("this model was trained without colour hints (--hints), and cannot take any")
        if self.config.hints:
            hints = self.shrink_hints(*hints) if hints else self.no_hints(L)
        context = self.context(L, maps, hints)
        blind = self.blind(L, maps, hints).known if guidance != 1 else None
        each = generator if isinstance(generator, list) else [generator] * len(L)
        generators = [one for one in each for _ in range(candidates)]
        L, hints, known, blind = repeated(candidates, L, hints, context.known, blind)
        shape = (len(generators), 2, *(math.ceil(side / self.config.chroma_scale) for side in L.shape[-2:]))
        predict = self.guided(L, hints, known, blind, guidance)
        x_0 = sample(
            predict if watch is None else self.watched(predict, watch),
            make_sampler(sampler, self.noise_scheduler, steps=steps),
            shape,
            generator=generators if isinstance(generator, list) else generator,
            device=L.device,
            noise=scalable_noise(shape, generators) if self.config.encoder else None,  # older models keep theirs
        )
        return x_0.unflatten(0, (-1, candidates)), context

    def guided(
        self, L: Tensor, hints: Hints | None, known: Tensor | None, blind: Tensor | None, guidance: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The prediction as a function of (x_t, t), guided with a weight of `guidance` (array_sampler.guide).

        blind: what is known if the encoder sees nothing; None: no guidance. It acts in an interval of the noise only,
        which saves time (Kynkäänniemi et al. 2024).
        """

        def seeing(x_t: Tensor, t: Tensor) -> Tensor:
            return self.denoise(x_t, t.expand(len(L)), L, hints, known).float()

        if blind is None:
            return seeing
        twice_L, twice_hints = repeated(2, L, hints)  # one pass of the network for both: fewer, larger convolutions
        lowest, highest = (share * self.config.timesteps for share in GUIDED)
        both: Any = torch.stack([known, blind], dim=1).flatten(0, 1)  # type: ignore[list-item] # it knows something

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            if not lowest <= t <= highest:
                return seeing(x_t, t)
            twice = x_t.repeat_interleave(2, dim=0)
            answers = self.denoise(twice, t.expand(len(twice)), twice_L, twice_hints, both).float()
            seen, unseen = answers.unflatten(0, (-1, 2)).unbind(dim=1)
            return guide(seen, unseen, guidance)

        return predict

    def watched(self, predict: Callable[[Tensor, Tensor], Tensor], watch: Watch) -> Callable[[Tensor, Tensor], Tensor]:
        """`predict`, which also calls `watch` with the clean chroma that each prediction implies."""

        def watching(x_t: Tensor, t: Tensor) -> Tensor:
            prediction = predict(x_t, t)
            watch(self.x_0_hat(prediction, x_t, t.long().expand(len(x_t))))
            return prediction

        return watching

    @property
    def usual(self) -> dict[str, Any]:
        """The defaults of this model: for a model with an encoder, what measured best (benchmarks/RESULTS.md), with
        guidance if it was trained with feature dropout; for other models one sample, unchanged."""
        if not self.config.encoder:
            return AS_DRAWN
        guidance = GUIDANCE if self.config.feature_dropout else AS_DRAWN["guidance"]
        return {"guidance": guidance, "candidates": CANDIDATES, "calm": CALM}

    def blind(self, L: Tensor, maps: Maps | None, hints: Hints | None) -> Context:
        """The context if the encoder sees nothing, as for some training samples (neck.drop_features).

        Raises UsageError if the model was not trained that way.
        """
        if maps is None or not self.config.feature_dropout:
            raise UsageError(
                "--guidance is for models whose encoder was left out of some training samples (--encoder with "
                "--feature-dropout), which this model was not; leave out --guidance."
            )
        return self.context(L, tuple(torch.zeros_like(part) for part in maps), hints)

    def settle(self, samples: Tensor, context: Context, calm: float = 0.0) -> Tensor:
        """samples (B, K, 2, h, w) -> the answer (B, 2, h, w) that is shown.

        `calm` moves it towards the mean of the samples and, if there is a head, of the head, which stands for many more
        samples, and gives the colours the strength that the head finds likely.
        """
        count = samples.shape[1]
        if count == 1 and not (calm and self.head is not None):
            return samples[:, 0]
        lab = self.to_lab(samples)
        answer: Any = context.answer  # a Tensor where there is a head
        likelihood, likely, means = None, None, [lab.mean(dim=1)] * (count > 1)
        if isinstance(self.head, ColorHead):
            likely = self.head.likely_chroma(answer)
            likelihood = torch.stack([self.head.log_likelihood(answer, lab[:, k]) for k in range(count)], dim=1)
        if self.head is not None:
            means.append(self.head.mean(answer))
        chosen = lab[torch.arange(len(lab), device=lab.device), choose(lab, likelihood)]
        towards: Any = sum(means) / len(means)  # a Tensor: there is one mean or more
        return self.from_lab(calmed(chosen, towards, lab, calm, likely))

    def spread(self, x_0: Tensor, context: Context, L: Tensor, calm: float) -> Tensor:
        """The answer x_0 (B, 2, h, w) -> ab (B, 2, H, W): `expand`, and with calm one colour for what looks alike."""
        if context.known is None or not calm:
            return self.expand(x_0, L)
        seen = context.known[:, : self.config.neck_width]
        return self.from_lab(spread(self.to_lab(x_0), seen, L, self.config.chroma_scale, even_share(calm)))

    def denoise(self, x_t: Tensor, t: Tensor, L: Tensor, hints: Hints | None = None, known: Tensor | None = None):
        """The network: x_t (B, 2, h, w), t (B,), L (B, 1, H, W), known (B, C, h, w) -> its prediction (B, 2, h, w)."""
        h, w = x_t.shape[-2:]
        inputs = torch.cat([x_t, self.lightness(L), *(hints or ()), *([] if known is None else [known])], dim=1)
        multiple = 2 ** (len(self.config.features) - 1)  # the U-Net halves the picture once per level
        return self.unet(pad_to_multiple(inputs, multiple), t).sample[..., :h, :w]

    def lightness(self, L: Tensor) -> Tensor:
        """L (B, 1, H, W) on the chroma grid: the pixels of a cell as channels (B, C, h, w), at most 4 x 4 of them, so
        that a network for a quarter of the resolution also fits an eighth."""
        scale = self.config.chroma_scale
        fine = cell_side(self.config)
        return F.pixel_unshuffle(shrink(self.padded(L), scale // fine), fine)

    def x_0_hat(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean chroma that a prediction implies, within the possible range of ab.

        From eps: x_0 = (x_t - sigma eps) / signal, which explodes at high noise, so it is clamped;
        from v: x_0 = signal x_t - sigma v (Salimans & Ho 2022, appendix D).
        """
        signal, sigma = self.signal_and_noise(t)
        if self.config.prediction_type == "v_prediction":
            return signal * x_t - sigma * prediction
        largest = (128 / min(self.config.ab_std)) + 1
        return ((x_t - sigma * prediction) / signal).clamp(-largest, largest)

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,): min-SNR weights (Hang et al. 2023, eq. 5 and appendix), with a floor for zero terminal SNR; or ones."""
        gamma = self.config.min_snr_gamma
        if not gamma:
            return torch.ones_like(t, dtype=torch.float32)
        abar = self.alphas_cumprod[t]
        snr = abar / (1 - abar)
        over = snr if self.config.prediction_type == "epsilon" else snr + 1
        return (snr.clamp(max=gamma) / over).clamp(min=_WEIGHT_FLOOR)

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, 1, 1)."""
        abar = self.alphas_cumprod[t][:, None, None, None]
        return abar.sqrt(), (1 - abar).sqrt()

    def padded(self, x: Tensor) -> Tensor:
        """The picture padded until the chroma scale divides its sides."""
        return pad_to_multiple(x, self.config.chroma_scale)

    def shrink(self, ab: Tensor) -> Tensor:
        """ab (B, 2, H, W) -> x_0 (B, 2, h, w), at the resolution at which chroma is learnt."""
        return shrink(ab, self.config.chroma_scale)

    def expand(self, x_0: Tensor, L: Tensor) -> Tensor:
        """x_0 (B, 2, h, w) -> ab (B, 2, H, W), along the edges of L."""
        return expand(x_0, L, self.config.chroma_scale)

    def to_lab(self, ab: Tensor) -> Tensor:
        return color.to_lab_units(ab, self.ab_mean, self.ab_std)

    def from_lab(self, ab: Tensor) -> Tensor:
        return color.to_network_range(ab, self.ab_mean, self.ab_std)

    def draw_hints(self, x_0: Tensor, random: BatchRandom) -> Hints:
        """True colours at random points: about 1 to 64 (log-uniform) in a `hint_share` of the samples, else none.

        After Zhang et al. 2017, Real-Time User-Guided Image Colorization, section 3.2.
        """
        h, w = x_0.shape[-2:]
        none = 1 - self.config.hint_share
        draw = random.uniform("hints")[:, None, None, None]  # (B, 1, 1, 1); values above `none` mean points
        points = 2 ** ((draw - none) * (6 / self.config.hint_share))
        share = torch.where(draw < none, 0.0, points / (h * w))
        mask = (random.uniform("hint places", (1, h, w)) < share).to(x_0.dtype)
        return x_0 * mask, mask

    def shrink_hints(self, ab: Tensor, mask: Tensor) -> Hints:
        """Hints at full resolution -> hints at the resolution of x_0: the mean of the hints in each cell."""
        ab, mask = self.shrink(ab * mask), self.shrink(mask)
        return torch.where(mask > 0, ab / mask.clamp(min=1e-6), 0.0), (mask > 0).to(ab.dtype)

    def no_hints(self, L: Tensor) -> Hints:
        mask = torch.zeros_like(self.shrink(L))
        return mask.expand(-1, 2, -1, -1), mask


def repeated(count: int, *values):
    """Repeats each sample of each value `count` times in a row; pairs of hints too, while None stays None."""
    return [
        value
        if value is None
        else tuple(repeated(count, *value))
        if isinstance(value, tuple)
        else value.repeat_interleave(count, dim=0)
        for value in values
    ]


def detail_channels(config: DiffusionConfig) -> int:
    """The number of channels for the lightness of a cell's pixels and for hints."""
    return cell_side(config) ** 2 + (3 if config.hints else 0)


def make_unet(config: DiffusionConfig):
    """diffusers' UNet2DModel: residual blocks on every level, self-attention on the coarsest ones.

    The number of groups is the largest that divides every level's width, at most 32, with two channels per group or
    more.
    """
    from diffusers import UNet2DModel

    attending = min(config.attention_levels, len(config.features))
    plain = len(config.features) - attending
    common = math.gcd(*config.features)
    groups = max(g for g in range(1, 33) if common % g == 0 and (g <= common // 2 or g == 1))
    heads = math.gcd(64, *config.features[plain:])
    return UNet2DModel(
        in_channels=2 + detail_channels(config) + len(known_channels(config)),
        out_channels=2,
        block_out_channels=config.features,
        layers_per_block=config.layers,
        down_block_types=["DownBlock2D"] * plain + ["AttnDownBlock2D"] * attending,
        up_block_types=["AttnUpBlock2D"] * attending + ["UpBlock2D"] * plain,
        time_embedding_dim=config.time_dim,
        norm_num_groups=groups,
        attention_head_dim=heads,
    )
