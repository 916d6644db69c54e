"""Select redundant prototypes by a criterion, and keep, load and verify the codebooks they make."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import math
import os
import pickle
import re
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcblib.clustering import dpc_knn
from rcblib.records import ChecksumError, CodebookError, ParameterError
from rcblib.runs import (
    atomic_path,
    atomic_write,
    bounded,
    check_fields,
    project_root,
    provenance,
    read_json,
    to_plain,
    validate_parameters,
    write_json,
)

N_NEIGHBOURS = 5
"""Neighbours that give DPC-KNN its density; an image needs at least as many tokens."""

_FORMAT = 1
_TENSOR_FILE, _DESCRIPTION_FILE, _CARD_FILE = "prototypes.safetensors", "codebook.json", "README.md"
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class CodebookCriterion:
    """State when a probed token is low-information and when it becomes a prototype.

    Attributes
    ----------
    tau_p : float
        Method page's τ_p: the top-1 probability of a low-information token, as the only visual token, is
        strictly below it. In (0, 1].
    tau_jsd : float
        Method page's τ_jsd: its combined influence is strictly below it (nats, released form). Above 0.
    k_region, k_global : float
        Weights of the two divergences: influence = ``k_region · region + k_global · global``. At least 0, not
        both 0.
    n_clusters : int
        Clusters per image (stage 1).
    cluster_size_max : int
        A stage-1 cluster of more members than this, low-information or not, contributes nothing.
    n_prototype_clusters : int
        Clusters of the pooled tokens (stage 2).
    min_images : int
        A stage-2 cluster is kept when it draws from *more than* this many distinct images.

    Source: section 4 of the paper; defaults are those of the LLaVA-1.5-7B codebook.
    """

    tau_p: float = bounded(0.15, above=0, maximum=1)
    tau_jsd: float = bounded(0.002, above=0)
    k_region: float = bounded(1.0, minimum=0)
    k_global: float = bounded(16.0, minimum=0)
    n_clusters: int = bounded(8, minimum=1)
    cluster_size_max: int = bounded(8, minimum=1)
    n_prototype_clusters: int = bounded(64, minimum=1)
    min_images: int = bounded(64, minimum=0)

    def __post_init__(self):
        check_fields(self)
        if self.k_region == 0 and self.k_global == 0:
            raise ParameterError("k_region, k_global", (0, 0), "at least one weight above 0")

    @classmethod
    def from_preset(cls, name_or_path: str | os.PathLike) -> CodebookCriterion:
        """Read a criterion from the presets or from a JSON file with the fields of this class.

        Parameters
        ----------
        name_or_path : str or path-like
            A name in `PRESETS`, or a ``.json`` file.

        Returns
        -------
        CodebookCriterion

        Raises
        ------
        ParameterError
            On an unknown name, and on a file with unknown fields or values out of range.
        """
        if name_or_path in PRESETS:
            return PRESETS[name_or_path]
        path = Path(name_or_path)
        if path.suffix != ".json" or not path.is_file():
            raise ParameterError("criterion", str(name_or_path), f"{', '.join(PRESETS)}, or a .json file")
        return validate_parameters(read_json(path), cls)

    def influence(self, region: Any, global_: Any) -> np.ndarray:
        """Combine both divergences as ``k_region · region + k_global · global``, in double precision.

        Parameters
        ----------
        region, global_ : array-like
            Divergences of any one shape, in nats.

        Returns
        -------
        numpy.ndarray
            float64 of that shape; higher = the token matters more.
        """
        return self.k_region * _doubles(region) + self.k_global * _doubles(global_)

    def low_information(self, top1: Any, region: Any, global_: Any) -> np.ndarray:
        """Tell which tokens are low-information: probability and influence both strictly below their limits.

        Parameters
        ----------
        top1, region, global_ : array-like
            Top-1 probability of the single-token input and both divergences, of one shape.

        Returns
        -------
        numpy.ndarray
            bool of that shape.

        Source: the released codebook script compares doubles, strictly (family F; quirk 44).
        """
        return (_doubles(top1) < self.tau_p) & (self.influence(region, global_) < self.tau_jsd)


PRESETS: dict[str, CodebookCriterion] = {
    "llava-1.5-7b": CodebookCriterion(),
    "llava-1.5-13b-script": CodebookCriterion(tau_p=0.077, tau_jsd=0.0018),
    "llava-next-8b": CodebookCriterion(tau_p=0.10),
    "llava-onevision-7b": CodebookCriterion(
        tau_p=0.08, tau_jsd=0.0018, cluster_size_max=3, n_prototype_clusters=24, min_images=16
    ),
}
"""Criteria of the released codebooks, and of the script as released, whose runs are 13B's."""


