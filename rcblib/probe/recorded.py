"""Read a recorded probing table in place of a live one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from rcblib.data.base import AnySample
from rcblib.data.samples import identified, load_pictures
from rcblib.mllm import Adapter
from rcblib.probe.inputs import places_of
from rcblib.records import ImageId
from rcblib.runs.records import Record, sample_hash

KEPT_BYTES = 2**29
"""Tokens of a record's samples that are kept in memory when they have been encoded; those of further ones are not."""


class EncodedTokens(Mapping):
    """Encode the visual tokens of samples when asked for, as a record is of tables.

    Behaves as `rcblib.probe.results.StoredTokens`.
    """

    def __init__(self, adapter: Adapter, samples: Sequence[AnySample]):
        self._adapter, self._samples = adapter, {sample.image_id: sample for sample in samples}
        self._kept: dict[ImageId, torch.Tensor] = {}
        self._n_free = KEPT_BYTES

    def __getitem__(self, image_id: ImageId) -> torch.Tensor:
        if image_id in self._kept:
            return self._kept[image_id]
        sample = self._samples[image_id]
        images = self._adapter.encode_input(load_pictures(sample), sample.kind)
        tokens = torch.cat([place.view.tokens for place in places_of(images)]).detach().cpu()
        if tokens.nbytes <= self._n_free:
            self._kept[image_id] = tokens
            self._n_free -= tokens.nbytes
        return tokens

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def recorded_rows(
    record: Record, samples: Sequence[AnySample], description: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the rows of some samples in their order, after all that they depend on has been compared.

    Raises
    ------
    ParameterError
        If the record is of other settings, another model or other images, or lacks one of them.
    """
    record.check(description, sample_hashes(samples))
    groups = record.table.groupby("image_id", sort=False).indices
    rows = [record.table.iloc[groups[sample.image_id]] for sample in samples]
    return pd.concat(rows, ignore_index=True)


def sample_hashes(samples: Sequence[AnySample]) -> dict[ImageId, str]:
    """Return what a record keeps of samples, by image."""
    return {image_id: sample_hash(identity) for image_id, identity in identified(samples)[0].items()}
