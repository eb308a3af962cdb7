"""mark.py: the word is in the corner and nowhere else, at every size and depth; the file says it too."""

import numpy as np
import pytest
import torch
from PIL import Image

from Project7.colorize import Colorizer
from Project7.colorize_files import colorize_files, plan_outputs
from Project7.config import RunConfig
from Project7.mark import marked
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig
from Project7.provenance import read_provenance
from Project7.training_config import DataConfig


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (12, 300), (300, 12), (60, 90), (800, 1200)])
def test_the_word_is_in_the_corner_alone(size, dtype):
    half = np.iinfo(dtype).max // 2
    picture = np.full((*size, 3), half, dtype)
    made = marked(picture)
    assert (made.shape, made.dtype) == (picture.shape, dtype)
    assert (picture == half).all()
    changed = np.argwhere((made != half).any(axis=-1))
    assert changed.max(axis=0).tolist() == [size[0] - 1, size[1] - 1]
    if min(size) >= 60:
        assert changed.min(axis=0)[0] > 0.7 * size[0]
        assert made[..., 0].max() > 1.8 * half  # letters
        assert made[-1, -1, 0] < half  # on a dark plate


@pytest.fixture(scope="module")
def colorizer():
    torch.manual_seed(0)
    kind = DiffusionConfig(features=(8, 16), time_dim=16, hints=True, timesteps=50)
    return Colorizer(build_model(kind).eval(), RunConfig(model=kind, data=DataConfig(image_size=32)))


def test_every_door_writes_it_where_it_is_wanted(colorizer, tmp_path):
    Image.new("L", (90, 60), 128).save(tmp_path / "a.png")
    plain = np.asarray(colorizer.colorize(tmp_path / "a.png", steps=2))
    wanted = marked(plain)
    assert np.array_equal(colorizer.colorize(tmp_path / "a.png", steps=2, mark=True), wanted)
    opened = colorizer.open(tmp_path / "a.png", steps=2)
    opened.mark = True
    assert np.array_equal(opened.picture(), wanted)
    jobs = plan_outputs([(tmp_path / "a.png", tmp_path.relative_to(tmp_path) / "a.png")], tmp_path / "out", variants=1)
    for mark, name in ((False, "a.png"), (True, "a-mark.png")):
        (done,) = colorize_files(colorizer, jobs, seed=0, batch_size=1, force=False, steps=2, mark=mark)
        assert [path.name for path in done.files] == [name]
        with Image.open(done.files[0]) as image:
            assert np.array_equal(image, wanted if mark else plain)
            assert image.info.get("Comment", "").startswith("Colourised") == mark
        assert read_provenance(done.files[0]).mark == mark
