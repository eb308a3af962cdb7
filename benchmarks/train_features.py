#!/usr/bin/env python
"""Trains one of the two small feature networks to classify the 200 classes of Tiny ImageNet.

    python benchmarks/train_features.py --network tiny-vgg|judge --data PATH [--output FILE] [--epochs N]
        [--minutes M] [--resume]

The first third of the epochs trains on photos at half their size, the second on squares of 48 px from them, the last on
whole photos, so that coarse features are learnt first and at less cost. Photos are mirrored and shifted at random;
their colours, which the features are needed for, stay unchanged. SGD with a one-cycle learning rate, label smoothing
and bfloat16. All randomness is keyed by (seed, epoch, step), so a run that was stopped (Ctrl-C, or after --minutes) and
is continued with --resume gives the same network. The accuracy is printed after each epoch and, at the end, written
into the header of the file.
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Project7 import color, program
from Project7.atomic_file import replacing
from Project7.colorize import pick_device
from Project7.dataset import open_dataset
from Project7.errors import ProjectError, UsageError, sentence
from Project7.feature_networks import NETWORKS, SIZE, TinyVGG, folded, save_network, shipped
from Project7.image_set import ImageSet, epoch_order
from Project7.program import StopSignals
from Project7.training_config import DataConfig

BATCH = 128
EPOCHS = {"tiny-vgg": 12, "judge": 16}  # 45 minutes each on one core with bfloat16
RATE = 0.1  # peak learning rate
WARMUP = 0.15  # share of the steps in which the rate rises
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
PHASES = ((64, 2), (48, 1), (64, 1))  # a third of the epochs each: side of the square, shrunk by
SHIFT = 6  # pixels
SAVE_SECONDS = 180


def make(name: str, classes: int) -> nn.Module:
    network = TinyVGG(classes, norm=True) if name == "tiny-vgg" else NETWORKS[name](classes)
    return network.to(memory_format=torch.channels_last)


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The parameter groups of the optimizer: biases and norms have no weight decay."""
    decaying, others = ([p for p in network.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)


def one_cycle(part: float) -> float:
    """The learning rate as a share of its peak, after this share of the steps (Smith & Topin 2018): it rises, and then
    falls to 0 along a cosine."""
    return part / WARMUP if part < WARMUP else (1 + math.cos(math.pi * (part - WARMUP) / (1 - WARMUP))) / 2


def phase_of(epoch: int, epochs: int) -> tuple[int, int]:
    """(side, shrunk) in an epoch, counted from 0."""
    return PHASES[len(PHASES) * epoch // epochs]


def squares(photos: np.ndarray, side: int, shrunk: int, random: np.random.Generator) -> Tensor:
    """Photos (B, 64, 64, 3) -> squares of `side`, mirrored and shifted at random, with the photo reflected beyond its
    edges: (B, 3, side / shrunk, side / shrunk), float in [0, 1]."""
    count = len(photos)
    slack = SIZE - side
    rows, columns = (
        _inside(np.arange(side) + random.integers(-SHIFT, slack + SHIFT + 1, (count, 1))) for _ in range(2)
    )
    mirrored = random.integers(0, 2, (count, 1), dtype=bool)
    columns = np.where(mirrored, SIZE - 1 - columns, columns)
    found = photos[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    rgb = color.channels_first(found).float() / 255
    return F.avg_pool2d(rgb, shrunk) if shrunk > 1 else rgb


def _inside(places: np.ndarray) -> np.ndarray:
    """Indices reflected at the edges: -1 becomes 1, and 64 becomes 62."""
    return SIZE - 1 - np.abs(SIZE - 1 - np.abs(places))


@torch.no_grad()
def accuracy(network: nn.Module, images: np.ndarray, labels: Tensor, device: torch.device, shrunk: int):
    """Top-1 and top-5 accuracy: the shares of the photos whose class is the likeliest, or among the five likeliest."""
    network.eval()
    right = np.zeros(2)
    for start in range(0, len(images), 250):
        rgb = color.channels_first(np.array(images[start : start + 250])).to(device).float() / 255
        rgb = F.avg_pool2d(rgb, shrunk).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(rgb)
        found = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        hit = found == labels[start : start + 250, None]
        right += [float(hit[:, 0].sum()), float(hit.any(dim=1).sum())]
    network.train()
    return tuple(right / len(images))


# -- the run ---------------------------------------------------------------------------------------------------------


class Training:
    """A network, its optimizer, and the number of steps done."""

    def __init__(self, arguments: argparse.Namespace, training: ImageSet, validation: ImageSet):
        self.settings = {"network": arguments.network, "epochs": arguments.epochs, "seed": arguments.seed}
        self.settings |= {"batch": BATCH, "rate": RATE, "photos": training.fingerprint}
        self.classes = sorted(set(training.labels))
        if len(self.classes) < 2:
            raise UsageError("The photos have no classes; --data wants Tiny ImageNet (folder or zip).")
        number = {label: n for n, label in enumerate(self.classes)}
        self.labels = torch.tensor([number[label] for label in training.labels])
        self.true = torch.tensor([number.get(label, -1) for label in validation.labels])
        self.images, self.held_out = np.asarray(training.images), np.asarray(validation.images)
        self.device = pick_device(arguments.device)
        torch.manual_seed(arguments.seed)
        self.network = make(arguments.network, len(self.classes)).to(self.device)
        self.optimizer = make_optimizer(self.network)
        self.per_epoch = len(self.images) // BATCH or 1
        self.step = 0

    def train_step(self) -> Tensor:
        """Takes one step and returns its loss, (), without waiting for a GPU."""
        epoch, place = divmod(self.step, self.per_epoch)
        epochs, seed = self.settings["epochs"], self.settings["seed"]
        part = (self.step + 0.5) / (epochs * self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["rate"] * one_cycle(part)
        chosen = np.sort(epoch_order(seed, epoch, len(self.images))[place * BATCH : (place + 1) * BATCH])
        random = np.random.default_rng([seed, epoch, place, 1])
        rgb = squares(self.images[chosen], *phase_of(epoch, epochs), random).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(rgb.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), self.labels[chosen].to(self.device), label_smoothing=SMOOTHING)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def save(self, path: Path) -> None:
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(path) as file:
            torch.save({"settings": self.settings, "step": self.step, **state}, file)

    def load(self, path: Path) -> None:
        """Raises UsageError if the checkpoint does not belong to a run with these settings."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            settings, step = state["settings"], state["step"]
        except FileNotFoundError:
            raise UsageError(f"There is no {path} to resume; leave --resume out.") from None
        except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
            raise ProjectError(f"{path} cannot be read ({sentence(error)[:120]}); train without --resume.") from None
        unlike = [name for name in self.settings if settings.get(name) != self.settings[name]]
        if unlike:
            said = ", ".join(f"{n}: {settings.get(n)!r}, not {self.settings[n]!r}" for n in unlike)
            raise UsageError(f"{path} is of another run ({said}); use the same settings, or leave --resume out.")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = step

    def epoch_line(self, loss: float, seconds: float, photos: int) -> str:
        """Prints the result of an epoch, on 2,000 validation photos at the size that was trained on."""
        epoch = self.step // self.per_epoch
        shrunk = phase_of(epoch - 1, self.settings["epochs"])[1]
        first, five = accuracy(self.network, self.held_out[:2000], self.true[:2000], self.device, shrunk)
        at = f"top 1 {first:.1%}, top 5 {five:.1%} at {SIZE // shrunk} px"
        return f"epoch {epoch}/{self.settings['epochs']}  loss {loss:.3f}  {at}  {photos / seconds:.0f} images/s"


def run(training: Training, checkpoint: Path, minutes: float) -> int | None:
    """Trains to the end and returns None, or returns an exit code if a person, the system or the clock stops it."""
    begin = saved = time.monotonic()
    total = training.settings["epochs"] * training.per_epoch
    losses: list[Tensor] = []
    spent = 0.0
    with StopSignals() as stop:
        while training.step < total:
            before = time.monotonic()
            losses.append(training.train_step())
            spent += time.monotonic() - before
            if training.step % training.per_epoch == 0:
                print(training.epoch_line(mean(losses), spent, len(losses) * BATCH), flush=True)
                losses, spent = [], 0.0
            elif training.step % 100 == 0:
                rate = len(losses) * BATCH / spent
                print(f"step {training.step}/{total}  loss {mean(losses[-100:]):.3f}  {rate:.0f} images/s", flush=True)
            late = time.monotonic() - begin > minutes * 60
            if stop.requested or late or time.monotonic() - saved > SAVE_SECONDS:
                training.save(checkpoint)
                saved = time.monotonic()
            if (stop.requested or late) and training.step < total:
                print(f"Stopped at step {training.step}/{total}; go on with the same command and --resume.")
                return stop.exit_code
    return None


def mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).mean())


def write_network(training: Training, arguments: argparse.Namespace) -> None:
    """Measures the network on all validation photos, and writes the file that is shipped."""
    network = training.network.cpu().eval()
    network = folded(network) if arguments.network == "tiny-vgg" else network
    for tensor in network.parameters():
        tensor.data.copy_(tensor.half())  # measured as it is shipped
    first, five = accuracy(network, training.held_out, training.true, torch.device("cpu"), 1)
    weights = sum(p.numel() for p in network.parameters())
    options = f"--network {arguments.network} --epochs {arguments.epochs} --seed {arguments.seed}"
    about = {
        "data": f"Tiny ImageNet, {len(training.images):,} training photos, {len(training.classes)} classes, {SIZE} px",
        "fingerprint": training.settings["photos"],
        "top1": f"{first:.4f}",
        "top5": f"{five:.4f}",
        "measured_on": f"{len(training.held_out):,} validation photos",
        "command": f"python benchmarks/train_features.py {options} --data {Path(arguments.data).name}",
        "weights": f"{weights}",
        "classes": " ".join(training.classes),
        "torch": torch.__version__,
    }
    save_network(arguments.output, arguments.network, network, about)
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {weights:,} weights, {size:.1f} MB, top 1 {first:.1%}, top 5 {five:.1%}")


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, help="(its place in Project7/weights/)")
    parser.add_argument("--epochs", type=int, help=f"({', '.join(f'{n}: {e}' for n, e in EPOCHS.items())})")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after this many minutes; --resume continues"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint beside OUTPUT")
    parser.add_argument("--limit", type=int, help="largest number of training photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.output = arguments.output or shipped(arguments.network)
    arguments.epochs = arguments.epochs or EPOCHS[arguments.network]
    config = DataConfig(data=arguments.data, image_size=SIZE, limit=arguments.limit, val_limit=10_000)
    training = Training(arguments, *open_dataset(config, seed=0))
    checkpoint = arguments.output.with_suffix(".checkpoint.pth")
    if arguments.resume:
        training.load(checkpoint)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    code = run(training, checkpoint, arguments.minutes)
    if code is None:
        write_network(training, arguments)
        checkpoint.unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    sys.exit(program.run(main))
