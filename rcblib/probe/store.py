"""Probe datasets into folders of files that an interrupted run goes on with."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from rcblib.data.ahead import loaded_ahead
from rcblib.data.base import AnySample, check_apart
from rcblib.data.samples import as_samples, identified, sample_identity
from rcblib.data.skipped import record_skipped, skipped_in
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint, model_name, processor_settings
from rcblib.probe.config import ProbeConfig
from rcblib.probe.context import prompt_for
from rcblib.probe.inputs import size_limit
from rcblib.probe.recorded import EncodedTokens, recorded_rows
from rcblib.probe.results import (
    DESCRIPTION_FILE,
    ProbeResults,
    StoredTokens,
    finished,
    no_image,
    read_results,
    table_file,
    tokens_file,
)
from rcblib.probe.run import probe_input
from rcblib.records import ImageError, ParameterError
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import (
    atomic_write,
    config_hash,
    read_json,
    read_table,
    to_plain,
    write_json,
    write_table,
)
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import provenance
from rcblib.runs.records import is_record, read_record
from rcblib.runs.shards import Shard
from rcblib.signals import SIGNALS, Signal

if TYPE_CHECKING:
    import pandas as pd


def probe_dataset(
    model: Any,
    processor: Any,
    samples: Iterable[AnySample],
    config: ProbeConfig,
    folder: str | os.PathLike,
    progress: bool = True,
    *,
    on_error: str = "stop",
    shard: Shard | None = None,
) -> ProbeResults:
    """Probe samples one after the other into a folder, and go on where an earlier run of the same config stopped.

    A finished sample, be it a photo, several photos or a video, is two files named by its id: its visual tokens
    (safetensors), then its table (Parquet, with config, model, sample and versions in its metadata). Both are written
    atomically, so a run that is killed loses no finished sample and leaves none half written. Later runs may bring
    other samples and batch sizes. What other code has computed is computed anew, never mixed with the rest, and so is
    a photo, of a folder, whose file has changed; one line says so.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    samples : iterable of Sample or SequenceSample
        Photos, groups of photos that are asked about together, or videos; their ids are distinct.
    config : ProbeConfig
        What is probed and how.
    folder : path-like
        Made where it is missing.
    progress : bool
        Whether to print a line an image.
    on_error : {"stop", "skip"}
        Whether samples that cannot be read, or that the processor refuses, stop the run before any is probed, or are
        left out; the folder keeps which and why in ``skipped/``.
    shard : Shard, optional
        Which of the samples, by their ids; by default all. Shards may share the folder, and are given all samples all
        the same, so that `rcblib.runs.merging` can tell what is missing.

    Returns
    -------
    ProbeResults
        Of these samples, in their order; other images in the folder are left alone.

    Raises
    ------
    ImageError
        Before any image is probed: if there is no sample, or some cannot be read; all of these are named.
    ParameterError
        If ids repeat, the folder is that of the images or was made with another config or model, an image of an id is
        another than the folder's, or as `probe`. What does not depend on the images, such as videos for a family that
        takes none, is found before any is probed.
    """
    if not isinstance(config, ProbeConfig):
        raise ParameterError("config", type(config).__name__, "a ProbeConfig")
    skipped, images_folder = dict(getattr(samples, "skipped", {})), getattr(samples, "folder", None)
    every, shard = _checked(samples), shard or Shard()
    own = set(shard.of_images((sample.image_id for sample in every), skipped))
    samples = [sample for sample in every if sample.image_id in own]
    adapter = adapter_for(model, processor)
    config.check_cls(adapter.has_cls)
    prompts = {
        each: prompt_for(adapter, config.question, *each) for each in {(s.kind, s.n_images) for s in samples}
    }
    description = _describe(adapter, config)
    folder = user_path(folder, "folder")
    check_apart(images_folder, folder)
    _check_folder(folder, description)
    limit = size_limit(adapter, config)
    identities, unread = identified(samples, on_error, limit, are_some_of_many=shard.n_shards > 1)
    samples = [sample for sample in samples if sample.image_id in identities]
    states = {i: _state(folder, identity, description["code"]) for i, identity in identities.items()}
    unfinished = [s for s in samples if states[s.image_id] != "finished"]
    if not (folder / DESCRIPTION_FILE).is_file() or read_json(folder / DESCRIPTION_FILE) != description:
        write_json(folder / DESCRIPTION_FILE, description)
    if n_stale := sum(state == "stale" for state in states.values()):
        print(f"probing: {n_stale} of {len(samples)} images were probed by other code: again", flush=True)
    if n_changed := sum(state == "changed" for state in states.values()):
        print(f"probing: {n_changed} of {len(samples)} images have changed since: again", flush=True)
    skipped |= unread
    record_skipped(folder, skipped, identities)
    if progress and len(unfinished) < len(samples):
        print(
            f"probing: {len(samples) - len(unfinished)} of {len(samples)} images are there already",
            flush=True,
        )
    versions, start = provenance(), time.perf_counter()
    begun = time.perf_counter()
    for k, (sample, pictures) in enumerate(loaded_ahead(unfinished), 1):
        table, tokens = probe_input(adapter, pictures, sample.kind, sample, config)
        atomic_write(tokens_file(folder, sample.image_id), save({"tokens": tokens.cpu().contiguous()}))
        own = {"prompt": prompts[sample.kind, sample.n_images], "sample": identities[sample.image_id]}
        took = {"seconds": time.perf_counter() - begun, "provenance": versions}
        metadata = description | own | took
        write_table(table_file(folder, sample.image_id), table, metadata)
        begun = time.perf_counter()
        if progress:
            rate = k / max(time.perf_counter() - start, 1e-9)  # coarse clocks stand still
            print(
                f"probing: image {k} of {len(unfinished)} (id {sample.image_id}), {len(table)} positions, "
                f"{rate:.2f} images/s, {(len(unfinished) - k) / rate:.0f} s left",
                flush=True,
            )
    tables = [table_file(folder, sample.image_id) for sample in samples]
    share = shard.share((sample.image_id for sample in every), skipped)
    return read_results(folder, tables, description, skipped, share)


def shared_probe(
    model: Any,
    processor: Any,
    samples: Iterable[AnySample],
    config: ProbeConfig,
    results_folder: str | os.PathLike,
    progress: bool = True,
    *,
    on_error: str = "stop",
    shard: Shard | None = None,
) -> ProbeResults:
    """Probe images into the folder that every notebook with the same model, images and settings uses, or read a record.

    Parameters
    ----------
    model, processor, samples, config, progress, on_error, shard
        As for `probe_dataset`.
    results_folder : path-like
        Where results are kept; see `shared_folder`. A path to a recorded table (``.parquet``) instead: nothing is
        probed, and a line says when and by which code it was.

    Returns
    -------
    ProbeResults
        As `probe_dataset`; of images that another notebook has probed nothing is computed again. Visual tokens of
        recorded images are encoded when asked for.

    Raises
    ------
    ImageError, ParameterError
        As `probe_dataset`; also if a record is damaged, of other settings, another model or other images.
    """
    if not is_record(results_folder):
        samples = samples if hasattr(samples, "__len__") else list(samples)
        folder = shared_folder(model, processor, _checked(samples), config, results_folder)
        settings = {"on_error": on_error, "shard": shard}
        results = probe_dataset(model, processor, samples, config, folder, progress, **settings)
        print(f"probing: computed here, code {results.description['code']}", flush=True)
        return results
    samples = _checked(samples)
    record, adapter = read_record(results_folder), adapter_for(model, processor)
    description = _describe(adapter, config)
    table = recorded_rows(record, samples, description)
    print(f"probing: {record.origin(description['code'])}", flush=True)
    return ProbeResults(table, EncodedTokens(adapter, samples), record.description, record.facts)


def shared_folder(
    model: Any,
    processor: Any,
    samples: Sequence[AnySample],
    config: ProbeConfig,
    results_folder: str | os.PathLike,
) -> Path:
    """Return ``probe/<hash>`` below a folder of results.

    Its name holds the settings, model, code, and the sample of the lowest id, so that scenes drawn by other code stay
    apart; of photos the name of their folder, as the first may be another when some come or go.
    """
    key = _describe(adapter_for(model, processor), config)
    del key["model"]  # its name; the fingerprint says which model it is, wherever it lies
    first = min(samples, key=lambda sample: sample.image_id)
    by_name = first.kind == "image" and first.image_id == first.file_name
    key["first"] = first.source if by_name else sample_identity(first)
    return user_path(results_folder, "results_folder") / "probe" / config_hash(key)


def read_probe(folder: str | os.PathLike) -> ProbeResults:
    """Read every finished image of a folder that `probe_dataset` wrote, by ascending id.

    Images that other code than the last run's has probed are left out.

    Raises
    ------
    ParameterError
        If it is no such folder, or has no finished image.
    """
    folder, description, tables = _probed(folder)
    return read_results(folder, tables, description, skipped_in(folder))


def read_probe_by_image(
    folder: str | os.PathLike,
) -> tuple[dict[str, Any], Iterator[tuple[pd.DataFrame, StoredTokens]]]:
    """Read the finished images of a folder one after the other, where memory may not hold them together.

    Returns
    -------
    description : dict
        As `ProbeResults.description`.
    images : iterator
        Of each image, in the order of `read_probe`, its rows of the table, numbered as there, and its tokens.

    Raises
    ------
    ParameterError
        As `read_probe`; of a folder without a finished image at its end.
    """
    folder, description, tables = _probed(folder)

    def images() -> Iterator[tuple[pd.DataFrame, StoredTokens]]:
        n_rows = 0
        for table, made in finished(tables, description):
            table.index += n_rows
            n_rows += len(table)
            yield table, StoredTokens(folder, [made["sample"]["image_id"]])
        if not n_rows:
            raise no_image(folder)

    return description, images()


def _probed(folder: str | os.PathLike) -> tuple[Path, dict[str, Any], list[Path]]:
    """Return a folder that was probed into, its description and tables."""
    folder = user_path(folder, "folder")
    if not (folder / DESCRIPTION_FILE).is_file():
        raise ParameterError("folder", folder.name, "a folder that probe_dataset wrote")
    return folder, read_json(folder / DESCRIPTION_FILE), sorted(folder.glob("*.parquet"))


def _checked(given: Iterable[AnySample]) -> list[AnySample]:
    """Return what is given as a list, if it is samples whose ids tell them apart."""
    samples = as_samples(given)
    if not samples:
        raise ImageError("samples: got none; accepted: at least one image")
    counts = Counter(sample.image_id for sample in samples)
    if len({isinstance(image_id, str) for image_id in counts}) > 1:
        raise ParameterError("samples", "image ids of which some are numbers, some text", "ids of one kind")
    repeated = sorted(image_id for image_id, n in counts.items() if n > 1)
    if repeated:
        raise ParameterError("samples", f"image ids {repeated} more than once", "distinct image ids")
    return samples


def _describe(adapter: Adapter, config: ProbeConfig) -> dict[str, Any]:
    """Return what results depend on besides the images; the last entry is the code's part."""
    settings = to_plain(config)
    for name in ("batch_size", "compiled"):
        del settings[name]
    for name, usual in (
        ("views", "all"),
        ("sharing", "auto"),
    ):  # as results were described before there was a choice
        if settings[name] == usual:
            del settings[name]
    return {
        "config": settings,
        "model": model_name(adapter.model),
        "model_fingerprint": model_fingerprint(adapter.model),
        "family": adapter.family,
        "prompt": adapter.prompt(config.question),
        **processor_settings(adapter.processor),
        "code": _code(),
    }


