"""Drop at one layer of the LLM what the last prompt token attends to least."""

from __future__ import annotations

from dataclasses import dataclass

from rcblib.pruners.inside import InsidePruner
from rcblib.tensors.checks import check_integer


@dataclass(frozen=True)
class FastV(InsidePruner):
    r"""Keep in front of a layer the rows that the prompt's last row attends to most in the layer before.

    Parameters
    ----------
    retain_ratio : float
        Share of the rows that stays from that layer on, in [0, 1].
    layer : int
        From 1, the number of layers that read all rows.
    position_ids : {"kept", "renumbered", "auto"}
        As in `InsidePruner`, but by default rows keep their positions, as in the code.

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ \frac1H \sum_h a^{K-1,h}_{\mathrm{last},i}` in front of layer :math:`K`
    Cost: :math:`K` layers read everything; one row of attention in one of them, from its queries and keys.
    Fails: attention of the last token prefers what stands near to it, the picture's lower edge (arXiv 2412.13180); at
    small budgets the first :math:`K` layers are most of what is read.
    Source: FastV (pkunlp-icler/FastV, commit d165972), the in-place form of ``modeling_llama.py``: :math:`K = 2`.
    Differs: dropped rows are in no cache of later layers while an answer is generated; any attention implementation
    that `rcblib.mllm.layers` reads will do.
    """

    position_ids: str = "kept"
    layer: int = 2

    def __post_init__(self):
        check_integer("layer", self.layer, 1)
        super().__post_init__()

    def schedule(self, n_layers: int) -> dict[int, float]:
        """Return the share that stays in front of the one layer."""
        return {self.layer: self.retain_ratio}
