"""Data sets: found, divided and opened; broken files, and several sources in one."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from Project7 import dataset, photo_source
from Project7.config import RunConfig
from Project7.dataset import open_dataset
from Project7.errors import ProjectError, UsageError
from Project7.model_config import ENCODER, DiffusionConfig
from Project7.preparation import settle, settle_view
from Project7.settings import parse_settings
from Project7.training_config import DataConfig

ROOT = Path(__file__).resolve().parent.parent
TINY_IMAGENET = ROOT.parent / "shared" / "data" / "tiny-imagenet-200.zip"


def picture(n: int, size=(16, 16)) -> Image.Image:
    pixels = np.random.default_rng(n).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder_of(path: Path, count: int, size=(16, 16)) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        picture(n, size).save(path / f"{n:03}.png")
    return path


def tiny_imagenet(root: Path, classes=4, each=6) -> Path:
    """The official layout, with PNG content so that pixels can be compared."""
    root = root / "tiny-imagenet-200"
    number = 0
    for c in range(classes):
        images = root / "train" / f"n{c:08}" / "images"
        images.mkdir(parents=True)
        (images.parent / f"n{c:08}_boxes.txt").write_text("x")
        for k in range(each):
            picture(number).save(images / f"n{c:08}_{k}.JPEG", "PNG")
            number += 1
    (root / "val" / "images").mkdir(parents=True)
    for n in range(8):
        picture(100 + n).save(root / "val" / "images" / f"val_{n}.JPEG", "PNG")
    lines = [f"val_{n}.JPEG\tn{n % classes:08}\t0\t0\t62\t57" for n in range(8)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return root


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def opened(source, cache, seed=0, **settings):
    config = DataConfig(**{"data": str(source), "image_size": 16} | settings)
    return open_dataset(config, seed=seed, cache_dir=Path(cache))


def test_tiny_imagenet_from_the_folder_and_from_the_zip(tmp_path):
    root = tiny_imagenet(tmp_path)
    sources = [root, root.parent, zipped(root, tmp_path / "t.zip")]
    parts = [opened(s, tmp_path / f"cache{n}") for n, s in enumerate(sources)]
    for training, validation in parts:
        assert training.images.shape == (24, 16, 16, 3)
        assert training.images.dtype == np.uint8
        assert sorted(set(training.labels)) == [f"n{c:08}" for c in range(4)]
        assert dict(zip(validation.names, validation.labels, strict=True))[
            next(n for n in validation.names if n.endswith("val_5.JPEG"))
        ] == "n00000001"  # fmt: skip
        assert (training.fingerprint, validation.fingerprint) == (parts[0][0].fingerprint, parts[0][1].fingerprint)
    training = parts[0][0]
    first = training.names.index("train/n00000000/images/n00000000_0.JPEG")
    assert np.array_equal(training.images[first], np.asarray(picture(0)))  # taken as it is, bit for bit


def test_a_folder_is_searched_and_divided_photo_by_photo(tmp_path):
    folder = folder_of(tmp_path / "photos", 20)
    folder_of(folder / "deeper" / "and deeper", 20)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    picture(50).convert("L").save(folder / "gray.BMP")
    picture(51).save(folder / "photo.TIFF")
    training, validation = opened(folder, tmp_path / "cache", val_fraction=0.25, crops=2)
    assert len(training.images) + len(validation.images) == 2 * 42
    assert not set(training.names) & set(validation.names)
    assert opened(folder, tmp_path / "cache", val_fraction=0.25, crops=2, seed=1)[1].names != validation.names


def test_limit_spreads_over_the_classes_and_counts_what_is_left(tmp_path):
    root = tiny_imagenet(tmp_path, classes=4, each=10)
    training, _ = opened(root, tmp_path / "cache", limit=16)
    assert len(training.images) == 16
    assert len(set(training.labels)) == 4
    for path in sorted((root / "train").rglob("*.JPEG"))[::2]:
        Image.open(path).convert("L").save(path, "PNG")
    colourful, _ = opened(root, tmp_path / "cache", limit=16, min_colorfulness=20)
    assert len(colourful.images) == 16
    assert colourful.summary.gray > 0
    assert all(np.ptp(image, axis=-1).max() > 0 for image in colourful.images)
    with pytest.raises(ProjectError, match="min-colorfulness"):
        opened(root, tmp_path / "cache", min_colorfulness=149)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("text")])
def test_no_images_is_an_error_with_the_cure(tmp_path, make):
    make(tmp_path / "photos")
    with pytest.raises(UsageError, match="--data samples"):
        opened(tmp_path / "photos", tmp_path / "cache")


def test_one_image_is_enough_and_is_said(tmp_path):
    training, validation = opened(folder_of(tmp_path / "photos", 1), tmp_path / "cache")
    assert np.array_equal(training.images, validation.images)
    assert any("only photo" in line for line in validation.summary.lines())


def test_few_broken_files_are_left_out_and_named(tmp_path):
    folder = folder_of(tmp_path / "photos", 40)
    (folder / "039.png").write_bytes((folder / "038.png").read_bytes()[:100])
    for seed in range(3):  # whichever side it falls on
        training, validation = opened(folder, tmp_path / "cache", seed=seed, val_fraction=0.5)
        lines = "\n".join(training.summary.lines() + validation.summary.lines())
        assert "1 broken" in lines
        assert "039.png" in lines
        assert len(training.images) + len(validation.images) == 39


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_too_many_broken_files_stop_with_their_names(tmp_path, share):
    folder = folder_of(tmp_path / "photos", 20)
    for path in sorted(folder.iterdir())[: int(20 * share)]:
        path.write_bytes(b"no picture")
    with pytest.raises(ProjectError, match=r"broken.*at most 0 \(5 %\) may be.*\.png"):
        opened(folder, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_file_deleted_while_building_counts_as_broken_and_afterwards_does_no_harm(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "photos", 40)
    original = photo_source.hold_out

    def delete_one(source, fraction, seed):
        parts = original(source, fraction, seed)
        (folder / parts[0][0].name).unlink()
        return parts

    monkeypatch.setattr(dataset, "hold_out", delete_one)
    training, _ = opened(folder, tmp_path / "cache")
    assert len(training.summary.broken) == 1
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "cache")  # the pixels are mapped, and stay available
    assert training.images[0].shape == (16, 16, 3)


def test_the_built_in_photos(tmp_path):
    assert len(photo_source.sample_photos()) == 5
    training, validation = opened("samples", tmp_path / "cache", crops=3)
    assert len(training.images) == 12
    assert len(validation.images) == 3
    content = io.BytesIO(next(iter(photo_source.sample_photos().values())).read_bytes())
    assert Image.open(content).mode == "RGB"


@pytest.mark.slow
@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason="Tiny ImageNet is not beside this checkout")
def test_the_real_tiny_imagenet(tmp_path):
    from Project7.metrics import colorfulness

    training, validation = opened(TINY_IMAGENET, tmp_path / "cache", image_size=64, limit=400, val_limit=400)
    assert training.images.shape == validation.images.shape == (400, 64, 64, 3)
    assert len(set(training.labels)) > 150
    assert set(validation.labels) <= {name.split("/")[2] for name in training.names} | set(validation.labels) - {""}
    assert 35 < colorfulness(np.array(validation.images)).mean() < 45  # 39.9 over 1,000 of them


# -- several sources -------------------------------------------------------------------------------------------------


def test_several_sources_are_one_set(tmp_path):
    few, many = folder_of(tmp_path / "few", 4), folder_of(tmp_path / "many", 12)
    config = DataConfig(data=(str(few), str(many)), image_size=16, val_fraction=0.25, crops=(3, 1))
    training, validation = open_dataset(config, seed=0, cache_dir=tmp_path / "cache")
    assert training.sizes == (9, 9)
    assert training.images.shape == (18, 16, 16, 3)
    assert len(validation.images) == 3 + 3
    alone = [
        open_dataset(
            DataConfig(data=str(d), image_size=16, val_fraction=0.25, crops=n), seed=0, cache_dir=tmp_path / "c"
        )
        for d, n in ((few, 3), (many, 1))
    ]
    whole = np.concatenate([np.array(part[0].images) for part in alone])
    assert np.array_equal(training.images[np.arange(18)], whole)
    assert np.array_equal(training.images[np.array([17, 0, 9])], whole[[17, 0, 9]])
    assert np.array_equal(training.images[::5], whole[::5])
    assert len({training.fingerprint, *(part[0].fingerprint for part in alone)}) == 3
    assert [line.rsplit("(", 1)[1] for line in training.summary.lines()] == [f"{few})", f"{many})"]


# -- what an encoder is shown ----------------------------------------------------------------------------------------


def settled(tmp_path, *sources, encoder=ENCODER, encoder_size=224, **data) -> int | None:
    config = RunConfig(
        model=DiffusionConfig(encoder=encoder, encoder_size=encoder_size),
        data=DataConfig(data=tuple(map(str, sources)), **data),
    )
    return settle_view(config, tmp_path / "cache").data.view_size


def test_an_encoder_is_shown_the_pixels_that_most_photos_have(tmp_path):
    small, large = folder_of(tmp_path / "small", 12, (70, 90)), folder_of(tmp_path / "large", 5, (400, 300))
    assert settled(tmp_path, large) == 224, "its input size"
    assert settled(tmp_path, large, encoder_size=320) == 300
    assert settled(tmp_path, large, crops=9, encoder_size=320) == 210, "random squares are smaller"
    assert settled(tmp_path, small) is None, "hardly more than the 64 px of the network"
    assert settled(tmp_path, small, image_size=32) == 70
    assert settled(tmp_path, large, image_size=256) is None
    assert settled(tmp_path, small, large) is None
    assert settled(tmp_path, small, large, shares=(1, 2)) == 224
    assert settled(tmp_path, large, view_size=100) == 100, "asked for"
    assert settled(tmp_path, large, encoder=None) is None
    (small / "000.png").write_bytes(b"broken")
    assert settled(tmp_path, small, image_size=32) == 70


def test_a_run_that_goes_on_shows_the_encoder_what_it_did(tmp_path):
    config = RunConfig(
        model=DiffusionConfig(encoder=ENCODER),
        data=DataConfig(data=(str(folder_of(tmp_path / "large", 5, (400, 300))),)),
    )
    views = [
        settle(config, tmp_path / "cache", Console(quiet=True), checkpoint, asking=False).data.view_size
        for checkpoint in (None, {"config": {"shipped": False}}, {"config": {}}, {"config": {"shipped": True}})
    ]
    assert views == [224, None, None, 224], "a shipped model goes on with a person's own photos"


def test_views_do_not_fill_the_disk(tmp_path, monkeypatch):
    """Five squares of 224 px take 753 kB."""
    large = folder_of(tmp_path / "large", 5, (400, 300))
    for free, wanted in {3_100_000: 224, 2_900_000: None}.items():
        monkeypatch.setattr(dataset, "free_bytes", lambda folder, free=free: free)
        assert settled(tmp_path, large) == wanted


def test_squares_are_kept_at_the_size_that_the_encoder_is_shown(tmp_path):
    training, validation = opened(folder_of(tmp_path / "set", 20, (40, 50)), tmp_path / "cache", view_size=32)
    assert training.images.shape == (19, 32, 32, 3)
    assert validation.images.shape == (1, 32, 32, 3)
    with pytest.raises(UsageError, match=r"view_size is 8 and image_size 16.*give --view-size 16"):
        parse_settings(DataConfig, {"image_size": 16, "view_size": 8})
    with pytest.raises(UsageError, match=r"view_size is for what an encoder is shown.*leave out --view-size"):
        parse_settings(RunConfig, {"data": {"image_size": 16, "view_size": 32}, "model": {"encoder": None}})
