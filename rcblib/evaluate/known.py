"""Add to encoded images what is known of their samples: the objects beneath each token, and another image's tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch

from rcblib.data.base import AnySample
from rcblib.mllm import Adapter
from rcblib.probe.pictures import view_coverage
from rcblib.pruners.context import COVERAGE, OTHER_COVERAGE, OTHER_TOKENS
from rcblib.records import EncodedImage, ImageId, ParameterError, VisualView

Encode = Callable[[Collection[int]], list[list[EncodedImage]]]


class Known:
    """Know the masks of samples, and for each sample another one of its kind.

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    samples : Mapping
        Id to sample, by ascending id. The other image of each is the next of the same kind and number of images, and
        the first for the last.
    encode : callable
        Returns the encoded images of some samples by id.
    """

    def __init__(self, adapter: Adapter, samples: Mapping[ImageId, AnySample], encode: Encode):
        self.adapter, self.samples, self.encode = adapter, samples, encode
        self.other: dict[int, int] = {}
        alike: dict[tuple[str, int], list[int]] = {}
        for image_id, sample in samples.items():
            alike.setdefault((sample.kind, sample.n_images), []).append(image_id)
        for ids in alike.values():
            self.other |= dict(zip(ids, [*ids[1:], ids[0]], strict=True))
        self._coverage: dict[tuple[int, int, int], torch.Tensor] = {}

    def check(self, needs: Collection[str]) -> None:
        """Raise where what is needed is not known."""
        if set(needs) & {COVERAGE, OTHER_COVERAGE}:
            bare = [image_id for image_id, sample in self.samples.items() if sample.objects is None]
            if bare:
                raise ParameterError("samples", f"image {bare[0]} without masks", "samples with masks")
        if OTHER_TOKENS in needs:
            alone = [image_id for image_id, other in self.other.items() if other == image_id]
            if alone:
                given = f"image {alone[0]}, the only one with as many pictures"
                raise ParameterError("samples", given, "at least two alike, to swap tokens between")

    def add(
        self, image_ids: Sequence[ImageId], images: Sequence[Sequence[EncodedImage]], needs: Collection[str]
    ) -> list[list[EncodedImage]]:
        """Return the images of some samples with what is needed among the signals of their views.

        Returns
        -------
        list of list of EncodedImage
            ``"object_coverage"``: ``(n_tokens,)``, in [0, 1]; ``"other_tokens"``: ``(n_tokens, d_model)``, of the other
            sample's same view (its last where it has fewer), from the grid cell at the same place; and
            ``"other_coverage"`` there.
        """
        others = [self.other[image_id] for image_id in image_ids]
        swapped = self.encode(others) if OTHER_TOKENS in needs else [None] * len(others)
        return [
            [
                replace(
                    image,
                    views=tuple(
                        self._with_signals(view, (own_id, i, k), (other_id, i, k), other, needs)
                        for k, view in enumerate(image.views)
                    ),
                )
                for i, image in enumerate(own)
            ]
            for own_id, own, other_id, other in zip(image_ids, images, others, swapped, strict=True)
        ]

    def _with_signals(
        self,
        view: VisualView,
        place: tuple[int, int, int],
        other_place: tuple[int, int, int],
        other: Sequence[EncodedImage] | None,
        needs: Collection[str],
    ) -> VisualView:
        signals = dict(view.signals)
        if COVERAGE in needs:
            signals[COVERAGE] = self._covered(view, *place)
        if other is not None:
            other_id, i, k = other_place
            views = other[i].views
            k = min(k, len(views) - 1)
            cells = same_places(view.grid, views[k].grid)
            signals[OTHER_TOKENS] = views[k].tokens[cells.to(views[k].tokens.device)]
            if OTHER_COVERAGE in needs:
                signals[OTHER_COVERAGE] = self._covered(views[k], other_id, i, k)[cells]
        return replace(view, signals=signals)

    def _covered(self, view: VisualView, image_id: ImageId, image: int, number: int) -> torch.Tensor:
        key = (image_id, image, number)
        if key not in self._coverage:
            picture = number if view.kind == "frame" else image
            found = view_coverage(self.adapter.processor, self.samples[image_id], view, picture)
            if found is None:
                accepted = "views of which it is known what they cover"
                raise ParameterError("samples", f"image {image_id}, a {view.kind} of unknown place", accepted)
            self._coverage[key] = found.share
        return self._coverage[key]


def same_places(grid: tuple[int, int], other: tuple[int, int]) -> torch.Tensor:
    """Return for each cell of a grid, in raster order, the cell of another one that holds its centre."""
    rows, columns = (
        ((torch.arange(n) + 0.5) * m / n).long().clamp(max=m - 1) for n, m in zip(grid, other, strict=True)
    )
    return (rows[:, None] * other[1] + columns).flatten()
