"""Embed questions and patches into one space by the CLIP model that a vision encoder was taken from."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers

from rcblib.mllm.base import Adapter
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.errors import in_one_line


class TextTower:
    """Hold what a CLIP model has beside its image tower: the text tower and both projections.

    Parameters
    ----------
    name : str
        Folder or Hugging Face id of the whole CLIP model, in safetensors.

    Raises
    ------
    UnsupportedModelError
        If there is none.
    """

    def __init__(self, name: str):
        self.name = name
        try:
            self.model = transformers.CLIPModel.from_pretrained(name, use_safetensors=True).eval()
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            accepted = f"a CLIP model in safetensors with its tokenizer ({in_one_line(error)})"
            raise UnsupportedModelError(f"text_tower: got {name!r}; accepted: {accepted}") from None

    def check_fits(self, adapter: Adapter) -> None:
        """Raise where a model's vision encoder is not the image tower of this CLIP model, as far as sizes tell."""
        own, given = self.model.config.vision_config, adapter.model.config.vision_config
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        is_clip = given.model_type == "clip_vision_model"
        if not is_clip or any(getattr(own, name) != getattr(given, name) for name in names):
            sizes = f"{own.hidden_size} wide with {own.num_hidden_layers} layers"
            accepted = f"one whose vision encoder is CLIP's, {sizes}, as in {self.name!r}"
            raise ParameterError("model", f"one with {given.model_type}", accepted)

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """Return ``(n_pieces, d)`` embeddings of a text, cut into pieces of as many tokens as the tower reads."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids[0]
        length = self.model.config.text_config.max_position_embeddings
        pieces = ids.new_zeros(-(-len(ids) // length) * length)
        pieces[: len(ids)] = ids
        mask = torch.arange(len(pieces)) < len(ids)
        output: Any = self.model.get_text_features(
            input_ids=pieces.view(-1, length), attention_mask=mask.long().view(-1, length)
        )
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    @torch.no_grad()
    def embed_patches(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``(n, d)`` embeddings of ``(n, d_vision)`` hidden states of the vision encoder."""
        return self.model.visual_projection(self.model.vision_model.post_layernorm(states))


@functools.lru_cache(maxsize=2)
def text_tower(name: str) -> TextTower:
    """Load a text tower, once."""
    return TextTower(name)
