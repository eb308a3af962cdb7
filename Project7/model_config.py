"""The settings of the three methods: what `best_model.pth` needs to rebuild a model, and its description in words.

No torch here, so that `--help` and the first question appear at once.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from Project7.errors import UsageError
from Project7.loss_config import LOSS_WEIGHTS
from Project7.settings import SETTINGS, setting

Run = Any  # a config.RunConfig, which contains these settings

Width = Annotated[int, Field(ge=1, le=4096)]
Pair = tuple[float, float]


def _above_zero(pair: Pair) -> Pair:
    if min(pair) <= 0:
        raise ValueError(f"{pair[0]:g},{pair[1]:g} must be above 0; the default is 12.6,17.7")
    return pair


# Settings of several methods, declared once.
AbMean = Annotated[Pair, setting((2.1, 8.9), "a and b that the network sees as 0 (the mean of natural photos)")]
AbStd = Annotated[
    Pair,
    AfterValidator(_above_zero),
    setting((12.6, 17.7), "distances of a and b that the network sees as 1 (the standard deviation of natural photos)"),
]
EncoderName = Annotated[
    str | None,
    setting(
        None,
        "frozen timm network that sees the photo: tf_efficientnet_lite2 comes with the toolkit; none trains without "
        "one",
        min_length=1,
    ),
]
EncoderSize = Annotated[int, setting(224, "short side in pixels at which the encoder sees a photo", ge=32, le=2048)]
EncoderWeights = Annotated[
    str | None,
    setting(None, "file with the weights of another encoder, instead of timm's download", min_length=1),
]
NeckWidth = Annotated[int, setting(96, "channels between the encoder and the U-Net", ge=4, le=1024)]
FeatureDropout = Annotated[
    float,
    setting(
        0.1,
        "probability of dropping a channel of the encoder, or the whole encoder for a sample, in training",
        ge=0,
        le=0.9,
    ),
]
PaletteFile = Annotated[
    str | None,
    setting(None, "palette file made by `project7 palette`; without one a palette is fitted first", min_length=1),
]


def check_encoder_weights(model: Any) -> None:
    if model.encoder_weights and not model.encoder:
        raise ValueError("encoder_weights need an encoder, and there is none; use --encoder NAME")


class DiffusionConfig(BaseModel):
    """The U-Net, the noise schedule and the scale of ab: all that `best_model.pth` needs to rebuild the model."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_diffusion.py", "train_diffusion_v2.py")
    CHOOSE: ClassVar = "vivid colours, and different ones with another seed: the first choice for a photo"
    UNIT_TARGETS: ClassVar = True  # a network that always predicts 0 has a squared error of 1

    method: Literal["diffusion"] = "diffusion"
    features: tuple[Width, ...] = setting(
        (64, 128, 256, 512),
        "channels of the U-Net's levels, fine to coarse",
        ask="U-Net features",
        min_length=1,
        max_length=8,
    )
    time_dim: int = setting(256, "width of the time embedding", ask="Time embedding dim", ge=4, le=8192)
    timesteps: int = setting(1000, "timesteps of the noise schedule", ask="Diffusion timesteps", ge=2, le=10_000)
    layers: int = setting(1, "residual blocks per level", ge=1, le=8)
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
        "divide the signal-to-noise ratio by the square of this, so that more timesteps are nearly noise; a new model "
        "gets 3 for a chroma grid of 32 x 32 cells, and in proportion for others",
        ge=1,
        le=32,
    )
    min_snr_gamma: float = setting(
        0.0, "gamma of the min-SNR loss weight (Hang et al. 2023); 0 turns it off, 5 is the paper's value", ge=0
    )
    chroma_scale: Literal[1, 2, 4, 8] = setting(
        1, "predict ab at this fraction of the resolution and enlarge it along the edges of L: 2 is half, 4 a quarter"
    )
    attention_levels: int = setting(1, "levels of the U-Net with self-attention, counted from the coarsest", ge=1, le=8)
    hints: bool = setting(False, "train with colour hints, so that a person can give the colour of a spot")
    hint_share: float = setting(0.5, "share of the training samples that are given hints", gt=0, le=1)
    encoder: EncoderName
    encoder_size: EncoderSize
    encoder_weights: EncoderWeights
    neck_width: NeckWidth
    head: Literal["none", "mean", "classes"] = setting(
        "none",
        "what an additional head on the encoder predicts in one pass: nothing, the mean colour, or a probability for "
        "each palette colour",
    )
    head_weight: float = setting(0.25, "weight of the head's loss, which is added to the squared error", gt=0, le=100)
    head_entropy: bool = setting(False, "show the U-Net where the head of palette colours is unsure")
    bins: int = setting(313, "number of colours in the head's palette", ge=2, le=4096)
    palette: PaletteFile
    rebalance: float = setting(
        0.0, "how strongly the head's loss favours rare colours: 0 not at all, 1 in proportion to rarity", ge=0, le=1
    )
    feature_dropout: FeatureDropout
    ab_mean: AbMean
    ab_std: AbStd

    @model_validator(mode="before")
    @classmethod
    def _classic_schedule(cls, values: Any) -> Any:
        """`--prediction-type epsilon` alone means the classic schedule: linear betas whose last step is not pure noise.
        `--encoder none` alone also means no head, because a head reads the encoder."""
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
                "prediction_type epsilon cannot be trained with zero_terminal_snr (at the last step the noise tells "
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
        check_encoder_weights(self)
        if self.encoder is None and self.head != "none":
            raise ValueError(f"head {self.head} reads what an encoder sees; use --encoder NAME, or --head none")
        if self.head_entropy and self.head != "classes":
            raise ValueError(f"head_entropy needs the probabilities of --head classes, and head is {self.head}")
        return self

    def fitted(self, image_size: int, given: Iterable[str]) -> "DiffusionConfig":
        """A new model's settings once the size of its pictures is known: the noise shift follows the size of the chroma
        grid, unless it was given or the schedule is the classic one."""
        if "noise_shift" in given or not self.zero_terminal_snr:
            return self
        return self.model_copy(update={"noise_shift": shift_for(image_size, self.chroma_scale)})

    @property
    def own_loss(self) -> str:
        """The name of the term that the method minimises without an objective of a recipe."""
        return "mse" if self.head == "none" else "mse_and_head"

    def loss_in_words(self) -> str:
        head = {"mean": "mean colour", "classes": "palette colours"}.get(self.head)
        return "mean squared error" + (f" + {self.head_weight:g} head of {head}" if head else "")

    def network_in_words(self) -> str:
        return f"features {','.join(map(str, self.features))}"

    def method_in_words(self) -> str:
        sees = f", {encoder_in_words(self)}" if self.encoder else ""
        return f"{self.timesteps} timesteps, {self.prediction_type}, {self.beta_schedule} betas{sees}"

    def colour_cure(self, run: Run, name: str, slower: str) -> str:
        """The flags that bring colours back. slower: those that resume the run at a lower learning rate."""
        plain = self.prediction_type == "epsilon" or not self.zero_terminal_snr
        return ("a new model with --prediction-type v_prediction" if plain else slower) + larger_batch(run)

    def calmer_cure(self) -> str:
        """The flags that moderate exaggerated colours."""
        return "--prediction-type v_prediction with --zero-terminal-snr, or longer training"

    def wider_cure(self) -> str:
        """The flags of a larger network, or words for it."""
        return "a wider model"


