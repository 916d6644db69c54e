"""Keep tokens of which linear heads predict that they say something, spread over the picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from rcblib.codebook.scorer import Scorer, load_scorer
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import ParameterError, VisualView

_LEAST = 0.01  # of a predicted rank, lest a negative one turns the order of distances round


@dataclass(frozen=True)
class DistilledPruner(Pruner):
    r"""Keep tokens of which probing would say that they matter, as linear heads predict it, spread over the picture.

    Parameters
    ----------
    scorer : Scorer, str or path-like
        Of the model, fitted by `python -m rcblib scorer`; or a folder, or the name of a shipped one.
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    influence_weight : float
        Weight of the predicted influence beside the predicted single-token probability, in [0, 1].
    spread : float
        Power of the distance from the nearest token that is kept, at least 0; 0 keeps the best wherever they are.

    Notes
    -----
    Rule: :math:`S \leftarrow S \cup \{\arg\max_{i \notin S} q_i\, \min_{j \in S} \lVert r_i - r_j \rVert^{\lambda}\}`
    with :math:`q = (1 - c)\, w_1 \cdot \hat{x} + c\, w_2 \cdot \hat{x}` and places :math:`r`, begun with the largest
    :math:`q`
    Cost: two dot products a token, and :math:`k` steps over :math:`n` tokens. A scorer, fitted once for a model on
    probed tokens, as a codebook is.
    Fails: on pictures unlike those that the scorer was fitted on; where counting needs the background's share.
    Source: this project; its targets are the paper's two signals. Choosing one by one is DivPrune's, by place instead
    of content, and weighted.
    """

    scorer: Scorer = field(kw_only=True)
    retain_ratio: float
    influence_weight: float = 0.5
    spread: float = 1.5

    def __post_init__(self):
        for name, accepted, is_right in (
            ("influence_weight", "a weight in [0, 1]", 0 <= self.influence_weight <= 1),
            ("spread", "a power, at least 0", 0 <= self.spread < float("inf")),
        ):
            if not is_right:
                raise ParameterError(name, getattr(self, name), accepted)
        super().__post_init__()
        object.__setattr__(self, "scorer", load_scorer(self.scorer))

    def description(self) -> dict[str, Any]:
        """Return the settings, in the scorer's place a hash of its numbers."""
        numbers = torch.cat([self.scorer.weights.flatten(), self.scorer.offsets]).float().cpu().numpy()
        return super().description() | {"scorer": hashlib.sha256(numbers.tobytes()).hexdigest()}

    def check(self, adapter: Adapter) -> None:
        """Raise a `ParameterError` where the scorer has another width, or a known other family."""
        super().check(adapter)
        self.scorer.check_fits(adapter.family, adapter.d_model)

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose tokens one by one."""
        single, influence = self.scorer.predict(tokens_of(views)).unbind(-1)
        quality = ((1 - self.influence_weight) * single + self.influence_weight * influence).clamp(min=_LEAST)
        n_kept = self.budget().n_kept(len(quality))
        return spread_by_quality(quality.cpu(), places_of(views), n_kept, self.spread).sort().values


def places_of(views: tuple[VisualView, ...]) -> torch.Tensor:
    """Return ``(n_tokens of all, 2)`` row and column of each token; grids stand below each other, a side apart."""
    below, places = 0, []
    for view in views:
        rows, columns = view.grid
        places.append(torch.cartesian_prod(torch.arange(rows) + below, torch.arange(columns)).float())
        below += rows + max(view.grid)
    return torch.cat(places)


def spread_by_quality(
    quality: torch.Tensor, places: torch.Tensor, n_kept: int, spread: float
) -> torch.Tensor:
    """Choose tokens of high quality that are far from those chosen before.

    Parameters
    ----------
    quality : torch.Tensor
        ``(n_tokens,)``, above 0; higher = chosen earlier.
    places : torch.Tensor
        ``(n_tokens, 2)``, in tokens.
    n_kept : int
        How many are chosen.
    spread : float
        Power of the distance from the nearest chosen token.

    Returns
    -------
    torch.Tensor
        ``(n_kept,)`` positions in the order in which they are chosen; of equal ones the first.
    """
    worth = quality.clone()
    nearest = torch.full_like(quality, torch.inf)
    chosen: list[int] = []
    for _ in range(min(n_kept, len(quality))):
        chosen.append(int(worth.argmax()))
        nearest = torch.minimum(nearest, (places - places[chosen[-1]]).norm(dim=-1))
        worth = quality * nearest**spread
        worth[chosen] = -torch.inf
    return torch.tensor(chosen, dtype=torch.int64)
