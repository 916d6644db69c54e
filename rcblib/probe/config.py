"""Say what is probed and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator

from rcblib.mllm import Adapter
from rcblib.mllm.prefix import SHARING
from rcblib.records import ONE_WORD_QUESTION, ParameterError, VisualView
from rcblib.runs.parameters import Count, Weight, checked
from rcblib.tensors.checks import check_positions
from rcblib.tensors.geometry import evenly_spaced, paper_ranks

NAMED_POSITIONS = ("all", "paper_ranks", "paper_positions", "grid")

NAMED_VIEWS = ("all", "base")


def _as_tuple(value: Any) -> Any:
    """Return a tensor, an array or a sequence of numbers as a tuple."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


Choice = Annotated[str | tuple[int, ...], BeforeValidator(_as_tuple)]


@checked
class ProbeConfig:
    """Say what is probed and how; everything but `batch_size` and `compiled` changes the results.

    Attributes
    ----------
    question : str
        What is asked about the input.
    positions : str or tuple of int
        ``"all"``; ``"paper_ranks"``, the paper's ranks of [CLS] similarity; ``"paper_positions"``, the same numbers
        as grid positions, which the release takes where the encoder has no [CLS] (see `codebook_positions`);
        ``"grid"``, `n_side` x `n_side` evenly spaced positions; or positions by number. Of an input with several
        views, the same choice is made in each.
    views : str or tuple of int
        Which grids are probed: ``"all"``; ``"base"``, every photo reduced to one grid, without its tiles; or views by
        number, counted through all photos of the input (of a video, its frames). What is not probed stays part of
        the input at the global level.
    n_side : int
        Positions along each side for ``"grid"``.
    n_head_candidates : int
        Largest logits over which the top-1 probability is renormalised.
    n_candidates : int
        Candidates over which divergences are computed.
    k_region, k_global : float
        Weights of the two divergences: influence = ``k_region * region + k_global * global``.
    attention : bool
        Whether attention signals are recorded: from [CLS], and from the text in every layer of the LLM.
    sharing : {"auto", "always", "never"}
        Whether what inputs begin with is computed once for all: by default in float32, where it changes nothing that
        shows. In half precision ``"always"`` is two to three times as fast; its results differ from those of whole
        passes as much as these differ from float32's, and are kept and recorded apart from them.
    batch_size : int, optional
        Inputs per forward pass at most; by default as many as memory holds. Changes results by rounding only.
    compiled : bool
        Whether passes are compiled, which pays on a GPU where many images are probed. Changes results by rounding only.

    Raises
    ------
    ParameterError
        On a value of another type or out of range.
    """

    question: str = ONE_WORD_QUESTION
    positions: Choice = "all"
    views: Choice = "all"
    n_side: Count = 8
    n_head_candidates: Count = 50
    n_candidates: Count = 10
    k_region: Weight = 1.0
    k_global: Weight = 16.0
    attention: bool = True
    sharing: str = "auto"
    batch_size: Count | None = None
    compiled: bool = False

    def __post_init__(self):
        if not self.question.strip():
            raise ParameterError("question", self.question, "text")
        if self.sharing not in SHARING:
            raise ParameterError("sharing", self.sharing, ", ".join(SHARING))
        for name, known in (("positions", NAMED_POSITIONS), ("views", NAMED_VIEWS)):
            value = getattr(self, name)
            if isinstance(value, str):
                fits = value in known
            else:
                fits = bool(value) and min(value) >= 0 and len(set(value)) == len(value)
            if not fits:
                accepted = f"{', '.join(known)}, or distinct {name} by number, 0 or above, at least one"
                raise ParameterError(name, value, accepted)

    def choose(self, view: VisualView) -> list[int]:
        """List the positions of a view that are probed, ascending.

        Raises
        ------
        ParameterError
            If a position lies outside the grid, ``"grid"`` asks for more than a side has, or ``"paper_ranks"`` for
            a [CLS] that is not there.
        """
        if self.positions == "all":
            return list(range(view.n_tokens))
        if self.positions == "grid":
            return evenly_spaced(*view.grid, self.n_side)
        if self.positions == "paper_positions":
            return paper_ranks(view.n_tokens)
        if self.positions == "paper_ranks":
            self.check_cls("cls_similarity" in view.signals)
            return sorted(by_similarity(view)[paper_ranks(view.n_tokens)].tolist())
        return sorted(check_positions("positions", self.positions, view.n_tokens))

    def check_cls(self, has_cls: bool) -> None:
        """Raise a `ParameterError` where positions are to be ranked by a [CLS] that the encoder does not have."""
        if self.positions == "paper_ranks" and not has_cls:
            accepted = "all, grid or paper_positions, as this vision encoder has no [CLS] to rank by"
            raise ParameterError("positions", self.positions, accepted)


def codebook_positions(adapter: Adapter) -> str:
    """Name the positions that the authors probe for a codebook of a model.

    Returns
    -------
    str
        ``"paper_ranks"``; without a [CLS] ``"paper_positions"``, the same numbers as positions on the grid. A run's
        record states which one it was.
    """
    return "paper_ranks" if adapter.has_cls else "paper_positions"


def by_similarity(view: VisualView) -> torch.Tensor:
    """Return positions by decreasing similarity to [CLS], ties by position, ``(n_tokens,)``."""
    return torch.argsort(view.signals["cls_similarity"], descending=True, stable=True)
