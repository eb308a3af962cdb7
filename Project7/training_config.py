"""The settings of a training run: its images, its optimization, and its terms beside the method's own loss.

No torch here, so that `--help` and the first question appear at once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, model_validator

from Project7.settings import SETTINGS, setting

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp")
# A setting that is usually one value, and may be one per source of images; a single value is stored without a list.
_AS_TUPLE = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
_ONE_AS_ITSELF = PlainSerializer(lambda values: values[0] if len(values) == 1 else values)
Sources = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _AS_TUPLE, _ONE_AS_ITSELF]
PerSource = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], _AS_TUPLE, _ONE_AS_ITSELF]


class DataConfig(BaseModel):
    model_config = SETTINGS

    data: Sources = setting(
        ("samples",),
        "Tiny ImageNet (folder or zip), any folder, zip or tar of images, tars such as 'shards/{000..099}.tar' (also "
        "at s3://... or https://...), hf:OWNER/NAME[:COLUMN] from the Hugging Face hub, or 'samples' for the built-in "
        "photos; several are mixed",
        ask="Training images (folder, zip, or 'samples')",
        min_length=1,
    )
    shares: tuple[Annotated[float, Field(gt=0)], ...] | None = setting(
        None,
        "how often the photos of each --data are trained on, such as 2,1 (default: in proportion to their number)",
        min_length=1,
    )
    image_size: int = setting(64, "side of the training squares in pixels", ge=8, le=1024)
    view_size: int | None = setting(
        None,
        "side in pixels at which an encoder is shown the training squares (default: its own input size, less where "
        "photos are smaller, and never below --image-size)",
        ge=8,
        le=1024,
    )
    limit: int | None = setting(None, "use only this many training images", ge=1)
    min_colorfulness: float = setting(
        0.0,
        "leave out images with a colorfulness below this (Hasler & Suesstrunk; 10 leaves out gray ones)",
        ge=0,
        le=150,
    )
    crops: PerSource = setting(
        (1,),
        "squares per photo: 1 is the centre square, N are N random squares, for small sets; one number, or one per "
        "--data",
        min_length=1,
    )
    val_fraction: float = setting(
        0.05, "share of the images kept for validation if the set has no validation images", gt=0, le=0.5
    )
    val_limit: int = setting(1000, "largest number of validation images, per --data", ge=1)
    decode: Literal["auto", "cache", "on-the-fly"] = setting(
        "auto",
        "decode the training images once, into the cache, or whenever they are needed; auto: into the cache if the "
        "disk has room for them",
        fixed=False,
    )

    @model_validator(mode="after")
    def _combinations(self):
        count = len(self.data)
        if len(set(self.data)) < count:
            raise ValueError("data names the same source twice; use --shares to train on it more often")
        if self.shares and len(self.shares) != count:
            raise ValueError(
                f"shares has {len(self.shares)} numbers for {count} sources of images; give one for each --data"
            )
        if len(self.crops) not in (1, count):
            raise ValueError(
                f"crops has {len(self.crops)} numbers for {count} sources of images; give one, or one for each"
            )
        if self.view_size and self.view_size < self.image_size:
            raise ValueError(
                f"view_size is {self.view_size} and image_size {self.image_size}, and an encoder sees at least what "
                f"the network sees; give --view-size {self.image_size} or more, or leave it out"
            )
        return self

    @property
    def kept_size(self) -> int:
        """Side in pixels of the squares that are kept: of what an encoder is shown, from which the network's are
        made."""
        return self.view_size or self.image_size


class TrainingConfig(BaseModel):
    model_config = SETTINGS

    batch_size: int = setting(16, "images per step and process", ask="Batch size", ge=1, le=65_536)
    learning_rate: float = setting(1e-4, "peak learning rate of AdamW", ask="Learning rate", gt=0, le=1)
    epochs: int = setting(
        50, "passes over the images; with --resume, epochs to add", ask="Number of epochs", ge=1, le=1_000_000
    )
    gradient_accumulation: int = setting(1, "micro-steps whose gradients make one step", ge=1, le=4096)
    weight_decay: float = setting(0.01, "weight decay of AdamW", ge=0, le=10)
    lr_schedule: Literal["constant", "cosine", "one-cycle"] = setting("constant", "learning-rate schedule")
    warmup_steps: int = setting(100, "steps over which the learning rate rises from 0", ge=0)
    gradient_clip: float = setting(1.0, "largest norm of the gradient; a longer one is clipped", gt=0)
    ema_decay: float = setting(0.999, "decay of the average of the weights that is saved and sampled with", ge=0, lt=1)
    seed: int = setting(0, "random seed of the weights, the order of the data and the noise", ge=0, lt=2**63)
    mirror: bool = setting(True, "mirror half of the training photos at random")
    zoom: float = setting(
        1.0,
        "side of the smallest random crop of a training square, as a share of its side; 1 shows it whole",
        gt=0.1,
        le=1,
    )
    old_photos: float = setting(
        0.0,
        "share of the training photos whose lightness is blurred, faded, grainy and compressed as in an old photo",
        ge=0,
        le=1,
    )
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = setting(
        "no",
        "precision of the networks (autocast); auto measures at the start whether bf16 is faster here (fp16 only on "
        "CUDA)",
        fixed=False,
    )
    compile: bool = setting(
        False, "compile the networks with torch.compile, on CUDA (some minutes before the first step)", fixed=False
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "device to compute on", fixed=False)
    cache_features: bool = setting(
        False, "compute the encoder's features once and keep them on disk (50 to 200 kB per photo)", fixed=False
    )
    num_workers: int | None = setting(
        None,
        "processes that read images (default: none from the cache, one per processor to decode on the fly)",
        fixed=False,
        ge=0,
        le=256,
    )
    image_interval: int = setting(250, "steps between comparison pictures; 0 turns them off", fixed=False, ge=0)
    save_minutes: float = setting(10.0, "minutes between saves within an epoch", fixed=False, gt=0)
    on_collapse: Literal["warn", "stop", "rollback"] = setting(
        "warn",
        "what to do if training destroys what it has learnt: warn; stop; or go back to the last healthy weights with a "
        "lower learning rate, at most twice",
        fixed=False,
    )

    @model_validator(mode="after")
    def _combinations(self):
        if self.cache_features and (self.zoom < 1 or self.old_photos):
            raise ValueError(
                "cache_features stores the encoder's features of each photo once, and zoom and old_photos change the "
                "photo at every step; leave out --cache-features, or --zoom and --old-photos"
            )
        return self


class ObjectiveConfig(BaseModel):
    """What `train_diffusion_v2.py` adds to the squared error: image-space terms on the estimate of the true colours."""

    model_config = SETTINGS

    mse_weight: float = setting(1.0, "weight of the method's own loss", ask="MSE weight", fixed=False, gt=0, le=1000)
    perceptual_weight: float = setting(
        0.1,
        "weight of the VGG16 perceptual term; 0 turns it off",
        ask="Perceptual weight",
        fixed=False,
        ge=0,
        le=1000,
    )
    gan: bool = setting(False, "train against a PatchGAN discriminator", ask="Use GAN discriminator?", fixed=False)
    adversarial_weight: float = setting(
        0.01, "weight of the adversarial term", ask="Adversarial weight", fixed=False, gt=0, le=1000
    )
    perceptual_net: Literal["vgg16", "tiny", "random"] = setting(
        "vgg16",
        "network of the perceptual term: vgg16, trained on ImageNet; tiny, the toolkit's own small network, without a "
        "download; or random, which is untrained (weaker)",
        fixed=False,
    )
    perceptual_weights: str | None = setting(
        None,
        "file with the weights of VGG16, instead of torchvision's download (or of tiny, instead of the shipped ones)",
        fixed=False,
        min_length=1,
    )
    image_share: float = setting(
        0.25, "share of the timesteps, the least noisy ones, at which image-space terms act", fixed=False, gt=0, le=1
    )
    gan_learning_rate: float = setting(2e-4, "peak learning rate of the discriminator (AdamW)", fixed=False, gt=0, le=1)
    gan_start: int = setting(500, "steps that the discriminator trains before its term counts", fixed=False, ge=0)
    gan_warmup: int = setting(500, "steps over which the weight of that term then rises from 0", fixed=False, ge=0)
    gan_scales: int = setting(
        1,
        "number of discriminators, each at half the size of the one before; fewer if the size does not allow it",
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
