"""Every setting of the toolkit, once: a field here is the flag, the question, the line of --help and the JSON key.

No torch here, so that `--help` and the first question appear at once.
"""

import json
import math
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from Project7.errors import UsageError

SETTINGS = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

STEPS = 10  # of denoising: more bring nothing (benchmarks/RESULTS.md)
GUIDANCE = 2.0  # of models with an encoder
CANDIDATES = 1  # answers drawn for one that is shown
CALM = 0.0
FAST_STEPS = 5  # of --fast: as good as 1,000 of ancestral sampling, a little paler than ten
SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++-sde", "euler", "euler-a", "unipc")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def setting(
    default: Any,
    about: str,
    *,
    ask: str | None = None,
    fixed: bool = True,
    follows: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """A field. `ask` is its question; `fixed` says that a model keeps it for life (a resumed run inherits it);
    `follows` names the settings that bring its value along where they change."""
    return Field(
        default, description=about, json_schema_extra={"ask": ask, "fixed": fixed, "follows": follows}, **bounds
    )


Width = Annotated[int, Field(ge=1, le=4096)]
Pair = tuple[float, float]
# A setting that is mostly one value, and may be one for each source of images: one is written as itself.
_AS_TUPLE = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
_ONE_AS_ITSELF = PlainSerializer(lambda values: values[0] if len(values) == 1 else values)
Sources = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _AS_TUPLE, _ONE_AS_ITSELF]
PerSource = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], _AS_TUPLE, _ONE_AS_ITSELF]