def _doubles(values: Any) -> np.ndarray:
    """Return numbers as float64, widening what comes in."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


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
    image_ids: tuple[int | str, ...] = ()
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
        image_ids = _identifiers(self.image_ids)
        if image_ids and len(image_ids) != len(prototypes):
            raise CodebookError(f"image_ids: got {len(image_ids)} for {len(prototypes)} prototypes")
        positions = None if self.positions is None else tuple(int(position) for position in self.positions)
        if positions is not None and len(positions) != len(prototypes):
            raise CodebookError(f"positions: got {len(positions)} for {len(prototypes)} prototypes")
        object.__setattr__(self, "prototypes", prototypes.detach())
        object.__setattr__(self, "image_ids", image_ids)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "metadata", to_plain(self.metadata))

    def __len__(self) -> int:
        """Count the prototypes."""
        return self.prototypes.shape[0]

    def __repr__(self) -> str:
        """Show size and origin rather than numbers."""
        origin = self.metadata.get("model") or self.metadata.get("name") or "unnamed model"
        return f"Codebook({len(self)} x {self.d_model}, family={self.family!r}, of {origin})"

    @property
    def d_model(self) -> int:
        """Return the width of the prototypes."""
        return self.prototypes.shape[1]

    def check_fits(self, family: str, d_model: int) -> None:
        """Check that the prototypes live in the input space of a model's LLM, as far as that can be told.

        Parameters
        ----------
        family : str
            The model's family; not compared where the codebook's is unknown.
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
        if self.family and self.family != family:
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
        import safetensors.torch

        folder = Path(folder)
        data = safetensors.torch.save({"prototypes": self.prototypes.cpu().contiguous()})
        description = {
            "format": _FORMAT,
            "family": self.family,
            "shape": list(self.prototypes.shape),
            "dtype": str(self.prototypes.dtype).removeprefix("torch."),
            "sha256": hashlib.sha256(data).hexdigest(),
            "image_ids": self.image_ids,
            "positions": self.positions,
            "metadata": self.metadata,
        }
        atomic_write(folder / _TENSOR_FILE, data)
        write_json(folder / _DESCRIPTION_FILE, description)
        atomic_write(folder / _CARD_FILE, _card(self, description["sha256"]))
        return folder

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
        name = str(name_or_path)
        embedded = _codebooks_folder()
        if (Path(name) / _DESCRIPTION_FILE).is_file():
            return cls._from_folder(Path(name))
        if embedded and _PLAIN_NAME.fullmatch(name) and (embedded / name / _DESCRIPTION_FILE).is_file():
            return cls._from_folder(embedded / name)
        reason = ""
        if _HUB_ID.fullmatch(name) and not Path(name).exists():
            import huggingface_hub

            try:
                files = [_TENSOR_FILE, _DESCRIPTION_FILE, _CARD_FILE]
                folder = huggingface_hub.snapshot_download(name, allow_patterns=files, revision=revision)
            except (OSError, ValueError) as error:
                reason = f", nor reachable on the Hub ({type(error).__name__})"
            else:
                if (Path(folder) / _DESCRIPTION_FILE).is_file():
                    return cls._from_folder(Path(folder))
                reason = ", and the Hub repository of this name holds none"
        names = ", ".join(_embedded_names(embedded)) or "none"
        raise CodebookError(
            f"codebook: {name!r} is no folder with {_DESCRIPTION_FILE}, no embedded name ({names}){reason}"
        )

    @classmethod
    def _from_folder(cls, folder: Path) -> Codebook:
        """Load and verify what `save_pretrained` wrote."""
        import safetensors
        import safetensors.torch

        try:
            description = read_json(folder / _DESCRIPTION_FILE)
            if description["format"] != _FORMAT:
                raise CodebookError(
                    f"{_DESCRIPTION_FILE}: format {description['format']!r}; accepted: {_FORMAT}"
                )
            parts = {key: description[key] for key in ("image_ids", "family", "positions", "metadata")}
            expected, shape, dtype = (description[key] for key in ("sha256", "shape", "dtype"))
        except (ParameterError, KeyError, TypeError) as error:
            line = f"lacks {error}" if isinstance(error, KeyError) else "is no valid description"
            raise CodebookError(f"codebook {folder.name!r}: {_DESCRIPTION_FILE} {line}") from None
        try:
            data = (folder / _TENSOR_FILE).read_bytes()
        except OSError as error:
            raise CodebookError(f"codebook {folder.name!r}: {_TENSOR_FILE}: {error.strerror}") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != expected:
            raise ChecksumError(
                f"codebook {folder.name!r}: {_TENSOR_FILE} has sha256 {digest}, "
                f"{_DESCRIPTION_FILE} states {expected}"
            )
        try:
            prototypes = safetensors.torch.load(data)["prototypes"]
            codebook = cls(prototypes, **parts)
        except (safetensors.SafetensorError, KeyError, TypeError, ParameterError) as error:
            raise CodebookError(f"codebook {folder.name!r}: damaged ({_one_line(error)})") from None
        found = (list(prototypes.shape), str(prototypes.dtype).removeprefix("torch."))
        if found != (shape, dtype):
            raise CodebookError(
                f"codebook {folder.name!r}: holds {found}, its description says {(shape, dtype)}"
            )
        return codebook

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
        if not _HUB_ID.fullmatch(repo_id):
            raise ParameterError("repo_id", repo_id, "owner/name")
        import huggingface_hub

        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload a codebook of {len(self)} prototypes",
            )
        return str(commit)

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
        registry = released_registry()
        name = str(name_or_path)
        if name in registry:
            folder = (
                Path(cache_folder or os.environ.get("RCB_CACHE") or Path.home() / ".cache" / "rcblib") / name
            )
            path = _fetch(registry[name]["file"], folder)
            ids_path = _fetch(registry[name]["image_ids"], folder)
        else:
            path = Path(name_or_path)
            if not path.is_file():
                raise CodebookError(
                    f"codebook: {name!r} is no file and no released name ({', '.join(registry)})"
                )
            beside = (path.with_suffix(".json"), path.with_name(f"{path.stem}.image_ids.json"))
            ids_path = next((candidate for candidate in beside if candidate.is_file()), None)
        prototypes = load_released_tensor(path)
        digest = file_sha256(path)
        if name not in registry:
            name = _registered_name(registry, path.name, digest, prototypes.shape)
        entry = registry.get(name, {})
        verified = digest == entry.get("file", {}).get("sha256")
        if not verified:
            warnings.warn(
                f"{path.name}: no sha256 is registered to verify it by; it has {digest}", stacklevel=2
            )
        if entry and list(prototypes.shape) != entry["shape"]:
            raise CodebookError(
                f"{path.name}: holds {tuple(prototypes.shape)}, registered is {entry['shape']}"
            )
        metadata = {
            "name": name,
            **{key: entry.get(key) for key in ("model", "n_images", "pruning", "licence", "source", "note")},
            "file": path.name,
            "sha256": digest,
            "sha256_verified": verified,
        }
        if name in PRESETS:
            metadata["criterion"] = dataclasses.asdict(PRESETS[name])
        if entry.get("cluster_sizes"):
            sizes = entry["cluster_sizes"]
            metadata["clusters"] = [number for number, size in enumerate(sizes) for _ in range(size)]
        image_ids = () if ids_path is None else _read_image_ids(ids_path)
        return cls(prototypes, image_ids, entry.get("family", ""), metadata=metadata)