class ClassificationConfig(BaseModel):
    """The generator with the triple head, and its objective. The palette itself is stored with the weights."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_classification.py",)
    CHOOSE: ClassVar = "one fast pass, calmer colours, and a map of where it is sure: for many photos and a first look"
    UNIT_TARGETS: ClassVar = False

    method: Literal["classification"] = "classification"
    width: int = setting(
        64, "channels of the encoder's first level and of the heads; 64 is ResNet34's", ask="Width", ge=4, le=512
    )
    bins: int = setting(313, "number of colours in the palette", ask="Colours of the palette", ge=2, le=4096)
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = setting(
        (3, 4, 6, 3), "residual blocks of the encoder's four levels; 3,4,6,3 is ResNet34", min_length=4, max_length=4
    )
    stem_stride: Literal[1, 2, 4, 8] = setting(
        1, "factor by which the stem shrinks the picture: 1 for 64 px; 4, as in ResNet34, for 256 px; 8 needs --encoder"
    )
    palette: PaletteFile
    encoder: str | None = setting(
        None,
        "frozen timm network instead of the generator's own ResNet34, which is trained: tf_efficientnet_lite2 comes "
        "with the toolkit; none is the ResNet34",
        min_length=1,
    )
    encoder_size: EncoderSize
    encoder_weights: str | None = setting(
        None,
        "start from ResNet34's convolutions: 'imagenet' (torchvision's) or a file; with --encoder, a file of its "
        "weights",
        min_length=1,
    )
    temperature: float = setting(0.38, "temperature of the annealed mean: 1 is the mean, 0 the mode", ge=0, le=10)
    rebalance: float = setting(
        0.5,
        "how strongly the loss favours rare colours: 0 not at all, 1 by rarity alone (Zhang et al. 2016: 0.5)",
        ask="Rebalancing of rare colours",
        ge=0,
        le=1,
    )
    focal_gamma: float = setting(
        0.0, "gamma of the focal loss (Lin et al. 2017); 0 turns it off, 2 is the paper's value", ge=0, le=10
    )
    ab_mean: AbMean
    ab_std: AbStd

    @model_validator(mode="after")
    def _combinations(self):
        if self.stem_stride == 8 and not self.encoder:
            raise ValueError("stem_stride 8 is too large for ResNet34; use 4, or a timm network with --encoder")
        if self.encoder_weights and not self.encoder and (self.width, self.blocks) != (64, (3, 4, 6, 3)):
            raise ValueError(
                f"encoder_weights are those of ResNet34 and need --width 64 --blocks 3,4,6,3 (not {self.width} and "
                f"{','.join(map(str, self.blocks))})"
            )
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

    def colour_cure(self, run: Run, name: str, slower: str) -> str:
        return f"a new model with --rebalance 0.5 (it is {self.rebalance:g}), or colour with --temperature 0.2"

    def calmer_cure(self) -> str:
        return "a higher --temperature, a lower --rebalance"

    def wider_cure(self) -> str:
        return "a wider model"


class RegressionConfig(BaseModel):
    """The U-Net that predicts ab, or all of Lab, directly from L."""

    model_config = SETTINGS

    SCRIPTS: ClassVar = ("train_colorization_simple.py", "train_image_restoration.py")
    CHOOSE: ClassVar = (
        "one fast pass to the average of the plausible colours: paler, rarely odd; may restore faded photos"
    )
    UNIT_TARGETS: ClassVar = False

    method: Literal["regression"] = "regression"
    model_channels: int = setting(96, "channels of the U-Net's finest level", ask="Model channels", ge=4, le=1024)
    channel_multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = setting(
        (1, 2, 3, 4), "width of each level, fine to coarse, in model channels", min_length=1, max_length=8
    )
    layers: int = setting(1, "residual blocks per level", ge=1, le=8)
    outputs: Literal["ab", "lab"] = setting(
        "ab", "what the network predicts: ab; or lab, which restores the lightness of a faded photo too"
    )
    fade: float = setting(
        0.5, "largest share of their contrast that training photos lose, with --outputs lab", ge=0, le=0.95
    )
    chroma_scale: Literal[1, 2, 4] = setting(1, "predict at this fraction of the resolution: 2 is half, 4 a quarter")
    encoder: EncoderName
    encoder_size: EncoderSize
    encoder_weights: EncoderWeights
    neck_width: NeckWidth
    feature_dropout: FeatureDropout
    ab_mean: AbMean
    ab_std: AbStd

    @model_validator(mode="after")
    def _combinations(self):
        check_encoder_weights(self)
        return self

    def fitted(self, image_size: int, given: Iterable[str]) -> "RegressionConfig":
        if self.outputs == "ab" and "fade" in given:
            raise UsageError("--fade has no effect with --outputs ab; leave it out, or use --outputs lab.")
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

    def colour_cure(self, run: Run, name: str, slower: str) -> str:
        """The emergency measures documented for each loss."""
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


def encoder_in_words(model: Any) -> str:
    return f"{model.encoder} looking at {model.encoder_size} px"


def larger_batch(run: Run) -> str:
    """A further cure if the batches are small; otherwise an empty text."""
    count = run.training.batch_size
    return "" if count >= 8 else f", or a new model with --batch-size 8 (it is {count})"


METHOD_CONFIGS: dict[str, type[BaseModel]] = {
    "diffusion": DiffusionConfig,
    "classification": ClassificationConfig,
    "regression": RegressionConfig,
}
if TYPE_CHECKING:  # the set of methods is known only at run time
    MethodConfig: TypeAlias = Any
else:
    MethodConfig = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in METHOD_CONFIGS.items())],  # noqa: UP007
        Discriminator(
            lambda v: v.get("method", "diffusion") if isinstance(v, dict) else getattr(v, "method", None),
            custom_error_type="method",
            custom_error_message=f"Input should be {' or '.join(METHOD_CONFIGS)}",
        ),
    ]
ENCODER = "tf_efficientnet_lite2"  # the encoder that comes with the toolkit
_SHIFT_AT_32 = 3.0  # noise_shift of a chroma grid of 32 x 32 cells (benchmarks/RESULTS.md)


def shift_for(image_size: int, chroma_scale: int) -> float:
    """The noise shift that suits a chroma grid. The smoother a picture, the more noise it survives, and the signal of a
    smooth region grows with its number of cells (Hoogeboom et al. 2023, Simple Diffusion, section 3.1)."""
    return min(32.0, max(1.0, _SHIFT_AT_32 * image_size / chroma_scale / 32))
