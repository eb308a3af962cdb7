"""Measures of a photo, their means and intervals, the protocol, and the two commands."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from skimage import metrics as reference
from skimage.color import deltaE_ciede2000, rgb2lab

from Project7 import colorize, evaluate
from Project7.answer_config import EvaluateConfig
from Project7.checkpoints import save_checkpoint
from Project7.cli import command
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError
from Project7.evaluation_report import evaluation_table, in_words
from Project7.image_set import ImageSet
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.training_config import DataConfig

SIZE = 32


def some_photos(count=6, seed=0) -> ImageSet:
    """Smooth, colourful squares."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    images = np.stack([np.array(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for p in small])
    names = tuple(f"{n}.png" for n in range(count))
    return ImageSet(images, names, ("n01", "n02") * (count // 2), f"print-{seed}", None)


def noisy(images, amount, seed=1):
    noise = np.random.default_rng(seed).normal(0, amount, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two untrained models as files: a regression and a diffusion model."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "straight": RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
        "diffuse": DiffusionConfig(features=(8, 16), timesteps=50),
    }
    for name, kind in kinds.items():
        torch.manual_seed(3)
        config = RunConfig(model=kind, data=DataConfig(image_size=SIZE))
        (folder / name).mkdir()
        checkpoint = {"model_state_dict": build_model(kind).state_dict(), "config": config.model_dump(mode="json")}
        save_checkpoint(folder / name / "best_model.pth", checkpoint)
        (folder / name / "config.json").write_text(json.dumps(checkpoint["config"]))
    return folder


def load(models, name) -> Colorizer:
    return Colorizer.load(models / name / "best_model.pth", device="cpu")


def test_identical_pictures_get_the_perfect_values():
    truth = some_photos().images
    row = evaluate.summarize(evaluate.measure(np.stack([truth, truth]), truth))
    assert row["psnr"] == row["best_psnr"] == 60
    assert row["ssim"] == pytest.approx(1)
    for name in ("ab_rmse", "ciede2000", "energy_score", "diversity", "colorfulness_difference", "tint_a"):
        assert row[name] == pytest.approx(0, abs=1e-6), name


def test_measures_are_those_of_scikit_image():
    truth = some_photos().images
    found = evaluate.measure(noisy(truth, 20)[None], truth)
    for n, (picture, true) in enumerate(zip(noisy(truth, 20), truth, strict=True)):
        assert found["psnr"][n] == pytest.approx(reference.peak_signal_noise_ratio(true, picture), abs=1e-4)
        lab, lab_true = rgb2lab(picture), rgb2lab(true)
        assert found["ciede2000"][n] == pytest.approx(deltaE_ciede2000(lab, lab_true).mean(), rel=1e-4)
        assert found["ab_mse"][n] == pytest.approx(np.square(lab - lab_true)[..., 1:].mean(), rel=1e-3)


def test_roots_are_taken_over_all_photos_and_not_photo_by_photo():
    found = {
        name: np.array([0.0, 0.0]) for name in evaluate.measure(some_photos(2).images[None], some_photos(2).images)
    }
    found["ab_mse"] = np.array([1.0, 49.0])
    found["pixels_dark"], found["squared_dark"] = np.array([1.0, 3.0]), np.array([4.0, 0.0])
    row = evaluate.summarize(found)
    assert row["ab_rmse"] == 5
    assert row["ab_rmse_dark"] == 1
    assert math.isnan(row["ab_rmse_light"]), "no photo has such pixels"


def test_the_two_differences_of_colorfulness_are_not_the_same():
    found = {
        name: np.array([0.0, 0.0]) for name in evaluate.measure(some_photos(2).images[None], some_photos(2).images)
    }
    found["colorfulness"], found["colorfulness_truth"] = np.array([10.0, 30.0]), np.array([20.0, 20.0])
    row = evaluate.summarize(found)
    assert (row["colorfulness_difference"], row["colorfulness_error"]) == (0, 10)


def test_dark_middle_and_light_pixels_make_up_all():
    truth = some_photos().images
    found = evaluate.measure(noisy(truth, 20)[None], truth)
    assert sum(found[f"pixels_{band}"] for band in evaluate.BANDS) == pytest.approx(SIZE * SIZE)
    total = sum(found[f"squared_{band}"] for band in evaluate.BANDS) / SIZE**2
    assert total == pytest.approx(found["ab_mse"], rel=1e-5)


@pytest.mark.parametrize("name", ["straight", "diffuse"])
def test_neither_the_order_of_the_photos_nor_the_size_of_batches_matters(models, name):
    photos = some_photos()
    order, colorizer = np.array([3, 0, 5, 1, 4, 2]), load(models, name)
    mixed = ImageSet(photos.images[order], tuple(photos.names[i] for i in order), photos.labels, "other", None)
    settings = {"samples": 2, "steps": 3}
    first = evaluate.answer(colorizer, photos, EvaluateConfig(**settings, batch_size=6))
    second = evaluate.answer(colorizer, mixed, EvaluateConfig(**settings, batch_size=4))
    apart = np.abs(first.pictures[:, order].astype(int) - second.pictures.astype(int))
    assert apart.max() <= 1, "a rounding of the last bit at most"


def test_samples_of_a_diffusion_model_differ_and_follow_the_seed(models):
    photos, colorizer = some_photos(2), load(models, "diffuse")
    made = [
        evaluate.answer(colorizer, photos, EvaluateConfig(samples=2, steps=3, seed=seed)).pictures for seed in (0, 0, 1)
    ]
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()
    assert (made[0][0] != made[0][1]).any()


def test_hints_are_the_truth_at_so_many_pixels_the_same_ones_every_time():
    ab, settings = torch.randn(2, 8, 8) + 5, EvaluateConfig(hints=10)
    spots = evaluate.draw_spots(ab, settings, "a")
    assert len({(spot.row, spot.column) for spot in spots}) == 10
    assert all(spot.ab == tuple(ab[:, spot.row, spot.column].tolist()) for spot in spots)
    assert spots == evaluate.draw_spots(ab, settings, "a")
    assert spots != evaluate.draw_spots(ab, settings, "b")
    assert spots != evaluate.draw_spots(ab, EvaluateConfig(hints=10, seed=1), "a")


def test_hints_reach_the_network_and_are_part_of_the_protocol(tmp_path):
    """An untrained model knows nothing of colours, but its answer changes if every pixel has a hint."""
    kind = DiffusionConfig(features=(8, 16), timesteps=50, hints=True)
    config = RunConfig(model=kind, data=DataConfig(image_size=SIZE))
    checkpoint = {"model_state_dict": build_model(kind).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint(tmp_path / "told.pth", checkpoint)
    photos = some_photos(2)
    colorizer = Colorizer.load(tmp_path / "told.pth", device="cpu")
    plain, told = (
        evaluate.answer(colorizer, photos, EvaluateConfig(steps=2, hints=hints)) for hints in (0, SIZE * SIZE)
    )
    assert not np.array_equal(plain.pictures, told.pictures)
    assert told.settings["hints"] == SIZE * SIZE
    assert "hints" not in plain.settings
    protocol = evaluate.make_protocol(photos, EvaluateConfig(hints=3), split=None)
    assert protocol["hints"] == 3
    assert "hints" not in evaluate.make_protocol(photos, EvaluateConfig(), split=None)


def test_gray_and_the_mean_colour_stand_beside():
    photos = some_photos()
    gray, mean = evaluate.baselines(photos)
    assert (gray.name, mean.name) == ("gray", "mean-colour")
    assert np.ptp(gray.pictures.astype(int), axis=-1).max() <= 1
    rows = [evaluate.summarize(evaluate.measure(a.pictures, np.array(photos.images))) for a in (gray, mean)]
    assert rows[1]["ab_rmse"] < rows[0]["ab_rmse"]
    assert abs(rows[1]["tint_a"]) < 2, "but for colours that the screen cannot show"


def test_intervals_hold_the_mean_and_shrink_with_more_photos():
    widths = []
    for count in (20, 320):
        values = np.random.default_rng(5).normal(20, 3, count)
        found = dict.fromkeys(evaluate.measure(some_photos(2).images[None], some_photos(2).images), values)
        low, high = evaluate.intervals(found)["psnr"]
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / count**0.5, rel=0.2)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_a_small_difference_on_the_same_photos_is_seen_although_both_intervals_overlap():
    values = np.random.default_rng(5).normal(20, 3, 100)
    names = evaluate.measure(some_photos(2).images[None], some_photos(2).images)
    found, better = (dict.fromkeys(names, values + more) for more in (0.0, 0.1))
    assert evaluate.intervals(found)["psnr"][1] > evaluate.intervals(better)["psnr"][0]
    low, high = evaluate.intervals(better, found)["psnr"]
    assert 0.09 < low <= high < 0.11


def test_the_worst_photo_comes_first_and_bias_is_told_by_class():
    photos = some_photos()
    pictures = np.array(photos.images)
    pictures[4] = 255 - pictures[4]
    found = evaluate.measure(pictures[None], photos.images)
    assert evaluate.worst(found, 2)[0] == 4
    rows = evaluate.class_bias(found, photos.labels)
    assert [row["class"] for row in rows] == ["n01", "n02"], "photo 4 is of the first class"
    assert rows[1]["tint_a"] == 0


def result_of(**protocol):
    return {"protocol": {"size": 64, "seed": 0, "versions": {"torch": "1"}} | protocol, "rows": [{"model": "gray"}]}


def test_unlike_protocols_are_refused_and_the_difference_is_said():
    first, second = ("a.json", result_of()), ("b.json", result_of(size=32))
    with pytest.raises(UsageError, match=re.escape("size: 64 and 32")):
        evaluate.joined([first, second])
    assert evaluate.joined([first, second], despite=["size"])
    assert evaluate.joined([first, ("b.json", result_of(versions={"torch": "2"}))]), (
        "other versions are no other protocol"
    )
    with pytest.raises(UsageError, match="sampler"):
        evaluate.joined([first, ("b.json", result_of(sampler="ddim"))])


def test_gray_stands_once_in_a_joint_table_and_models_with_their_files():
    results = [(f"{name}.json", result_of()) for name in "ab"]
    for _, result in results:
        result["rows"].append({"model": "m", "model_sha256": "1"})
    assert [row["model"] for row in evaluate.joined(results)] == ["gray", "m (a.json)", "m (b.json)"]


@pytest.mark.parametrize("flag", ["lpips-weights", "inception-weights"])
def test_weights_that_are_not_there_are_said_before_anything_is_coloured(models, tmp_path, flag):
    with pytest.raises(UsageError, match=f"--{flag} nowhere.pth does not exist"):
        command(["evaluate", "--model=straight", "--data=x", f"--models-dir={models}", f"--{flag}=nowhere.pth"])


# -- the commands ----------------------------------------------------------------------------------------------------


def counted(function, calls: list):
    return lambda *arguments, **settings: calls.append(function) or function(*arguments, **settings)


def write_photos(folder, count=5):
    folder.mkdir()
    for n, picture in enumerate(some_photos(6).images[:count]):
        Image.fromarray(picture).save(folder / f"{n}.png")


def test_the_command_writes_a_table_a_result_and_pictures_and_compare_reads_it(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    write_photos(tmp_path / "photos")
    files = [tmp_path / f"{n}.json" for n in range(2)]
    measured, opened = [], []
    monkeypatch.setattr(evaluate, "measure", counted(evaluate.measure, measured))
    monkeypatch.setattr(colorize, "open_model", counted(colorize.open_model, opened))
    for file in files:
        flags = ["--data", tmp_path / "photos", "--samples", 2, "--steps", 2, "--json", file, "--models-dir", models]
        flags += ["--cache-dir", tmp_path / "cache", "--pictures", tmp_path / "pictures"]
        assert command(["evaluate", "--model", "straight", "--model", "diffuse", *map(str, flags)]) == 0
    assert (len(measured), len(opened)) == (2 * 4, 2 * 2), "each answer is measured once, and each model read once"
    shown = capsys.readouterr().out
    assert "mean-colour" in shown
    assert "in energy_score" in shown
    assert (tmp_path / "pictures" / "sheet.png").exists()
    assert (tmp_path / "pictures" / "worst-diffuse.png").exists()

    result = json.loads(files[0].read_text())
    assert [row["model"] for row in result["rows"]] == ["gray", "mean-colour", "straight", "diffuse"]
    for key in ("psnr", "ssim", "ab_rmse", "ciede2000", "colorfulness", "energy_score", "best_psnr", "diversity"):
        assert all(isinstance(row[key], float) for row in result["rows"] if "model_sha256" in row), key
    assert result["rows"][0]["lpips"] is None
    assert "alexnet" in result["protocol"]["missing"]["lpips"]
    assert set(result["protocol"]["missing"]) == {"lpips", "fid", "frechet_judge"}
    assert "frechet distance (JudgeResNet)" in shown
    assert re.search(r"lpips is n/a: no alexnet", shown)
    assert re.search(r"diffuse: colours .* the truth's \(\d+ against \d+\), ", shown)
    assert result["protocol"]["photos"] == 5
    again = json.loads(files[1].read_text())
    for row in result["rows"] + again["rows"]:
        row.pop("seconds_per_photo")
    assert again == result, "the same numbers again"

    assert command(["compare", *map(str, files)]) == 0
    assert "straight (0.json)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "0"], "--samples 0"),
        (["--size", "4"], "--size 4"),
        (["--split", "val"], "not divided"),
        (["--model", "straight"], "straight; give models of different names"),
        (["--data", "nowhere"], "does not exist"),
        (["--hints", "5"], "--hints 5: straight trained without colour hints"),
    ],
)
def test_what_cannot_be_measured_is_refused(models, tmp_path, flags, said):
    write_photos(tmp_path / "photos")
    base = ["--data", tmp_path / "photos", "--models-dir", models, "--cache-dir", tmp_path / "cache"]
    with pytest.raises(UsageError, match=re.escape(said)):
        command(["evaluate", "--model", "straight", *map(str, base), *flags])


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"protocol": {}, "rows": [{"psnr": 1}]}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ProjectError, match=re.escape("r.json is not a result")):
        evaluate.read_result(tmp_path / "r.json")