def _identifiers(values: Any) -> tuple[int | str, ...]:
    """Return image ids as plain integers or text."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    identifiers = tuple(value.item() if hasattr(value, "item") else value for value in values)
    for value in identifiers:
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise CodebookError(f"image_ids: got {value!r}; accepted: integers or text")
    return identifiers


def _one_line(error: Exception) -> str:
    """Shorten an error of another library to its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _codebooks_folder() -> Path | None:
    """Return the project's ``codebooks/``; ``None`` where the library is used without the project."""
    try:
        return project_root() / "codebooks"
    except ParameterError:
        return None


def _embedded_names(folder: Path | None) -> list[str]:
    """List the codebooks that the project ships."""
    return sorted(path.parent.name for path in folder.glob(f"*/{_DESCRIPTION_FILE}")) if folder else []


def released_registry() -> dict[str, dict[str, Any]]:
    """Read what is known of the released codebooks: model, address, shape, size and sha256, licence.

    Returns
    -------
    dict
        Name to entry, as in ``codebooks/registry.json``; unknown values are ``None``.

    Raises
    ------
    CodebookError
        Where the project's ``codebooks/`` is not at hand.
    """
    folder = _codebooks_folder()
    if folder is None or not (folder / "registry.json").is_file():
        raise CodebookError("codebooks/registry.json: not found; set RCB_ROOT to the root of the project")
    return read_json(folder / "registry.json")


