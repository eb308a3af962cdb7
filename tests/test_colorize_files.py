"""Files and folders: where answers are written, what is skipped, what fails, and what shares a batch."""

import numpy as np
import pytest
from PIL import Image
from test_colorize import CONFIG, picture

from Project7.colorize import Colorizer
from Project7.colorize_files import Job, colorize_files, plan_outputs
from Project7.errors import UsageError
from Project7.methods import build_model


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
    twins = [(tmp_path / "x" / "a.png", clash[0][1]), (tmp_path / "y" / "a.png", clash[0][1])]
    with pytest.raises(UsageError, match="another"):
        plan_outputs(twins, tmp_path / "out", variants=1)


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