class DiffusionConfig(BaseModel):
    """The U-Net, the noise schedule and the scale of ab: all that `best_model.pth` needs to rebuild the model."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_diffusion.py", "train_diffusion_v2.py")
    UNIT_TARGETS: ClassVar = True  # a network that always answers 0 has a squared error of 1

    method: Literal["diffusion"] = "diffusion"
    features: tuple[Width, ...] = setting(
        (64, 128, 256, 512),
        "channels of the U-Net's levels, fine to coarse",
        ask="U-Net features",
        min_length=1,
        max_length=8,
    )
    time_dim: int = setting(256, "width of the time embedding", ask="Time embedding dim", ge=4, le=8192)
    timesteps: int = setting(1000, "steps of the noise schedule", ask="Diffusion timesteps", ge=2, le=10_000)
    layers: int = setting(1, "residual blocks a level", ge=1, le=8)
    prediction_type: Literal["epsilon", "v_prediction"] = setting(
        "v_prediction", "what the network predicts: the noise, or v (Salimans & Ho 2022)"
    )
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = setting(
        "scaled_linear", "noise schedule, in diffusers' names (linear is that of Ho et al. 2020)"
    )
    zero_terminal_snr: bool = setting(
        True, "make the last step pure noise (Lin et al. 2023), against a colour cast over the whole picture"
    )
    noise_shift: float = setting(
        1.0,
        "divides the signal-to-noise ratio by its square: more of the timesteps are nearly noise; a new model gets 3 "
        "for a chroma grid of 32 x 32 cells, and in proportion for others",
        ge=1,
        le=32,
    )
    min_snr_gamma: float = setting(0.0, "min-SNR loss weight (Hang et al. 2023); 0 is none, 5 the paper's", ge=0)
    chroma_scale: Literal[1, 2, 4, 8] = setting(
        1, "predict ab at this fraction of the resolution and enlarge it along the edges of L: 2 is half, 4 a quarter"
    )
    attention_levels: int = setting(1, "levels of the U-Net with self-attention, counted from the coarsest", ge=1, le=8)
    hints: bool = setting(False, "train with colour hints, so that a person can say what colour a spot has")
    hint_share: float = setting(0.5, "share of the training samples that are given hints", gt=0, le=1)
    encoder: str | None = setting(
        None,
        "frozen network of timm that looks at the photo: tf_efficientnet_lite2 comes with the toolkit; none is without",
        min_length=1,
    )
    encoder_size: int = setting(224, "short side in pixels at which the encoder looks at a photo", ge=32, le=2048)
    encoder_weights: str | None = setting(
        None, "file with the weights of another encoder, instead of timm's download", min_length=1
    )
    neck_width: int = setting(96, "channels between the encoder and the U-Net", ge=4, le=1024)
    head: Literal["none", "mean", "classes"] = setting(
        "none", "what is predicted beside, in one pass: the mean colour, or the probability of each palette colour"
    )
    head_weight: float = setting(0.25, "weight of the head's loss beside the squared error", gt=0, le=100)
    head_entropy: bool = setting(False, "tell the U-Net where the head of palette colours is unsure")
    bins: int = setting(313, "colours of the palette of the head", ge=2, le=4096)
    palette: str | None = setting(None, "file of `project7 palette`; without one it is fitted first", min_length=1)
    rebalance: float = setting(
        0.0, "how much rare colours count more in the head: 0 not at all, 1 by rarity", ge=0, le=1
    )
    feature_dropout: float = setting(
        0.1, "share of the encoder's channels, and of the samples' whole encoder, left out in training", ge=0, le=0.9
    )
    ab_mean: Pair = setting((2.1, 8.9), "a and b that the network sees as 0 (the mean of natural photos)")
    ab_std: Pair = setting((12.6, 17.7), "a and b that the network sees as 1 (their standard deviation)")

    @model_validator(mode="before")
    @classmethod
    def _classic_schedule(cls, values: Any) -> Any:
        """`--prediction-type epsilon` alone means the classic pair: linear betas, their last step left as it is; and
        `--encoder none` alone is without the head that reads an encoder."""
        if isinstance(values, dict):
            if "encoder" in values and values["encoder"] is None:
                values = {"head": "none", "head_entropy": False, **values}
            if values.get("prediction_type") == "epsilon":
                values = {"zero_terminal_snr": False, **values}
            if not values.get("zero_terminal_snr", True):
                values = {"beta_schedule": "linear", **values}
        return values

    @model_validator(mode="after")
    def _combinations(self):
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "prediction_type epsilon cannot be trained with zero_terminal_snr (at the last step the noise says "
                "nothing about the picture); use --prediction-type v_prediction, or --no-zero-terminal-snr with "
                "--beta-schedule linear"
            )
        if self.beta_schedule == "scaled_linear" and not self.zero_terminal_snr:
            raise ValueError(
                "beta_schedule scaled_linear leaves 7 % of the picture at its last step (the rule: at most 2 %); "
                "use --zero-terminal-snr or --beta-schedule linear"
            )
        if self.noise_shift != 1 and not self.zero_terminal_snr:
            raise ValueError(
                "noise_shift needs a schedule that ends in noise; use --prediction-type v_prediction with "
                "--zero-terminal-snr"
            )
        if min(self.ab_std) <= 0:
            raise ValueError(f"ab_std is {self.ab_std}, and must be above 0; the default is 12.6,17.7")
        if self.encoder_weights and not self.encoder:
            raise ValueError("encoder_weights are those of an encoder, and there is none; use --encoder NAME")
        if self.encoder is None and self.head != "none":
            raise ValueError(f"head {self.head} reads what an encoder sees; use --encoder NAME, or --head none")
        if self.head_entropy and self.head != "classes":
            raise ValueError(f"head_entropy needs the probabilities of --head classes, and head is {self.head}")
        return self

    def fitted(self, image_size: int, given: Iterable[str]) -> "DiffusionConfig":
        """A new model's settings once the size of its pictures is known: the noise schedule follows the size of the
        chroma grid, unless it was given or is the classic one."""
        if "noise_shift" in given or not self.zero_terminal_snr:
            return self
        return self.model_copy(update={"noise_shift": shift_for(image_size, self.chroma_scale)})

    @property
    def own_loss(self) -> str:
        """What it minimises by itself, by the name of the term."""
        return "mse" if self.head == "none" else "mse_and_head"

    def loss_in_words(self) -> str:
        head = {"mean": "mean colour", "classes": "palette colours"}.get(self.head)
        return "mean squared error" + (f" + {self.head_weight:g} head of {head}" if head else "")

    def network_in_words(self) -> str:
        return f"features {','.join(map(str, self.features))}"

    def method_in_words(self) -> str:
        sees = f", {encoder_in_words(self)}" if self.encoder else ""
        return f"{self.timesteps} timesteps, {self.prediction_type}, {self.beta_schedule} betas{sees}"

    def colour_cure(self, run: "RunConfig", name: str, slower: str) -> str:
        """What brings colours back, as flags. slower: those of the same run at a lower learning rate."""
        plain = self.prediction_type == "epsilon" or not self.zero_terminal_snr
        return ("a new model with --prediction-type v_prediction" if plain else slower) + larger_batch(run)

    def calmer_cure(self) -> str:
        """What takes exaggerated colours back, as flags."""
        return "--prediction-type v_prediction with --zero-terminal-snr, or longer training"

    def wider_cure(self) -> str:
        """A larger network, as flags."""
        return "a wider model"


class ClassificationConfig(BaseModel):
    """The generator with the triple head, and its objective. The palette itself is kept with the weights."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_classification.py",)
    UNIT_TARGETS: ClassVar = False

    method: Literal["classification"] = "classification"
    width: int = setting(
        64, "channels of the encoder's first level and of the heads; 64 is ResNet34's", ask="Width", ge=4, le=512
    )
    bins: int = setting(313, "colours of the palette", ask="Colours of the palette", ge=2, le=4096)
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = setting(
        (3, 4, 6, 3), "residual blocks of the encoder's four levels; 3,4,6,3 is ResNet34", min_length=4, max_length=4
    )
    stem_stride: Literal[1, 2, 4, 8] = setting(
        1, "how much the stem shrinks the picture: 1 for 64 px, 4 is ResNet34's, for 256 px; 8 needs --encoder"
    )
    palette: str | None = setting(None, "file of `project7 palette`; without one it is fitted first", min_length=1)
    encoder: str | None = setting(
        None,
        "frozen network of timm in place of the generator's own ResNet34, which is trained: tf_efficientnet_lite2 "
        "comes with the toolkit; none is the ResNet34",
        min_length=1,
    )
    encoder_size: int = setting(224, "short side in pixels at which a network of timm looks at a photo", ge=32, le=2048)
    encoder_weights: str | None = setting(
        None,
        "start from ResNet34's convolutions: 'imagenet' (torchvision's) or a file; with --encoder, a file of its "
        "weights",
        min_length=1,
    )
    temperature: float = setting(0.38, "of the annealed mean: 1 is the mean, 0 the mode", ge=0, le=10)
    rebalance: float = setting(
        0.5,
        "how much rare colours count more: 0 not at all, 1 by their rarity alone (Zhang et al. 2016: 0.5)",
        ask="Rebalancing of rare colours",
        ge=0,
        le=1,
    )
    focal_gamma: float = setting(0.0, "focal loss (Lin et al. 2017); 0 is none, 2 the paper's", ge=0, le=10)
    ab_mean: Pair = setting((2.1, 8.9), "a and b that image-space terms see as 0 (the mean of natural photos)")
    ab_std: Pair = setting((12.6, 17.7), "a and b that image-space terms see as 1 (their standard deviation)")

    @model_validator(mode="after")
    def _combinations(self):
        if self.stem_stride == 8 and not self.encoder:
            raise ValueError("stem_stride 8 is beyond ResNet34's; use 4, or a network of timm with --encoder")
        if self.encoder_weights and not self.encoder and (self.width, self.blocks) != (64, (3, 4, 6, 3)):
            raise ValueError(
                f"encoder_weights are those of ResNet34, and need --width 64 --blocks 3,4,6,3 (not {self.width} and "
                f"{','.join(map(str, self.blocks))})"
            )
        if min(self.ab_std) <= 0:
            raise ValueError(f"ab_std is {self.ab_std}, and must be above 0; the default is 12.6,17.7")
        return self

    def fitted(self, image_size: int, given: Iterable[str]) -> "ClassificationConfig":
        return self

    @property
    def own_loss(self) -> str:
        return "classification"

    def loss_in_words(self) -> str:
        return "classification"

    def network_in_words(self) -> str:
        return f"width {self.width}, blocks {','.join(map(str, self.blocks))}"

    def method_in_words(self) -> str:
        start = f"encoder from {self.encoder_weights}" if self.encoder_weights else "trained from scratch"
        start = encoder_in_words(self) if self.encoder else start
        return f"{self.bins} colours, rebalanced by {self.rebalance:g}, {start}"

    def colour_cure(self, run: "RunConfig", name: str, slower: str) -> str:
        return f"a new model with --rebalance 0.5 (it is {self.rebalance:g}), or colour with --temperature 0.2"

    def calmer_cure(self) -> str:
        return "a higher --temperature, a lower --rebalance"

    def wider_cure(self) -> str:
        return "a wider model"


