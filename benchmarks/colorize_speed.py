#!/usr/bin/env python
"""Times colouring as a whole process: large photos, with the seconds of each part, and a folder of many photos.

    python benchmarks/colorize_speed.py MODEL_FOLDER [--megapixels 12 48] [--photos 500] [--flags ...]

A large photo is an enlarged built-in one. Peak memory is that of the process. The parts are measured in a separate
process: the imports, then each step of Colorizer by itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image

from Project7.photo_source import sample_photos


def large_photo(path: Path, megapixels: float) -> None:
    with Image.open(sample_photos()["coffee"]) as image:
        height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
        image.convert("RGB").resize((height * 4 // 3, height), Image.Resampling.BICUBIC).save(path, quality=92)


def run(*command: str, **environment: str) -> tuple[float, float]:
    """Seconds and the peak memory in MiB of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**10


def largest_difference(one: Path, other: Path) -> int:
    with Image.open(one) as a, Image.open(other) as b:
        return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def parts(model: Path, photo: Path) -> dict[str, float]:
    """Seconds of each step of one photo, in this process, after the imports."""
    begin = time.perf_counter()
    import torch

    from Project7 import colorize, painting
    from Project7.photo import open_photo, save_photo

    seconds = {"imports": time.perf_counter() - begin}

    def timed(name: str, function, *given, **options):
        begin = time.perf_counter()
        result = function(*given, **options)
        seconds[name] = time.perf_counter() - begin
        return result

    colorizer = timed("load the model", colorize.Colorizer.load, model)
    opened = timed("open the photo", open_photo, photo)
    L = timed("its lightness", painting.full_lightness, opened.rgb)
    small = painting.shrink(L, colorizer.working_shape(opened.rgb.shape[:2], None))
    generator = torch.Generator().manual_seed(0)
    ab = timed("network", colorizer.model.colorize, small, generator=generator)
    mean, std = colorizer.model.ab_mean, colorizer.model.ab_std
    picture = timed("enlarge and convert", painting.paint, L, small, ab, mean, std)
    timed("write", save_photo, photo.with_suffix(".png"), picture)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[12, 48])
    parser.add_argument("--photos", type=int, default=500, help="number of photos of 256 px in a folder")
    parser.add_argument("--parts-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.parts_of:
        print(" ".join(f"{name}:{value:.2f}" for name, value in parts(arguments.model, arguments.parts_of).items()))
        return
    model = str(arguments.model.resolve())
    with tempfile.TemporaryDirectory() as folder:
        print("| photo | whole process | peak memory | parts, seconds |\n| --- | --- | --- | --- |")
        for megapixels in arguments.megapixels:
            photo = Path(folder) / f"{megapixels:g}.jpg"
            large_photo(photo, megapixels)
            whole, peak = run("-m", "Project7", "colorize", str(photo), "--model", model, "--output", f"{folder}/out")
            command = [sys.executable, __file__, model, "--parts-of", str(photo)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"| {megapixels:g} MP | {whole:.1f} s | {peak:.0f} MiB | {found.replace(':', ' ')} |", flush=True)
        many = Path(folder) / "many"
        many.mkdir()
        random = np.random.default_rng(0)
        photos = [Image.open(path).convert("RGB") for path in sample_photos().values()]
        for n in range(arguments.photos):
            photo = photos[n % len(photos)]
            x, y = (int(random.integers(0, side - 256)) for side in photo.size)
            photo.crop((x, y, x + 256, y + 256)).save(many / f"{n:04d}.jpg", quality=92)
        print("\n| folder | seconds | photos/s |\n| --- | --- | --- |")
        colorize = ("-m", "Project7", "colorize", str(many), "--model", model, "--output")
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        alone, _ = run(*colorize, f"{folder}/one")
        both, _ = run(*torchrun, *colorize, f"{folder}/two", OMP_NUM_THREADS="1")
        for name, seconds in {"one process": alone, "two processes": both}.items():
            print(f"| {arguments.photos} photos, {name} | {seconds:.1f} | {arguments.photos / seconds:.1f} |")
        done = {p.name for p in (Path(folder) / "two").iterdir()}
        off = [largest_difference(Path(folder) / "one" / n, Path(folder) / "two" / n) for n in done]
        same = f"{off.count(0)} are the same, the others differ by at most {max(off)} of 255"
        print(f"\nTwo processes made {len(done)} of {arguments.photos}; {same} (other batches round differently).")


if __name__ == "__main__":
    main()
