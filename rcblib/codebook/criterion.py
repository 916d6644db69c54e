"""State when a probed token becomes a redundant prototype, with the criteria of the paper."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from rcblib.records import ParameterError
from rcblib.runs.files import read_json
from rcblib.runs.parameters import AtLeast, Count, Positive, Share, Weight, checked
from rcblib.runs.paths import user_path
from rcblib.tensors.divergence import combined_influence


@checked
class CodebookCriterion:
    """State when a probed token is low-information and when it becomes a prototype.

    Attributes
    ----------
    tau_p : float
        Method page's τ_p: the top-1 probability of a low-information token, as the only visual token, is
        strictly below it. In (0, 1].
    tau_jsd : float
        Method page's τ_jsd: its combined influence is strictly below it (nats, released form). Above 0.
    k_region, k_global : float
        Weights of the two divergences: influence = ``k_region · region + k_global · global``. At least 0, not
        both 0.
    n_clusters : int
        Clusters per image (stage 1).
    cluster_size_max : int
        A stage-1 cluster of more members than this, low-information or not, contributes nothing.
    n_prototype_clusters : int
        Clusters of the pooled tokens (stage 2).
    min_images : int
        A stage-2 cluster is kept when it draws from *more than* this many distinct images.
    n_neighbours : int
        Neighbours that give DPC-KNN its density, the point itself among them; an image needs at least as many tokens.

    Source: section 4 of the paper; defaults are those of the LLaVA-1.5-7B codebook.
    """

    tau_p: Share = 0.15
    tau_jsd: Positive = 0.002
    k_region: Weight = 1.0
    k_global: Weight = 16.0
    n_clusters: Count = 8
    cluster_size_max: Count = 8
    n_prototype_clusters: Count = 64
    min_images: AtLeast[0] = 64
    n_neighbours: Count = 5

    def __post_init__(self):
        if self.k_region == 0 and self.k_global == 0:
            raise ParameterError("k_region, k_global", (0, 0), "at least one weight above 0")

    @classmethod
    def from_preset(cls, name_or_path: str | os.PathLike) -> CodebookCriterion:
        """Read a criterion from the presets or from a JSON file with the fields of this class.

        Parameters
        ----------
        name_or_path : str or path-like
            A name in `PRESETS`, or a ``.json`` file.

        Returns
        -------
        CodebookCriterion

        Raises
        ------
        ParameterError
            On an unknown name, and on a file with unknown fields or values out of range.
        """
        if name_or_path in PRESETS:
            return PRESETS[name_or_path]
        path = user_path(name_or_path, "criterion")
        if path.suffix != ".json" or not path.is_file():
            raise ParameterError("criterion", str(name_or_path), f"{', '.join(PRESETS)}, or a .json file")
        return cls(**read_json(path))

    def influence(self, region: Any, global_: Any) -> np.ndarray:
        """Combine both divergences as ``k_region · region + k_global · global``, in double precision.

        Parameters
        ----------
        region, global_ : array-like
            Divergences of any one shape, in nats.

        Returns
        -------
        numpy.ndarray
            float64 of that shape; higher = the token matters more.
        """
        return combined_influence(as_doubles(region), as_doubles(global_), self.k_region, self.k_global)

    def low_information(self, top1: Any, region: Any, global_: Any) -> np.ndarray:
        """Tell which tokens are low-information: probability and influence both strictly below their limits.

        Parameters
        ----------
        top1, region, global_ : array-like
            Top-1 probability of the single-token input and both divergences, of one shape.

        Returns
        -------
        numpy.ndarray
            bool of that shape.

        Source: the released codebook script compares doubles, strictly (family F; quirk 44).
        """
        return (as_doubles(top1) < self.tau_p) & (self.influence(region, global_) < self.tau_jsd)


PRESETS: dict[str, CodebookCriterion] = {
    "llava-1.5-7b": CodebookCriterion(),
    "llava-1.5-13b-script": CodebookCriterion(tau_p=0.077, tau_jsd=0.0018),
    "llava-next-8b": CodebookCriterion(tau_p=0.10),
    "llava-onevision-7b": CodebookCriterion(
        tau_p=0.08, tau_jsd=0.0018, cluster_size_max=3, n_prototype_clusters=24, min_images=16
    ),
}
"""Criteria of the released codebooks, and of the script as released, whose runs are 13B's."""

FAMILY_PRESETS = {
    "llava": "llava-1.5-7b",
    "llava_next": "llava-next-8b",
    "llava_onevision": "llava-onevision-7b",
}
"""Preset whose structure a model of each family takes."""


def preset_of(family: str) -> str:
    """Name the preset whose structure a model of a family takes.

    Raises
    ------
    ParameterError
        For a family of which no codebook was published.
    """
    if family not in FAMILY_PRESETS:
        accepted = f"{', '.join(PRESETS)}, or a .json file, as none was published for {family}"
        raise ParameterError("preset", "auto", accepted)
    return FAMILY_PRESETS[family]


def as_doubles(values: Any) -> np.ndarray:
    """Widen numbers to double precision, in which the criterion compares.

    Parameters
    ----------
    values : array-like
        Numbers, or a tensor of any dtype on any device.

    Returns
    -------
    numpy.ndarray
        float64 of the same shape.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
