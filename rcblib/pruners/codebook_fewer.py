"""Prune by fewer prototypes of a codebook: without copies, or one of each cluster."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from rcblib.codebook.codebook import Codebook
from rcblib.pruners.codebook import CodebookPruner
from rcblib.records import ParameterError
from rcblib.tensors.checks import check_integer
from rcblib.tensors.clustering import dpc_knn


@dataclass(frozen=True)
class DistinctCodebookPruner(CodebookPruner):
    r"""Drop each visual token that is close to a prototype of a codebook, copies of prototypes taken once.

    Notes
    -----
    Rule: as the codebook's, over distinct prototypes
    Cost: as the codebook's.
    Fails: as the codebook's; the rule max_cosine does not see copies, so that nothing changes.
    Source: the release adds copies where ranks tie, and both softmaxes count them.
    """

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(
            self, "codebook", part_of(self.codebook, first_of_copies(self.codebook.prototypes))
        )


@dataclass(frozen=True)
class MedoidCodebookPruner(CodebookPruner):
    r"""Drop each visual token that is close to one of a codebook's medoids.

    Parameters
    ----------
    n_clusters : int, optional
        How many clusters the prototypes are cut into anew, by DPC-KNN. By default the clusters that the codebook names.

    Notes
    -----
    Rule: as the codebook's, over :math:`\arg\max_{p \in C} \sum_{q \in C} \cos(p, q)` of each cluster :math:`C`
    Cost: less than the codebook's, as there are fewer prototypes.
    Fails: where a cluster is wide, what lies at its edge is redundant and kept.
    Source: a variant of this project.
    """

    n_clusters: int | None = field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.n_clusters is not None:
            check_integer("n_clusters", self.n_clusters, 1, len(self.codebook))
            labels = dpc_knn(self.codebook.prototypes.float(), self.n_clusters, min(5, len(self.codebook)))
        elif "clusters" in self.codebook.metadata:
            labels = torch.tensor(self.codebook.metadata["clusters"])
        else:
            raise ParameterError("n_clusters", None, "a number, with a codebook that names no clusters")
        object.__setattr__(
            self, "codebook", part_of(self.codebook, medoids(self.codebook.prototypes, labels))
        )


def first_of_copies(prototypes: torch.Tensor) -> torch.Tensor:
    """Return the positions of the first of each set of equal rows, ascending."""
    _, group = prototypes.unique(dim=0, return_inverse=True)
    positions = torch.arange(len(group))
    first = positions.new_full((int(group.max()) + 1,), len(group))
    return first.scatter_reduce(0, group.cpu(), positions, "amin").sort().values


def medoids(prototypes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the position of the row of each cluster that is most similar to all others of it, ascending."""
    unit, found = F.normalize(prototypes.float(), dim=-1), []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        found.append(members[(unit[members] @ unit[members].T).sum(1).argmax()])
    return torch.stack(found).sort().values


def part_of(codebook: Codebook, positions: torch.Tensor) -> Codebook:
    """Return a codebook of some of the prototypes."""
    listed = positions.tolist()
    clusters = codebook.metadata.get("clusters")
    own = {} if clusters is None else {"clusters": [clusters[i] for i in listed]}
    return replace(
        codebook,
        prototypes=codebook.prototypes[positions.to(codebook.prototypes.device)],
        image_ids=tuple(codebook.image_ids[i] for i in listed) if codebook.image_ids else (),
        positions=None if codebook.positions is None else tuple(codebook.positions[i] for i in listed),
        metadata=codebook.metadata | own,
    )
