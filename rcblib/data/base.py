"""Define what every dataset is: a sequence of samples, loaded when they are used."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar, overload

import numpy as np

from rcblib.records import ImageError, ParameterError, Sample, SequenceSample
from rcblib.runs.paths import user_path
from rcblib.tensors.checks import check_integer

AnySample = Sample | SequenceSample

SampleT = TypeVar("SampleT", Sample, SequenceSample)


class Dataset(Sequence[SampleT], ABC, Generic[SampleT]):
    """Offer samples by index, in a fixed order; nothing is drawn, opened or decoded before it is asked for.

    Attributes
    ----------
    skipped : Mapping
        File name to the reason for each image that was left out because it could not be read.
    folder : pathlib.Path or None
        Where the images lie, of a dataset of files.
    """

    folder: Path | None = None
    skipped: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _sample(self, index: int) -> SampleT:
        """Return the sample at an index from 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> SampleT: ...

    @overload
    def __getitem__(self, index: slice) -> list[SampleT]: ...

    def __getitem__(self, index: int | slice) -> SampleT | list[SampleT]:
        if isinstance(index, slice):
            return [self._sample(i) for i in range(len(self))[index]]
        return self._sample(range(len(self))[index])


def evenly_spread(n_available: int, n: int) -> list[int]:
    """Return `n` different positions from the first to the last of those available, or all if there are fewer."""
    return np.linspace(0, n_available - 1, min(n, n_available)).astype(int).tolist()


def existing_folder(folder: str | os.PathLike) -> Path:
    """Return a folder as a path; an `ImageError` where it is missing or a file."""
    path = user_path(folder, "folder")
    if not path.is_dir():
        state = "which is a file" if path.exists() else "which does not exist"
        raise ImageError(f"folder: got {str(folder)!r}, {state}; accepted: an existing folder of images")
    return path


def check_apart(images: Path | None, results: Path) -> None:
    """Raise a `ParameterError` where results are to go into the folder of the images: some would be taken for images.

    A folder inside it is passed over when the images are read.
    """
    if images is not None and results.is_dir() and results.samefile(images):
        accepted = "another folder, which may lie in that of the images"
        raise ParameterError("folder", f"{str(results)!r} for results, which holds the images", accepted)


def check_limit(n: int | None) -> int | None:
    """Return how many samples are wanted, ``None`` for all; a `ParameterError` where it is no integer above 0."""
    return None if n is None else check_integer("n", n, 1)
