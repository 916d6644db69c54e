"""Score visual tokens against redundant prototypes and choose which to keep."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F

from rcblib.records import CodebookError, ParameterError
from rcblib.tensors.checks import check_features, check_finite, check_shape

RULES = ("max_cosine", "double_softmax", "single_softmax")

MOST_COSINES = 2**24
"""Cosines that are held at once where only the largest of a token is asked for: 64 MiB in float32."""


class UnitPrototypes:
    """Hold redundant prototypes at length 1: checked once, and made once for each device and dtype they are asked in.

    Parameters
    ----------
    prototypes : torch.Tensor
        ``(n_prototypes, d)``; their lengths are irrelevant. They must not change afterwards.

    Raises
    ------
    CodebookError
        If they have another shape, or a value that is not finite.
    """

    def __init__(self, prototypes: torch.Tensor):
        try:
            check_features("prototypes", prototypes, "(n_prototypes, d)")
        except ParameterError as error:
            raise CodebookError(str(error)) from None
        self._given = prototypes.detach()
        self._made: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def like(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``(n_prototypes, d)`` on the device and in the dtype of ``(..., d)`` tokens.

        Raises
        ------
        CodebookError
            If the tokens have another width.
        """
        width, d = self._given.shape[1], tokens.shape[-1]
        if width != d:
            raise CodebookError(f"prototypes: got width {width}; accepted: the tokens' width, {d}")
        key = tokens.device, tokens.dtype
        if key not in self._made:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # whoever asks first, others may ask with gradients
                self._made[key] = F.normalize(self._given.to(*key), dim=-1)
        return self._made[key]


def _check_rule(rule: object) -> None:
    if rule not in RULES:
        raise ParameterError("rule", rule, f"one of {RULES}")


