"""Adapt LLaVA-1.5: CLIP vision encoder with [CLS], two-layer connector, one grid of tokens an image.

What LLaVA-NeXT and LLaVA-OneVision have in common with it is here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.clip.modeling_clip import CLIPAttention

from rcblib.mllm.base import Adapter
from rcblib.mllm.placement import module_device
from rcblib.records import EncodedImage, ParameterError, UnsupportedModelError, VisualView
from rcblib.tensors.geometry import cosine_to_cls


class LlavaTypeAdapter(Adapter):
    """Share what all LLaVA models have: CLIP (patches only) or SigLIP (no [CLS]), one hidden state, a connector.

    Raises
    ------
    UnsupportedModelError
        If the vision encoder is another, [CLS] itself enters the LLM, or features of several layers are
        joined.
    """

    def __init__(self, model: Any, processor: Any = None):
        super().__init__(model, processor)
        config = model.config
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if (tower, strategy) not in {("clip_vision_model", "default"), ("siglip_vision_model", "full")}:
            raise UnsupportedModelError(
                f"vision encoder: got {tower} with vision_feature_select_strategy={strategy!r}; "
                "supported: clip_vision_model with 'default', siglip_vision_model with 'full'"
            )
        n_layers, layer = config.vision_config.num_hidden_layers, config.vision_feature_layer
        if not isinstance(layer, int) or not -n_layers - 1 <= layer <= n_layers:
            raise UnsupportedModelError(
                f"vision_feature_layer: got {layer}; supported: one hidden state, "
                f"{-n_layers - 1} to {n_layers}"
            )
        self.has_cls = tower == "clip_vision_model"

    @property
    def patch_size(self) -> int:
        """Return the side of a token in pixels."""
        return self.model.config.vision_config.patch_size

    @property
    def side(self) -> int:
        """Count the tokens along a side of the picture that the encoder gets."""
        return self.model.config.vision_config.image_size // self.patch_size

    def _pixels(self, model_inputs: Mapping[str, Any], name: str, n_dimensions: int) -> torch.Tensor:
        """Return pixels on the encoder's device, or raise where they are something else."""
        pixels = model_inputs.get(name)
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != n_dimensions or 0 in pixels.shape:
            given = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise ParameterError(name, given, f"a tensor of {n_dimensions} dimensions, none of them empty")
        return pixels.to(module_device(self.model.model.vision_tower))

    def _similarity(self, hidden: torch.Tensor, wanted: bool) -> list[torch.Tensor | None]:
        """Return the cosine of [CLS] and each patch, ``(n_tokens,)`` for each row of ``(n, 1 + n_tokens, d)``."""
        if not (self.has_cls and wanted):
            return [None] * len(hidden)
        return [cosine_to_cls(rows.cpu()) for rows in hidden]

    @contextmanager
    def _cls_attention_rows(self, wanted: bool) -> Iterator[list[torch.Tensor]]:
        """Collect the attention of [CLS], ``(n_images, n_tokens)``, where the selected state is made."""
        rows: list[torch.Tensor] = []
        if not wanted:
            yield rows
            return
        layers = [m for m in self.model.model.vision_tower.modules() if isinstance(m, CLIPAttention)]
        n_before = self.model.config.vision_feature_layer % (len(layers) + 1)
        if n_before == 0:
            raise ParameterError("attention", True, "False, as no layer makes the selected hidden state")

        def keep_cls_row(module: CLIPAttention, arguments: tuple, named: dict, _output: Any) -> None:
            hidden = named["hidden_states"] if "hidden_states" in named else arguments[0]
            shape = (hidden.shape[0], -1, module.num_heads, module.head_dim)
            query = module.q_proj(hidden[:, :1]).view(shape).transpose(1, 2)  # (n_images, n_heads, 1, d_head)
            key = module.k_proj(hidden).view(shape).transpose(1, 2)
            scores = query @ key.transpose(-1, -2) * module.head_dim**-0.5
            rows.append(scores.float().softmax(-1).mean(1)[:, 0, 1:].cpu())

        handle = layers[n_before - 1].register_forward_hook(keep_cls_row, with_kwargs=True)
        try:
            yield rows
        finally:
            handle.remove()


class LlavaAdapter(LlavaTypeAdapter):
    """Read and feed LLaVA-1.5-type models: one grid of tokens an image.

    Notes
    -----
    The word whose embedding replaces a token is id 0, as in the released pad embedding.
    """

    family = "llava"
    preset_token_id = 0

    @torch.no_grad()
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], *, cls_similarity: bool = True, cls_attention: bool = False
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once; see `Adapter.encode_pixels`.

        Notes
        -----
        Source: hidden state -2, patch rows (LLaVA-1.5). The similarity is the cosine of patch and [CLS]
        rows of that state. The attention is that of the layer which makes it: the [CLS] row, mean over
        heads, without its share on [CLS] itself, so it sums to less than 1. It is computed from the layer's
        queries and keys, so that the tokens are the same with and without it, whichever attention
        implementation the model runs.
        """
        pixels = self._pixels(model_inputs, "pixel_values", 4)
        grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        with self._cls_attention_rows(self.has_cls and cls_attention) as attention:
            output = self.model.get_image_features(pixel_values=pixels, return_dict=True)
        hidden = output.hidden_states[self.model.config.vision_feature_layer]  # (n_images, 1 + n_tokens, d)
        similarity = self._similarity(hidden, cls_similarity)
        return [
            EncodedImage((VisualView(tokens, grid, similarity[i], attention[0][i] if attention else None),))
            for i, tokens in enumerate(output.pooler_output)
        ]
