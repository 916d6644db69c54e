"""Share work among runs: the second of eight, the first images, every seventh setting; say what share a table is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rcblib.records import ImageId, ParameterError
from rcblib.runs.files import config_hash

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
        return cls(*_numbers("shard", text, "2/8"), first)

    def of(self, pieces: Sequence[T], n_images_each: int = 1) -> list[T]:
        """Return the pieces that are this shard's, in order; the last of the first images' is whole."""
        if self.first is not None:
            return list(pieces[: -(-self.first // n_images_each)])
        return list(pieces[self.number - 1 :: self.n_shards])

    def of_images(self, image_ids: Iterable[ImageId], left_out: Iterable[ImageId] = ()) -> list[ImageId]:
        """Return the ids of this shard's images, every `n_shards`-th in ascending order, or the first ones given.

        Parameters
        ----------
        image_ids : iterable
            Of all images, in any order.
        left_out : iterable
            Names of further images that cannot be read. Where images have their names for ids, these count too, so
            that a photo that is damaged while shards run moves no other one to another shard.

        Raises
        ------
        ParameterError
            If there are more shards than images.
        """
        if self.first is not None:
            return self.of(list(image_ids))
        ids = set(image_ids)
        kinds = {type(image_id) for image_id in ids}
        counted = sorted(ids.union(name for name in left_out if type(name) in kinds))
        if self.n_shards > len(counted):
            raise ParameterError(
                "shard", f"{self.number}/{self.n_shards}", f"at most {len(counted)} shards, of an image each"
            )
        return [image_id for image_id in self.of(counted) if image_id in ids]

    def share(self, image_ids: Iterable[ImageId], left_out: Mapping[ImageId, str]) -> dict[str, Any]:
        """Return what a table says of its share of the work, so that merging finds what is missing.

        Parameters
        ----------
        image_ids : iterable
            Of all images of all shards.
        left_out : Mapping
            Id or file name of each image that was left out, by any shard or this one, to the reason.
        """
        skipped = {str(name): reason for name, reason in left_out.items()}
        images = images_digest({*map(str, image_ids), *skipped})
        return {
            "shard": {
                "number": self.number,
                "n_shards": self.n_shards,
                "first": self.first,
                "images": images,
            },
            "skipped": skipped,
        }


def turn_of(text: str | None) -> slice:
    """Read ``"3/7"``: of settings in their order every seventh, from the third on; ``None`` is all of them.

    Raises
    ------
    ParameterError
        If it is something else.
    """
    number, n_apart = _numbers("settings", text, "3/7")
    if not 1 <= number <= n_apart:
        raise ParameterError("settings", text, "1/n to n/n, such as 3/7")
    return slice(number - 1, None, n_apart)


def _numbers(name: str, text: str | None, example: str) -> tuple[int, int]:
    """Read two numbers with a slash between them; ``None`` is one of one."""
    parts = (text or "1/1").split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ParameterError(name, text, f"1/n to n/n, such as {example}")
    return int(parts[0]), int(parts[1])


def images_digest(names: Iterable[str]) -> str:
    """Hash ids of images, in any order."""
    return config_hash({"images": sorted(names)})
