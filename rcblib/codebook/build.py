"""Select redundant prototypes among probed tokens: small clusters of an image that recur across images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rcblib.codebook.codebook import Codebook, image_identifiers
from rcblib.codebook.criterion import CodebookCriterion, as_doubles
from rcblib.records import CodebookError, ImageId, ParameterError
from rcblib.runs.provenance import provenance
from rcblib.tensors.clustering import dpc_knn

N_NEIGHBOURS = 5
"""Neighbours that give DPC-KNN its density; an image needs at least as many tokens."""

_Grid = tuple[int | str, int | None]  # image of a token, and its view where an image has several


def build_codebook(
    tokens: torch.Tensor,
    image_ids: Sequence[ImageId],
    top1: Any,
    region: Any,
    global_: Any,
    criterion: CodebookCriterion,
    generator: torch.Generator | None = None,
    *,
    positions: Sequence[int] | None = None,
    views: Sequence[int] | None = None,
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
    views : sequence of int, optional
        ``(n_tokens,)`` number of each token's grid in its image, where an image has several (tiles, frames): stage 1
        then clusters every grid by itself. Kept as ``metadata["views"]``.
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
    Differs: the script adds a position's m tied tokens m² times (quirk 48); here every token counts once, also one that
    two views of an image share because it is read twice, as a whole and as a tile. The script knows no views; that
    grids are clustered one by one follows from their being pruned one by one.
    """
    grids, signals = _checked_selection(tokens, image_ids, top1, region, global_, criterion, positions, views)
    image_ids = tuple(image_id for image_id, _ in grids)
    low = criterion.low_information(*signals)
    rows_of: dict[_Grid, list[int]] = {}
    for row, grid in enumerate(grids):
        rows_of.setdefault(grid, []).append(row)

    pooled: list[int] = []
    for rows in rows_of.values():
        for members in _clusters(tokens, rows, criterion.n_clusters, generator):
            if len(members) <= criterion.cluster_size_max:
                pooled += [row for row in members if low[row]]
    pooled = _without_copies(tokens, pooled, grids)
    counts = (
        f"{len(image_ids)} tokens of {len(set(image_ids))} images, {int(low.sum())} low-information (top-1 "
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
        "n_images": len(set(image_ids)),
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
            **({} if views is None else {"views": [grids[row][1] for row in kept]}),
            "provenance": provenance(),
            **(metadata or {}),
        },
    )


def _without_copies(tokens: torch.Tensor, rows: list[int], grids: Sequence[_Grid]) -> list[int]:
    """Leave out rows whose token, to the last bit, another view of the same image has given before."""
    first_view: dict[tuple[int | str, bytes], int | None] = {}
    distinct = []
    for row in rows:
        image_id, view = grids[row]
        token = tokens[row].detach().cpu().double().numpy().tobytes()
        if first_view.setdefault((image_id, token), view) == view:
            distinct.append(row)
    return distinct


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
    views: Any,
) -> tuple[list[_Grid], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Check everything `build_codebook` is given; return each row's grid and the three signals as doubles."""
    if not isinstance(criterion, CodebookCriterion):
        raise ParameterError("criterion", criterion, "a CodebookCriterion")
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or not tokens.is_floating_point():
        given = tuple(getattr(tokens, "shape", ())) or type(tokens).__name__
        raise ParameterError("tokens", given, "a floating-point tensor (n_tokens, d_model)")
    if not bool(torch.isfinite(tokens).all()):
        n_broken = int((~torch.isfinite(tokens)).any(dim=1).sum())
        raise ParameterError("tokens", f"{n_broken} rows with NaN or infinite values", "finite values")
    image_ids = image_identifiers(image_ids)
    signals = (as_doubles(top1), as_doubles(region), as_doubles(global_))
    named = {"image_ids": image_ids, "top1": signals[0], "region": signals[1], "global_": signals[2]}
    optional = {"positions": positions, "views": views}
    named |= {name: values for name, values in optional.items() if values is not None}
    for name, values in named.items():
        if len(values) != len(tokens) or getattr(values, "ndim", 1) != 1:
            raise ParameterError(name, f"{len(values)} values", f"one for each of the {len(tokens)} tokens")
    for name in ("top1", "region", "global_"):
        if not np.isfinite(named[name]).all():
            raise ParameterError(name, "NaN or infinite values", "finite values")
    outside = signals[0][(signals[0] < 0) | (signals[0] > 1)]
    if len(outside):
        raise ParameterError("top1", float(outside[0]), "probabilities in [0, 1]")
    view_of_row = [None] * len(tokens) if views is None else [int(view) for view in views]
    grids = list(zip(image_ids, view_of_row, strict=True))
    n_needed = max(criterion.n_clusters, N_NEIGHBOURS)
    for (image_id, view), n_tokens in Counter(grids).items():
        if n_tokens < n_needed:
            what, of = ("image", "") if view is None else ("view", f"{view} of image ")
            accepted = f"at least {n_needed} of every {what} (n_clusters, k)"
            raise ParameterError("tokens", f"{n_tokens} of {what} {of}{image_id!r}", accepted)
    n_images = len(set(image_ids))
    if n_images <= criterion.min_images:
        raise ParameterError(
            "min_images", criterion.min_images, f"fewer than the {n_images} images that the tokens come from"
        )
    return grids, signals
