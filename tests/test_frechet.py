"""Fréchet distances by their equation, by the judge and by Inception, and the messages if a network is not
available."""

import importlib.util
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import linalg
from test_evaluate import noisy, result_of, some_photos

from Project7 import color, evaluate, feature_networks, frechet
from Project7.answer_config import EvaluateConfig
from Project7.errors import UsageError
from Project7.evaluation_report import evaluation_table
from Project7.feature_networks import JudgeResNet, save_network, shipped


class Colours(torch.nn.Module):
    """Six features of a photo: the mean and spread of each channel."""

    num_features = 6

    def forward(self, rgb):
        return torch.cat([rgb.float().mean(dim=(2, 3)), rgb.float().std(dim=(2, 3))], dim=1) / 255


def network_of(truth) -> frechet.Network:
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = frechet.Network(FrechetInceptionDistance(Colours(), reset_real_features=False), {})
    frechet.feed(network.metric, truth, real=True)
    return network


def by_hand(pictures, truth) -> float:
    """Heusel et al. 2017, eq. 6, with scipy's matrix square root."""
    features = [Colours()(color.channels_first(p)).double().numpy() for p in (pictures, truth)]
    (m, c), (n, d) = ((f.mean(axis=0), np.cov(f, rowvar=False)) for f in features)
    return float(np.square(m - n).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real))


def test_the_frechet_distance_by_its_equation():
    truth = some_photos(80).images
    network = network_of(truth)
    for pictures in (noisy(truth, 40), some_photos(70, seed=9).images, truth // 2):
        expected = by_hand(pictures, truth)
        assert expected > 1e-4
        assert frechet.frechet(network, pictures) == pytest.approx(expected, rel=1e-4), "whatever was measured before"


def test_the_same_photos_in_another_order_are_at_no_frechet_distance():
    truth = some_photos(80).images
    assert frechet.frechet(network_of(truth), truth[::-1]) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A judge with random weights, in place of the shipped one."""
    monkeypatch.setattr(feature_networks, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    (tmp_path / "weights").mkdir()
    torch.manual_seed(1)
    save_network(shipped("judge"), "judge", JudgeResNet(5), {"top1": "0.375", "top5": "0.5"})
    return shipped("judge")


def measured(photos, *pictures):
    answers = [evaluate.Answer(f"m{n}", p[None], 0.1, "hash") for n, p in enumerate(pictures)]
    return evaluate.evaluate(answers, photos, EvaluateConfig())[0]


def test_the_judge_tells_better_pictures_from_worse_and_is_named_in_the_protocol(judge, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", 3)
    for slow in ("ssim", "ciede2000"):  # which are not under test
        monkeypatch.setattr(evaluate.metrics, slow, lambda rgb, truth: np.zeros(len(rgb)))
    photos = some_photos(200)
    result = measured(photos, photos.images, noisy(photos.images, 5), noisy(photos.images, 60))
    best, better, worse = (row["frechet_judge"] for row in result["rows"])
    assert best == pytest.approx(0, abs=1e-5)
    assert best < better < worse
    about = result["protocol"]["frechet_judge"]
    assert about["sha256"] == frechet.file_sha256(judge)
    assert (about["network"], about["features"], about["top1"], about["top5"]) == ("JudgeResNet", 192, 0.375, 0.5)
    assert all("frechet_judge" not in row["intervals"] for row in result["rows"])


def test_with_few_photos_or_without_its_weights_the_judge_says_nothing(judge, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", 3)
    photos = some_photos(6)
    for reason in ("6 photos are too few for the covariance of 192 features", f"There is no {judge}"):
        result = measured(photos, photos.images)
        assert result["protocol"]["missing"]["frechet_judge"].startswith(reason)
        assert result["protocol"]["frechet_judge"] is result["rows"][0]["frechet_judge"] is None
        judge.unlink(missing_ok=True)


def test_results_of_two_judges_are_unlike_and_one_without_is_not():
    with_one, with_other = ((f"{n}.json", result_of(frechet_judge={"sha256": n})) for n in "ab")
    with pytest.raises(UsageError, match=re.escape("frechet_judge: {'sha256': 'a'} and {'sha256': 'b'}")):
        evaluate.joined([with_one, with_other])
    assert evaluate.joined([with_one, ("c.json", result_of(frechet_judge=None)), ("d.json", result_of())])


def test_the_table_names_the_network_of_the_frechet_distance():
    console = Console(file=io.StringIO(), width=100)
    row = {"model": "m", "frechet_judge": 0.12345, "intervals": {}}
    console.print(evaluation_table([row, {"model": "n", "intervals": {}}]))
    lines = {line.split("  ")[0]: line.split()[-2:] for line in console.file.getvalue().splitlines() if line.strip()}
    assert lines["frechet distance (JudgeResNet) ↓"] == ["0.123", "n/a"]
    assert lines["fid ↓"] == ["n/a", "n/a"]


def test_without_torch_fidelity_there_is_no_fid_and_the_reason_is_given(judge, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else found(name))
    missing = {}
    assert "fid" not in frechet.find_networks(EvaluateConfig(), some_photos(6).images, missing)
    assert missing["fid"] == "torch-fidelity is not installed: pip install torch-fidelity"
    with pytest.raises(UsageError, match="pip install torch-fidelity"):
        evaluate.check_files(EvaluateConfig(inception_weights=__file__))


def test_fid_by_inception_from_a_file(judge, tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    missing, photos = {}, some_photos(4).images
    frechet.find_networks(EvaluateConfig(), photos, missing)
    assert "weights-inception-2015-12-05-6726825d.pth in torch's cache" in missing["fid"]
    with monkeypatch.context() as context:  # random weights, which cannot be chosen otherwise
        context.setattr(fidelity, "load_state_dict_from_url", lambda *said, **settings: {})
        context.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save(fidelity.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), tmp_path / "good.pth")
    settings = EvaluateConfig(inception_weights=str(tmp_path / "good.pth"))
    evaluate.check_files(settings)
    network = frechet.find_networks(settings, photos, {})["fid"]
    assert (network.about["network"], network.about["features"]) == ("Inception-v3", 2048)
    assert frechet.frechet(network, noisy(photos, 60)) > 0
    bad = tmp_path / "bad.pth"
    for content in (b"cut", pickle.dumps(Path("x"))):
        bad.write_bytes(content)
        with pytest.raises(UsageError, match="is not Inception-v3"):
            evaluate.check_files(EvaluateConfig(inception_weights=str(bad)))