class RegressionConfig(BaseModel):
    """The U-Net that goes straight from L to ab, or to all of Lab."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_colorization_simple.py", "train_image_restoration.py")
    UNIT_TARGETS: ClassVar = False

    method: Literal["regression"] = "regression"
    model_channels: int = setting(96, "channels of the U-Net's finest level", ask="Model channels", ge=4, le=1024)
    channel_multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = setting(
        (1, 2, 3, 4), "width of each level, fine to coarse, in model channels", min_length=1, max_length=8
    )
    layers: int = setting(1, "residual blocks a level", ge=1, le=8)
    outputs: Literal["ab", "lab"] = setting(
        "ab", "what it predicts: ab; or lab, which restores the lightness of a faded photo too"
    )
    fade: float = setting(
        0.5, "share of their contrast that training photos lose at most, where outputs is lab", ge=0, le=0.95
    )
    chroma_scale: Literal[1, 2, 4] = setting(1, "predict at this fraction of the resolution: 2 is half, 4 a quarter")
    encoder: str | None = setting(
        None,
        "frozen network of timm that looks at the photo: tf_efficientnet_lite2 comes with the toolkit; none is without",
        min_length=1,
    )
    encoder_size: int = setting(224, "short side in pixels at which the encoder looks at a photo", ge=32, le=2048)
    encoder_weights: str | None = setting(
        None, "file with the weights of another encoder, instead of timm's download", min_length=1
    )
    neck_width: int = setting(96, "channels between the encoder and the U-Net", ge=4, le=1024)
    feature_dropout: float = setting(
        0.1, "share of the encoder's channels, and of the samples' whole encoder, left out in training", ge=0, le=0.9
    )
    ab_mean: Pair = setting((2.1, 8.9), "a and b that the network sees as 0 (the mean of natural photos)")
    ab_std: Pair = setting((12.6, 17.7), "a and b that the network sees as 1 (their standard deviation)")

    @model_validator(mode="after")
    def _combinations(self):
        if self.encoder_weights and not self.encoder:
            raise ValueError("encoder_weights are those of an encoder, and there is none; use --encoder NAME")
        if min(self.ab_std) <= 0:
            raise ValueError(f"ab_std is {self.ab_std}, and must be above 0; the default is 12.6,17.7")
        return self

    def fitted(self, image_size: int, given: Iterable[str]) -> "RegressionConfig":
        return self

    @property
    def own_loss(self) -> str:
        return "mse"

    def loss_in_words(self) -> str:
        return "mean squared error"

    def network_in_words(self) -> str:
        return f"{self.model_channels} channels times {','.join(map(str, self.channel_multipliers))}"

    def method_in_words(self) -> str:
        task = "from L to ab" if self.outputs == "ab" else f"from L, up to {self.fade:.0%} faded, to Lab"
        return f"{task}, {encoder_in_words(self)}" if self.encoder else task

    def colour_cure(self, run: "RunConfig", name: str, slower: str) -> str:
        """The emergency measures that each loss is documented with."""
        resumed, larger = f"--resume {name}", larger_batch(run)
        if run.loss is None or run.loss.loss == "weighted":
            return f"{resumed} --perceptual-weight 0.01, or a new model with {self.wider_cure()}{larger}"
        if run.loss.loss == "simple":
            schedule = run.training.lr_schedule
            return f"{resumed} --perceptual-weight 2 --learning-rate 2e-04 --lr-schedule {schedule}{larger}"
        ab = max(LOSS_WEIGHTS["enhanced"]["ab_weight"], run.loss.ab_weight) + 1
        stronger = f"--ab-weight {ab:g} --saturation-weight {max(1.0, 2 * (run.loss.saturation_weight or 0)):g}"
        return f"{resumed} {stronger} --perceptual-weight {min(0.3, run.loss.perceptual_weight):g}{larger}"

    def calmer_cure(self) -> str:
        return "a lower --saturation-weight and a higher --perceptual-weight (--preset conservative)"

    def wider_cure(self) -> str:
        return f"--model-channels {max(128, self.model_channels * 4 // 3)}"


def encoder_in_words(model: BaseModel) -> str:
    return f"{model.encoder} looking at {model.encoder_size} px"


def larger_batch(run: "RunConfig") -> str:
    """A further cure, where batches are small; else nothing."""
    count = run.training.batch_size
    return "" if count >= 8 else f", or a new model with --batch-size 8 (it is {count})"


METHOD_CONFIGS: dict[str, type[BaseModel]] = {
    "diffusion": DiffusionConfig,
    "classification": ClassificationConfig,
    "regression": RegressionConfig,
}
MethodConfig = Annotated[
    Union[tuple(Annotated[kind, Tag(name)] for name, kind in METHOD_CONFIGS.items())],  # noqa: UP007
    Discriminator(
        lambda v: v.get("method", "diffusion") if isinstance(v, dict) else getattr(v, "method", None),
        custom_error_type="method",
        custom_error_message=f"Input should be {' or '.join(METHOD_CONFIGS)}",
    ),
]


class DataConfig(BaseModel):
    model_config = SETTINGS

    data: Sources = setting(
        ("samples",),
        "Tiny ImageNet (folder or zip), any folder or zip of images, or 'samples' for the built-in photos; several are "
        "mixed",
        ask="Training images (folder, zip, or 'samples')",
        min_length=1,
    )
    shares: tuple[Annotated[float, Field(gt=0)], ...] | None = setting(
        None, "how often the photos of each --data are trained on, such as 2,1 (default: by their number)", min_length=1
    )
    image_size: int = setting(64, "side of the training squares in pixels", ge=8, le=1024)
    limit: int | None = setting(None, "use only this many training images", ge=1)
    min_colorfulness: float = setting(
        0.0, "leave out images less colourful than this (Hasler & Suesstrunk; 10 drops the gray ones)", ge=0, le=150
    )
    crops: PerSource = setting(
        (1,),
        "1: the centre square of a photo; N: N random squares of it, for small sets; one number, or one per --data",
        min_length=1,
    )
    val_fraction: float = setting(0.05, "share of the images kept for validation where the set has none", gt=0, le=0.5)
    val_limit: int = setting(1000, "validation images at most, of each --data", ge=1)

    @model_validator(mode="after")
    def _combinations(self):
        count = len(self.data)
        if len(set(self.data)) < count:
            raise ValueError("data names one source twice; use --shares to train on it more often")
        if self.shares and len(self.shares) != count:
            raise ValueError(
                f"shares has {len(self.shares)} numbers for {count} sources of images; give one for each --data"
            )
        if len(self.crops) not in (1, count):
            raise ValueError(
                f"crops has {len(self.crops)} numbers for {count} sources of images; give one, or one for each"
            )
        return self


class TrainingConfig(BaseModel):
    model_config = SETTINGS

    batch_size: int = setting(16, "images a step and process", ask="Batch size", ge=1, le=65_536)
    learning_rate: float = setting(1e-4, "of AdamW, at its highest", ask="Learning rate", gt=0, le=1)
    epochs: int = setting(
        50, "passes over the images; with --resume, epochs to add", ask="Number of epochs", ge=1, le=1_000_000
    )
    gradient_accumulation: int = setting(1, "micro-steps whose gradients make one step", ge=1, le=4096)
    weight_decay: float = setting(0.01, "of AdamW", ge=0, le=10)
    lr_schedule: Literal["constant", "cosine", "one-cycle"] = setting("constant", "course of the learning rate")
    warmup_steps: int = setting(100, "steps over which the learning rate rises", ge=0)
    gradient_clip: float = setting(1.0, "largest norm of the gradient", gt=0)
    ema_decay: float = setting(0.999, "decay of the weight average that is saved and sampled with", ge=0, lt=1)
    seed: int = setting(0, "of everything random", ge=0, lt=2**63)
    mirror: bool = setting(True, "mirror half of the training photos at random")
    zoom: float = setting(
        1.0,
        "side of the smallest random crop of a training photo, as a share of its side; 1 shows it whole",
        gt=0.1,
        le=1,
    )
    old_photos: float = setting(
        0.0,
        "share of the training photos whose lightness is blurred, faded, grainy and compressed like an old one",
        ge=0,
        le=1,
    )
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = setting(
        "no", "autocast; auto measures at the start whether bf16 is faster here (fp16 only on CUDA)", fixed=False
    )
    compile: bool = setting(
        False, "torch.compile the networks, on CUDA (some minutes before the first step)", fixed=False
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", fixed=False)
    cache_features: bool = setting(
        False, "compute what the encoder sees once, and keep it on the disk (50 to 200 kB per photo)", fixed=False
    )
    num_workers: int = setting(0, "processes that read images (the cache needs none)", fixed=False, ge=0, le=256)
    image_interval: int = setting(250, "steps between comparison pictures; 0 is none", fixed=False, ge=0)
    save_minutes: float = setting(10.0, "minutes between saves within an epoch", fixed=False, gt=0)
    on_collapse: Literal["warn", "stop", "rollback"] = setting(
        "warn",
        "where training destroys what it had learnt: say so; stop; or go back to the last healthy weights with a lower "
        "learning rate, twice at most",
        fixed=False,
    )

    @model_validator(mode="after")
    def _combinations(self):
        if self.cache_features and (self.zoom < 1 or self.old_photos):
            raise ValueError(
                "cache_features keeps what the encoder sees of each photo as it is, and zoom and old_photos change it "
                "at every step; leave out --cache-features, or --zoom and --old-photos"
            )
        return self


class ObjectiveConfig(BaseModel):
    """What `train_diffusion_v2.py` adds to the squared error: image-space terms on the estimate of the true colours."""

    model_config = SETTINGS

    mse_weight: float = setting(1.0, "weight of the method's own loss", ask="MSE weight", fixed=False, gt=0, le=1000)
    perceptual_weight: float = setting(
        0.1, "weight of the VGG16 perceptual term; 0 is none", ask="Perceptual weight", fixed=False, ge=0, le=1000
    )
    gan: bool = setting(False, "train against a PatchGAN discriminator", ask="Use GAN discriminator?", fixed=False)
    adversarial_weight: float = setting(
        0.01, "weight of the discriminator's opinion", ask="Adversarial weight", fixed=False, gt=0, le=1000
    )
    perceptual_net: Literal["vgg16", "tiny", "random"] = setting(
        "vgg16",
        "features to compare: vgg16 as trained on ImageNet; tiny, the toolkit's own small network, without a download; "
        "or random, untrained ones (weaker)",
        fixed=False,
    )
    perceptual_weights: str | None = setting(
        None,
        "file with the weights of VGG16, instead of torchvision's download (or of tiny, instead of the shipped ones)",
        fixed=False,
        min_length=1,
    )
    image_share: float = setting(
        0.25, "share of the timesteps, the least noisy, at which the image-space terms act", fixed=False, gt=0, le=1
    )
    gan_learning_rate: float = setting(2e-4, "of the discriminator's AdamW", fixed=False, gt=0, le=1)
    gan_start: int = setting(500, "steps that the discriminator trains before its opinion counts", fixed=False, ge=0)
    gan_warmup: int = setting(500, "steps over which its weight then rises", fixed=False, ge=0)
    gan_scales: int = setting(
        1,
        "discriminators, each on half the size of the one before; as many as the size allows",
        fixed=False,
        ge=1,
        le=3,
    )
    gan_width: int = setting(64, "channels of the discriminator's first layer", fixed=False, ge=8, le=512)
    feature_matching_weight: float = setting(
        0.0, "weight of the distance between the discriminator's features", fixed=False, ge=0, le=1000
    )
    stage1_epochs: int = setting(0, "epochs of the squared error alone before the other terms", fixed=False, ge=0)

    @model_validator(mode="after")
    def _combinations(self):
        if self.perceptual_net == "random" and self.perceptual_weights:
            raise ValueError(
                f"perceptual_net random takes no weights, and perceptual_weights is {self.perceptual_weights}; use "
                "--perceptual-net vgg16, or --perceptual-weights none"
            )
        return self


# The weights of each loss's terms; those of the enhanced one by preset.
LOSS_WEIGHTS: dict[str, dict[str, float]] = {
    "simple": {"perceptual_weight": 1.0, "lab_weight": 1.0, "ab_weight": 2.0, "diversity_weight": 0.0},
    "weighted": {"perceptual_weight": 0.0, "ab_weight": 1.0},
    "enhanced": {
        "perceptual_weight": 0.5,
        "l_weight": 0.3,
        "ab_weight": 3.0,
        "saturation_weight": 0.5,
        "a_weight": 1.0,
        "b_weight": 1.0,
    },
}
PRESETS: dict[str, dict[str, float]] = {
    "conservative": {"perceptual_weight": 0.5, "l_weight": 0.3, "ab_weight": 2.0, "saturation_weight": 0.3},
    "balanced": {"perceptual_weight": 0.5, "l_weight": 0.3, "ab_weight": 3.0, "saturation_weight": 0.5},
    "vibrant": {"perceptual_weight": 0.3, "l_weight": 0.2, "ab_weight": 4.0, "saturation_weight": 1.0},
    "maximum": {"perceptual_weight": 0.2, "l_weight": 0.2, "ab_weight": 5.0, "saturation_weight": 1.5},
}
_LPIPS_SMALLEST = 32  # pixels: AlexNet's last feature map vanishes below


def loss_weight(about: str, ask: str | None = None, default: float | None = None) -> Any:
    return setting(default, about, ask=ask, fixed=False, follows=("loss", "preset"), ge=0, le=1000)


class LossConfig(BaseModel):
    """The loss of direct regression, in the words of losses.py. A weight that is not given is that of the loss and
    its preset; None is a term that the loss does not have."""

    model_config = SETTINGS

    loss: Literal["simple", "weighted", "enhanced"] = setting(
        "simple",
        "simple: LPIPS, Lab and ab; weighted: ab, saturated colours counting more; enhanced: with a saturation term",
        ask="Loss (simple, weighted or enhanced)",
        fixed=False,
    )
    preset: Literal["conservative", "balanced", "vibrant", "maximum"] | None = setting(
        None,
        "weights of the enhanced loss (balanced)",
        ask="Preset (conservative, balanced, vibrant or maximum)",
        fixed=False,
        follows=("loss",),
    )
    perceptual_weight: float = loss_weight(
        "of LPIPS; 0 loads no network (weighted 0, enhanced 0.5)", "Perceptual weight", default=1.0
    )
    lab_weight: float | None = loss_weight("of the squared error of Lab (simple 1)", "Lab weight")
    l_weight: float | None = loss_weight("of the squared error of L (enhanced 0.3)", "L weight")
    ab_weight: float = loss_weight("of the squared error of ab (weighted 1, enhanced 3)", "ab weight", default=2.0)
    saturation_weight: float | None = loss_weight(
        "of the squared error of the chroma (enhanced 0.5)", "Saturation weight"
    )
    diversity_weight: float | None = loss_weight("of 1 / (variance of ab + 1) (simple 0; 0.01 is mild)")
    a_weight: float | None = loss_weight("of a within ab: green to red (enhanced 1)")
    b_weight: float | None = loss_weight("of b within ab: blue to yellow (enhanced 1)")
    perceptual_net: Literal["alex", "vgg", "random"] = setting(
        "alex", "network of LPIPS as trained on ImageNet, or a random, untrained one (weaker)", fixed=False
    )
    perceptual_weights: str | None = setting(
        None, "file with that network's weights, instead of torchvision's download", fixed=False, min_length=1
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """The weights that were not given, by the loss and its preset."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        loss = given.get("loss", cls.model_fields["loss"].default)
        if loss == "enhanced":
            given.setdefault("preset", "balanced")
        preset = given.get("preset") if loss == "enhanced" else None
        if not isinstance(loss, str) or not isinstance(preset, str | None):
            return values
        return {**LOSS_WEIGHTS.get(loss, {}), **PRESETS.get(preset, {}), **given}

    @model_validator(mode="after")
    def _combinations(self):
        if self.preset and self.loss != "enhanced":
            raise ValueError(f"presets are of the enhanced loss, and the loss is {self.loss}; use --loss enhanced")
        terms = LOSS_WEIGHTS[self.loss]
        foreign = [n for n in type(self).model_fields if n.endswith("_weight") and n not in terms and getattr(self, n)]
        if foreign:
            flag = "--" + foreign[0].replace("_", "-")
            owners = " or ".join(f"--loss {loss}" for loss, weights in LOSS_WEIGHTS.items() if foreign[0] in weights)
            raise ValueError(f"the {self.loss} loss has no term for {flag}; use it with {owners}")
        silent = {"a_weight", "b_weight"} | ({"ab_weight"} if self.a_weight == self.b_weight == 0 else set())
        if not any(getattr(self, name) for name in terms if name not in silent):
            raise ValueError("all weights of the loss are 0, and one must be above; leave out one of them")
        if self.perceptual_net == "random" and self.perceptual_weights:
            raise ValueError(
                f"perceptual_net random takes no weights, and perceptual_weights is {self.perceptual_weights}; use "
                "--perceptual-net alex, or --perceptual-weights none"
            )
        return self


