"""What a resumed run inherits, which settings may change, and which changes are refused."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from Project7.checkpoints import CheckpointError, load_checkpoint, rebuild, unsealed_note
from Project7.config import RunConfig, for_recipe, from_dict
from Project7.counting import counted
from Project7.errors import UsageError
from Project7.image_set import ImageSet
from Project7.model_folder import ModelFolder, read_history, set_aside, write_history
from Project7.processes import is_main_process
from Project7.settings import Sections, declared, inherited, parse_settings, setting_fields

_SCHEDULE = ("learning_rate", "warmup_steps")  # may change together with an explicit --lr-schedule


def load_for_resume(folder: ModelFolder) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint to continue from, and notes for the person: last_model.pth, or else best_model.pth with a warning.
    Raises CheckpointError if neither can be read."""
    notes = []
    for path in (folder.last, folder.best):
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            notes.append(str(error))
            continue
        notes += [note for note in [unsealed_note(path)] if note]
        if path == folder.best:
            notes.append(f"Continuing from {path.name}: the end of epoch {checkpoint.get('epoch', 0)}.")
        if is_main_process() and read_history(folder) is None:  # the checkpoint has a history too
            notes.append(f"{folder.history.name} is damaged; it is kept as {set_aside(folder.history).name}.")
        return checkpoint, notes
    reasons = " ".join(notes) or "it has neither last_model.pth nor best_model.pth."
    raise CheckpointError(f"{folder.name} cannot be resumed: {reasons}")


def mend_history(folder: ModelFolder, checkpoint: dict[str, Any]) -> bool:
    """Writes a history that was lost or set aside again, from the checkpoint. Returns whether that was needed."""
    needed = bool(checkpoint.get("history")) and not folder.history.exists()
    if needed:
        write_history(folder, checkpoint["history"])
    return needed


def merge(
    checkpoint: dict[str, Any], source: Path, given: dict[str, Any], sections: Sections, *, replan: bool = False
) -> RunConfig:
    """The configuration of the continued run: the stored one, with the flags that were given.

    A flag that repeats the stored value is accepted. Flags that contradict it are refused with UsageError, which lists
    them all, unless the setting is free (device, workers, ...) or part of a new learning-rate schedule. `epochs` is
    added to the epochs that are done, and shortens the planned run only with `replan`. A model without an objective
    gets that of the recipe, if `sections` has one. A shipped model is continued in a copy on a person's own photos with
    a fresh optimizer, so that only its network is fixed.
    """
    stored = for_recipe(from_dict(checkpoint["config"], source), sections)
    if stored.shipped and "data" in given:
        stored = for_other_photos(stored)
    done = checkpoint.get("epoch", 0)
    changes: dict[str, dict[str, Any]] = {section: {} for section in sections}
    refused = []
    for name, text in given.items():
        section, field = setting_fields(sections)[name]
        value = getattr(parse_settings(sections[section], related(name, given, stored, sections) | {name: text}), name)
        before = getattr(getattr(stored, section), name)
        if name == "epochs":
            value = done + value
            if value < before and not replan:
                check_plan(stored, done, value, new_schedule="lr_schedule" in given)
        elif value == before and not set(declared(field, "follows") or ()) & set(given):
            continue
        elif name == "data":
            pass  # the same images may lie elsewhere now; check_data compares the pictures themselves
        elif name == "lr_schedule" or (name in _SCHEDULE and "lr_schedule" in given):
            pass
        elif declared(field, "fixed") and not (stored.shipped and section in ("data", "training")):
            flag = "--" + name.replace("_", "-")
            hint = " (or start a new schedule with --lr-schedule as well)" if name in _SCHEDULE else ""
            refused.append(f"{flag} is {_show(before)} in this model, not {_show(value)}{hint}")
        changes[section][name] = value
    if refused:
        raise UsageError(
            f"A resumed run keeps its settings: {'; '.join(refused)}. Leave those flags out, or train a new model."
        )
    # Built again rather than copied, so that settings which depend on each other are checked together.
    merged = {n: parse_settings(sections[n], inherited(getattr(stored, n), new) | new) for n, new in changes.items()}
    whole = {name: getattr(stored, name) for name in RunConfig.model_fields}
    plain = {name: part.model_dump() for name, part in merged.items()}  # a recipe's defaults have done their part
    return parse_settings(RunConfig, whole | plain | {"shipped": False})


def for_other_photos(stored: RunConfig) -> RunConfig:
    """The configuration without the settings (shares, crops, view) for the photos that the model was trained on."""
    crops = stored.data.crops if len(stored.data.crops) == 1 else (1,)
    data = stored.data.model_copy(update={"shares": None, "crops": crops, "view_size": None})
    return stored.model_copy(update={"data": data})


