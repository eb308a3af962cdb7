"""Files and folders: where answers are written, what is skipped, what fails, and what shares a batch."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_colorize import CONFIG, picture

from Project7 import colorize_files as colorize_files_module
from Project7.color import rgb_to_lab
from Project7.colorize import Colorizer
from Project7.colorize_files import Job, colorize_files, plan_outputs, renamed
from Project7.errors import UsageError
from Project7.methods import build_model
from Project7.painting import deep_lightness
from Project7.provenance import read_provenance
from Project7.sixteen_bit import chunks


@pytest.fixture(scope="module")
def colorizer() -> Colorizer:
    return Colorizer(build_model(CONFIG.model).eval(), CONFIG)


def files(folder, *names):
    found = []
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(16, 16, n)).save(path)
        found.append((path, path.relative_to(folder)))
    return found


def test_output_names(tmp_path):
    found = files(tmp_path / "in", "a.jpg", "a.png", "b.png", "sub/a.png")
    out = tmp_path / "out"
    jobs = plan_outputs(found, out, variants=1)
    assert [job.targets[0].relative_to(out).as_posix() for job in jobs] == [
        "a.jpg.png",
        "a.png.png",
        "b.png",
        "sub/a.png",
    ]
    variants = plan_outputs(found[2:3], out, variants=2)
    assert [path.name for path in variants[0].targets] == ["b-1.png", "b-2.png"]


def test_no_output_overwrites_another_or_an_input(tmp_path):
    clash = files(tmp_path / "in", "a.png", "a-1.png")
    names = [path.name for job in plan_outputs(clash, tmp_path / "out", variants=2) for path in job.targets]
    assert len(set(names)) == 4
    with pytest.raises(UsageError, match="another --output"):
        plan_outputs(clash[:1], tmp_path / "in", variants=1)
    shots = [(tmp_path / place / "a.png", clash[0][1]) for place in ("holiday", "scans", "old/scans")]
    out = tmp_path / "out"
    apart = [job.targets[0].relative_to(out).as_posix() for job in plan_outputs(shots[:2], out, variants=1)]
    assert apart == ["holiday/a.png", "scans/a.png"]
    three = {job.targets[0] for job in plan_outputs(shots, out, variants=1)}
    assert len(three) == 3
    assert out / "old" / "scans" / "a.png" in three


def test_a_folder_goes_on_past_a_bad_file_and_skips_what_is_done(tmp_path, colorizer, monkeypatch):
    found = files(tmp_path, "a.png", "b.png", "c.png")
    found[1][0].write_bytes(b"no picture")
    jobs = plan_outputs(found, tmp_path / "out", variants=2)
    options = {"seed": 0, "batch_size": 8, "steps": 2, "sampler": "ddim", "working_size": None}
    first = list(colorize_files(colorizer, jobs, force=False, **options))
    assert sorted(o.kind for o in first) == ["done", "done", "failed"]
    assert "b.png" in next(o.text for o in first if o.kind == "failed")
    before = (tmp_path / "out" / "a-1.png").read_bytes()
    again = list(colorize_files(colorizer, jobs, force=False, **options))
    assert sorted(o.kind for o in again) == ["exists", "exists", "failed"]
    forced = list(colorize_files(colorizer, jobs, force=True, **options))
    assert sorted(o.kind for o in forced) == ["done", "done", "failed"]
    assert (tmp_path / "out" / "a-1.png").read_bytes() == before  # the same seed, the same picture


def test_small_photos_go_through_the_network_together(tmp_path, colorizer, monkeypatch):
    batches = []
    original = colorizer.model.colorize

    def watch(L, **options):
        batches.append(len(L))
        return original(L, **options)

    monkeypatch.setattr(colorizer.model, "colorize", watch)
    jobs = [Job(path, (tmp_path / "out" / path.name,)) for path, _ in files(tmp_path, *(f"{n}.png" for n in range(5)))]
    list(colorize_files(colorizer, jobs, seed=0, batch_size=3, force=True, steps=1, sampler="ddim", working_size=None))
    assert batches == [3, 2]
    together = [np.asarray(Image.open(job.targets[0])).astype(int) for job in jobs]
    alone = [np.asarray(colorizer.colorize(job.source, steps=1)).astype(int) for job in jobs]
    assert max(np.abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 1


def test_variants_keep_to_the_batch_size_and_memory_that_runs_out_makes_batches_smaller(
    tmp_path, colorizer, monkeypatch
):
    """Variants are divided into batches, and a batch that is too large into single answers; no answer changes by
    that."""
    batches, room, original = [], 8, colorizer.model.colorize

    def watch(L, **options):
        batches.append(len(L))
        if len(L) > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(L, **options)

    monkeypatch.setattr(colorizer.model, "colorize", watch)
    found = files(tmp_path, "a.png")
    written = {}
    for batch_size, room in ((8, 8), (3, 8), (4, 1)):
        batches.clear()
        jobs = plan_outputs(found, tmp_path / f"{batch_size}", variants=5)
        (done,) = outcomes(colorizer, jobs, batch_size=batch_size)
        assert done.kind == "done"
        written[batch_size] = [np.asarray(Image.open(path)).astype(int) for path in jobs[0].targets]
        assert batches == {8: [5], 3: [3, 2], 4: [4, 1, 1, 1, 1, 1]}[batch_size]
    assert max(np.abs(a - b).max() for n in (3, 4) for a, b in zip(written[8], written[n], strict=True)) <= 1


def outcomes(colorizer, jobs, *, force=False, seed=0, **options):
    settings = {"batch_size": 8, "steps": 1, "sampler": "ddim", "working_size": None} | options
    return list(colorize_files(colorizer, jobs, seed=seed, force=force, **settings))


def test_another_recipe_gets_a_name_that_says_what_differs(tmp_path, colorizer):
    (photo,) = files(tmp_path, "robin.png")
    jobs = plan_outputs([photo], tmp_path / "out", variants=1)
    made = outcomes(colorizer, jobs)[0].files[0]
    before = made.read_bytes()
    (other,) = outcomes(colorizer, jobs, seed=1)
    assert (other.kind, [path.name for path in other.files]) == ("done", ["robin-seed1.png"])
    assert other.files[0].read_bytes() != before == made.read_bytes()
    assert [outcomes(colorizer, jobs, seed=seed)[0].kind for seed in (0, 1)] == ["exists", "exists"]
    (third,) = outcomes(colorizer, jobs, seed=1, steps=2, saturation=0.5)
    assert [path.name for path in third.files] == ["robin-seed1-saturation0.5-steps2.png"]
    named = Colorizer(colorizer.model, colorizer.config)
    named.name, named.sha256 = "bold", "ab" * 32
    assert [path.name for path in outcomes(named, jobs)[0].files] == ["robin-bold.png"]


def test_what_differs_by_the_same_word_is_numbered():
    assert [
        renamed(*pair) for pair in [("a", "hints"), ("a-hints", "hints"), ("a-hints-2", "hints"), ("a", "seed1")]
    ] == [
        "a-hints",
        "a-hints-2",
        "a-hints-3",
        "a-seed1",
    ]


def test_another_photo_under_the_same_name_is_not_taken_for_done(tmp_path, colorizer):
    (photo,) = files(tmp_path, "robin.png")
    jobs = plan_outputs([photo], tmp_path / "out", variants=1)
    outcomes(colorizer, jobs)
    Image.fromarray(picture(16, 16, 9)).save(photo[0])
    os.utime(photo[0], (2e9, 2e9))
    (again,) = outcomes(colorizer, jobs)
    assert again.kind == "done"
    assert again.files[0].name.startswith("robin-")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_every_format_remembers_how_it_was_made(tmp_path, colorizer, suffix):
    (photo,) = files(tmp_path, "robin.png")
    jobs = plan_outputs([photo], tmp_path / "out", variants=1, suffix=suffix)
    assert [outcomes(colorizer, jobs)[0].kind for _ in range(2)] == ["done", "exists"]
    assert read_provenance(jobs[0].targets[0]).options["steps"] == 1


def test_variants_come_with_a_contact_sheet_and_name_their_files(tmp_path, colorizer):
    jobs = plan_outputs(files(tmp_path, "robin.png"), tmp_path / "out", variants=3)
    (done,) = outcomes(colorizer, jobs)
    assert [path.name for path in done.files] == ["robin-1.png", "robin-2.png", "robin-3.png", "robin-sheet.png"]
    with Image.open(done.files[-1]) as sheet:
        assert sheet.size == (2 * 16 + 4, 2 * (16 + 20))


def test_a_photo_in_colour_is_said_and_left_where_that_is_asked_for(tmp_path, colorizer):
    (photo,) = files(tmp_path, "robin.png")
    jobs = plan_outputs([photo], tmp_path / "out", variants=1)
    (left,) = outcomes(colorizer, jobs, skip_colour=True)
    assert (left.kind, jobs[0].targets[0].exists()) == ("left", False)
    assert "in colour already" in outcomes(colorizer, jobs)[0].text
    Image.open(photo[0]).convert("L").save(photo[0])
    (gray,) = outcomes(colorizer, jobs, skip_colour=True, force=True)
    assert (gray.kind, "colour already" in gray.text) == ("done", False)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_scan_of_16_bits_comes_back_with_16_bits_and_its_resolution(tmp_path, colorizer, suffix):
    ramp = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    exif = Image.Exif()
    exif[270], exif[315] = "A harbour, 1931", "Anna Photographer"
    Image.fromarray(ramp).save(tmp_path / "scan.png", dpi=(300, 300), exif=exif)
    jobs = plan_outputs([(tmp_path / "scan.png", Path("scan.png"))], tmp_path / "out", variants=1, suffix=suffix)
    assert outcomes(colorizer, jobs)[0].kind == "done"
    made = jobs[0].targets[0]
    with Image.open(made) as image:
        assert [round(value) for value in image.info["dpi"]] == [300, 300]
        assert image.info["icc_profile"]
        assert (image.getexif()[270], image.getexif()[315]) == ("A harbour, 1931", "Anna Photographer")
    rgb = tifffile.imread(made) if suffix == ".tif" else read_png_16(made)
    assert (rgb.shape, rgb.dtype) == ((40, 60, 3), np.uint16)
    assert furthest_lightness(rgb, ramp) < 0.02  # a level of 8 bits is up to 0.4


def furthest_lightness(rgb, scan):
    """The largest difference in lightness, in Lab units, between a coloured picture and the scan, both uint16."""
    luminance = rgb_to_lab(torch.from_numpy(rgb.astype(np.float32) / 65535).movedim(-1, 0))[0]
    return (luminance - (deep_lightness(scan)[0, 0] * 50 + 50)).abs().max()


def test_a_toned_scan_of_48_bits_keeps_its_lightness_in_full(tmp_path, colorizer):
    ramp = np.linspace(2000, 60000, 40 * 60).reshape(40, 60, 1)
    sepia = (ramp * [1.0, 0.9, 0.75]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "scan.tif", sepia, photometric="rgb")
    jobs = plan_outputs([(tmp_path / "scan.tif", Path("scan.tif"))], tmp_path / "out", variants=1, suffix=".tif")
    assert outcomes(colorizer, jobs)[0].kind == "done"
    assert furthest_lightness(tifffile.imread(jobs[0].targets[0]), sepia) < 0.02


def read_png_16(path):
    """Reads a PNG in 16 bits, because Pillow reduces one in colour to 8."""
    parts = list(chunks(path.read_bytes()))
    header = dict(parts)[b"IHDR"]
    width, height = struct.unpack(">II", header[:8])
    assert header[8:10] == b"\x10\x02"
    rows = np.frombuffer(zlib.decompress(b"".join(data for kind, data in parts if kind == b"IDAT")), np.uint8)
    rows = rows.reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    return rows[:, 1:].cumsum(axis=0, dtype=np.uint8).copy().view(">u2").astype(np.uint16).reshape(height, width, 3)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MemoryError(), "--batch-size 1"),
        (RuntimeError("CUDA out of memory. Tried"), "--batch-size 1"),
        (KeyError("x"), "x"),
    ],
)
def test_only_the_photo_at_fault_fails(tmp_path, colorizer, monkeypatch, fault, said):
    """Of four photos in one batch, the third cannot be coloured, whatever the error is."""
    found = files(tmp_path, "a.png", "b.png", "c.png", "d.png")
    bad = np.asarray(Image.open(found[2][0]))
    real = Colorizer.colorize_photos

    def colorize_photos(self, photos, **options):
        if any((photo.rgb == bad).all() for photo in photos):
            raise fault
        return real(self, photos, **options)

    monkeypatch.setattr(Colorizer, "colorize_photos", colorize_photos)
    done = outcomes(colorizer, plan_outputs(found, tmp_path / "out", variants=1), batch_size=4)
    assert [outcome.kind for outcome in done] == ["done", "done", "failed", "done"]
    assert said in done[2].text


def test_a_picture_that_cannot_be_written_stops_no_other(tmp_path, colorizer, monkeypatch):
    found = files(tmp_path, "a.png", "b.png")
    real = colorize_files_module.save_photo

    def save_photo(path, rgb, **about):
        if path.name == "a.png":
            raise ValueError("EXIF data is too long")
        real(path, rgb, **about)

    monkeypatch.setattr(colorize_files_module, "save_photo", save_photo)
    done = outcomes(colorizer, plan_outputs(found, tmp_path / "out", variants=1))
    assert [outcome.kind for outcome in done] == ["failed", "done"]
    assert "EXIF data is too long" in done[0].text