class RunConfig(BaseModel):
    """One training run: what `config.json` and the `config` key of a checkpoint hold."""

    model_config = SETTINGS

    model: MethodConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    objective: ObjectiveConfig | None = None  # None: the method's own loss alone
    loss: LossConfig | None = None  # what a regression model calls its own; None: the squared error of ab
    shipped: bool = False  # a model that comes with the toolkit: it is continued in a copy

    @model_validator(mode="after")
    def _combinations(self):
        if self.training.cache_features:
            if not self.model.encoder:
                raise ValueError(
                    "cache_features keeps what an encoder sees, and this model has none; use --encoder NAME"
                )
            if self.model.method == "regression" and self.model.outputs == "lab":
                raise ValueError(
                    "cache_features keeps what the encoder sees of each photo as it is, and --outputs lab fades it at "
                    "every step; leave out --cache-features"
                )
        if self.loss is None:
            return self
        if self.model.method != "regression" or self.objective:
            raise ValueError("a loss of losses.py is for a regression model without further objectives")
        if self.model.outputs == "lab" and not (self.loss.lab_weight or self.loss.l_weight):
            raise ValueError(
                f"this {self.loss.loss} loss says nothing about lightness, which the model is to restore (--outputs "
                "lab); use --loss enhanced with an --l-weight, or simple with a --lab-weight"
            )
        if self.loss.perceptual_weight and self.data.image_size < _LPIPS_SMALLEST:
            raise ValueError(
                f"--image-size {self.data.image_size} is too small for the perceptual term ({_LPIPS_SMALLEST} pixels "
                "at least); use larger pictures or --perceptual-weight 0"
            )
        return self


