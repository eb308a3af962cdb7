"""The one training loop. `train` is a generator: it yields a `Progress` after each optimizer step, and the caller
shows it.

A run is cancelled by leaving the loop (under contextlib.closing): the folder then holds a checkpoint of the last whole
step. Randomness is keyed by (seed, step, sample), so a resumed run continues bit for bit on the CPU.
"""

import contextlib
import copy
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from Project7 import augment, collapse, color, health, model_folder
from Project7.atomic_file import copy_file
from Project7.batch import Batch, BatchRandom, Step, reduced, view
from Project7.checkpoints import CheckpointError, check_weights, load_checkpoint, load_moments, save_checkpoint
from Project7.collapse import Collapsed, TrainingFailed
from Project7.comparison import Comparison, compare, fixed_pictures
from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError, sentence
from Project7.feature_cache import FeatureCache
from Project7.image_set import ImageSet, load_batches
from Project7.learning_rate import learning_rate
from Project7.methods import build_model
from Project7.metrics import colorfulness
from Project7.model_folder import ModelFolder
from Project7.objective import Objective
from Project7.processes import PATIENCE
from Project7.run_history import WEIGHTED, RunState, batch_processes, count_step, count_window, history_entry
from Project7.training_config import TrainingConfig
from Project7.validation import validate


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state of a run after a step, or between two batches of a validation."""

    phase: str  # "train" or "validate"
    epoch: int  # the current one, from 1
    epochs: int
    step: int  # optimizer steps done in all
    total_steps: int
    losses: dict[str, float]  # of the latest step that was read back
    learning_rate: float
    grad_norm: float
    skipped: int  # steps without a finite gradient, in this epoch
    images_per_second: float
    seconds_left: float
    entry: dict[str, Any] | None = None  # the epoch's line of the history, when it has ended
    is_best: bool = False
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()


_LAUNCHER_SETTINGS = (
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_DOWNCAST_BF16",
)


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """Sets up device, precision and processes. Raises UsageError if the machine does not support a setting."""
    device = training.device
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UsageError(f"--device {device}: there is no such device here; use --device auto.")
    on_cpu = device == "cpu" or not any(available.values())
    if training.mixed_precision == "fp16" and (on_cpu or not available["cuda"]):
        raise UsageError("--mixed-precision fp16 works on CUDA only; use bf16, or no.")
    if training.mixed_precision == "auto":
        raise UsageError("--mixed-precision auto must be settled first (precision.settle_precision).")
    if training.compile and (on_cpu or not available["cuda"]):
        raise UsageError("--compile is for CUDA only: on other devices compiling takes minutes and gains nothing.")
    ignore_launcher_settings()
    # Not by InitProcessGroupKwargs, which drops ten minutes as NCCL's default and leaves gloo its thirty.
    PartialState(cpu=on_cpu, timeout=PATIENCE)
    # The encoder's maps are channels_last: gradients of the small convolutions on them are copied to be sent, no more.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return Accelerator(mixed_precision=training.mixed_precision, cpu=on_cpu)


def ignore_launcher_settings() -> None:
    """Removes the environment variables by which `accelerate launch` or its saved configuration would change a run.

    How a run computes is determined by its own settings; the launcher determines only the processes. Raises UsageError
    if it asks for a way of distributing a model that is not supported.
    """
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"The launcher asks for {engine}, which is not supported; start with torchrun, or choose multi-GPU in "
                "`accelerate config`."
            )
    for name in list(os.environ):
        if name.startswith("ACCELERATE_DYNAMO_") or name in _LAUNCHER_SETTINGS:
            del os.environ[name]


def train(
    config: RunConfig,
    folder: ModelFolder,
    images: tuple[ImageSet, ImageSet],
    *,
    accelerator: Accelerator,
    resume: dict[str, Any] | None = None,
    start: dict[str, Tensor] | None = None,
    features: FeatureCache | None = None,
) -> Generator[Progress]:
    """Trains until `config.training.epochs` epochs are finished in total, and keeps `folder` resumable at every
    instant.

    images: training and validation. resume: a checkpoint (see checkpoints.py) to continue from. start: weights and
    buffers that a new model starts with (a palette, a pretrained encoder); the others are random. features: the cached
    maps of the encoder for the training images.
    Raises TrainingFailed when no step has had a finite gradient for a while.
    """
    yield from Run(config, folder, images, accelerator, resume, start, features).progress()


def compile_networks(model: nn.Module) -> None:
    """Compiles the networks of a method with torch.compile, in place: the randomness around them and the names of the
    weights stay the same."""
    for part in model.children():
        for network in part if isinstance(part, nn.ModuleList) else [part]:
            network.compile()


class Run:
    """A training run: its weights, its state, its place in the data. Read `progress` first, then `optimizer_step`."""

    def __init__(self, config, folder, images, accelerator, resume=None, start=None, features=None):
        self.features: FeatureCache | None = features
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.training, self.validation = images
        self.settings: TrainingConfig = config.training
        self.history: list[dict[str, Any]] = []
        self.state = RunState(accumulation=self.settings.gradient_accumulation)
        self.processes = accelerator.num_processes  # whose batches make a step
        self.notes: list[str] = []
        self.history_trouble = ""
        self.consistent = True  # weights, state and history belong together: they may be saved
        self.latest: dict[str, float] = {}
        self.names: list[str] = []  # of the pending measures
        self.pending: list[Tensor] = []  # measures of steps that have not been read back from the device
        self.read_every = 1 if accelerator.device.type == "cpu" else 10  # reading back makes a GPU wait

        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            model = build_model(config.model)
        if start and not resume:
            model.load_state_dict(model.state_dict() | start)
        if accelerator.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # the fastest format for its convolutions
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=True
        )
        self.objective = Objective(
            config.objective,
            image_size=self.size,
            device=accelerator.device,
            seed=self.settings.seed,
            exact_critic=self.settings.mixed_precision == "fp16",
            method_loss=self.ema.LOSS,
            loss=config.loss,
        )
        if resume:
            self.restore(resume, model, optimizer)
        self.ema.to(accelerator.device)
        if self.settings.compile:
            compile_networks(model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.ema_parameters: list[Tensor] = list(self.ema.parameters())
        self.truth = fixed_pictures(self.validation.images)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def progress(self) -> Iterator[Progress]:
        if self.accelerator.is_main_process:
            model_folder.create(self.folder)
            model_folder.write_config(self.folder, self.config)
        self.saved_at = self.clock = time.monotonic()
        self.examine_data()
        if self.settings.on_collapse != "rollback":
            self.folder.healthy.unlink(missing_ok=True)  # from an earlier part of the run: too far back by now
        elif not (self.state.step and self.folder.healthy.exists()):
            self.save_last()
            self.mark_healthy()
        try:
            while self.state.epoch < self.settings.epochs:
                try:
                    yield from self.one_epoch()
                except Collapsed as failure:
                    if not self.roll_back(failure):
                        raise
        except GeneratorExit:  # the caller has left the loop, between two steps
            self.save_last()
            raise
        except TrainingFailed:  # the state in the folder is better than this one
            raise
        except Exception:
            self.save_after_an_error()
            raise

    def one_epoch(self) -> Iterator[Progress]:
        yield from self.begin_epoch()
        for count, places, rgb, indices in self.batches():
            self.optimizer_step(count, places, rgb, indices)
            yield self.report(comparison=self.compare() if self.due(self.settings.image_interval) else None)
            if not self.pending and time.monotonic() - self.saved_at > 60 * self.settings.save_minutes:
                self.save_last()
        yield from self.end_epoch()

    def begin_epoch(self) -> Iterator[Progress]:
        """Sets the objective and the learning-rate schedule of the epoch. If the objective has changed, it validates
        the present weights first: theirs is then the best validation loss so far."""
        state, stage = self.state, self.objective.begin(self.state.epoch)
        if stage != state.stage or not state.schedule_steps:
            until = self.config.objective.stage1_epochs if stage == 1 else self.settings.epochs
            state.stage, state.schedule_start, state.schedule_steps = stage, state.step, self.steps_left(until)
        if not self.objective.has_critic:
            state.critic_start = -1
        elif state.critic_start < 0:
            state.critic_start = state.step
        # Earlier versions kept the name in place of the key.
        if state.scored_under in (self.objective.score_key, self.objective.score_name):
            state.scored_under = self.objective.score_key
            return
        state.forget_means()
        if state.step or state.epoch:
            score = math.inf
            for means in self.validate():
                score = means["loss"]
                yield self.report(phase="validate")
            state.best_val_loss = score if math.isfinite(score) else math.inf
            self.notes.append(
                f"The present weights score {score:.4f} under this objective ({self.objective.score_name}): that is "
                "the best validation loss so far."
            )
        state.scored_under = self.objective.score_key

    def batches(self) -> Iterator[tuple[int, np.ndarray, Tensor, np.ndarray]]:
        """The remaining batches of the epoch: the size of the whole batch, this process's places in it, their pictures
        (b, S, S, 3), and the indices of these in the data set (b,)."""
        order = self.training.order(self.settings.seed, self.state.epoch)[self.state.position :]
        whole = [order[i : i + self.global_batch] for i in range(0, len(order), self.global_batch)]
        places = [self.share(len(indices)) for indices in whole]
        mine = [indices[place] for indices, place in zip(whole, places, strict=True)]
        loaded = load_batches(self.training.images, mine, num_workers=self.settings.num_workers)
        with contextlib.closing(loaded):
            yield from zip(map(len, whole), places, loaded, mine, strict=True)

    def share(self, count: int) -> np.ndarray:
        """This process's places in a batch of `count`.

        If there are more processes than pictures, a process without one repeats the first.
        """
        mine = np.array_split(np.arange(count), self.accelerator.num_processes)[self.accelerator.process_index]
        return mine if len(mine) else np.arange(1)

    def optimizer_step(self, count: int, places: np.ndarray, rgb: Tensor, indices: np.ndarray | None = None) -> None:
        """One step of AdamW on one batch, then of the EMA. A step whose gradient is not finite changes nothing."""
        rate = learning_rate(self.settings, self.state.step - self.state.schedule_start, self.state.schedule_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.state.rate_scale
        while True:
            try:
                measures = self.backward(count, places, rgb, indices)
                break
            except torch.OutOfMemoryError:
                self.halve_the_micro_batch(len(places))
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
        bad = (~norm.isfinite()).float()  # clipping does not cure a NaN
        self.consistent = False
        # Fused AdamW leaves weights and moments unchanged if this is 1; torch's types do not declare it.
        self.raw_optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.objective.has_critic:
            self.objective.critic.step(self.accelerator, bad)

        self.update_ema(1 - bad)
        self.state.step += 1
        self.state.position += count
        if self.pending and len(measures) + 2 != len(self.names):  # a term has been added
            self.read_back()
        self.names = [*measures, "grad_norm", "skipped"]
        self.pending.append(torch.stack([*measures.values(), norm.float(), bad]))
        self.consistent = True
        if self.due(self.read_every) or self.state.position >= len(self.training.images):
            self.read_back()

    @torch.no_grad()
    def update_ema(self, good: Tensor) -> None:
        """ema += (1 - decay) (weights - ema); unchanged if `good` is 0.

        The decay rises to its full value during the run.
        """
        decay = min(self.settings.ema_decay, (1 + self.state.step) / (10 + self.state.step))
        change = torch._foreach_sub(self.parameters, self.ema_parameters)
        torch._foreach_mul_(change, good * (1 - decay))
        torch._foreach_add_(self.ema_parameters, change)

    def backward(
        self, count: int, places: np.ndarray, rgb: Tensor, indices: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """The gradient of the mean loss over a whole batch of `count`. Returns this process's part of each mean."""
        share = 1 / count if self.accelerator.process_index < count else 0.0  # a repeated picture has no weight
        pieces = np.array_split(np.arange(len(places)), min(self.micro_steps, len(places)))
        measures: dict[str, Tensor] = {}
        for piece in pieces:
            numbers = None if indices is None else indices[piece]
            batch = self.prepare(rgb[piece], numbers, first=int(places[piece[0]]), count=count)
            with contextlib.nullcontext() if piece is pieces[-1] else self.accelerator.no_sync(self.model):
                step: Step = self.model(batch)
                found, loss = self.loss_of(step)
                # DDP averages over the processes, but each process has only its part of the sum
                self.accelerator.backward(loss * (share * self.accelerator.num_processes))
            if self.objective.has_critic:
                with self.accelerator.autocast():
                    found |= self.objective.critic.teach(step.estimate, share)
            for name, values in found.items():
                measures[name] = measures.get(name, 0) + values.detach().float().sum() * share
        return measures

    def loss_of(self, step: Step) -> tuple[dict[str, Tensor], Tensor]:
        """The objective of a step: named measures (B,), and the weighted sum over the samples that is minimised."""
        weights = self.objective.weights(self.state.step - self.state.critic_start)
        with self.accelerator.autocast():
            terms = self.objective.terms(step, self.ema.ab_mean, self.ema.ab_std, weights)
        weighted = {name: weights[name] * values.float().sum() for name, values in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        measures = {"loss": loss, **terms, **step.metrics}
        if self.config.objective or self.config.loss:
            measures |= {WEIGHTED + name: value for name, value in weighted.items()}
        return measures, loss

    def prepare(self, rgb: Tensor, indices: np.ndarray | None = None, *, first: int, count: int) -> Batch:
        """uint8 pictures (b, S, S, 3) -> the Batch that a method trains on, on the device: augmented, as L and ab."""
        device = self.accelerator.device
        random = BatchRandom(self.settings.seed, self.state.step, first, len(rgb), count, str(device))
        rgb = rgb.to(device, non_blocking=True).movedim(-1, 1)  # (b, 3, S, S)
        flip = (random._replace(device="cpu") if self.features else random).uniform("flip")
        mirrored = flip < (0.5 if self.settings.mirror else 0.0)
        maps = None
        if self.features and indices is not None:
            rows = self.features.read(indices, mirrored.numpy())
            maps = self.features.maps(rows.to(device, non_blocking=True))
        rgb = torch.where(mirrored.to(device)[:, None, None, None], rgb.flip(-1), rgb)
        if self.settings.zoom < 1:
            rgb = augment.zoom(rgb, self.settings.zoom, random)
        L, ab = color.split(reduced(rgb, self.size), self.ema.ab_mean, self.ema.ab_std)
        L = augment.age(L, self.settings.old_photos, random)
        seen = None if maps else view(rgb, self.size)
        if seen is not None:
            seen = augment.age(seen, self.settings.old_photos, random)
        return Batch(L, ab, random, self.objective.image_share, maps, seen)

    def halve_the_micro_batch(self, pictures: int) -> None:
        if self.micro_steps >= pictures or self.accelerator.num_processes > 1:
            raise TrainingFailed(
                "Out of memory with one picture at a time; use a smaller --image-size or narrower --features."
                if self.accelerator.num_processes == 1
                else "Out of memory; use a smaller --batch-size with --gradient-accumulation."
            ) from None
        self.optimizer.zero_grad()
        self.objective.forget_gradients()
        self.state.accumulation *= 2
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notes.append(f"Out of memory: each step is now made of {self.micro_steps} smaller ones.")

    # -- the end of an epoch -----------------------------------------------------------------------------------------

    def end_epoch(self) -> Iterator[Progress]:
        """Validates, writes the epoch's entry of the history, keeps the best weights, and saves."""
        for running_means in self.validate():
            means = running_means
            yield self.report(phase="validate")
        comparison = self.compare()
        is_best = means["loss"] < self.state.best_val_loss  # never a NaN
        if is_best:
            self.state.best_val_loss = means["loss"]
        entry = self.history_entry(means, comparison)
        self.consistent = False
        self.history.append(entry)
        diagnosis = collapse.diagnose(self.folder.name, self.config, self.history)
        entry["findings"] = [dataclasses.asdict(finding) for finding in diagnosis.findings]
        self.notes += diagnosis.news
        collapsed = collapse.agreed(diagnosis.collapse, self.accelerator)
        is_best &= not (collapsed and self.settings.on_collapse == "rollback")  # these weights are given up
        self.state.next_epoch()
        self.consistent = True
        self.save_epoch(is_best)
        if not (collapsed or self.state.skipped_in_a_row or diagnosis.suspicious):
            self.mark_healthy()
        report = self.report(comparison=comparison)
        yield dataclasses.replace(report, epoch=self.state.epoch, entry=entry, is_best=is_best)
        if collapsed and self.settings.on_collapse != "warn":
            best = f" The best weights are kept in {self.folder.best}." if self.folder.best.exists() else ""
            raise Collapsed(collapsed + best)

    def validate(self) -> Iterator[dict[str, float]]:
        images, seed = self.validation.images, self.settings.seed
        return validate(self.ema, self.objective, images, self.size, seed=seed, accelerator=self.accelerator)

    def compare(self) -> Comparison | None:
        """Colours the comparison pictures. Only the main process does so; the others wait for it at the next step."""
        if not self.accelerator.is_main_process:
            return None
        return compare(self.ema, self.truth, self.size, seed=self.settings.seed, accelerator=self.accelerator)

    def history_entry(self, validation: dict[str, float], comparison: Comparison | None) -> dict[str, Any]:
        seconds = self.state.seconds + self.lap()
        return history_entry(
            self.state,
            validation,
            comparison,
            objective=self.objective.name,
            objective_key=self.objective.key,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=len(self.training.images) / max(seconds, 1e-9),
            seconds=seconds,
            gray_share=self.gray_share,
        )

    # -- measures and time -------------------------------------------------------------------------------------------

    def read_back(self) -> None:
        """Moves the measures of the pending steps to the host, once for all of them, and adds them to the epoch's
        sums."""
        rows = torch.stack(self.pending)  # (steps, measures)
        if self.accelerator.num_processes > 1:
            terms = self.accelerator.reduce(rows[:, :-2].contiguous(), "sum")  # the norm is the same everywhere
            rows = torch.cat([terms, rows[:, -2:]], dim=1)
        self.pending.clear()
        for number, row in enumerate(rows.tolist(), start=1 - len(rows)):
            self.latest = dict(zip(self.names, row, strict=True))
            count_step(self.state, self.latest)
            collapse.check_divergence(self.state, self.settings, self.folder)
            step, steps_per_epoch = self.state.step + number, math.ceil(len(self.training.images) / self.global_batch)
            count_window(self.state, self.latest, step=step, steps_per_epoch=steps_per_epoch)

    # -- health ------------------------------------------------------------------------------------------------------

    def examine_data(self) -> None:
        """Warns before the first step if many photos are gray, because they teach gray answers."""
        every = max(1, len(self.training.images) // 256)
        self.gray_share = float((colorfulness(self.training.images[::every]) < health.GRAY).mean())
        if finding := health.gray_share_finding(self.gray_share):
            self.notes.append(f"Health: {finding.line()}")

    def mark_healthy(self) -> None:
        """Keeps the state that was just saved as the target of a rollback."""
        if self.settings.on_collapse == "rollback" and self.accelerator.is_main_process:
            copy_file(self.folder.last, self.folder.healthy)

    def roll_back(self, failure: Collapsed) -> bool:
        """Goes back to the last healthy state with a lower learning rate. Returns False if that is not wanted, or was
        done too often already."""
        if not collapse.may_roll_back(self.state, self.settings):
            return False
        past, scale = self.state.rollbacks, self.state.rate_scale * collapse.ROLLBACK_RATE
        self.accelerator.wait_for_everyone()
        checkpoint = load_checkpoint(self.folder.healthy)
        self.pending.clear()
        at = self.state.step
        self.restore(checkpoint, self.accelerator.unwrap_model(self.model), self.raw_optimizer)
        event = {"from_step": at, "to_step": self.state.step, "rate_scale": scale, "reason": str(failure)}
        self.state.rollbacks, self.state.rate_scale = [*past, event], scale
        self.notes.append(
            f"Rolled back from step {at} to step {self.state.step}, the last healthy one; the learning rate is now "
            f"{scale:g} of what was set ({len(past) + 1} of {collapse.ROLLBACKS} rollbacks). {failure}"
        )
        self.save_last()
        return True

    def report(self, phase: str = "train", comparison: Comparison | None = None) -> Progress:
        seconds = self.state.seconds + time.monotonic() - self.clock
        speed = self.state.position / seconds if seconds > 0 else 0.0
        images = len(self.training.images)
        left = (self.settings.epochs - self.state.epoch) * images - self.state.position
        notes, self.notes = tuple(self.notes), []
        return Progress(
            phase=phase,
            epoch=min(self.state.epoch + 1, self.settings.epochs),
            epochs=self.settings.epochs,
            step=self.state.step,
            total_steps=self.state.step + self.steps_left(),
            losses={n: v for n, v in self.latest.items() if n not in ("grad_norm", "skipped")},
            learning_rate=self.optimizer.param_groups[0]["lr"],
            grad_norm=self.latest.get("grad_norm", math.nan),
            skipped=int(self.state.sums.get("skipped", 0)),
            images_per_second=speed,
            seconds_left=left / speed if speed else math.inf,
            comparison=comparison,
            notes=notes,
        )

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.clock = self.clock, time.monotonic()
        return self.clock - before

    def due(self, interval: int) -> bool:
        return interval > 0 and self.state.step % interval == 0

    def steps_left(self, until: int | None = None) -> int:
        """Number of steps to the end of epoch `until`, or of the run if it is None."""
        images, epochs = len(self.training.images), self.settings.epochs if until is None else until
        if self.state.epoch >= epochs:
            return 0
        now, an_epoch = (math.ceil(n / self.global_batch) for n in (images - self.state.position, images))
        return now + (epochs - self.state.epoch - 1) * an_epoch

    @property
    def size(self) -> int:
        """Side in pixels of what the network sees of a square, which may have more of them for an encoder."""
        return self.config.data.image_size if self.config.data.view_size else self.training.images.shape[1]

    @property
    def global_batch(self) -> int:
        """Pictures per step, over all micro-steps and processes: the same for the whole run, whoever resumes it."""
        return self.settings.batch_size * self.settings.gradient_accumulation * self.processes

    @property
    def micro_steps(self) -> int:
        """Micro-steps of this process per step: enough that fewer processes than before need no more memory each."""
        return math.ceil(self.state.accumulation * self.processes / self.accelerator.num_processes)

    @property
    def raw_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate's wrapper

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        """The content that best_model.pth and last_model.pth share; the keys are those of the source document."""
        latest = self.history[-1] if self.history else {}
        return {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "model_state_dict": self.ema.state_dict(),
            "optimizer_state_dict": self.raw_optimizer.state_dict(),
            "loss_state_dict": self.objective.state_dict(),
            "train_loss": latest.get("train_loss"),
            "val_loss": latest.get("val_loss"),
            "best_val_loss": self.state.best_val_loss,
            "config": self.config.model_dump(mode="json"),
            "history": self.history,
            "data_fingerprint": [self.training.fingerprint, self.validation.fingerprint],
            "processes": self.processes,
        }

    def save_epoch(self, is_best: bool) -> None:
        """Saves both files, best_model.pth first: if the process is killed between them, the end of the epoch is
        repeated and gives the same best weights."""
        if is_best and self.accelerator.is_main_process:
            save_checkpoint(self.folder.best, self.checkpoint())
        self.save_last()
        if not self.accelerator.is_main_process:
            return
        try:
            model_folder.write_history(self.folder, self.history)
            self.history_trouble = ""
        except (OSError, ProjectError) as error:  # last_model.pth holds the history too
            if not self.history_trouble:  # reported once, not after each epoch
                self.history_trouble = f"The history could not be written: {sentence(error)}"
                self.notes.append(self.history_trouble)

    def save_last(self) -> None:
        """Saves last_model.pth, which also holds the raw weights and the position in the data, for exact resuming."""
        if self.pending:
            self.read_back()  # a collective call: all processes save at the same step
        if not self.accelerator.is_main_process:
            return
        self.state.seconds += self.lap()
        raw = self.accelerator.unwrap_model(self.model).state_dict()
        save_checkpoint(
            self.folder.last,
            self.checkpoint() | {"raw_state_dict": raw, "progress": dataclasses.asdict(self.state)},
        )
        self.saved_at = time.monotonic()

    def save_after_an_error(self) -> None:
        """Saves after an error, such as a dead loader worker, so that the training since the last save is not lost.

        It does nothing in the middle of a step, or if one of several processes would wait for the others' measures.
        """
        if not self.consistent or (self.pending and self.accelerator.num_processes > 1):
            return
        with contextlib.suppress(OSError, ProjectError):  # the error that ends the run is the one to report
            self.save_last()

    def restore(self, checkpoint: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Continues exactly from last_model.pth, or with the averaged weights from best_model.pth, at the end of its
        epoch."""
        ema = checkpoint["model_state_dict"]
        check_weights(model, ema, self.folder.path)
        self.ema.load_state_dict(ema)
        model.load_state_dict(checkpoint.get("raw_state_dict", ema))
        try:
            if "optimizer_state_dict" in checkpoint:
                load_moments(optimizer, checkpoint["optimizer_state_dict"])
            else:
                self.notes.append("The checkpoint has no optimizer state: AdamW starts afresh.")
            if "progress" in checkpoint:
                self.state = RunState(**checkpoint["progress"])
            self.processes = batch_processes(checkpoint, now=self.accelerator.num_processes)
            fresh_critic = self.objective.load_state_dict(checkpoint.get("loss_state_dict", {}))
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.folder.path} cannot be continued: its state is not of this model.") from error
        if self.processes != self.accelerator.num_processes:
            self.notes.append(
                f"Processes: {self.processes} when this run began, {self.accelerator.num_processes} now; a step still "
                f"has {self.global_batch} images."
            )
        self.history = list(checkpoint.get("history", []))
        missing = [key for key in ("raw_state_dict", "history", "progress") if key not in checkpoint]
        if missing:
            without = ", no ".join(missing)
            self.notes.append(
                f"The checkpoint has no {without}: it continues from the averaged weights, at the end of an epoch."
            )
        if "progress" not in checkpoint:
            steps = max((int(moments["step"]) for moments in optimizer.state.values()), default=0)
            self.state.epoch, self.state.step = checkpoint.get("epoch", 0), checkpoint.get("step", steps)
            self.state.best_val_loss = checkpoint.get("best_val_loss") or math.inf
        if fresh_critic:
            self.state.critic_start = -1
            self.notes.append(fresh_critic)