def result_rows(**models):
    rows = {"gray": (22.0, 14.0, 0.0), "mean-colour": (22.5, 13.0, 12.0)} | models
    return [
        {
            "model": name,
            "psnr": psnr,
            "ab_rmse": rmse,
            "colorfulness": colour,
            "colorfulness_difference": abs(40 - colour),
        }
        | ({"model_sha256": "x"} if name in models else {})
        for name, (psnr, rmse, colour) in rows.items()
    ]


def table_lines(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_eight_rows_matter_with_arrows_and_the_best_is_marked():
    rows = result_rows(bold=(21.0, 15.0, 41.0), calm=(23.0, 12.0, 30.0))
    short, whole = (table_lines(evaluation_table(rows, whole=w)) for w in (False, True))
    assert "psnr ↑ 22.00 22.50 21.00 23.00 *" in short
    assert "ab rmse ↓ 14.00 13.00 15.00 12.00 *" in short
    assert "colorfulness difference ↓ 40.00 28.00 1.00 * 10.00" in short
    assert "lpips ↓ n/a n/a n/a n/a" in short
    assert len(short) <= 9
    assert {line for line in short if "frechet" not in line} <= set(whole)
    assert "psnr + 22.00 22.50 21.00 23.00 *" in table_lines(evaluation_table(rows, unicode=False))


def test_the_result_in_words_and_why_gray_wins():
    bold, why = in_words(result_rows(bold=(21.0, 15.0, 41.0)))
    assert bold.startswith("bold: colours as strong as the truth's (41 against 40), but in the wrong place so often")
    assert why.startswith("Gray has a higher PSNR than bold: ")
    (calm,) = in_words(result_rows(calm=(23.0, 12.0, 30.0)))
    assert calm.startswith("calm: colours paler than the truth's (30 against 40), and nearer to them than gray is")


def test_a_truth_without_colour_is_refused():
    gray = ImageSet(np.full((3, SIZE, SIZE, 3), 90, np.uint8), ("a", "b", "c"), ("",) * 3, "gray", None)
    with pytest.raises(UsageError, match="All 3 photos of --data scans are gray"):
        evaluate.check_colours(gray, "scans")
    evaluate.check_colours(some_photos(), "photos")


def test_a_file_that_is_not_there_is_said_in_words(tmp_path):
    with pytest.raises(UsageError, match=r"nosuch.json does not exist; give a file that `project7 evaluate --json"):
        evaluate.read_result(tmp_path / "nosuch.json")
