"""Drop rows stage by stage through the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rcblib.pruners.inside import InsidePruner, check_layers, scaled_layers

MOST_STAGES = 16


@dataclass(frozen=True)
class PyramidDrop(InsidePruner):
    r"""Keep at the end of each stage the rows that the prompt's last row would attend to most in the next layer.

    Parameters
    ----------
    retain_ratio : float
        Share of the rows that is left behind the last stage, in [0, 1]; each stage keeps the same share of what it is
        given. Published: 0.125, halving three times.
    layers : tuple of int, optional
        Layers in front of which rows are dropped. By default those published for 32 layers, 8, 16 and 24, at the same
        depth of the LLM.

    Notes
    -----
    Rule: in front of layer :math:`L_s`, stage :math:`s` of :math:`S`:
    :math:`\operatorname{top}_{n\,r^{s/S}}\ \frac1H \sum_h a^{L_s,h}_{\mathrm{last},i}`
    Cost: the first quarter of the layers reads everything; one row of attention a stage, computed beside the layer.
    Fails: as FastV, later; what an early stage drops no later one can ask for.
    Source: PyramidDrop (Cooperx521/PyramidDrop, commit 6444f30), ``pdrop_rank_drop`` at inference.
    Differs: counts are rounded, not cut off. Rows are numbered anew after each stage, as there, where the LLM counts on
    one axis.
    """

    layers: tuple[int, ...] | None = None

    attention_of: ClassVar[str] = "next"

    def __post_init__(self):
        check_layers(self.layers, MOST_STAGES)
        super().__post_init__()

    def schedule(self, n_layers: int) -> dict[int, float]:
        """Return the share that stays in front of each stage's first layer."""
        layers = scaled_layers((8, 16, 24), n_layers) if self.layers is None else self.layers
        return {layer: self.retain_ratio ** (stage / len(layers)) for stage, layer in enumerate(layers, 1)}
