#!/usr/bin/env python
"""Measures how fast a data set is decoded into the cache, opened from it and loaded, and how fast on the fly.

python benchmarks/data_speed.py --data tiny-imagenet-200.zip
python benchmarks/data_speed.py --data 'shards/{000000..000099}.tar' --image-size 128
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7.counting import sized
from Project7.dataset import open_dataset
from Project7.image_set import epoch_order, load_batches
from Project7.training_config import DataConfig


def opened(config: DataConfig, cache: Path, what: str):
    """The training images; says how long opening the set takes."""
    start = time.perf_counter()
    images = [part.images for part in open_dataset(config, seed=0, cache_dir=cache)]
    seconds = time.perf_counter() - start
    size = sized(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()))
    print(f"{what}: {len(images[0]):,} + {len(images[1]):,} images in {seconds:.2f} s, {size} on the disk", flush=True)
    return images[0]


def load(images, batch_size: int, seconds: float, num_workers: int | None) -> None:
    """Loads the first epoch in its order, or as much of it as the time allows."""
    order = epoch_order(0, 0, len(images))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    start, count = time.perf_counter(), 0
    for batch in load_batches(images, batches, num_workers=num_workers):
        count += len(batch)
        if time.perf_counter() - start > seconds:
            break
    print(f"load in random order: {count / (time.perf_counter() - start):,.0f} images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="of loading, at most")
    parser.add_argument("--num-workers", type=int, help="(one per processor to decode on the fly)")
    given = parser.parse_args()
    for decode in ("cache", "on-the-fly"):
        print(f"--decode {decode}")
        config = DataConfig(data=given.data, image_size=given.image_size, val_limit=10_000, decode=decode)
        with tempfile.TemporaryDirectory() as place:
            opened(config, Path(place), "open for the first time")
            images = opened(config, Path(place), "open again")
            load(images, given.batch_size, given.seconds, given.num_workers)


if __name__ == "__main__":
    main()
