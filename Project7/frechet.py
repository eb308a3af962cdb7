"""Fréchet distances between two sets of photos: in the features of Inception-v3 (FID), and of our own JudgeResNet.

torchmetrics computes them. This module loads the networks; if one is not available, the result says why.
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

FRECHET = ("fid", "frechet_judge")  # keys of a row, for the features of Inception-v3 and of JudgeResNet
_TOGETHER = 64  # photos that go through a network at a time


@dataclasses.dataclass(frozen=True)
class Network:
    """A network for Fréchet distances that has already seen the true photos."""

    metric: Any  # torchmetrics' FrechetInceptionDistance
    about: dict[str, Any]  # for the protocol: name, features, hash, accuracy


def frechet(network: Network, pictures: np.ndarray) -> float:
    """The Fréchet distance of pictures (N, H, W, 3) uint8 to the truth, lower is better (Heusel et al. 2017, eq. 6).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means m and covariances C of the features, in float64. There is no
    interval for it: the distance depends on the number of different photos, which resampling reduces.
    """
    network.metric.reset()  # forgets the pictures of the previous call; the features of the true photos stay
    feed(network.metric, pictures, real=False)
    return max(0.0, float(network.metric.compute()))


@torch.no_grad()
def feed(metric: Any, photos: np.ndarray, *, real: bool) -> None:
    """Shows photos (N, H, W, 3) uint8 to a metric of torchmetrics; real: whether they are the true photos."""
    for start in range(0, len(photos), _TOGETHER):
        metric.update(color.channels_first(photos[start : start + _TOGETHER]), real=real)


def find_networks(settings: EvaluateConfig, truth: np.ndarray, missing: dict[str, str]) -> dict[str, Network]:
    """The networks of FRECHET that are available for these photos. For the others, the reason is added to `missing`."""
    found = {}
    for key in FRECHET:
        try:
            network = find_inception(settings.inception_weights) if key == "fid" else find_judge()
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
    """JudgeResNet as it comes with the toolkit. Raises FeaturesMissing if its weights are missing."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    network: Any = load_network("judge")
    judge = JudgeFeatures(network)
    header = read_about("judge")
    about = {"network": "JudgeResNet", "features": judge.num_features, "sha256": file_sha256(shipped("judge"))}
    about |= {name: float(header[name]) for name in ("top1", "top5") if name in header}
    return Network(FrechetInceptionDistance(judge, reset_real_features=False), about)


def find_inception(weights: str | None) -> Network:
    """Inception-v3 of torch-fidelity, from the file `weights` or from torch's cache; nothing is downloaded.

    Raises FeaturesMissing if the library or the weights are missing.
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
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would unpickle the file
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path), reset_real_features=False)
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged or foreign files
        raise FeaturesMissing(f"{path} is not Inception-v3 of torch-fidelity ({sentence(error)[:120]})") from None
    return Network(metric, {"network": "Inception-v3", "features": 2048, "sha256": file_sha256(path)})


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
