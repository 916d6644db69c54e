"""Pool the grid of tokens: the control that keeps a little of everything."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import VisualView
from rcblib.tensors.checks import check_integer


@dataclass(frozen=True)
class PooledPruner(Pruner):
    r"""Read the mean of each block of the grid at the place of the block's first token.

    How many tokens stay follows from the grid. Blocks at the right and lower edge are smaller where the grid does not
    divide.

    Parameters
    ----------
    side : int
        Tokens along a side of a block; 1 pools nothing.

    Notes
    -----
    Rule: :math:`\bar x_{b} = \frac{1}{|b|} \sum_{i \in b} x_i`, with blocks :math:`b` of side x side tokens
    Cost: one mean over the tokens.
    Fails: small print and fine texture, whose tokens differ from their neighbours; its budget cannot be chosen freely.
    Source: a control; the ``pool_pre_llm`` baseline of UniPruneBench (TianfanPeng/VLMUniPruneBench, commit f93768f),
    which pools to a fixed side.
    Differs: blocks have a fixed side, so that grids of every size and shape are pooled alike.
    """

    retain_ratio: None = field(default=None, init=False)
    side: int = 2

    def __post_init__(self):
        check_integer("side", self.side, 1)
        super().__post_init__()

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Take means block by block, view after view."""
        positions, sizes, blocks, n_before, n_blocks = [], [], [], 0, 0
        for view in views:
            block, first, size = blocks_of(view.grid, self.side)
            positions.append(first + n_before)
            sizes.append(size)
            blocks.append(block + n_blocks)
            n_before, n_blocks = n_before + view.n_tokens, n_blocks + len(first)
        tokens, sizes = tokens_of(views), torch.cat(sizes)
        sums = torch.zeros(n_blocks, tokens.shape[1], device=tokens.device)
        sums.index_add_(0, torch.cat(blocks).to(tokens.device), tokens.float())
        means = sums / sizes.to(sums)[:, None]
        return Reduced(torch.cat(positions), means.to(tokens.dtype), sizes)


def blocks_of(grid: tuple[int, int], side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut a grid into blocks, in raster order.

    Returns
    -------
    block : torch.Tensor
        ``(n_tokens,)`` int64, the block that each token is in.
    first, size : torch.Tensor
        ``(n_blocks,)`` int64, the first token of each block and how many it has.
    """
    height, width = grid
    rows, columns = torch.arange(height), torch.arange(width)
    n_across = -(-width // side)
    block = ((rows // side)[:, None] * n_across + columns // side).flatten()
    first = (rows[::side, None] * width + columns[::side]).flatten()
    return block, first, torch.bincount(block)
