#!/usr/bin/env python
"""Kills trainings at random moments, over and over, and checks whether anything is lost.

python benchmarks/soak.py --minutes 30 --kills 40

Every recipe is trained to its end undisturbed, with 0 and with 2 loading workers, and as one and as two processes. Then
the same run is stopped at random moments by SIGKILL, SIGTERM and SIGINT and resumed each time, while another process
keeps colouring a photo with the same folder. At the end both must hold the same weights, averages, optimizer state and
history, bit for bit (with two processes, too, which sum in a fixed order), no file may be left over, and the memory of
a process must not have grown during its run.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
import torch
from PIL import Image

from Project7 import program
from Project7.checkpoints import load_checkpoint
from Project7.errors import ProjectError

COMMON = "--batch-size 4 --image-size 16 --device cpu --image-interval 0 --save-minutes 0.01 --yes --epochs".split()
EPOCHS = 6
COMMON += [str(EPOCHS)]
DIFFUSION = "--encoder none --features 8,16 --time-dim 16 --timesteps 50".split()
REGRESSION = (
    "--encoder none --model-channels 4 --channel-multipliers 1,2 --perceptual-net random --image-size 32".split()
)
RECIPES = {
    "train_diffusion": DIFFUSION,
    "train_diffusion_v2": [*DIFFUSION, *"--perceptual-net random --gan --gan-start 0 --gan-width 8".split()],
    "train_classification": "--width 8 --blocks 1,1,1,1 --bins 16".split(),
    "train_colorization_simple": REGRESSION,
    "train_image_restoration": REGRESSION,
}
CASES = [(recipe, workers, 1) for recipe in RECIPES for workers in (0, 2)] + [(recipe, 0, 2) for recipe in RECIPES]
SIGNALS = {signal.SIGKILL: (-9, 137), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
FILES = {"best_model.pth", "last_model.pth", "config.json", "training_history.json", "logs", "pictures", ".lock"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="minutes after which no new case begins")
    parser.add_argument("--kills", type=int, default=40, help="total number of kills, spread over the cases")
    parser.add_argument("--first", type=int, default=1, help=f"case to begin with, 1 to {len(CASES)}, after a stop")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end, chance = time.monotonic() + 60 * arguments.minutes, random.Random(arguments.seed)
    faults, kills, done = [], 0, 0
    with tempfile.TemporaryDirectory() as place:
        make_photos(Path(place) / "photos")
        for number, case in list(enumerate(CASES))[arguments.first - 1 :]:
            if time.monotonic() > end:
                break
            wanted = round(arguments.kills * (number + 1) / len(CASES)) - round(arguments.kills * number / len(CASES))
            found = soak(Path(place), *case, wanted, chance)
            kills, done = kills + wanted, done + 1
            faults += found
            print(f"{case}: {wanted} kills, {'; '.join(found) or 'nothing lost'}", flush=True)
    print(f"{done} of {len(CASES)} cases, {kills} kills, {len(faults)} faults")
    return 1 if faults else 0


def make_photos(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def soak(place: Path, recipe: str, workers: int, processes: int, kills: int, chance: random.Random) -> list[str]:
    """Runs one case, and returns what was wrong with it."""
    name = f"{recipe}-{workers}-{processes}"
    start = ["--data", place / "photos", *COMMON, *RECIPES[recipe], "--num-workers", workers]
    begin = time.monotonic()
    straight = training(place, recipe, processes, ["--name", f"{name}-straight", *start])
    growth = undisturbed(straight, place / "models" / f"{name}-straight" / "training_history.json")
    whole = time.monotonic() - begin
    colouring = subprocess.Popen([sys.executable, "-c", COLOURING, ROOT, place / "models" / name, place / "photos"])
    grown = f"{growth / 1e6:.0f} MB more memory in the last epochs of the run than after its second"
    faults = [grown] if growth > 50e6 else []
    request, left = ["--name", name, *start], kills
    try:
        while True:
            process = training(place, recipe, processes, request)
            if left:
                left -= 1
                faults += stopped(process, chance.uniform(0, whole), chance.choice(list(SIGNALS)))
            elif process.wait(timeout=600):
                return [*faults, f"the last resume ended with {process.returncode}"]
            folder = place / "models" / name
            request = ["--resume", name, "--yes"] if (folder / "config.json").exists() else request
            if not left and process.returncode == 0:
                break
    finally:
        colouring.terminate()
        if code := colouring.wait(timeout=60):
            faults.append(f"colouring with the same folder ended with {code}")
    return faults + unlike(place / "models" / f"{name}-straight", folder)


def training(place: Path, recipe: str, processes: int, flags: list) -> subprocess.Popen:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    script = ROOT / "Project7" / f"{recipe}.py"
    command = [sys.executable, *several, script, "--models-dir", place / "models", "--cache-dir", place / "cache"]
    return subprocess.Popen(
        [str(part) for part in [*command, *flags]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def undisturbed(process: subprocess.Popen, history: Path) -> int:
    """Waits for the process to end. Returns by how many bytes it grew after its second epoch."""
    sizes = [0]
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            size = psutil.Process(process.pid).memory_info().rss
            epochs = len(json.loads(history.read_text())) if history.exists() else 0
            sizes.append(
                size if 1 < epochs < EPOCHS else 0
            )  # everything is loaded by then, and the program does not end yet
        time.sleep(0.1)
    if process.wait():
        raise ProjectError(f"an undisturbed run ended with {process.returncode}: {process.stderr.read()[-500:]}")
    trained = [size for size in sizes if size]
    return max(trained) - trained[0] if trained else 0


def stopped(process: subprocess.Popen, seconds: float, signum: signal.Signals) -> list[str]:
    """Sends a signal after `seconds`. Returns what was wrong with the way the process ended."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signum)  # like a terminal, and like the system for a container
    _, err = process.communicate(timeout=120)
    several = "torch.distributed.run" in process.args
    faults = []
    if process.returncode not in (0, *SIGNALS[signum]) and not several:
        faults.append(f"{signum.name} after {seconds:.1f} s ended with {process.returncode}: {err[-200:]!r}")
    if "Traceback" in err and not several:  # torchrun itself writes tracebacks
        faults.append(f"{signum.name} after {seconds:.1f} s left a traceback: {err[-400:]!r}")
    return faults


def unlike(a: Path, b: Path) -> list[str]:
    """How two finished runs differ, and which files in the folder of the second should not be there."""
    first, second = (load_checkpoint(folder / "last_model.pth") for folder in (a, b))
    faults = [
        f"{part} differs"
        for part in ("model_state_dict", "raw_state_dict", "optimizer_state_dict", "loss_state_dict", "history")
        if not same(first[part], second[part])
    ]
    strangers = {path.name for path in b.iterdir()} - FILES
    return faults + [f"left over: {', '.join(sorted(strangers))}"] * bool(strangers)


def same(a, b) -> bool:
    """Whether nested dicts and lists are equal, bit for bit, except for times."""
    if isinstance(a, dict):
        keys = set(a) - {"seconds", "images_per_second"}
        return keys == set(b) - {"seconds", "images_per_second"} and all(same(a[key], b[key]) for key in keys)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


COLOURING = """
import sys, time
from pathlib import Path
root, folder, photos = sys.argv[1:]
sys.path.insert(0, root)
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
from Project7.colorize import Colorizer
while True:
    if (Path(folder) / "best_model.pth").exists():
        Colorizer.load(folder, device="cpu").colorize(str(Path(photos) / "0.png"))
    time.sleep(0.3)
"""

if __name__ == "__main__":
    sys.exit(program.run(main))