def load_released_tensor(path: str | os.PathLike) -> torch.Tensor:
    """Load a released ``.pt`` file that holds one tensor, without running code that it might hold.

    Parameters
    ----------
    path : path-like
        A codebook or a pad embedding.

    Returns
    -------
    torch.Tensor
        As stored, on the CPU and without gradient.

    Raises
    ------
    CodebookError
        Where the file is damaged or holds anything but a tensor.
    """
    path = Path(path)
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CodebookError(f"{path.name}: no readable tensor file ({_one_line(error)})") from None
    if not isinstance(tensor, torch.Tensor):
        raise CodebookError(f"{path.name}: holds {type(tensor).__name__}; accepted: one tensor")
    return tensor.detach()


def _registered_name(registry: Mapping[str, Any], file_name: str, digest: str, shape: torch.Size) -> str:
    """Recognise a released file by its sha256, else by its shape where none is known; ``""`` if none fits."""
    for name, entry in registry.items():
        if entry["file"]["sha256"] == digest:
            return name
    for name, entry in registry.items():
        if entry["shape"] == list(shape):
            expected = entry["file"]["sha256"]
            if expected is not None:
                raise ChecksumError(
                    f"{file_name}: of the shape of {name} but with sha256 {digest}, registered is {expected}"
                )
            return name
    return ""


def _read_image_ids(path: Path) -> tuple[int, ...]:
    """Read a released list of image ids, which are COCO's numbers as text."""
    try:
        return tuple(int(image_id) for image_id in read_json(path))
    except (ValueError, TypeError) as error:
        raise CodebookError(f"{path.name}: no list of image ids ({_one_line(error)})") from None


def _fault(path: Path, entry: Mapping[str, Any]) -> CodebookError | None:
    """Compare a file with its registered size and sha256; ``None`` where it agrees."""
    size = path.stat().st_size
    if entry["size"] is not None and size != entry["size"]:
        return CodebookError(f"{entry['address']}: {size} bytes, registered are {entry['size']}")
    digest = file_sha256(path)
    if entry["sha256"] is not None and digest != entry["sha256"]:
        return ChecksumError(f"{entry['address']}: sha256 {digest}, registered is {entry['sha256']}")
    return None


