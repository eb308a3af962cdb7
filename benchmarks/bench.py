#!/usr/bin/env python
"""Runs all benchmarks, and writes one table with the machine and the versions: `make bench`.

    python benchmarks/bench.py [--data samples] [--model NAME] [--only start step ...] [--quick] [--output FILE]

Each part is a script beside this one, which runs as a separate process, one after the other. Compare times only as
ratios within a part. --quick makes every part short: it shows that the scripts work, and its numbers are not to be
quoted.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from Project7 import program
from Project7.atomic_file import write_text
from Project7.cli import default_model
from Project7.errors import UsageError
from Project7.model_folder import default_models_dir, find_weights

PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "pillow")
SMALL = ["--features", "16,32,64", "--chroma-scale", "2", "--batch-size", "32"]

# part -> (what it shows, [(arguments of the script, those that --quick adds)]); {data} and {model} are filled in
PARTS: dict[str, tuple[str, list[tuple[list[str], list[str]]]]] = {
    "start": ("How soon a command answers", [(["start_up.py"], ["--rounds", "2"])]),
    "step": (
        "A training step beside a bare loop and a tutorial's",
        [
            (["training_step.py", "--data", "{data}"], ["--rounds", "1"]),
            (["training_step.py", "--data", "{data}", *SMALL], ["--rounds", "2"]),
        ],
    ),
    "recipes": ("What each recipe costs beside the squared error", [(["objectives.py"], ["--rounds", "1"])]),
    "precision": ("Full precision and bfloat16", [(["precision.py"], ["--rounds", "1"])]),
    "samplers": (
        "Quality against evaluations of the network",
        [
            (
                ["sampler_steps.py", "{model}", "--data", "{data}"],
                ["--photos", "4", "--steps", "1", "2", "--ancestral", "20"],
            )
        ],
    ),
    "photos": (
        "Colouring as a whole process",
        [(["colorize_speed.py", "{model}"], ["--megapixels", "1", "--photos", "8"])],
    ),
}


def machine() -> list[str]:
    """The lines that say where the table comes from: machine, versions and commit."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return [
        f"- machine: {os.cpu_count()} cores of {cpu}; {gpu()}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- commit: {commit.stdout.strip() or 'unknown'}; {time.strftime('%Y-%m-%d %H:%M')}",
    ]


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def trained_model(name: str | None) -> str | None:
    """The folder of a model to colour with; None if there is none yet."""
    models = default_models_dir()
    try:
        return str(find_weights(name or default_model(models), models).parent)
    except UsageError:
        if name:
            raise
        return None


def run_part(name: str, *, data: str, model: str | None, quick: bool) -> Iterator[str]:
    """Runs the scripts of a part and yields the lines of its section as they are printed."""
    title, scripts = PARTS[name]
    yield f"\n## {title}\n"
    for command, shorter in scripts:
        if "{model}" in command and model is None:
            yield "Left out: there is no model yet. Train one, or give --model."
            continue
        filled = [part.format(data=data, model=model) for part in [*command, *(shorter if quick else [])]]
        yield f"\n`python benchmarks/{' '.join(filled)}`\n"
        process = subprocess.Popen(
            [sys.executable, str(HERE / filled[0]), *filled[1:]], stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            yield line.rstrip("\n")
        if process.wait():
            yield f"\nIt ended with exit code {process.returncode}: these numbers are not complete."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples", help="photos to train and colour (the built-in ones)")
    parser.add_argument("--model", help="a trained diffusion model (base, or the only existing one)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="take a few steps of everything, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks.md"))
    arguments = parser.parse_args()
    model = trained_model(arguments.model)
    lines = ["# Benchmarks", "", *machine()]
    print("\n".join(lines), flush=True)
    failed = False
    for name in arguments.only:
        for line in run_part(name, data=arguments.data, model=model, quick=arguments.quick):
            print(line, flush=True)
            lines.append(line)
            failed |= line.startswith("\nIt ended with")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output, "\n".join(lines) + "\n")  # after each part, so that nothing is lost
    print(f"\nTable: {arguments.output}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(program.run(main))