# How a model answers, in `colorize` and in `evaluate` alike.
Steps = Annotated[int, setting(STEPS, "denoising steps of a diffusion model", ge=1, le=10_000)]
Sampler = Annotated[Literal[SAMPLERS], setting("dpm++", "sampler of a diffusion model")]
Guidance = Annotated[
    float | None,
    setting(
        None,
        "how much more a diffusion model heeds what its encoder sees: 1 is as trained, more is bolder and surer "
        f"(default: {GUIDANCE:g} for models with an encoder)",
        ge=1,
        le=10,
    ),
]
Candidates = Annotated[
    int, setting(CANDIDATES, "answers that a diffusion model draws, to show the one they agree on most", ge=1, le=64)
]
Calm = Annotated[
    float,
    setting(
        CALM, "0: the chosen answer, bold; 1: the mean of what is likely, right more often and plainer", ge=0, le=1
    ),
]
Saturation = Annotated[
    float, setting(1.0, "strength of the colours: 0 is gray, 1 as the model answers, 2 twice as strong", ge=0, le=2)
]
Warmth = Annotated[
    float, setting(0.0, "Lab units by which all colours move towards yellow; below 0 towards blue", ge=-30, le=30)
]
Temperature = Annotated[
    float | None,
    setting(
        None, "of a classification model's annealed mean: 1 is the mean, 0 the mode (default: as trained)", ge=0, le=10
    ),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    setting(
        "fp32", "arithmetic of the network: full, or autocast to bfloat16 (twice as fast where the hardware knows it)"
    ),
]
Together = Annotated[int, setting(32, "pictures that go through the network together", ge=1, le=4096)]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], setting("auto", "where to compute")]


