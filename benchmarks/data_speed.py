#!/usr/bin/env python
"""Measures how fast a data set is decoded into the cache, opened from it, and loaded.

python benchmarks/data_speed.py --data tiny-imagenet-200.zip
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7.dataset import open_dataset
from Project7.image_set import epoch_order, load_batches
from Project7.training_config import DataConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    config = DataConfig(data=arguments.data, val_limit=10_000)
    with tempfile.TemporaryDirectory() as cache:
        for what in ("decode and write", "open"):
            start = time.perf_counter()
            images = [part.images for part in open_dataset(config, seed=0, cache_dir=Path(cache))]
            print(f"{what}: {len(images[0]):,} + {len(images[1]):,} images in {time.perf_counter() - start:.2f} s")
        order = epoch_order(0, 0, len(images[0]))
        batches = [order[i : i + arguments.batch_size] for i in range(0, len(order), arguments.batch_size)]
        start = time.perf_counter()
        count = sum(len(batch) for batch in load_batches(images[0], batches))
        print(f"load in random order: {count / (time.perf_counter() - start):,.0f} images/s")


if __name__ == "__main__":
    main()
