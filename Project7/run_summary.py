"""Describes a run before it begins: its table, and its objective with the weights of the terms."""

import math

from rich.table import Table
from rich.text import Text

from Project7.config import RunConfig
from Project7.counting import counted
from Project7.model_folder import ModelFolder
from Project7.training_config import DataConfig

_NARROW = 16  # channels below which a level of the U-Net is unusually narrow


def run_table(folder: ModelFolder, config: RunConfig, *, training: int, validation: int, device: str) -> Table:
    """The table of what is about to be trained."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is shown whole
    model, settings = config.model, config.training
    epochs = counted(settings.epochs, "epoch")
    rows = {
        "model": f"{folder.path}, {config.model.network_in_words()}",
        model.method: config.model.method_in_words(),
        "images": f"{training:,} + {validation:,} for validation, {sides_in_words(config.data)}, from "
        + ", ".join(config.data.data),
        "objective": objective_text(config),
        "training": f"{epochs}, batch {settings.batch_size}, learning rate {settings.learning_rate:g}",
        "device": f"{device}, {'full precision' if settings.mixed_precision == 'no' else settings.mixed_precision}",
    }
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    return table


def sides_in_words(data: DataConfig) -> str:
    seen = f" (the encoder is shown {data.view_size} px)" if data.view_size else ""
    return f"{data.image_size} px{seen}"


def warnings_of(config: RunConfig, *, training: int, processes: int, done: int = 0) -> list[str]:
    """Warnings before the first step. training: number of training images. done: number of epochs done."""
    said = []
    settings, objective = config.training, config.objective
    if objective and objective.gan:
        batch = settings.batch_size * settings.gradient_accumulation * processes
        steps = math.ceil(training / batch) * (settings.epochs - max(done, objective.stage1_epochs))
        if steps <= objective.gan_start:
            said.append(
                f"The discriminator changes nothing in this run: its opinion counts after {objective.gan_start} steps "
                f"of its own (--gan-start), and there are {max(0, steps)}; train longer, or use --gan-start "
                f"{max(0, steps) // 4}."
            )
    widths = getattr(config.model, "features", ())
    if widths and (min(widths) < _NARROW or any(width % 8 for width in widths) or list(widths) != sorted(widths)):
        said.append(
            f"Features {','.join(map(str, widths))} are unusual: networks that learn colours have {_NARROW} channels "
            "or more, in multiples of 8, and never fewer at a coarser level, such as 64,128,192."
        )
    return said


def objective_text(config: RunConfig) -> str:
    """The terms of the objective with their weights. Loads no network."""
    objective = config.objective
    if config.loss:
        return loss_text(config.loss)
    if objective is None:
        return config.model.loss_in_words()
    parts = [f"{objective.mse_weight:g} {config.model.own_loss}"]
    if objective.perceptual_weight:
        net = _net(objective)
        parts.append(f"{objective.perceptual_weight:g} perceptual ({net})")
    if objective.gan:
        parts.append(f"{objective.adversarial_weight:g} adversarial")
        if objective.feature_matching_weight:
            parts.append(f"{objective.feature_matching_weight:g} feature matching")
    stages = f", after {counted(objective.stage1_epochs, 'epoch')} of mse alone" if objective.stage1_epochs else ""
    return " + ".join(parts) + stages


def loss_text(loss) -> str:
    """enhanced: 0.5 perceptual + 0.3 l + ..."""
    weights = {n.removesuffix("_weight"): getattr(loss, n) for n in type(loss).model_fields if n.endswith("_weight")}
    parts = [f"{weight:g} {name}" for name, weight in weights.items() if weight and name not in ("a", "b")]
    balance = f", a : b = {loss.a_weight:g} : {loss.b_weight:g}" if loss.a_weight != loss.b_weight else ""
    net = f" ({loss.perceptual_weights or loss.perceptual_net})" if loss.perceptual_weight else ""
    return f"{loss.loss}: {' + '.join(parts)}{balance}{net}"


def _net(objective) -> str:
    if objective.perceptual_net == "random":
        return "random VGG16, untrained"
    network = "tiny-vgg" if objective.perceptual_net == "tiny" else "VGG16"
    return f"{network} from {objective.perceptual_weights}" if objective.perceptual_weights else network
