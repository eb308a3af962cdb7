"""hub_photos.py: data sets in the hub's formats are the same data as a folder of their photos."""

import sys

import numpy as np
import pytest
from test_dataset import folder_of, opened, picture
from test_photo_source import encoded

from Project7.errors import UsageError
from Project7.image_cache import decode_chunk
from Project7.image_set import load_batches
from Project7.photo_source import scan

HOW = {"size": 16, "crops": 1, "seed": 0}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library, with its cache in a folder of its own and no network."""
    datasets = pytest.importorskip("datasets", reason="pip install 'project7[hub-data]'")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def parquet(hub, folder, **columns):
    """A data set as the hub keeps it: a Parquet file for each split. columns: split -> pictures."""
    features = hub.Features({"caption": hub.Value("string"), "image": hub.Image(), "second": hub.Image()})
    for split, pictures in columns.items():
        rows = [{"caption": "x", "image": p, "second": {"bytes": encoded(), "path": None}} for p in pictures]
        hub.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def pictures(count):
    return [{"bytes": encoded(np.asarray(picture(n))), "path": f"{n}.png"} for n in range(count)]


def test_a_set_of_the_hub_is_the_data_of_its_photos(tmp_path, hub):
    data = parquet(hub, tmp_path / "set", train=pictures(600), validation=pictures(5))
    training, validation = opened(data, tmp_path / "cache")  # so many that workers decode them
    assert (len(training.images), len(validation.images)) == (600, 5)
    assert np.array_equal(training.images[7], np.asarray(picture(7)))
    assert training.names[7] == "train/000000007"
    lazy, _ = opened(data, tmp_path / "cache", decode="on-the-fly", limit=20)
    batch = next(load_batches(lazy.images, [np.arange(3)], num_workers=1)).numpy()
    assert np.array_equal(batch, opened(data, tmp_path / "cache", limit=20)[0].images[:3])
    again, _ = opened(data, tmp_path / "cache")
    assert not again.summary.built


def test_the_column_may_be_named(tmp_path, hub):
    data = parquet(hub, tmp_path / "set", train=pictures(2))
    source = scan(f"{data}:second")
    assert source.validation is None
    assert source.storage.read(source.training[0]) == encoded()
    with pytest.raises(UsageError, match=r"'caption' is not a column of images; this set has caption, image, second"):
        scan(f"{data}:caption")


def test_a_row_without_a_picture_is_broken_and_no_path_leads_out_of_the_cache(tmp_path, hub):
    inside, outside = folder_of(tmp_path / "hub", 1) / "000.png", folder_of(tmp_path / "mine", 1) / "000.png"
    rows = [None, *({"bytes": None, "path": str(path)} for path in (inside, outside))]
    table = hub.Dataset.from_dict({"image": rows}, features=hub.Features({"image": hub.Image(decode=False)}))
    source = scan(parquet(hub, tmp_path / "set", train=pictures(1)))
    storage = type(source.storage)((table,), "image")
    photos = [source.training[0]._replace(place=(0, row)) for row in range(3)]
    assert [bool(reason) for reason in decode_chunk((storage, HOW, 0.0), photos)[1]] == [True, False, True]


def test_what_cannot_be_loaded_ends_in_one_sentence(tmp_path, hub):
    with pytest.raises(UsageError, match=r"hf:owner/none could not be loaded \(.*\); check its name") as caught:
        scan("hf:owner/none")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no split named train, only test"):
        scan(parquet(hub, tmp_path / "set", test=pictures(1)))


def test_without_the_library_the_cure_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'project7\[hub-data\]'"):
        scan("hf:owner/name")