def check_plan(stored: RunConfig, done: int, epochs: int, *, new_schedule: bool) -> None:
    """Raises UsageError if a run would end earlier than planned without being told so. A new learning-rate schedule
    tells so, as long as the second of two stages is not lost."""
    planned, first = stored.training.epochs, stored.objective.stage1_epochs if stored.objective else 0
    loses_a_stage = epochs <= first < planned
    if new_schedule and not loses_a_stage:
        return
    stages = f" ({first} of stage 1, {planned - first} of stage 2)" if first else ""
    lost = ", without its second stage" if loses_a_stage else ""
    raise UsageError(
        f"{counted(planned, 'epoch')} were planned{stages}, {done} are done, and --epochs {epochs - done} would end "
        f"the run after {epochs}{lost}; leave --epochs out to finish the plan, or cut it with --replan."
    )


def starting_point(weights: Path, kind: type[BaseModel], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a new model takes over from the one in the file `weights`: its network settings, changed by the flags that
    were given, and its weights and buffers. kind: the recipe's class of network settings.

    Raises UsageError if they do not fit the recipe or the flags.
    """
    stored = load_checkpoint(weights)
    config = from_dict(stored["config"], weights).model
    method = kind.model_fields["method"].default
    if config.method != method:
        raise UsageError(
            f"--start-from {weights} is a {config.method} model, not a {method} one; use {' or '.join(config.SCRIPTS)}."
        )
    brought = sorted({"palette", "encoder_weights", "bins"} & set(given))
    if brought:
        flag = "--" + brought[0].replace("_", "-")
        raise UsageError(f"{flag} {given[brought[0]]}: it comes with the weights of --start-from; leave it out.")
    model = rebuild(RunConfig(model=config), stored["model_state_dict"], weights)
    settings = parse_settings(kind, inherited(config, given) | given)
    try:
        rebuild(RunConfig(model=settings), stored["model_state_dict"], weights)
    except CheckpointError as error:
        changed = [n for n in given if getattr(settings, n) != getattr(config, n)]
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise UsageError(
            f"The weights of --start-from {weights} do not fit a network with another {flags}; leave that out."
        ) from error
    return settings, model.state_dict()


def related(name: str, given: dict[str, Any], stored: RunConfig, sections: Sections) -> dict[str, Any]:
    """The settings that a given one is checked with: for a loss, all of the loss; for a noise schedule, its stored
    ones; for the pixels that an encoder is shown, those of the network."""
    if name == "view_size":
        size = {"image_size": stored.data.image_size}
        return size | {n: value for n, value in given.items() if n in size}
    if setting_fields(sections)[name][0] == "loss":
        new = {n: value for n, value in given.items() if n in sections["loss"].model_fields}
        return (inherited(stored.loss, new) if stored.loss else {}) | new
    schedule = ("prediction_type", "beta_schedule", "zero_terminal_snr")
    return {n: getattr(stored.model, n) for n in schedule} if name in schedule else {}


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_remaining(checkpoint: dict[str, Any], config: RunConfig, *, new_schedule: bool) -> str | None:
    """Checks that there is something left to do. Returns a sentence if the run is complete, else None.

    A cosine or one-cycle schedule has an end; continuing past it needs an explicit new one, which begins here. Raises
    UsageError if that is missing.
    """
    done, planned = checkpoint.get("epoch", 0), config.training.epochs
    if done >= planned:
        said = "its only epoch is done" if planned == 1 else f"all {planned} epochs are done"
        return f"complete: {said}. Add some with --epochs N."
    stored_epochs = checkpoint["config"]["training"]["epochs"]
    if new_schedule:
        progress = checkpoint.get("progress", {})
        progress |= {"schedule_start": progress.get("step", 0), "schedule_steps": 0, "rate_scale": 1.0}
    elif planned > stored_epochs and config.training.lr_schedule != "constant":
        raise UsageError(
            f"The {config.training.lr_schedule} learning rate of this model ends with epoch {stored_epochs}; to go on "
            f"to epoch {planned}, say which schedule the new epochs have: --lr-schedule constant, cosine or one-cycle."
        )
    return None


def check_data(checkpoint: dict[str, Any], images: tuple[ImageSet, ImageSet], *, allowed: bool) -> None:
    """Raises UsageError if the images are not those that the model was trained on, unless `allowed`."""
    before = checkpoint.get("data_fingerprint")
    now = [part.fingerprint for part in images]
    if before and before != now and not allowed:
        raise UsageError(
            "The images are not those that this model was trained on (other files, or changed ones); point --data at "
            "the old ones, or accept the new ones with --allow-data-change."
        )
