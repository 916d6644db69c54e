"""Look at prototypes: which tokens of other images are nearest to them, and what lies under the tokens they drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rcblib.codebook.codebook import Codebook
from rcblib.mllm import Adapter
from rcblib.mllm.language import OneVisual
from rcblib.reading.statistics import Estimate, mean_interval, spearman
from rcblib.records import CodebookError, ImageId, ParameterError, Question
from rcblib.tensors.checks import check_features
from rcblib.tensors.scoring import keep_indices


def nearest_tokens(
    codebook: Codebook, tokens: torch.Tensor, image_ids: Sequence[ImageId], n_nearest: int = 8
) -> pd.DataFrame:
    """Find the tokens nearest to each prototype cluster, one an image at most.

    Parameters
    ----------
    codebook : Codebook
        Its ``metadata["clusters"]`` names the cluster of each prototype; without them all form one.
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` visual tokens of some images.
    image_ids : sequence
        ``(n_tokens,)`` image of each token.
    n_nearest : int
        Tokens a cluster, at least 1; fewer where there are fewer images.

    Returns
    -------
    pandas.DataFrame
        ``cluster``, ``row`` among the tokens, ``image_id`` and ``similarity``, the largest cosine to a prototype of the
        cluster; by cluster and decreasing similarity.

    Raises
    ------
    ParameterError
        If a length disagrees, a token is not finite, or `n_nearest` is below 1.
    CodebookError
        If the codebook is of another width.
    """
    check_features("tokens", tokens, "(n_tokens, d_model)")
    if len(image_ids) != len(tokens):
        raise ParameterError("image_ids", f"{len(image_ids)} values", f"one a token: {len(tokens)}")
    if n_nearest < 1:
        raise ParameterError("n_nearest", n_nearest, "an integer of at least 1")
    codebook.check_fits("", tokens.shape[1])
    similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(codebook.prototypes.float(), dim=-1).T
    clusters = np.array(codebook.metadata.get("clusters", [0] * len(codebook)))
    frames = []
    for cluster in np.unique(clusters):
        best = similarity[:, torch.from_numpy(clusters == cluster)].amax(1).cpu().numpy()
        frame = pd.DataFrame(
            {"cluster": cluster, "row": np.arange(len(best)), "image_id": image_ids, "similarity": best}
        )
        frame = frame.sort_values("similarity", ascending=False, kind="stable")
        frames.append(frame.drop_duplicates("image_id").head(n_nearest))
    return pd.concat(frames, ignore_index=True)


def prototypes_by_position(codebook: Codebook, n_tokens: int) -> np.ndarray:
    """Count how many prototypes come from each grid position.

    Returns
    -------
    numpy.ndarray
        ``(n_tokens,)`` in raster order.

    Raises
    ------
    CodebookError
        If the codebook does not know its positions, or one lies outside the grid.
    """
    if codebook.positions is None or max(codebook.positions) >= n_tokens:
        found = "none" if codebook.positions is None else f"up to {max(codebook.positions)}"
        raise CodebookError(f"positions: got {found}; accepted: one a prototype, below {n_tokens}")
    return np.bincount(codebook.positions, minlength=n_tokens)


def codebook_agreement(
    first: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
    retain_ratio: float,
    *,
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """Compare two codebooks by what they would do to the same images, under ``max_cosine``.

    Parameters
    ----------
    first, second : sequence of torch.Tensor
        For each image ``(n_tokens,)`` redundancy scores by each codebook.
    retain_ratio : float
        Share of tokens kept, in (0, 1).
    generator : numpy.random.Generator
        Source of the bootstrap over images.

    Returns
    -------
    dict of Estimate
        ``rank_correlation``: Spearman's, of the scores inside each image, mean over images; ``kept_overlap``: share of
        the tokens kept by the first that the second keeps too, mean over images (`retain_ratio` for two codebooks that
        know nothing of each other).

    Raises
    ------
    ParameterError
        If the codebooks scored other numbers of tokens, or the ratio keeps no token of an image.
    """
    n_scored = [[len(scores) for scores in given] for given in (first, second)]
    if n_scored[0] != n_scored[1]:
        given = " and ".join(f"{sum(n)} of {len(n)} images" for n in n_scored)
        raise ParameterError("scores", given, "of the same tokens")
    overlaps = []
    for both in zip(first, second, strict=True):
        kept = [set(keep_indices(each, retain_ratio=retain_ratio).tolist()) for each in both]
        if not kept[0]:
            accepted = f"a share that keeps some of {len(both[0])} tokens"
            raise ParameterError("retain_ratio", retain_ratio, accepted)
        overlaps.append(len(kept[0] & kept[1]) / len(kept[0]))
    images = np.repeat(np.arange(len(overlaps)), n_scored[0])
    x, y = (torch.cat(list(given)).float().cpu().numpy() for given in (first, second))
    return {
        "rank_correlation": spearman(x, y, images, generator=generator),
        "kept_overlap": mean_interval(overlaps, generator=generator),
    }


def first_token_agreement(
    adapter: Adapter,
    questions: Sequence[Question],
    variants: Mapping[str, Mapping[int, OneVisual]],
    reference: str,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Ask the same questions about variants of the images' tokens, and compare the first answer tokens.

    Parameters
    ----------
    adapter : Adapter
        Of the model, with its processor.
    questions : sequence of Question
        At least one.
    variants : Mapping
        Name to image id to the rows that the LLM is fed for that image, as `Adapter.first_token_logits` takes them.
    reference : str
        The variant that others are compared with, such as the whole image.
    batch_size : int
        Inputs per forward pass.

    Returns
    -------
    pandas.DataFrame
        One row a variant and question: ``variant``, ``image_id``, ``task``, ``question``, ``agrees`` (1 where the
        likeliest first token is the reference's, else 0) and ``probability``, which the variant gives to that token.

    Raises
    ------
    ParameterError
        If there are no questions, the reference is no variant, or a variant lacks an image.
    """
    if not questions:
        raise ParameterError("questions", "none", "at least one")
    if reference not in variants:
        raise ParameterError("reference", reference, f"one of {', '.join(variants)}")
    for name, images in variants.items():
        missing = sorted({question.image_id for question in questions} - set(images))
        if missing:
            raise ParameterError(
                f"variants[{name!r}]", f"no tokens of images {missing[:5]}", "every image asked about"
            )
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.text, []).append(place)
    logits = {name: torch.empty(len(questions), adapter.n_vocab) for name in variants}
    for text, asked in places.items():
        for name, images in variants.items():
            rows = [images[questions[place].image_id] for place in asked]
            logits[name][asked] = adapter.first_token_logits(
                adapter.prompt(text), rows, batch_size=batch_size
            )
    expected = logits[reference].argmax(-1)
    frames = []
    for name, found in logits.items():
        probability = found.softmax(-1).gather(1, expected[:, None])[:, 0]
        frames.append(
            pd.DataFrame(
                {
                    "variant": name,
                    "image_id": [question.image_id for question in questions],
                    "task": [question.task for question in questions],
                    "question": [question.text for question in questions],
                    "agrees": (found.argmax(-1) == expected).double().numpy(),
                    "probability": probability.double().numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def coverage_of_kept(
    coverage: Sequence[np.ndarray],
    kept: Sequence[Sequence[int]],
    image_ids: Sequence[ImageId],
    least: float = 0.5,
) -> pd.DataFrame:
    """Say what lies under the tokens that a pruner kept and those that it dropped, one row an image.

    Parameters
    ----------
    coverage : sequence of numpy.ndarray
        For each image ``(n_tokens,)``: the share of each patch that objects cover.
    kept : sequence of sequence of int
        For each image the positions kept.
    image_ids : sequence of int or str
        One an image.
    least : float
        A patch counts as an object's where objects cover at least this share.

    Returns
    -------
    pandas.DataFrame
        ``image_id``; ``kept`` and ``dropped``, the mean coverage of these patches; ``object_patches_kept``, the share
        of the objects' patches that survive; ``n_kept``, ``n_object_patches``. NaN where nothing is to be averaged.

    Raises
    ------
    ParameterError
        If lengths disagree.
    """
    if not len(coverage) == len(kept) == len(image_ids):
        lengths = (len(coverage), len(kept), len(image_ids))
        raise ParameterError("coverage, kept, image_ids", lengths, "one entry an image in each")
    rows = []
    for image_id, shares, positions in zip(image_ids, coverage, kept, strict=True):
        survives = np.zeros(len(shares), dtype=bool)
        survives[np.asarray(positions, dtype=int)] = True
        on_object = shares >= least
        rows.append(
            {
                "image_id": image_id,
                "kept": _mean(shares[survives]),
                "dropped": _mean(shares[~survives]),
                "object_patches_kept": _mean(survives[on_object]),
                "n_kept": int(survives.sum()),
                "n_object_patches": int(on_object.sum()),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
