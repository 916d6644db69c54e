"""Hold the redundant prototypes of one model, with what is known of where they come from."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcblib.codebook.files import DESCRIPTION_FILE, HUB_ID, find_codebook, read_codebook, write_codebook
from rcblib.codebook.released import read_released, released_registry
from rcblib.records import CodebookError, ImageId, ParameterError
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import to_plain
from rcblib.runs.paths import user_path
from rcblib.tensors.scoring import UnitPrototypes


@dataclass(frozen=True, eq=False)
class Codebook:
    """Hold redundant prototypes of one model, with what is known of where they come from.

    Attributes
    ----------
    prototypes : torch.Tensor
        ``(n_prototypes, d_model)`` floating point, finite: visual tokens as they entered the LLM, unaveraged.
    image_ids : tuple of int or str
        ``(n_prototypes,)`` image of each prototype; empty where unknown.
    family : str
        Model family whose LLM input space they live in, as adapters name it; ``""`` where unknown.
    positions : tuple of int or None
        ``(n_prototypes,)`` grid position of each prototype in its image; ``None`` where unknown.
    metadata : dict
        What JSON can hold: criterion, counts of the selection, ``clusters`` (stage-2 cluster of each
        prototype, numbered in order of appearance), model, provenance or source.

    Raises
    ------
    CodebookError
        Where prototypes are not a finite floating-point matrix, or lengths disagree.
    """

    prototypes: torch.Tensor
    image_ids: tuple[ImageId, ...] = ()
    family: str = ""
    positions: tuple[int, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        prototypes = self.prototypes
        if not isinstance(prototypes, torch.Tensor) or prototypes.ndim != 2 or 0 in prototypes.shape:
            given = tuple(getattr(prototypes, "shape", ())) or type(prototypes).__name__
            raise CodebookError(
                f"prototypes: got {given}; accepted: a tensor (n_prototypes, d_model), not empty"
            )
        if not prototypes.is_floating_point():
            raise CodebookError(f"prototypes: got {prototypes.dtype}; accepted: a floating-point dtype")
        n_broken = int((~torch.isfinite(prototypes)).any(dim=1).sum())
        if n_broken:
            raise CodebookError(
                f"prototypes: {n_broken} of {len(prototypes)} rows hold NaN or infinite values"
            )
        if not isinstance(self.metadata, Mapping):
            raise CodebookError(f"metadata: got {self.metadata!r}; accepted: a mapping")
        if not isinstance(self.family, str):
            raise CodebookError(f"family: got {self.family!r}; accepted: text")
        image_ids = image_identifiers(self.image_ids)
        if image_ids and len(image_ids) != len(prototypes):
            raise CodebookError(f"image_ids: got {len(image_ids)} for {len(prototypes)} prototypes")
        try:
            positions = None if self.positions is None else tuple(map(operator.index, self.positions))
        except TypeError:
            raise CodebookError(f"positions: got {self.positions!r:.200}; accepted: integers") from None
        if positions is not None and len(positions) != len(prototypes):
            raise CodebookError(f"positions: got {len(positions)} for {len(prototypes)} prototypes")
        object.__setattr__(self, "prototypes", prototypes.detach())
        object.__setattr__(self, "image_ids", image_ids)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "metadata", to_plain(self.metadata))

    def __eq__(self, other: object) -> bool:
        """Tell whether another codebook holds the same, in the same dtype, on whichever device."""
        if not isinstance(other, Codebook):
            return NotImplemented
        own, others = self.prototypes.cpu(), other.prototypes.cpu()
        return self._facts == other._facts and self.metadata == other.metadata and torch.equal(own, others)

    def __hash__(self) -> int:
        """Hash what is quickly read."""
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[Any, ...]:
        shape, dtype = tuple(self.prototypes.shape), self.prototypes.dtype
        return shape, dtype, self.image_ids, self.family, self.positions

    def __len__(self) -> int:
        """Count the prototypes."""
        return self.prototypes.shape[0]

    def __repr__(self) -> str:
        """Show size and origin rather than numbers."""
        origin = self.metadata.get("model") or self.metadata.get("name") or "unnamed model"
        return f"Codebook({len(self)} x {self.d_model}, family={self.family!r}, of {origin})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: not what is made of the prototypes anew."""
        return {name: value for name, value in vars(self).items() if name != "unit_prototypes"}

    @property
    def d_model(self) -> int:
        """Return the width of the prototypes."""
        return self.prototypes.shape[1]

    @functools.cached_property
    def unit_prototypes(self) -> UnitPrototypes:
        """Return the prototypes at length 1, for scoring tokens; made once for all pruners that hold the codebook."""
        return UnitPrototypes(self.prototypes)

    def prototypes_hash(self) -> str:
        """Return a hash of the prototypes, their dtype and shape."""
        raw = self.prototypes.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{raw.dtype} {tuple(raw.shape)} ".encode())
        digest.update(raw.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_fits(self, family: str, d_model: int) -> None:
        """Check that the prototypes live in the input space of a model's LLM, as far as that can be told.

        Parameters
        ----------
        family : str
            The model's family; not compared where it, or the codebook's, is unknown (``""``).
        d_model : int
            Width of the model's visual tokens.

        Raises
        ------
        CodebookError
            On another width or family.
        """
        if self.d_model != d_model:
            raise CodebookError(
                f"codebook: prototypes of width {self.d_model} do not fit visual tokens of width {d_model}"
            )
        if self.family and family and self.family != family:
            raise CodebookError(
                f"codebook: made for family {self.family!r}, the model is of family {family!r}"
            )

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write ``prototypes.safetensors``, ``codebook.json`` and a card into a folder.

        Parameters
        ----------
        folder : path-like
            Made where it is missing; earlier files of these names are replaced.

        Returns
        -------
        pathlib.Path
            The folder. Without the sha256 that ``codebook.json`` states the prototypes do not load.
        """
        facts = {name: getattr(self, name) for name in ("image_ids", "family", "positions", "metadata")}
        return write_codebook(folder, self.prototypes, facts)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *, revision: str | None = None) -> Codebook:
        """Load a codebook from a folder, by its name under ``codebooks/``, or from the Hugging Face Hub.

        Parameters
        ----------
        name_or_path : str or path-like
            Looked up in this order: a folder with ``codebook.json``, an embedded name, a Hub id
            ``owner/name``.
        revision : str, optional
            Branch, tag or commit on the Hub.

        Returns
        -------
        Codebook

        Raises
        ------
        CodebookError
            Where nothing is found or a file is damaged.
        ChecksumError
            Where the prototypes' sha256 is not the one that ``codebook.json`` states.
        """
        folder = find_codebook(name_or_path, revision)
        prototypes, facts = read_codebook(folder)
        try:
            return cls(prototypes, **facts)
        except (TypeError, ParameterError) as error:
            raise CodebookError(f"codebook {folder.name!r}: damaged ({in_one_line(error)})") from None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to a model repository on the Hugging Face Hub.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made where it does not exist.
        private : bool
            Whether a new repository is private.
        token : str, optional
            Access token; by default the one that the machine is logged in with.
        commit_message : str, optional

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ParameterError
            On a malformed `repo_id`.
        """
        import huggingface_hub

        if not HUB_ID.fullmatch(repo_id):
            raise ParameterError("repo_id", repo_id, "owner/name")
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        message = commit_message or f"Upload a codebook of {len(self)} prototypes"
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))

    @classmethod
    def from_released(
        cls, name_or_path: str | os.PathLike, *, cache_folder: str | os.PathLike | None = None
    ) -> Codebook:
        """Load a codebook that the authors released, downloading and verifying it where it is named.

        Parameters
        ----------
        name_or_path : str or path-like
            A name in ``codebooks/registry.json``, or a released ``.pt`` file; image ids are read from a JSON
            file of the same name beside it, if there.
        cache_folder : path-like, optional
            Where downloads are kept; by default ``RCB_CACHE``, else ``~/.cache/rcblib``.

        Returns
        -------
        Codebook
            On the CPU, in the released dtype, duplicates included; ``metadata["sha256_verified"]`` says
            whether the file is known to be the registered one.

        Raises
        ------
        CodebookError
            On an unknown name, a failed or truncated download, or a file that is no tensor.
        ChecksumError
            Where a file's sha256 is not the one registered for its name, or for its shape where only a path
            is given.

        Warns
        -----
        UserWarning
            Where no sha256 is registered for the file.

        Source: the codebooks published with the paper's code. Only ``torch.load(weights_only=True,
        map_location="cpu")`` is used: the files hold GPU tensors that require gradients (quirk 52).
        """
        prototypes, facts = read_released(name_or_path, cache_folder)
        return cls(prototypes, **facts)


