"""Name and read the files that probing writes, two for each finished sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open

from rcblib.data.skipped import file_stem
from rcblib.records import ImageId, ParameterError
from rcblib.runs.files import read_table
from rcblib.runs.records import sample_hash, table_facts

DESCRIPTION_FILE = "probe.json"


def table_file(folder: Path, image_id: ImageId) -> Path:
    """Return where the table of a sample is."""
    return folder / f"{file_stem(image_id)}.parquet"


def tokens_file(folder: Path, image_id: ImageId) -> Path:
    """Return where the visual tokens of a sample are."""
    return folder / f"{file_stem(image_id)}.safetensors"


class StoredTokens(Mapping):
    """Read the visual tokens of probed images from their files, one image at a time.

    Behaves as a dictionary from image id to ``(n_tokens, d_model)``, in the dtype that the model gave them; of an input
    with several views, all of them one after the other, also those that were not probed.
    """

    def __init__(self, folder: Path, image_ids: Iterable[ImageId]):
        self._folder, self._image_ids = folder, dict.fromkeys(image_ids)

    def __getitem__(self, image_id: ImageId) -> torch.Tensor:
        if image_id not in self._image_ids:
            raise KeyError(image_id)
        with safe_open(tokens_file(self._folder, image_id), framework="pt") as file:
            return file.get_tensor("tokens")

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._image_ids)

    def __len__(self) -> int:
        return len(self._image_ids)


@dataclass(frozen=True, eq=False)
class ProbeResults:
    """Hold what a probing run found.

    Attributes
    ----------
    table : pandas.DataFrame
        The tables of `probe` one after the other, in the order of the samples.
    tokens : Mapping
        Image id to ``(n_tokens, d_model)`` visual tokens; read from disk when asked for.
    description : Mapping
        The run's config, model, prompt and the digest of its code, as the folder's ``probe.json`` has them.
    facts : Mapping
        The same with samples, time and hardware, as `rcblib.runs.records.table_facts` gives them: what a table must
        carry to be recorded.
    skipped : Mapping
        Image id, or file name, to the reason for each image that was to be probed and could not be read; the folder
        keeps them in ``skipped/``.
    """

    table: pd.DataFrame
    tokens: Mapping[ImageId, torch.Tensor]
    description: Mapping[str, Any] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    skipped: Mapping[ImageId, str] = field(default_factory=dict, repr=False)

    def row_tokens(self) -> torch.Tensor:
        """Gather the visual token of every row of the table, ``(n_rows, d_model)``, as `build_codebook` takes them."""
        groups = self.table.groupby("image_id", sort=False).indices
        gathered = [
            self.tokens[image_id][self.table["token"].to_numpy()[rows]] for image_id, rows in groups.items()
        ]
        order = torch.cat([torch.from_numpy(rows) for rows in groups.values()])
        return torch.cat(gathered)[order.argsort()]


def finished(
    tables: Iterable[Path], description: Mapping[str, Any]
) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """Read the tables of finished samples, those that the code of the description has probed, one after the other."""
    for path in tables:
        table, made = read_table(path)
        if made["code"] == description["code"]:
            yield table, made


def no_image(folder: Path) -> ParameterError:
    """Make the error for a folder in which no sample is finished."""
    return ParameterError("folder", f"{folder.name}, no finished image", "a folder with at least one")


def read_results(
    folder: Path,
    tables: Iterable[Path],
    description: Mapping[str, Any],
    skipped: Mapping[ImageId, str],
    share: Mapping[str, Any] | None = None,
) -> ProbeResults:
    """Read finished samples by their tables, those that the code of the description has probed.

    Parameters
    ----------
    share : Mapping, optional
        What `Shard.share` says of a shard; it may hold no image.

    Raises
    ------
    ParameterError
        If there is none.
    """
    own = {made["sample"]["image_id"]: (table, made) for table, made in finished(tables, description)}
    if not own and not share:
        raise no_image(folder)
    identities = {image_id: sample_hash(made["sample"]) for image_id, (_, made) in own.items()}
    facts = table_facts(description, ("view", "token"), identities, (made for _, made in own.values()))
    none = pd.DataFrame({"image_id": []})
    table = pd.concat([table for table, _ in own.values()], ignore_index=True) if own else none
    return ProbeResults(table, StoredTokens(folder, own), description, facts | dict(share or {}), skipped)
