#!/usr/bin/env python
"""Compares ways of choosing among several answers of a model, and of calming the chosen one.

    python benchmarks/choosing.py MODEL --data PATH [--photos 400] [--size 64] [--candidates 8]
        [--guidance 1] [--working-size N] [--sheet FILE.png]

The samples are drawn once; each row makes a picture of them in another way. `class` is the share of photos in which
JudgeResNet sees the same class as in the true photo.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import color, metrics, program
from Project7.candidates import calmed, choose, spread
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.evaluate import generator
from Project7.feature_networks import load_network
from Project7.frechet import feed, find_judge, frechet
from Project7.guided_filter import expand
from Project7.painting import paint, shrink

CALM = (0.25, 0.5, 0.75, 1.0)
SHEET = 24
DEFAULT = "the same, evened: the default"


@torch.no_grad()
def draw(colorizer: Colorizer, photos, count: int, guidance: float, size: int | None, batch: int = 16):
    """Returns small L (N, 1, h, w), what the network sees of the cells (N, C, h', w'), the samples (N, K, 2, h', w')
    and the mean of the head in Lab units, the log-likelihoods of the samples under the head (N, K), and the chroma that
    the head finds likely, (N, h', w') twice."""
    model, found = colorizer.model, []
    for start in range(0, len(photos.images), batch):
        L = color.lightness(color.channels_first(np.array(photos.images[start : start + batch])))
        small = shrink(L, colorizer.working_shape(L.shape[-2:], size))
        maps = colorizer.look(list(L.split(1)))
        noise = [generator(0, 0, name) for name in photos.names[start : start + batch]]
        samples, context = model.draw(small, noise, None, maps, guidance=guidance, candidates=count)
        lab = model.to_lab(samples)
        likelihood = [model.head.log_likelihood(context.answer, lab[:, k]) for k in range(count)]
        seen = context.known[:, : model.config.neck_width]
        told = model.head.mean(context.answer), torch.stack(likelihood, dim=1)
        found.append((small, seen, lab, *told, *model.head.likely_chroma(context.answer)))
        print(f"\r{start + len(L)}/{len(photos.images)}", end="", file=sys.stderr)
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def readouts(lab, head, likelihood, *likely):
    """Name of a way -> the ab (N, 2, h', w') that it gives, in Lab units."""
    rows = torch.arange(len(lab))
    mean = lab.mean(dim=1)
    found = {"one sample": lab[:, 0], "agreement": lab[rows, choose(lab)]}
    found["likelihood"] = lab[rows, choose(lab, likelihood)]
    chosen = found["agreement"]
    likeliest = found["likelihood"]
    found |= {f"likelihood, calm {calm:g}": calmed(likeliest, mean, lab, calm) for calm in CALM[:2]}
    found |= {f"agreement, calm {calm:g}": calmed(chosen, mean, lab, calm) for calm in CALM}
    middle = (mean + head) / 2
    found |= {f"likelihood, calm {calm:g}, with the head": calmed(likeliest, middle, lab, calm) for calm in CALM[:2]}
    if likely:
        found["the same, strength of the head"] = calmed(likeliest, middle, lab, 0.5, likely)
        found[DEFAULT] = found["the same, strength of the head"]
    found |= {f"agreement, calm {calm:g}, with the head": calmed(chosen, middle, lab, calm) for calm in CALM[1:]}
    found |= {f"one sample, calm {calm:g} to the head": calmed(lab[:, 0], head, lab[:, :1], calm) for calm in CALM[1:]}
    found |= {"mean of the samples": mean, "mean of the head": head}
    found |= {f"mean of the head x {s:g}": head * s for s in (1.3, 1.6)}
    return found


def pictures(colorizer: Colorizer, photos, small, ab, seen=None) -> np.ndarray:
    """seen: what the network sees of the cells, where what looks alike shares its colour."""
    model = colorizer.model
    rows = []
    for n in range(len(ab)):
        L = color.lightness(color.channels_first(np.array(photos.images[n : n + 1])))
        lab, L_small, scale = ab[n : n + 1], small[n : n + 1], model.config.chroma_scale
        fine = expand(lab, L_small, scale) if seen is None else spread(lab, seen[n : n + 1], L_small, scale, 1.0)
        fine = model.from_lab(fine)
        rows.append(paint(L, small[n : n + 1], fine, model.ab_mean, model.ab_std))
    return np.stack(rows)


@torch.no_grad()
def classes(judge, rgb: np.ndarray) -> torch.Tensor:
    parts = color.channels_first(rgb).split(64)
    resized = [p if p.shape[-1] == 64 else resize64(p) for p in parts]
    return torch.cat([judge(p).argmax(dim=1) for p in resized])


def resize64(rgb: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(rgb.float() / 255, (64, 64), mode="bilinear", antialias=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder, or a .pth file")
    parser.add_argument("--data", required=True, help="photos with their colours")
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--working-size", type=int, help="short side of what the network sees (that of colorize)")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--sheet", type=Path, help="write gray | read-outs | truth of the first photos")
    arguments = parser.parse_args()
    colorizer = Colorizer.load(arguments.model, device="cpu")
    where = {"limit": arguments.photos, "cache_dir": arguments.cache_dir}
    photos = open_photos(arguments.data, size=arguments.size, **where)
    truth = np.array(photos.images)
    how = arguments.candidates, arguments.guidance, arguments.working_size
    small, cells, *drawn = draw(colorizer, photos, *how)
    judge, network = load_network("judge"), find_judge()
    feed(network.metric, truth, real=True)
    seen, ab_truth = classes(judge, truth), color.rgb_to_lab(color.channels_first(truth))[:, 1:]
    print(f"\n{'':36} PSNR  ab RMSE  colorfulness ({metrics.colorfulness(truth).mean():.1f})  Frechet  class  tint")
    shown = [color.channels_last(color.gray(color.channels_first(truth)))]
    for name, ab in readouts(*drawn).items():
        rgb = pictures(colorizer, photos, small, ab, cells if name == DEFAULT else None)
        found = color.rgb_to_lab(color.channels_first(rgb))[:, 1:]
        tint = (found - ab_truth).mean(dim=(0, 2, 3)).tolist()
        print(
            f"{name:36} {metrics.psnr(rgb, truth).mean():5.2f}  {metrics.ab_rmse(found.numpy(), ab_truth.numpy()):7.2f}"
            f"  {metrics.colorfulness(rgb).mean():12.1f}  {frechet(network, rgb):13.2f}"
            f"  {(classes(judge, rgb) == seen).float().mean():.3f}  {tint[0]:+.1f} {tint[1]:+.1f}",
            flush=True,
        )
        if name in ("one sample", "likelihood", "likelihood, calm 0.5, with the head", "mean of the head x 1.3"):
            shown.append(rgb)
    if arguments.sheet:
        from PIL import Image

        rows = [np.concatenate([part[n] for part in (*shown, truth)], axis=1) for n in range(min(SHEET, len(truth)))]
        half = len(rows) // 2
        left, right = np.concatenate(rows[:half]), np.concatenate(rows[half : 2 * half])
        Image.fromarray(np.concatenate([left, right], axis=1)).save(arguments.sheet)


if __name__ == "__main__":
    sys.exit(program.run(main))