class ColorizeConfig(BaseModel):
    """How a trained model colours a photo."""

    model_config = SETTINGS

    seed: int = setting(0, "the same seed gives the same colours", ge=0, lt=2**63)
    variants: int = setting(1, "different answers for each photo", ge=1, le=1000)
    guidance: Guidance
    candidates: Candidates
    calm: Calm
    saturation: Saturation
    warmth: Warmth
    steps: Steps
    fast: bool = setting(False, f"one candidate in {FAST_STEPS} denoising steps: a fraction of the time")
    sampler: Sampler
    temperature: Temperature
    variety: float | None = setting(
        None, "how far a classification model leaves the likeliest answer (0; with --variants 1)", ge=0, le=10
    )
    format: Literal["png", "jpg", "webp"] = setting("png", "of the pictures: lossless, or smaller files")
    confidence: bool = setting(False, "also write a classification model's map of where it is sure (white)")
    precision: Precision
    working_size: int | None = setting(
        None,
        "short side of the picture that the network sees, in pixels (default: as trained; a smaller photo's own)",
        ge=8,
        le=4096,
    )
    batch_size: Together
    device: Device


class EvaluateConfig(BaseModel):
    """How models are measured."""

    model_config = SETTINGS

    limit: int | None = setting(None, "use only this many photos", ge=2)
    size: int | None = setting(
        None, "side of the centre squares in pixels (default: that of the first model's training)", ge=16, le=1024
    )
    samples: int = setting(1, "answers to each photo: more than 1 gives best-of and diversity", ge=1, le=1000)
    seed: int = setting(0, "of the samples", ge=0, lt=2**63)
    guidance: Guidance
    candidates: Candidates
    calm: Calm
    saturation: Saturation
    steps: Steps
    sampler: Sampler
    temperature: Temperature
    hints: int = setting(
        0, "random pixels of each photo whose true colours are told, to models trained with --hints", ge=0, le=4096
    )
    precision: Precision
    lpips_weights: str | None = setting(
        None, "file of torchvision's AlexNet, for LPIPS (default: torchvision's cache; never downloaded)", min_length=1
    )
    inception_weights: str | None = setting(
        None, "file of torch-fidelity's Inception-v3, for FID (default: torch's cache; never downloaded)", min_length=1
    )
    batch_size: Together
    device: Device


