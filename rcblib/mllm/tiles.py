"""Read images of any resolution: one grid for the reduced image, one for each tile, and how they are packed.

The processor of LLaVA-NeXT and LLaVA-OneVision fits an image into the best of some resolutions, pads it, and cuts it
into tiles of the encoder's size. The model encodes every tile by itself, joins their tokens to one large grid, cuts
the tokens of padding off its edges, resamples it if it is too large (OneVision), and reads it line by line, each line
ended by a newline embedding, after the tokens of the reduced image.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from rcblib.mllm.hooks import hooked
from rcblib.mllm.llava import LlavaTypeAdapter
from rcblib.records import NEWLINE, EncodedImage, Packing, ParameterError, VisualView

Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Axis:
    """Follow rows, or columns, of tokens from the tiles to what the LLM reads.

    Attributes
    ----------
    n_tiles, side, patch, tile : int
        Tiles along the axis; tokens along a tile; pixels along a token and along a tile.
    first, n_visible : int
        Tokens of padding cut off before; tokens left.
    n_read : int
        What `n_visible` is resampled to; the same number where nothing is resampled.
    start, length : int
        Where the photo begins among the pixels of all tiles, and how long it is there.
    """

    n_tiles: int
    side: int
    patch: int
    tile: int
    first: int
    n_visible: int
    n_read: int
    start: int
    length: int

    @property
    def cells(self) -> torch.Tensor:
        """Return the token at the middle of each token that is read, ``(n_read,)``, counted through all tiles."""
        middle = (torch.arange(self.n_read, dtype=torch.float64) + 0.5) * self.n_visible / self.n_read
        return middle.floor().long() + self.first

    def span(self, tile: int) -> tuple[int, int]:
        """Return first and end of the tokens read of a tile."""
        inside = (self.cells // self.side == tile).nonzero().flatten().tolist()
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def extent(self, tile: int, first: int, end: int) -> tuple[float, float]:
        """Return where some tokens of a tile begin and end on the photo, as fractions of its length."""

        def place(edge: float) -> float:
            return (tile * self.tile + (edge - tile * self.side) * self.patch - self.start) / self.length

        scale = self.n_visible / self.n_read
        return place(first * scale + self.first), place(end * scale + self.first)

    def whole_extent(self, tile: int) -> tuple[float, float]:
        """Return where a tile with its padding begins and ends on the photo, as fractions of its length."""
        begin = (tile * self.tile - self.start) / self.length
        return begin, begin + self.side * self.patch / self.length


class TiledAdapter(LlavaTypeAdapter):
    """Share what families with tiles have in common."""

    def _resampled(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that a large grid of some height and width, padding cut off, is resampled to."""
        return height, width

    @property
    def _newline(self) -> torch.Tensor:
        return self.model.model.image_newline.detach()

    def _encode_images(
        self,
        model_inputs: Mapping[str, Any],
        is_tiled: Sequence[bool],
        needs: Collection[str],
        **arguments: Any,
    ) -> list[EncodedImage]:
        """Encode images, tiled or not; further arguments go to the model's ``get_image_features``."""
        pixels = self._pixels(model_inputs, "pixel_values", 5)  # (n_images, n_tiles, 3, height, width)
        sizes = self._sizes(model_inputs)
        axes = [self._axes(size) if tiled else None for size, tiled in zip(sizes, is_tiled, strict=True)]
        counts = [1 if pair is None else 1 + pair[0].n_tiles * pair[1].n_tiles for pair in axes]
        if len(pixels) != len(sizes) or pixels.shape[1] < max(counts):
            accepted = f"({len(sizes)} images, {max(counts)} tiles or more, ...), as image_sizes says"
            raise ParameterError("pixel_values", tuple(pixels.shape), accepted)

        projected: list[torch.Tensor] = []
        hook = {
            self.model.model.multi_modal_projector: lambda _module, _inputs, output: projected.append(output)
        }
        with hooked(hook), self.signals.reading(needs) as reading:
            output = self.model.get_image_features(
                pixel_values=pixels, image_sizes=torch.tensor(sizes), return_dict=True, **arguments
            )
        by_grid = reading.signals(output.hidden_states)  # of all images
        images, start = [], 0
        for size, pair, packed, grids in zip(
            sizes, axes, output.pooler_output, projected[0].split(counts), strict=True
        ):
            signals = by_grid[start : start + len(grids)]
            start += len(grids)
            if pair is None:
                images.append(self._single(packed, size, signals[0]))
            else:
                images.append(self._tiled(packed, grids, pair, signals))
        return images

    def _sizes(self, model_inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Return height and width of each photo as the processor tells them."""
        sizes = model_inputs.get("image_sizes")
        if sizes is None:
            raise ParameterError("image_sizes", None, "height and width of every image, from the processor")
        return [tuple(size) for size in torch.as_tensor(sizes).tolist()]

    def _axes(self, size: tuple[int, int]) -> tuple[_Axis, _Axis]:
        """Return rows and columns of the tiles of a photo of some height and width."""
        tile, side = self.model.config.vision_config.image_size, self.side
        target = select_best_resolution(size, self.model.config.image_grid_pinpoints)
        n_tiles = tuple(length // tile for length in target)
        n_cells = tuple(n * side for n in n_tiles)
        cells = torch.arange(math.prod(n_cells)).view(1, *n_cells)
        visible = unpad_image(cells, size)[0]
        # Of a photo that is very long, so little is left that no token lies on it.
        first = divmod(int(visible[0, 0]), n_cells[1]) if visible.numel() else (0, 0)
        n_read = self._resampled(*visible.shape)
        scale = min(length / own for length, own in zip(target, size, strict=True))
        resized = [min(math.ceil(own * scale), length) for length, own in zip(target, size, strict=True)]
        return tuple(
            _Axis(
                n_tiles[i], side, self.patch_size, tile, first[i], visible.shape[i], n_read[i],
                (target[i] - resized[i]) // 2, resized[i],
            )
            for i in range(2)
        )  # fmt: skip

    def _tiled(
        self,
        packed: torch.Tensor,
        grids: torch.Tensor,
        axes: tuple[_Axis, _Axis],
        signals: list[dict[str, torch.Tensor]],
    ) -> EncodedImage:
        """Cut the rows that the LLM reads of an image into the reduced image and its tiles."""
        rows, columns = axes
        side, n_base = self.side, self.side**2
        end = side * self.patch_size / rows.tile
        base = VisualView(packed[:n_base], (side, side), signals[0], "image", (0.0, 0.0, end, end))
        lines = packed[n_base:].unflatten(0, (rows.n_read, columns.n_read + 1))[:, :-1]
        inner = (rows.cells % side)[
            :, None
        ] * side + columns.cells % side  # a tile's token behind each token read
        number = torch.full((rows.n_read, columns.n_read + 1), NEWLINE)
        views, whole, n_before = [base], [base], n_base
        for k in range(rows.n_tiles * columns.n_tiles):
            i, j = divmod(k, columns.n_tiles)
            (left, right), (top, bottom) = columns.whole_extent(j), rows.whole_extent(i)
            region, own = (left, top, right, bottom), signals[k + 1]
            whole.append(VisualView(grids[k + 1], (side, side), own, "tile", region))
            (r0, r1), (c0, c1) = rows.span(i), columns.span(j)
            n = (r1 - r0) * (c1 - c0)
            if n == 0:
                continue
            number[r0:r1, c0:c1] = torch.arange(n_before, n_before + n).view(r1 - r0, c1 - c0)
            n_before += n
            behind = inner[r0:r1, c0:c1].flatten()
            seen = {name: signal[behind] for name, signal in own.items()}
            (left, right), (top, bottom) = columns.extent(j, c0, c1), rows.extent(i, r0, r1)
            tokens = lines[r0:r1, c0:c1].flatten(0, 1)
            views.append(VisualView(tokens, (r1 - r0, c1 - c0), seen, "tile", (left, top, right, bottom)))
        order = torch.cat([torch.arange(n_base), number.flatten()])
        is_whole = all(axis.n_read == axis.n_tiles * side for axis in axes)
        views = tuple(views)
        return EncodedImage(views, Packing(order, self._newline), views if is_whole else tuple(whole))

    def _single(
        self, packed: torch.Tensor, size: tuple[int, int], signals: dict[str, torch.Tensor]
    ) -> EncodedImage:
        """Return an image of one grid, padded to a square, with a newline at its end."""
        height, width = size
        square = max(size)
        end = square * self.side * self.patch_size / self.model.config.vision_config.image_size
        left, top = -((square - width) // 2), -((square - height) // 2)
        region = (left / width, top / height, (left + end) / width, (top + end) / height)
        view = VisualView(packed[:-1], (self.side, self.side), signals, "image", region)
        return EncodedImage((view,), self._with_newline(view.n_tokens))

    def _with_newline(self, n_tokens: int) -> Packing:
        """Return the packing of tokens in order and one newline at the end."""
        return Packing(torch.tensor([*range(n_tokens), NEWLINE]), self._newline)