def load_codebook(codebook: str | os.PathLike | torch.Tensor | Codebook) -> Codebook:
    """Load a codebook of any origin: one that the authors released, one that this library wrote, or a tensor.

    Parameters
    ----------
    codebook : str, path-like, torch.Tensor, array or Codebook
        A released name or a file is read by `Codebook.from_released`; another name, a folder or a Hub id by
        `Codebook.from_pretrained`. They also say what is raised and warned of. A tensor or array
        ``(n_prototypes, d_model)`` becomes a codebook of which nothing else is known; a codebook is returned as it is.

    Returns
    -------
    Codebook
    """
    if isinstance(codebook, Codebook):
        return codebook
    if isinstance(codebook, np.ndarray) and codebook.dtype.kind == "f":
        codebook = torch.as_tensor(codebook)
    if isinstance(codebook, torch.Tensor):
        return Codebook(codebook)
    if not isinstance(codebook, str | os.PathLike) or not str(codebook):
        given = codebook if codebook is None or codebook == "" else type(codebook).__name__
        accepted = "a Codebook, a name, a file, a folder, a Hugging Face id (owner/name) or a tensor"
        raise CodebookError(f"codebook: got {given!r}; accepted: {accepted}")
    path = user_path(codebook, "codebook")
    if path.is_file() and path.suffix != ".pt" and (path.parent / DESCRIPTION_FILE).is_file():
        return Codebook.from_pretrained(path.parent)  # one of the files of a codebook, in place of its folder
    is_file = path.is_file() or path.suffix == ".pt" and not path.is_dir()
    is_released = is_file or not path.is_dir() and str(codebook) in released_registry()
    return Codebook.from_released(codebook) if is_released else Codebook.from_pretrained(codebook)


def image_identifiers(values: Any) -> tuple[ImageId, ...]:
    """Return image ids as plain integers or text.

    Parameters
    ----------
    values : sequence, array or tensor
        Integers, of numpy or torch too, or text.

    Returns
    -------
    tuple of int or str

    Raises
    ------
    CodebookError
        On a value of another kind.
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    identifiers = tuple(value.item() if hasattr(value, "item") else value for value in values)
    for value in identifiers:
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise CodebookError(f"image_ids: got {value!r}; accepted: integers or text")
    return identifiers