Sections = dict[str, type[BaseModel]]  # parts of RunConfig, by their names there: the settings of one recipe


def with_defaults(
    config: type[BaseModel], *, hide: tuple[str, ...] = (), ask: dict[str, str] | None = None, **defaults: Any
) -> type[BaseModel]:
    """`config` with other defaults, for a recipe of its own; what is in `hide` is a flag, but not asked for, and what
    is in `ask` (setting -> question) is."""
    changed = {}
    asked = dict.fromkeys(hide) | (ask or {})
    for name in {*asked, *defaults}:
        field = copy(config.model_fields[name])
        field.default = defaults.get(name, field.default)
        if name in asked:
            field.json_schema_extra = {**field.json_schema_extra, "ask": asked[name]}
        changed[name] = (field.annotation, field)
    return create_model(config.__name__, __base__=config, **changed)


ENCODER = "tf_efficientnet_lite2"  # what comes with the toolkit
_SHIFT_AT_32 = 3.0  # noise_shift of a chroma grid of 32 x 32 cells (benchmarks/RESULTS.md)


def shift_for(image_size: int, chroma_scale: int) -> float:
    """The noise shift that suits a chroma grid: the smoother the picture, the more noise it survives, and the signal of
    a smooth region grows with its number of cells (Hoogeboom et al. 2023, Simple Diffusion, section 3.1)."""
    return min(32.0, max(1.0, _SHIFT_AT_32 * image_size / chroma_scale / 32))


