"""Fréchet distances between two sets of photos: in the features of Inception-v3 (FID), and of our own JudgeResNet.

torchmetrics does the sums; here the networks are found, and what cannot be had says why.
"""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Project7 import color
from Project7.answer_config import EvaluateConfig
from Project7.errors import sentence
from Project7.feature_networks import FeaturesMissing, JudgeFeatures, load_network, read_about, shipped

FRECHET = ("fid", "frechet_judge")  # keys of a row: in the features of Inception-v3, and of JudgeResNet
_TOGETHER = 64  # photos at a time


@dataclasses.dataclass(frozen=True)
class Network:
    """What a Fréchet distance is measured with, once it has been fed with the truth."""

    metric: Any  # torchmetrics' FrechetInceptionDistance
    about: dict[str, Any]  # for the protocol: name, features, hash, accuracy


def frechet(network: Network, pictures: np.ndarray) -> float:
    """The Fréchet distance of pictures (N, H, W, 3) uint8 to the truth, lower is better (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of the means and covariances of their features, in float64. It has no
    interval: it falls with the number of photos, and a resampled set is a smaller one.
    """
    network.metric.reset()  # of the answer before; the truth's features stay
    feed(network.metric, pictures, real=False)
    return max(0.0, float(network.metric.compute()))


@torch.no_grad()
def feed(metric: Any, photos: np.ndarray, *, real: bool) -> None:
    for start in range(0, len(photos), _TOGETHER):
        metric.update(color.channels_first(photos[start : start + _TOGETHER]), real=real)


def find_networks(settings: EvaluateConfig, truth: np.ndarray, missing: dict[str, str]) -> dict[str, Network]:
    """The networks of FRECHET that can be had for these photos; the others' reasons are added to `missing`."""
    found = {}
    for key, find in (("fid", lambda: find_inception(settings.inception_weights)), ("frechet_judge", find_judge)):
        try:
            network = find()
        except FeaturesMissing as error:
            missing[key] = str(error)
            continue
        if key == "frechet_judge" and len(truth) <= network.about["features"]:
            missing[key] = f"{len(truth)} photos are too few for the covariance of {network.about['features']} features"
            continue
        feed(network.metric, truth, real=True)
        found[key] = network
    return found


def find_judge() -> Network:
    """JudgeResNet, as it comes with the toolkit. Raises FeaturesMissing where its weights are not there."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    judge = JudgeFeatures(load_network("judge"))
    header = read_about("judge")
    about = {"network": "JudgeResNet", "features": judge.num_features, "sha256": file_sha256(shipped("judge"))}
    about |= {name: float(header[name]) for name in ("top1", "top5") if name in header}
    return Network(FrechetInceptionDistance(judge, reset_real_features=False), about)


def find_inception(weights: str | None) -> Network:
    """Inception-v3 of torch-fidelity, from `weights` or torch's cache; nothing is downloaded.

    Raises FeaturesMissing where the library or its weights are not there.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise FeaturesMissing("torch-fidelity is not installed: pip install torch-fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import FrechetInceptionDistance

    kept = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    path = kept if weights is None else Path(weights).expanduser()
    if not path.exists():
        raise FeaturesMissing(f"no {kept.name} in torch's cache; give --inception-weights FILE")
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run any code in it
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path), reset_real_features=False)
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged or foreign files
        raise FeaturesMissing(f"{path} is not Inception-v3 of torch-fidelity ({sentence(error)[:120]})") from None
    return Network(metric, {"network": "Inception-v3", "features": 2048, "sha256": file_sha256(path)})


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
