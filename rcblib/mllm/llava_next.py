"""Adapt LLaVA-NeXT: the encoder and connector of LLaVA-1.5, images in tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rcblib.mllm.tiles import TiledAdapter
from rcblib.records import EncodedImage


class LlavaNextAdapter(TiledAdapter):
    """Read and feed LLaVA-NeXT-type models: the reduced image and its tiles, each a grid of its own.

    Notes
    -----
    The word whose embedding replaces a token is id 128001 with Llama-3, ``<|end_of_text|>``, which LLaVA-NeXT pads
    with. The release has a pad embedding for id 0 too, but with Llama-3 that is an exclamation mark.
    """

    family = "llava_next"
    preset_token_id = 128001
    pixel_inputs = ("pixel_values", "image_sizes")

    @torch.no_grad()
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once on all tiles; see `Adapter.encode_pixels`.

        Notes
        -----
        Source: hidden state -2, patch rows, as in LLaVA-1.5. Every grid has its own [CLS]; signals are those of
        `LlavaAdapter`.
        """
        is_tiled = [True] * len(self._sizes(model_inputs))
        return self._encode_images(model_inputs, is_tiled, needs)