def _fetch(entry: Mapping[str, Any], folder: Path) -> Path:
    """Return the verified local copy of a registered file, downloading it where there is none."""
    address = entry["address"]
    path = folder / address.rsplit("/", 1)[-1]
    if path.is_file() and _fault(path, entry) is None:
        return path
    with atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(address, timeout=60) as response, open(temporary, "wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
                announced = response.headers.get("Content-Length")
        except (OSError, http.client.HTTPException) as error:
            raise CodebookError(
                f"{address}: download failed ({_one_line(error)}); fetch it by hand and pass its path"
            ) from None
        received = temporary.stat().st_size
        if announced is not None and received != int(announced):
            raise CodebookError(f"{address}: download ended after {received} of {announced} bytes")
        fault = _fault(temporary, entry)
        if fault is not None:
            raise fault
    return path


def _card(codebook: Codebook, digest: str) -> str:
    """Write the card of a codebook: what it is, how it was made, its numbers, its licence."""
    metadata = codebook.metadata
    licence = metadata.get("licence") or "Apache-2.0"
    lines = [
        "---",
        f"license: {licence.lower()}",
        "tags: [multimodal, visual-tokens, token-pruning]",
        "---",
        f"# Redundancy codebook of {metadata.get('model') or metadata.get('name') or 'an unnamed model'}",
        "",
        "Visual tokens (rows that enter the LLM) that carry little information wherever they occur. A token",
        "of another image that is close to one of them, by cosine, can be left out before the LLM.",
        "",
        "## Numbers",
        "",
        "| | |",
        "|---|---|",
        f"| prototypes | {len(codebook)} of width {codebook.d_model}, {codebook.prototypes.dtype} |",
        f"| model family | {codebook.family or 'not recorded'} |",
        f"| distinct images they come from | {len(set(codebook.image_ids)) or 'not recorded'} |",
    ]
    selection = metadata.get("selection", {})
    words = {
        "n_images": "images probed",
        "n_tokens": "tokens probed",
        "n_low_information": "low-information tokens",
        "n_after_stage_1": "of these in small per-image clusters",
        "n_clusters_kept": "clusters that recur across images",
        "images_per_cluster": "images per kept cluster",
    }
    lines += [f"| {text} | {selection[key]} |" for key, text in words.items() if key in selection]
    lines += [f"| sha256 of `{_TENSOR_FILE}` | `{digest}` |", "", "## How it was made", ""]
    if "criterion" in metadata:
        lines += ["| criterion | value |", "|---|---|"]
        lines += [f"| `{key}` | {value} |" for key, value in metadata["criterion"].items()]
        lines += [""]
    if "provenance" in metadata:
        made = metadata["provenance"]
        versions = ", ".join(f"{key} {made[key]}" for key in ("rcblib", "torch", "numpy"))
        lines += [f"Built on {made['date'][:10]} with {versions}.", ""]
    if metadata.get("source"):
        lines += [f"Source: {metadata['source']}.", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "from rcblib import Codebook, CodebookPruner",
        "",
        'pruner = CodebookPruner(Codebook.from_pretrained("<this folder>"), retain_ratio=0.2)',
        "with pruner(model):",
        "    model.generate(**inputs)",
        "```",
        "",
        "## Licence",
        "",
        f"{licence}.",
        "",
    ]
    return "\n".join(lines)


def build_codebook(
    tokens: torch.Tensor,
    image_ids: Sequence[int | str],
    top1: Any,
    region: Any,
    global_: Any,
    criterion: CodebookCriterion,
    generator: torch.Generator | None = None,
    *,
    positions: Sequence[int] | None = None,
    family: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Codebook:
    """Select redundant prototypes: low-information tokens in small clusters that recur across images.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` every probed visual token of every image.
    image_ids : sequence
        ``(n_tokens,)`` image of each token; the rows of an image need not be adjacent.
    top1 : array-like
        ``(n_tokens,)`` top-1 probability of the single-token input, in [0, 1].
    region, global_ : array-like
        ``(n_tokens,)`` leave-one-out divergences in nats, released form.
    criterion : CodebookCriterion
        Limits and cluster counts.
    generator : torch.Generator, optional
        Draws DPC-KNN's tie-breaking noise; ``None`` means none.
    positions : sequence of int, optional
        ``(n_tokens,)`` grid position of each token, kept with the prototypes.
    family : str
        Model family, kept with the codebook.
    metadata : Mapping, optional
        Further facts for ``Codebook.metadata``, such as ``model`` and ``config``.

    Returns
    -------
    Codebook
        Prototypes by stage-2 cluster in order of first appearance, inside it by image, then by stage-1
        cluster in order of first appearance, then as given. ``metadata["selection"]`` counts tokens after
        each stage and names the ``rows`` of `tokens` that were kept.

    Raises
    ------
    ParameterError
        Before any work: on lengths that disagree, values that are not finite, an image with too few tokens,
        or too few images.
    CodebookError
        Where too few tokens pass stage 1, or no cluster recurs in enough images; with the counts of each
        stage.

    Source: section 4 of the paper and its released clustering script.
    Differs: the script adds a position's m tied tokens m² times (quirk 48); here every token counts once.
    """
    image_ids, signals = _checked_selection(tokens, image_ids, top1, region, global_, criterion, positions)
    low = criterion.low_information(*signals)
    rows_of: dict[int | str, list[int]] = {}
    for row, image_id in enumerate(image_ids):
        rows_of.setdefault(image_id, []).append(row)

    pooled: list[int] = []
    for rows in rows_of.values():
        for members in _clusters(tokens, rows, criterion.n_clusters, generator):
            if len(members) <= criterion.cluster_size_max:
                pooled += [row for row in members if low[row]]
    counts = (
        f"{len(image_ids)} tokens of {len(rows_of)} images, {int(low.sum())} low-information (top-1 "
        f"probability < {criterion.tau_p}, influence < {criterion.tau_jsd}), {len(pooled)} of them in "
        f"clusters of at most {criterion.cluster_size_max}"
    )
    n_needed = max(criterion.n_prototype_clusters, N_NEIGHBOURS)
    if len(pooled) < n_needed:
        raise CodebookError(
            f"no codebook: {counts}; {criterion.n_prototype_clusters} prototype clusters need {n_needed}"
        )

    kept: list[int] = []
    clusters: list[int] = []
    images_per_cluster: list[int] = []
    most_images = 0
    for members in _clusters(tokens, pooled, criterion.n_prototype_clusters, generator):
        n_images = len({image_ids[row] for row in members})
        most_images = max(most_images, n_images)
        if n_images > criterion.min_images:
            kept += members
            clusters += [len(images_per_cluster)] * len(members)
            images_per_cluster.append(n_images)
    if not kept:
        raise CodebookError(
            f"no codebook: {counts}; of {criterion.n_prototype_clusters} prototype clusters none draws from "
            f"more than {criterion.min_images} images, the widest from {most_images}"
        )
    selection = {
        "n_images": len(rows_of),
        "n_tokens": len(image_ids),
        "n_low_information": int(low.sum()),
        "n_after_stage_1": len(pooled),
        "n_clusters_kept": len(images_per_cluster),
        "images_per_cluster": images_per_cluster,
        "rows": kept,
    }
    return Codebook(
        tokens.detach().cpu()[kept],
        tuple(image_ids[row] for row in kept),
        family,
        None if positions is None else tuple(positions[row] for row in kept),
        {
            "criterion": dataclasses.asdict(criterion),
            "n_neighbours": N_NEIGHBOURS,
            "selection": selection,
            "clusters": clusters,
            "provenance": provenance(),
            **(metadata or {}),
        },
    )


def _clusters(
    tokens: torch.Tensor, rows: list[int], n_clusters: int, generator: torch.Generator | None
) -> list[list[int]]:
    """Cluster some rows; members of each cluster in the order of `rows`, clusters by first appearance."""
    members: dict[int, list[int]] = {}
    labels = dpc_knn(tokens[rows], n_clusters, k=N_NEIGHBOURS, generator=generator).tolist()
    for row, label in zip(rows, labels, strict=True):
        members.setdefault(label, []).append(row)
    return list(members.values())


def _checked_selection(
    tokens: Any,
    image_ids: Any,
    top1: Any,
    region: Any,
    global_: Any,
    criterion: CodebookCriterion,
    positions: Any,
) -> tuple[tuple[int | str, ...], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Check everything `build_codebook` is given; return image ids and the three signals as doubles."""
    if not isinstance(criterion, CodebookCriterion):
        raise ParameterError("criterion", criterion, "a CodebookCriterion")
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or not tokens.is_floating_point():
        given = tuple(getattr(tokens, "shape", ())) or type(tokens).__name__
        raise ParameterError("tokens", given, "a floating-point tensor (n_tokens, d_model)")
    if not bool(torch.isfinite(tokens).all()):
        n_broken = int((~torch.isfinite(tokens)).any(dim=1).sum())
        raise ParameterError("tokens", f"{n_broken} rows with NaN or infinite values", "finite values")
    image_ids = _identifiers(image_ids)
    signals = (_doubles(top1), _doubles(region), _doubles(global_))
    named = {"image_ids": image_ids, "top1": signals[0], "region": signals[1], "global_": signals[2]}
    if positions is not None:
        named["positions"] = positions
    for name, values in named.items():
        if len(values) != len(tokens) or getattr(values, "ndim", 1) != 1:
            raise ParameterError(name, f"{len(values)} values", f"one for each of the {len(tokens)} tokens")
    for name in ("top1", "region", "global_"):
        if not np.isfinite(named[name]).all():
            raise ParameterError(name, "NaN or infinite values", "finite values")
    outside = signals[0][(signals[0] < 0) | (signals[0] > 1)]
    if len(outside):
        raise ParameterError("top1", float(outside[0]), "probabilities in [0, 1]")
    per_image = Counter(image_ids)
    n_needed = max(criterion.n_clusters, N_NEIGHBOURS)
    for image_id, n_tokens in per_image.items():
        if n_tokens < n_needed:
            raise ParameterError(
                "tokens",
                f"{n_tokens} of image {image_id!r}",
                f"at least {n_needed} of every image (n_clusters, k)",
            )
    if len(per_image) <= criterion.min_images:
        raise ParameterError(
            "min_images",
            criterion.min_images,
            f"fewer than the {len(per_image)} images that the tokens come from",
        )
    return image_ids, signals


def codebook_statistics(codebook: Codebook) -> dict[str, Any]:
    """Describe a codebook in numbers: norms, cosines, duplicates, images and spectrum.

    Parameters
    ----------
    codebook : Codebook
        At least two prototypes.

    Returns
    -------
    dict
        ``shape``, ``dtype``; ``norm`` and ``element`` summaries; ``cosine`` over all pairs of rows and
        ``nearest_cosine`` of each row to its nearest other row, each with a ``histogram`` (``edges``,
        ``counts``); ``duplicates`` (exact copies); ``images``; ``spectrum`` of the centred rows, whose
        ``effective_rank`` is exp of the entropy of ``explained_variance_ratio``; ``clusters`` where the
        codebook knows them. Rounded to six digits; computed in double precision.

    Raises
    ------
    ParameterError
        On a codebook of one row, which has no pairs.
    """
    if len(codebook) < 2:
        raise ParameterError("codebook", f"{len(codebook)} prototype", "at least two")
    rows = codebook.prototypes.cpu().double()
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    cosines = (unit @ unit.T).clamp(-1, 1)
    upper = torch.triu_indices(len(rows), len(rows), offset=1)
    others = cosines.clone().fill_diagonal_(-math.inf)
    return {
        "shape": list(rows.shape),
        "dtype": str(codebook.prototypes.dtype).removeprefix("torch."),
        "norm": _summary(norms),
        "element": {
            "min": _rounded(rows.min()),
            "max": _rounded(rows.max()),
            "mean": _rounded(rows.mean()),
            "std": _rounded(rows.std()),
        },
        "cosine": {
            **_summary(cosines[upper[0], upper[1]]),
            "histogram": _histogram(cosines[upper[0], upper[1]]),
        },
        "nearest_cosine": {**_summary(others.amax(1)), "histogram": _histogram(others.amax(1))},
        "duplicates": _duplicates(codebook),
        "images": _image_counts(codebook.image_ids),
        "spectrum": _spectrum(rows),
        **({"clusters": _cluster_cosines(codebook, cosines)} if "clusters" in codebook.metadata else {}),
    }


def _rounded(value: Any) -> float:
    """Round to six significant digits, enough for text and figures."""
    return float(f"{float(value):.6g}")


def _summary(values: torch.Tensor) -> dict[str, float]:
    """Summarise a sample by quantiles (linear interpolation) and mean."""
    levels = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
    quantiles = np.quantile(values.numpy(), list(levels.values()))
    return {
        "n": len(values),
        **{name: _rounded(quantile) for name, quantile in zip(levels, quantiles, strict=True)},
        "mean": _rounded(values.mean()),
    }


def _histogram(cosines: torch.Tensor) -> dict[str, list]:
    """Count cosines in forty bins of 0.05; the last one includes 1."""
    edges = np.round(np.linspace(-1, 1, 41), 2)
    counts, _ = np.histogram(cosines.numpy(), bins=edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _duplicates(codebook: Codebook) -> dict[str, Any]:
    """Count exact copies of rows, and whether copies come from one image."""
    _, group, sizes = torch.unique(codebook.prototypes.cpu(), dim=0, return_inverse=True, return_counts=True)
    repeated = [number for number, size in enumerate(sizes.tolist()) if size > 1]
    result = {
        "n_superfluous": len(codebook) - len(sizes),
        "n_repeated_rows": len(repeated),
        "group_sizes": sorted(sizes[repeated].tolist(), reverse=True),
    }
    if codebook.image_ids:
        images = [{codebook.image_ids[row] for row in torch.where(group == number)[0]} for number in repeated]
        result["n_repeated_in_one_image"] = sum(len(ids) == 1 for ids in images)
    return result


def _image_counts(image_ids: Sequence[int | str]) -> dict[str, Any]:
    """Count the images behind a codebook, and how many prototypes each gives."""
    per_image = Counter(image_ids)
    given = Counter(per_image.values())
    return {
        "n_ids": len(image_ids),
        "n_distinct": len(per_image),
        "images_by_n_prototypes": {str(count): given[count] for count in sorted(given)},
    }


def _spectrum(rows: torch.Tensor) -> dict[str, Any]:
    """Describe how many directions the centred rows spread over."""
    centred = rows - rows.mean(0)
    # The Gram matrix has the covariance's non-zero eigenvalues and is n x n instead of d x d.
    variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0).clamp_min(0)[: len(rows) - 1]
    ratio = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    cumulative = ratio.cumsum(0)
    return {
        "explained_variance_ratio": [_rounded(value) for value in ratio],
        "effective_rank": _rounded(torch.special.entr(ratio).sum().exp()),
        "n_components": {str(share): int((cumulative < share).sum()) + 1 for share in (0.5, 0.9, 0.95, 0.99)},
    }


def _cluster_cosines(codebook: Codebook, cosines: torch.Tensor) -> dict[str, Any]:
    """Compare rows of one stage-2 cluster with each other and with those of the other clusters."""
    labels = torch.tensor(codebook.metadata["clusters"])
    same = labels[:, None] == labels[None, :]
    pairs = ~torch.eye(len(labels), dtype=torch.bool)
    within = [cosines[same & pairs & (labels == number)[:, None]] for number in labels.unique()]
    return {
        "sizes": labels.bincount().tolist(),
        "n_images": [
            len({codebook.image_ids[row] for row in torch.where(labels == number)[0]})
            if codebook.image_ids
            else None
            for number in labels.unique()
        ],
        "mean_cosine_within": [_rounded(values.mean()) if len(values) else None for values in within],
        "mean_cosine_between": None if bool(same.all()) else _rounded(cosines[~same].mean()),
    }
