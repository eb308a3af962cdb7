"""Squares that are decoded whenever they are needed, if they would not all fit on the disk. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from Project7.errors import ProjectError, sentence
from Project7.photo import PhotoError
from Project7.photo_files import shown
from Project7.photo_storage import SourcePhoto, Storage
from Project7.squares import decode


class OnTheFly:
    """Squares (N, S, S, 3) of photos, read like an array, and equal to those in the cache bit for bit.

    storage: reads the bytes of the photos. how: the arguments of `squares.decode`.
    """

    def __init__(self, storage: Storage, photos: Sequence[SourcePhoto], how: dict[str, int]):
        self.storage, self.photos, self.how = storage, photos, how
        self.shape: tuple[int, ...] = (len(photos) * how["crops"], how["size"], how["size"], 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: "slice | np.ndarray") -> np.ndarray:
        """The squares with these indices. Raises ProjectError if a photo can no longer be decoded."""
        numbers = np.arange(len(self))[which]
        found = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place, number in enumerate(numbers.tolist()):
            found[place] = self.square(number)
        return found

    def square(self, number: int) -> np.ndarray:
        """One square, (S, S, 3) uint8, by its index."""
        photo, crop = self.photos[number // self.how["crops"]], number % self.how["crops"]
        try:
            return decode(self.storage.read(photo), photo.name, **self.how, only=crop)[0]
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            if isinstance(error, ProjectError) and not isinstance(error, PhotoError):
                raise  # of a server, and says all
            raise ProjectError(
                f"{shown(photo.name)} can no longer be decoded ({sentence(error)}); bring it back, and resume the run."
            ) from None
