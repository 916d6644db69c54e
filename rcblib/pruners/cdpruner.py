"""Keep tokens that are diverse, given the question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from rcblib.mllm import Adapter
from rcblib.mllm.text_tower import TextTower, text_tower
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import QUESTION, PruningContext, signal_of, tokens_of
from rcblib.records import ParameterError, VisualView

NOTHING_LEFT = 1e-6
"""Volume that a token must add, squared, to be chosen for its diversity; below it float32 tells nothing."""


@dataclass(frozen=True)
class LlmCDPruner(Pruner):
    r"""Keep tokens that are diverse and, by the LLM's word embeddings, relevant to the question.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: greedily :math:`\max_S \det L_S` with :math:`L_{ij} = r_i \cos(x_i, x_j)\, r_j`, :math:`r` the
    :math:`\frac1M \sum_m \cos(x_i, e_m)` to the question's word embeddings, scaled to [0, 1]
    Cost: a matrix of :math:`n^2` cosines and :math:`k` steps over :math:`k\,n` numbers, for every question anew.
    Fails: relevance says little where visual tokens do not lie near the words that name them.
    Source: CDPruner (Theia-4869/CDPruner, commit 9541616) for the kernel; relevance as in OpenVINO GenAI's port of it
    to Qwen2-VL (openvinotoolkit/openvino.genai, commit 335d37e, ``relevance_calculator.cpp``), which has no text tower.
    Differs: a token whose added volume is below what float32 can tell is chosen by relevance.
    """

    retain_ratio: float

    needs: ClassVar[frozenset[str]] = frozenset({QUESTION})

    def relevance(self, views: tuple[VisualView, ...], context: PruningContext) -> torch.Tensor:
        """Return ``(n_tokens,)`` relevance to the question, of any scale; higher = more relevant."""
        words = context.adapter.embed(context.question_ids).float()
        return mean_cosine(tokens_of(views).float(), words.to(views[0].tokens.device))

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose tokens one by one."""
        tokens = tokens_of(views)
        n_kept = self.budget().n_kept(len(tokens))
        if n_kept == len(tokens):
            return torch.arange(n_kept)
        if context is None:
            raise ParameterError("context", None, f"a pruner's context, for {type(self).__name__}")
        relevance = self.relevance(views, context).to(tokens.device)
        kernel = conditional_kernel(tokens, relevance)
        return largest_volume(kernel, n_kept).sort().values


@dataclass(frozen=True)
class CDPruner(LlmCDPruner):
    r"""Keep tokens that are diverse and, by CLIP's text tower, relevant to the question.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    text_tower : str
        Folder or Hugging Face id of the whole CLIP model whose image tower the model has.

    Notes
    -----
    Rule: greedily :math:`\max_S \det L_S` with :math:`L_{ij} = r_i \cos(x_i, x_j)\, r_j`, :math:`r` the
    :math:`-\frac1M \sum_m \cos(v_i, t_m)` of CLIP's embeddings of patch and question, scaled to [0, 1]; the minus is
    the code's: similarity of CLIP's patches to text is large on background
    Cost: as with word embeddings, and CLIP's text tower for every question.
    Fails: the minus suits what CLIP says of patches as a rule (arXiv 2304.05653), not each of them; long questions are
    cut into pieces of 77 tokens.
    Source: CDPruner (Theia-4869/CDPruner, commit 9541616), ``encode_images`` and ``clip_encoder.py``.
    Differs: relevance is scaled within what shares a budget; a token whose added volume is below what float32 can tell
    is chosen by relevance.
    """

    text_tower: str = field(kw_only=True)

    needs: ClassVar[frozenset[str]] = frozenset({QUESTION, "hidden_states"})

    def check(self, adapter: Adapter) -> None:
        """Raise where the model's vision encoder is not that of the text tower."""
        super().check(adapter)
        self._tower.check_fits(adapter)

    @property
    def _tower(self) -> TextTower:
        return text_tower(self.text_tower)

    def relevance(self, views: tuple[VisualView, ...], context: PruningContext) -> torch.Tensor:
        """Return ``(n_tokens,)`` relevance to the question."""
        patches = self._tower.embed_patches(signal_of(views, "hidden_states"))
        return -mean_cosine(patches, self._tower.embed_text(context.question))


def mean_cosine(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine of each of ``(n, d)`` rows to ``(m, d)`` others."""
    return (F.normalize(rows, dim=-1) @ F.normalize(others, dim=-1).T).mean(-1)


def conditional_kernel(tokens: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Return ``(n, n)`` cosines of tokens times the relevance of both, scaled to [0, 1]; all 1 where it is constant."""
    unit = F.normalize(tokens.float(), dim=-1)
    low, high = relevance.aminmax()
    scaled = (relevance - low + 1e-6) / (high - low) if high > low else torch.ones_like(relevance)
    return scaled[:, None] * (unit @ unit.T) * scaled


def largest_volume(kernel: torch.Tensor, n_kept: int) -> torch.Tensor:
    """Choose greedily `n_kept` rows of a kernel ``(n, n)`` whose determinant is largest; return them as chosen."""
    rest = kernel.diagonal().clone()
    order = rest.argsort(descending=True, stable=True)
    found = kernel.new_zeros(n_kept, len(kernel))  # rows of the Cholesky factor
    chosen: list[int] = []
    for number in range(n_kept):
        best = int(rest.argmax())
        if rest[best] < NOTHING_LEFT:
            taken = set(chosen)
            chosen += [own for own in order.tolist() if own not in taken][: n_kept - number]
            break
        chosen.append(best)
        row = kernel[best] - found[:number, best] @ found[:number]
        found[number] = row / rest[best].sqrt()
        rest -= found[number].square()
        rest[best] = -torch.inf
    return torch.tensor(chosen, dtype=torch.long)
