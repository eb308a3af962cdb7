"""transfer.py: the original keeps its lightness to the pixel and gets the colours of a copy, however that is
shifted."""

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import cli, color
from Project7.errors import ProjectError, UsageError
from Project7.mark import marked
from Project7.photo import from_array, open_photo
from Project7.photo_source import sample_photos
from Project7.transfer import transfer

SIDE = 256


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.asarray(Image.fromarray(open_photo(sample_photos()["astronaut"]).rgb).resize((SIDE, SIDE)))


def gray(rgb: np.ndarray) -> np.ndarray:
    return color.channels_last(color.gray(color.channels_first(rgb)[None]))[0]


def lab(rgb: np.ndarray) -> torch.Tensor:
    return color.rgb_to_lab(color.channels_first(np.ascontiguousarray(rgb)))


def edited(rgb: np.ndarray, size=(150, 150), shift=(0, 0), seed: int = 0) -> np.ndarray:
    """A copy as an editor returns it: in another size, shifted, softer, in another contrast, with grain."""
    moved = np.roll(rgb, shift, axis=(0, 1))
    small = np.asarray(Image.fromarray(moved).resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
    grain = np.random.default_rng(seed).normal(0, 4, (*size, 1))
    return np.clip(0.85 * small + 20 + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (4, -5), (-7, 3)])
def test_colours_arrive_where_they_belong(truth, shift):
    answer = lab(transfer(from_array(gray(truth)), from_array(edited(truth, shift=shift))))
    wanted = lab(truth)
    assert (answer[0] - wanted[0]).abs().mean() < 0.5
    inside = slice(12, -12)  # without the part that was rolled over the border
    off = (answer - wanted)[1:, inside, inside].norm(dim=0)
    assert off.median() < 5
    # A copy that is laid over it without alignment is further off.
    blind = lab(np.asarray(Image.fromarray(edited(truth, shift=shift)).resize((SIDE, SIDE))))[1:]
    further = (blind - wanted[1:])[:, inside, inside].norm(dim=0)
    assert off.mean() < (0.75 if any(shift) else 1.1) * further.mean()


def test_lightness_is_that_of_the_original_whatever_was_edited(truth):
    painted = truth.copy()
    painted[50:100, 50:100] = (200, 30, 30)
    answer = transfer(from_array(gray(truth)), from_array(painted))
    assert (lab(answer)[0] - lab(truth)[0]).abs().max() < 1.5


def test_another_picture_is_refused(truth):
    other = open_photo(sample_photos()["coffee"]).rgb
    with pytest.raises(ProjectError, match="does not show what the original shows"):
        transfer(from_array(gray(truth)), from_array(np.ascontiguousarray(other[:, :400])))
    with pytest.raises(ProjectError, match="shapes differ too much"):
        transfer(from_array(gray(truth)), from_array(np.ascontiguousarray(truth[: SIDE * 2 // 5])))


def test_on_the_command_line(truth, tmp_path, capsys):
    Image.fromarray(gray(truth)).save(tmp_path / "old.png")
    Image.fromarray(edited(truth)).save(tmp_path / "edited.jpg")
    files = [str(tmp_path / name) for name in ("old.png", "edited.jpg")]
    assert cli.command(["transfer", *files, "--output", str(tmp_path / "out" / "new.png")]) == 0
    with Image.open(tmp_path / "out" / "new.png") as image:
        assert image.size == (SIDE, SIDE)
    assert "new.png" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--force replaces it"):
        cli.command(["transfer", *files, "--output", str(tmp_path / "out" / "new.png")])
    assert cli.command(["transfer", *files, "--output", str(tmp_path / "marked.png"), "--mark"]) == 0
    with Image.open(tmp_path / "out" / "new.png") as plain, Image.open(tmp_path / "marked.png") as image:
        assert np.array_equal(image, marked(np.asarray(plain)))
        assert ("Comment" in plain.info, image.info["Comment"].partition(":")[0]) == (False, "Colourised")
    with pytest.raises(UsageError, match="must end with"):
        cli.command(["transfer", *files, "--output", str(tmp_path / "new.gif")])
