"""The photos of a data set on the Hugging Face Hub, through `datasets` (the extra `hub-data`).

The files stay in the cache of that library (HF_HOME, HF_HUB_OFFLINE). The module does not import torch.
"""

from typing import Any

from Project7.errors import UsageError, sentence
from Project7.photo_files import shown
from Project7.photo_storage import HubRows, SourcePhoto

HUB = "hf:"
_VALIDATION = ("validation", "valid", "val")


def scan_hub(data: str) -> tuple[HubRows, tuple[SourcePhoto, ...], tuple[SourcePhoto, ...] | None]:
    """The storage of hf:owner/name[:column], its training photos, and those of its validation split, if it has one.

    Raises UsageError if the library is missing, the data set cannot be loaded, or it has no column of images.
    """
    name, _, column = data.removeprefix(HUB).partition(":")
    splits = load_splits(data, name)
    column = column or first_image_column(data, splits["train"])
    names = ["train", *[split for split in _VALIDATION if split in splits][:1]]
    tables = tuple(image_column(data, splits[split], column) for split in names)
    parts = [photos_of(table, split, number) for number, (table, split) in enumerate(zip(tables, names, strict=True))]
    return HubRows(tables, column), parts[0], parts[1] if len(parts) > 1 else None


def load_splits(data: str, name: str) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"--data {shown(data)} needs the package datasets: pip install 'project7[hub-data]'."
        ) from None
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # from the network, the Hub, or any of its formats
        raise UsageError(
            f"--data {shown(data)} could not be loaded ({sentence(error)}); check its name on the Hub, and the network."
        ) from None
    if "train" not in splits:
        raise UsageError(f"--data {shown(data)} has no split named train, only {', '.join(splits)}; use another set.")
    return splits


def first_image_column(data: str, table: Any) -> str:
    import datasets

    columns = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise UsageError(f"--data {shown(data)} has no column of images, only {', '.join(table.features)}.")
    return columns[0]


def image_column(data: str, table: Any, column: str) -> Any:
    """The table with only this column, as files that are not decoded."""
    import datasets

    if not isinstance(table.features.get(column), datasets.Image):
        raise UsageError(
            f"--data {shown(data)}: {column!r} is not a column of images; this set has {', '.join(table.features)}."
        )
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def photos_of(table: Any, split: str, number: int) -> tuple[SourcePhoto, ...]:
    """A photo per row. `datasets` gives a table a new fingerprint when its files change."""
    stamp = table._fingerprint
    return tuple(SourcePhoto(f"{split}/{row:09}", "", f"{stamp}:{row}", (number, row)) for row in range(len(table)))