# Of new diffusion models. A stored configuration that says nothing of these is as the first ones were: at full
# resolution, without an encoder.
SECTIONS: Sections = {
    "model": with_defaults(DiffusionConfig, chroma_scale=4, encoder=ENCODER, head="classes", attention_levels=2),
    "data": DataConfig,
    "training": TrainingConfig,
}


def setting_fields(sections: Sections) -> dict[str, tuple[str, Any]]:
    """name -> (section of RunConfig, pydantic FieldInfo), for all settings of a recipe."""
    return {
        name: (section, field)
        for section, config in sections.items()
        for name, field in config.model_fields.items()
        if name != "method"
    }


def extra(field: Any, key: str) -> Any:
    """`ask` or `fixed` of a field made by `setting`."""
    return (field.json_schema_extra or {}).get(key)


def kept(stored: BaseModel, new: Iterable[str]) -> dict[str, Any]:
    """What is inherited beside new settings: all but what follows from one of them."""
    fields, names = type(stored).model_fields, set(new)
    return {n: v for n, v in stored.model_dump().items() if not set(extra(fields[n], "follows") or ()) & names}


def parse_text(text: str, kind: Any) -> Any:
    """What a person types for a value of type `kind`: commas make a list of numbers, 'none' is no value; pydantic does
    the rest."""
    text = text.strip()
    choices = get_args(kind)
    if type(None) in choices:
        if text.lower() == "none":
            return None
        kind = next(choice for choice in choices if choice is not type(None))
    if get_origin(kind) is tuple:  # one width, one number: a list all the same
        item = get_args(kind)[0]
        is_text = (get_args(item) or (item,))[0] is str  # a path may hold commas
        return text if is_text else [part.strip() for part in text.strip("[]() ").split(",")]
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    return text


def build(config: type[BaseModel], values: dict[str, Any]) -> Any:
    """`config(**values)` with texts read as a person types them. Raises UsageError: one line with all that is wrong."""
    kinds = {name: field.annotation for name, field in config.model_fields.items()}
    values = {name: parse_text(v, kinds.get(name)) if isinstance(v, str) else v for name, v in values.items()}
    try:
        return config(**values)
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: each flag, what was given, and the rule."""
    parts: dict[str, str] = {}
    for item in error.errors():
        rule = "answer y or n" if item["type"] == "bool_parsing" else item["msg"].removeprefix("Value error, ")
        flag = next((str(p) for p in reversed(item["loc"]) if isinstance(p, str)), "")
        given = item["input"]
        shown = f" {given}" if isinstance(given, str | int | float | bool) else ""
        line = f"--{flag.replace('_', '-')}{shown}: {rule[0].lower()}{rule[1:]}" if flag else rule
        parts.setdefault(flag or line, line)  # what follows from the first fault of a value is left out
    return "; ".join(parts.values())


def to_json(config: BaseModel) -> str:
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def from_json(text: str, source: Path | str) -> RunConfig:
    """Reads a `config.json`. Raises UsageError that names the file, the key and the rule."""
    try:
        raw = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid JSON: {error}.") from None
    return from_dict(raw, source)


def from_dict(raw: Any, source: Path | str) -> RunConfig:
    """Checks a configuration that came from a file. Raises UsageError that names the file, the key and the rule."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        wrong = [f"{_place(e)}: {e['msg']}" for e in error.errors()[:4]]
        raise UsageError(f"{source} is not a configuration of this toolkit: {'; '.join(wrong)}.") from None


def _place(fault: Any) -> str:
    """A key of a file as a person would write it, without the tag that tells the methods apart."""
    loc = (*fault["loc"], "method") if fault["type"] == "method" else fault["loc"]
    return ".".join(str(p) for n, p in enumerate(loc) if n != 1 or p not in METHOD_CONFIGS) or "the whole"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def differences(ours: BaseModel, theirs: BaseModel) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations of one kind differ: name -> (ours, theirs)."""
    mine, other = ours.model_dump(), theirs.model_dump()
    return {
        name: (mine[name], other[name])
        for name in mine
        if mine[name] != other[name] and not _same_number(mine[name], other[name])
    }


def _same_number(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-12)
