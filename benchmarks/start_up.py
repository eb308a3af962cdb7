#!/usr/bin/env python
"""Measures how soon a command answers, compared with an empty Python: whole processes that take turns.

python benchmarks/start_up.py [--rounds 7]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"project7 --help": 0.4, "project7 models": 1.0}  # seconds


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "project7 --help": [python, "-m", "Project7", "--help"],
            "project7 models": [python, "-m", "Project7", "models", "--models-dir", folder],
            "project7 colorize --help": [python, "-m", "Project7", "colorize", "--help"],
            "train_diffusion_v2.py --help": [python, "Project7/train_diffusion_v2.py", "--help"],
            "import torch": [python, "-c", "import torch"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(arguments.rounds + 1):
            for name, command in commands.items():
                taken = seconds(command)
                if round_:  # the first round reads from the disk
                    times[name].append(taken)
    empty = statistics.median(times["python -c pass"])
    print("| command | seconds (median) | times an empty Python | wanted |\n| --- | --- | --- | --- |")
    for name, taken in times.items():
        middle = statistics.median(taken)
        wanted = f"under {LIMITS[name]:g} s" if name in LIMITS else ""
        print(f"| `{name}` | {middle:.2f} | {middle / empty:.1f} | {wanted} |")


if __name__ == "__main__":
    main()
