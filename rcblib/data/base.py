"""Define what every dataset is: a sequence of samples, loaded when they are used."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import numpy as np

from rcblib.records import (
    ImageError,
    Sample,
    SequenceSample,
)
from rcblib.tensors.geometry import check_integer

if TYPE_CHECKING:
    import os

AnySample = TypeVar("AnySample", Sample, SequenceSample)


class Dataset(Sequence[AnySample], ABC, Generic[AnySample]):
    """Offer samples by index, in a fixed order; nothing is drawn, opened or decoded before it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _sample(self, index: int) -> AnySample:
        """Return the sample at an index from 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> AnySample: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnySample]: ...

    def __getitem__(self, index: int | slice) -> AnySample | list[AnySample]:
        if isinstance(index, slice):
            return [self._sample(i) for i in range(len(self))[index]]
        return self._sample(range(len(self))[index])


def evenly_spread(n_available: int, n: int) -> list[int]:
    """Return `n` different positions from the first to the last of those available, or all if there are fewer."""
    return np.linspace(0, n_available - 1, min(n, n_available)).astype(int).tolist()


def existing_folder(folder: str | os.PathLike) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        state = "which is a file" if path.exists() else "which does not exist"
        raise ImageError(f"folder: got {str(folder)!r}, {state}; accepted: an existing folder of images")
    return path


def check_limit(n: int | None) -> int | None:
    return None if n is None else check_integer("n", n, 1)


AnySample = Sample | SequenceSample

AnySample = Sample | SequenceSample