def _code() -> str:
    """Name the code of probing, with signals that were registered elsewhere, such as in a notebook."""
    own = [s for s in SIGNALS.values() if s.compute and s.compute.__module__ != Signal.__module__]
    return " ".join(
        [code_digest("rcblib.probe.run"), *(f"{signal.name} {digest_of(signal.compute)}" for signal in own)]
    )


def _check_folder(folder: Path, description: dict[str, Any]) -> None:
    """Raise where the folder holds results of another config or model."""
    if (folder / DESCRIPTION_FILE).is_file():
        found = read_json(folder / DESCRIPTION_FILE)
        here, wanted = ({**entry, **entry.get("config", {})} for entry in (found, description))
        skipped = {"config", "model", "code"}
        skipped |= {"prompt"} if here.get("question") != wanted["question"] else set()
        keys = dict.fromkeys([*wanted, *here])
        other = [key for key in keys if key not in skipped and here.get(key) != wanted.get(key)]
        if other:
            ours, theirs = ({key: values.get(key) for key in other} for values in (wanted, here))
            raise ParameterError(
                "config", ours, f"that of the folder's results, {theirs}, or an empty folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.glob("*.parquet"))):
        raise ParameterError(
            "folder", folder.name, f"a folder without other files, or one with {DESCRIPTION_FILE}"
        )


def _state(folder: Path, identity: Mapping[str, Any], code: str) -> str:
    """Return ``"finished"``, ``"stale"``, ``"changed"`` or ``"missing"``; raise where the id is another image's.

    A photo that has its name for an id may be replaced by another of that name in the same folder.
    """
    path = table_file(folder, identity["image_id"])
    if not path.is_file() or not tokens_file(folder, identity["image_id"]).is_file():
        return "missing"
    try:
        metadata = read_table(path)[1]
    except ParameterError as error:
        warnings.warn(f"{error}; probing it again", stacklevel=3)
        return "missing"
    found = metadata.get("sample") or {}
    other = {name for name in {**identity, **found} if identity.get(name) != found.get(name)}
    if identity["image_id"] == identity["file_name"]:
        if "pixels" in other and "source" not in other:
            return "changed"
        other -= {"source"}  # the same photo, in a folder of another name
    if other:
        raise ParameterError("samples", identity, f"the image that the folder has under this id, {found}")
    return "finished" if metadata.get("code") == code else "stale"
