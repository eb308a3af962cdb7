#!/usr/bin/env python
"""Makes a model that comes with the toolkit from the runs that trained it, one per stage.

    python benchmarks/ship.py RUN [RUN ...] --to models/base [--most MEGABYTES]

RUN is a model folder. The weights are those of the last run's best_model.pth: the moving average, in half precision,
without what only exact resuming needs. Resuming the model makes a copy with a fresh AdamW. The histories of all runs
are joined into one, and each entry has the name of its stage.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import model_folder, program
from Project7.checkpoints import load_checkpoint, rebuild, save_checkpoint
from Project7.config import RunConfig, from_dict
from Project7.errors import ProjectError
from Project7.health import stored_window
from Project7.model_folder import ModelFolder
from Project7.training_config import TrainingConfig

RATE = 1e-4  # constant learning rate of a continuation, because that of the last stage has ended at 0


def joined(runs: list[ModelFolder]) -> list[dict[str, Any]]:
    """The entries of all histories, with consecutive epochs and steps."""
    entries: list[dict[str, Any]] = []
    for run in runs:
        epochs, steps = (entries[-1][name] if entries else 0 for name in ("epoch", "step"))
        history = load_checkpoint(run.best)["history"]  # up to its best epoch: later ones are not in the weights
        for entry in history:
            stage = entry["stage"] if isinstance(entry.get("stage"), str) else run.name  # of a model that was shipped
            counted = {"epoch": entry["epoch"] + epochs, "step": entry["step"] + steps, "stage": stage}
            windows = [window for row in entry.get("windows", []) if (window := stored_window(row))]
            moved = [dataclasses.asdict(window) | {"step": window.step + steps} for window in windows]
            entries.append(entry | counted | {"windows": moved})
    return entries


def settings(stored: RunConfig, epochs: int) -> RunConfig:
    """The settings of the last stage, in a form that a continuation can use: the path of the data is `data/`, and the
    learning rate is constant."""
    places = tuple(f"data/{Path(source).name}" for source in stored.data.data)
    crops = stored.data.crops[:1]  # a single number is valid for any sources of a continuation
    data = stored.data.model_copy(update={"data": places, "crops": crops})
    changes = {"epochs": epochs, "lr_schedule": "constant", "learning_rate": RATE, "mixed_precision": "auto"}
    changes |= {"cache_features": False}  # they would be those of other photos
    usual = TrainingConfig()
    changes |= {"image_interval": usual.image_interval, "save_minutes": usual.save_minutes}
    training = stored.training.model_copy(update=changes)
    return stored.model_copy(update={"data": data, "training": training, "shipped": True})


def ship(runs: list[ModelFolder], to: ModelFolder, most: float) -> None:
    """Writes the three files of a model folder. Raises ProjectError if the weights have more than `most` MB."""
    stored = load_checkpoint(runs[-1].best)
    history = joined(runs)
    last = from_dict(stored["config"], runs[-1].best)
    model = rebuild(last, stored["model_state_dict"], runs[-1].best)
    learnt = dict(model.named_parameters())  # buffers such as a palette stay exact
    weights = {n: t.half() if n in learnt else t for n, t in model.state_dict().items()}
    config = settings(last, history[-1]["epoch"])
    kept = {name: stored[name] for name in ("train_loss", "val_loss", "best_val_loss")}
    places = {"epoch": history[-1]["epoch"], "step": history[-1]["step"], "history": history}
    model_folder.create(to)
    save_checkpoint(to.best, {**places, **kept, "model_state_dict": weights, "config": config.model_dump(mode="json")})
    model_folder.write_config(to, config)
    model_folder.write_history(to, history)
    size = to.best.stat().st_size / 1e6
    if size > most:
        raise ProjectError(f"{to.best} has {size:.1f} MB, and may have {most:g}; train a narrower network.")
    count = sum(p.numel() for p in learnt.values())
    print(f"{to.best}: {count / 1e6:.1f} million weights, {size:.1f} MB, {len(history)} epochs of {len(runs)} stages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a model folder; the weights are those of the last one"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--most", type=float, default=32, metavar="MEGABYTES", help="largest size of the weights (32)")
    arguments = parser.parse_args()
    ship([ModelFolder(path) for path in arguments.runs], ModelFolder(arguments.to), arguments.most)


if __name__ == "__main__":
    sys.exit(program.run(main))
