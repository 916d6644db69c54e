"""Fit what prunes to what was probed: images of a folder one by one, or of a record, whose tokens are encoded anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rcblib.codebook.pooling import ProbedImage
from rcblib.codebook.scorer import PENALTY, Scorer, fit_scorer
from rcblib.data.opening import images_for, open_dataset
from rcblib.mllm import adapter_for, load_model
from rcblib.probe.recorded import EncodedTokens, recorded_rows
from rcblib.probe.store import read_probe_by_image
from rcblib.runs.records import is_record, read_record


def fit_to_probed(probed: str | os.PathLike, penalty: float = PENALTY) -> Scorer:
    """Fit a scorer to what was probed of a model.

    Parameters
    ----------
    probed : path-like
        A folder that `python -m rcblib probe` wrote, for any model; or the recorded table of a probing stage, whose
        model and images are opened again.
    penalty : float
        As for `fit_scorer`.
    """
    read = _of_record if is_record(probed) else _of_folder
    description, images = read(probed)
    known = {name: description[name] for name in ("model", "model_fingerprint", "config")}
    return fit_scorer(images, penalty=penalty, family=description["family"], metadata=known)


def write_scorer(probed: str | os.PathLike, folder: str | os.PathLike, penalty: float = PENALTY) -> str:
    """Fit a scorer, write it into a folder, and say in a line how well it tells."""
    scorer = fit_to_probed(probed, penalty)
    scorer.save_pretrained(folder)
    known = scorer.metadata
    told = ", ".join(f"{name} {value:.2f}" for name, value in known["correlation"].items())
    return f"{known['n_tokens']} tokens of {known['n_images']} images, rank correlation {told}, in {folder}"


def _of_folder(folder: str | os.PathLike) -> tuple[dict[str, Any], Iterator[ProbedImage]]:
    description, probed = read_probe_by_image(folder)
    return description, (ProbedImage.from_table(table, tokens) for table, tokens in probed)


def _of_record(path: str | os.PathLike) -> tuple[dict[str, Any], Iterator[ProbedImage]]:
    record = read_record(path)
    options = record.facts["stage"]["options"]
    model, processor = load_model(options["model"], "cpu", options.get("dtype", "auto"))
    images = images_for(options["images"], model)
    samples = list(open_dataset(images, options.get("split"), options.get("n_images")))
    tokens = EncodedTokens(adapter_for(model, processor), samples)
    table = recorded_rows(record, samples, record.description)
    groups = table.groupby("image_id", sort=False)
    return dict(record.description), (ProbedImage.from_table(rows, tokens) for _, rows in groups)