def redundancy_scores(
    tokens: torch.Tensor, prototypes: torch.Tensor | UnitPrototypes, rule: str = "max_cosine"
) -> torch.Tensor:
    """Score every visual token by its similarity to the redundant prototypes.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(..., n_tokens, d)`` tokens after the connector; the leading dimensions are images, tiles or frames.
    prototypes : torch.Tensor or UnitPrototypes
        ``(n_prototypes, d)``; their lengths are irrelevant. Who scores again and again makes `UnitPrototypes` of them.
    rule : {"max_cosine", "double_softmax", "single_softmax"}
        ``max_cosine``: largest cosine to any prototype, in [-1, 1]; 0 for a token of zeros.
        ``double_softmax``: largest product of the softmax over the tokens of the image, tile or frame and the
        softmax over prototypes, in (0, 1].
        ``single_softmax``: largest entry of the softmax over prototypes, in (0, 1].

    Returns
    -------
    torch.Tensor
        ``(..., n_tokens)``; higher = more redundant. In the dtype of `tokens` for ``max_cosine``, at least
        float32 for the softmax rules.

    Raises
    ------
    ParameterError
        If the rule is unknown, the shape of `tokens` differs, or one of its values is not finite.
    CodebookError
        If the prototypes have another width, another shape, or a value that is not finite.

    Notes
    -----
    Source: pruning at inference; the released ``high_info_patch*`` modes. As there, the softmaxes take raw
    cosines without temperature, so their scores lie close together, and duplicate prototypes count in their
    sums.
    Differs: half-precision tokens are scored in float32. The release stays in half precision throughout,
    where rounding makes many softmax scores tie; cosines agree to 1e-3.
    """
    _check_rule(rule)
    check_shape("tokens", tokens, "(..., n_tokens, d)")
    known = prototypes if isinstance(prototypes, UnitPrototypes) else UnitPrototypes(prototypes)
    unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    directions = known.like(unit)
    if rule == "max_cosine":
        n_block = max(1, MOST_COSINES // max(1, unit[..., 0].numel()))
        largest = [(unit @ block.T).amax(-1) for block in directions.split(n_block)]
        scores = functools.reduce(torch.maximum, largest).to(tokens.dtype)
    else:
        similarity = unit @ directions.T
        weight = similarity.softmax(-1)
        if rule == "double_softmax":
            weight = weight * similarity.softmax(-2)
        scores = weight.amax(-1)
    # A value that is not finite makes NaN of its token's score, and there are fewer of those.
    check_finite("tokens", scores)
    return scores


def keep_indices(
    scores: torch.Tensor,
    *,
    max_similarity: float | None = None,
    retain_ratio: float | None = None,
    rule: str = "max_cosine",
) -> torch.Tensor:
    """Choose the tokens of one image, tile or frame that survive pruning.

    Exactly one budget is given. A lower value of either never keeps more tokens, and may keep none.

    Parameters
    ----------
    scores : torch.Tensor
        ``(n_tokens,)`` from `redundancy_scores` under the same rule; higher = more redundant.
    max_similarity : float, optional
        Cosine cut-off in [-1, 1], for ``max_cosine`` only: tokens strictly below it are kept, however many
        they are. It is rounded to the dtype of `scores` first.
    retain_ratio : float, optional
        Share of the tokens to keep, in [0, 1]; 1 keeps all. Counts round half to even.
        ``max_cosine`` keeps the ``round(n_tokens * retain_ratio)`` lowest scores, the earlier token where two
        tie.
        The softmax rules keep what is strictly below the ``round(n_tokens * (1 - retain_ratio))``-th largest,
        so tokens that tie with it are all dropped and fewer may remain.
    rule : {"max_cosine", "double_softmax", "single_softmax"}
        The rule that made the scores.

    Returns
    -------
    torch.Tensor
        ``(n_kept,)`` int64 positions, ascending.

    Raises
    ------
    ParameterError
        If both or no budget is given, a budget is out of range or does not go with the rule, the rule is
        unknown, the scores are not one-dimensional, or one of them is not finite.

    Notes
    -----
    Source: the released ``high_info_patch`` (cut-off), ``_fix_num``, ``_double_smx`` and ``_single_smx``
    modes, whose one setting ``toxic_codebook_thres`` is the cut-off in the first and the share in the others.
    Strictness, rounding and dropped ties are reproduced on purpose.
    Differs: a ratio that rounds to dropping nothing keeps everything, where the release fails.
    """
    check_budget(max_similarity=max_similarity, retain_ratio=retain_ratio, rule=rule)
    check_features("scores", scores, "(n_tokens,)")
    if max_similarity is None:
        return lowest_share(scores, retain_ratio, drops_ties=rule != "max_cosine")
    cut = torch.tensor(max_similarity, dtype=scores.dtype, device=scores.device)
    return torch.nonzero(scores < cut).flatten()


def check_budget(
    *, max_similarity: float | None = None, retain_ratio: float | None = None, rule: str = "max_cosine"
) -> None:
    """Raise a `ParameterError` where `keep_indices` would not take a budget, whatever the scores."""
    _check_rule(rule)
    if (max_similarity is None) == (retain_ratio is None):
        given = f"max_similarity={max_similarity}, retain_ratio={retain_ratio}"
        raise ParameterError("budget", given, "exactly one of max_similarity and retain_ratio")
    if max_similarity is None:
        _check_range("retain_ratio", retain_ratio, 0, 1)
        return
    if rule != "max_cosine":
        raise ParameterError("max_similarity", max_similarity, f"None for rule {rule!r}; give retain_ratio")
    _check_range("max_similarity", max_similarity, -1, 1)


def lowest_share(scores: torch.Tensor, retain_ratio: float, drops_ties: bool = False) -> torch.Tensor:
    """Return the ascending positions that `keep_indices` chooses under a share; scores and share were checked.

    Parameters
    ----------
    scores : torch.Tensor
        ``(n_tokens,)``; lower = keep.
    retain_ratio : float
        In [0, 1].
    drops_ties : bool
        Whether all that tie at the cut are dropped, as under the softmax rules.
    """
    n_tokens = scores.shape[0]
    if not drops_ties:
        order = scores.argsort(stable=True)
        return order[: round(n_tokens * retain_ratio)].sort().values
    n_dropped = round(n_tokens * (1 - retain_ratio))
    if n_dropped == 0:
        return torch.arange(n_tokens, device=scores.device)
    return torch.nonzero(scores < scores.topk(n_dropped).values[-1]).flatten()


def calibrate_max_similarity(scores: Sequence[torch.Tensor], retain_ratio: float) -> float:
    """Find the cut-off that retains a share of the tokens on average over some images.

    Parameters
    ----------
    scores : sequence of torch.Tensor
        ``(n_tokens,)`` for each image (or tile, or frame), from `redundancy_scores` with ``max_cosine``. Images of
        different size weigh the same.
    retain_ratio : float
        Mean share of an image's tokens to retain, in (0, 1).

    Returns
    -------
    float
        For `keep_indices` as ``max_similarity``: halfway between the scores on either side of the cut, where tokens
        below it first make up at least that share (equal scores stay together); 1 where nothing is above.

    Raises
    ------
    ParameterError
        If there are no scores, they are not finite, or the share is out of range.
    """
    if not isinstance(retain_ratio, Real) or not 0 < retain_ratio < 1:
        raise ParameterError("retain_ratio", retain_ratio, "a number above 0 and below 1")
    scores = list(scores)
    if not scores or not all(len(each) for each in scores):
        raise ParameterError("scores", f"{len(scores)} images", "at least one image, each with a score")
    for each in scores:
        check_features("scores", each, "(n_tokens,)")
    pooled = torch.cat([each.double().cpu() for each in scores])
    weights = torch.cat([torch.full((len(each),), 1 / len(each), dtype=torch.float64) for each in scores])
    ordered, order = pooled.sort(stable=True)
    shares = weights[order].cumsum(0) / len(scores)  # retained by a cut-off just above each score
    n_below = int((shares < retain_ratio - 1e-9).sum()) + 1
    last = ordered[n_below - 1]
    above = ordered[ordered > last]
    return float((last + above[0]) / 2) if len(above) else 1.0


def _check_range(parameter: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, Real) or not low <= value <= high:
        raise ParameterError(parameter, value, f"a number from {low} to {high}")
