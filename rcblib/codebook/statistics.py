"""Describe a codebook in numbers: norms, cosines, duplicates, images and spectrum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.records import ImageId, ParameterError


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


def _image_counts(image_ids: Sequence[ImageId]) -> dict[str, Any]:
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
