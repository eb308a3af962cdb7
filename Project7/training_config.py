"""The settings of a training run: its images, its course, and what it minimises beside the method's own loss.

No torch here, so that `--help` and the first question appear at once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, model_validator

from Project7.settings import SETTINGS, setting

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp")
# A setting that is mostly one value, and may be one for each source of images: one is written as itself.
_AS_TUPLE = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
_ONE_AS_ITSELF = PlainSerializer(lambda values: values[0] if len(values) == 1 else values)
Sources = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _AS_TUPLE, _ONE_AS_ITSELF]
PerSource = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], _AS_TUPLE, _ONE_AS_ITSELF]


class DataConfig(BaseModel):
    model_config = SETTINGS

    data: Sources = setting(
        ("samples",),
        "Tiny ImageNet (folder or zip), any folder, zip or tar of images, tars such as 'shards/{000..099}.tar', "
        "hf:OWNER/NAME[:COLUMN] from the Hugging Face hub, or 'samples' for the built-in photos; several are mixed",
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
    ema_decay: float = setting(0.999, "decay of the weight average that is saved and sampled with", ge=0, lt=1)
    seed: int = setting(0, "random seed of the weights, the order of the data and the noise", ge=0, lt=2**63)
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
        "no",
        "arithmetic of the networks (autocast); auto measures at the start whether "
        "bf16 is faster here (fp16 only on CUDA)",
        fixed=False,
    )
    compile: bool = setting(
        False, "torch.compile the networks, on CUDA (some minutes before the first step)", fixed=False
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "device to compute on", fixed=False)
    cache_features: bool = setting(
        False, "compute what the encoder sees once, and keep it on the disk (50 to 200 kB per photo)", fixed=False
    )
    num_workers: int | None = setting(
        None,
        "processes that read images (default: none from the cache, one per processor to decode on the fly)",
        fixed=False,
        ge=0,
        le=256,
    )
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
        0.01, "weight of the adversarial term", ask="Adversarial weight", fixed=False, gt=0, le=1000
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
    gan_learning_rate: float = setting(2e-4, "peak learning rate of the discriminator (AdamW)", fixed=False, gt=0, le=1)
    gan_start: int = setting(500, "steps that the discriminator trains before its term counts", fixed=False, ge=0)
    gan_warmup: int = setting(500, "steps over which the weight of that term then rises from 0", fixed=False, ge=0)
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
