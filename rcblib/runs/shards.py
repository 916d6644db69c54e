"""Share work among runs: the second of eight, or only the first images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rcblib.records import ParameterError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Choose some of a list of pieces of work.

    Attributes
    ----------
    number, n_shards : int
        Which of how many shards, from 1; every `n_shards`-th piece is one's, so that all have about as much to do.
    first : int, optional
        Only pieces of the first so many images; of no shard then.
    """

    number: int = 1
    n_shards: int = 1
    first: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.n_shards:
            raise ParameterError("shard", f"{self.number}/{self.n_shards}", "1/n to n/n, such as 2/8")
        if self.first is not None and (self.first < 1 or self.n_shards > 1):
            raise ParameterError("first", self.first, "a number of images from 1, without a shard")

    @classmethod
    def parse(cls, text: str | None, first: int | None = None) -> Shard:
        """Read ``"2/8"``; ``None`` is the whole."""
        parts = (text or "1/1").split("/")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ParameterError("shard", text, "1/n to n/n, such as 2/8")
        return cls(int(parts[0]), int(parts[1]), first)

    def of(self, pieces: Sequence[T], n_images_each: int = 1) -> list[T]:
        """Return the pieces that are this shard's, in order; the last of the first images' is whole."""
        if self.first is not None:
            return list(pieces[: -(-self.first // n_images_each)])
        return list(pieces[self.number - 1 :: self.n_shards])
