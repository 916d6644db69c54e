"""Count what a model is made of, and the bytes that its weights take in each way of storing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rcblib.mllm.encoder import HAS_CLS
from rcblib.mllm.placement import outside_llm
from rcblib.records import ParameterError

STORAGES = {"float32": 4, "half": 2, "4bit": 2}
"""Ways to store the weights, and bytes of the numbers that are computed with; 4-bit numbers are computed in half."""

_NF4_BLOCK, _NF4_SUPERBLOCK = 64, 256

_NF4_TABLES = 4 * (16 + 256 + 1)
"""Bytes of a matrix's value table, the table of its block constants, and their mean."""


_CONNECTORS = ("projector", "connector", "merger")
"""What the names of modules contain that are connectors."""


@dataclass(frozen=True)
class ModelShape:
    """Hold what the memory of a model depends on.

    Attributes
    ----------
    parameters : Mapping of str to int
        Numbers in each part: ``vision``, ``connector``, ``embeddings``, ``layers`` (the LLM's linear layers), ``head``
        (0 where it shares the embeddings' numbers) and ``rest`` (norms, biases and the like of the LLM, newline).
    matrices : tuple of int
        Numbers in each matrix of ``layers``, which 4-bit storage applies to.
    n_layers, d_model, d_mlp, n_heads, n_key_value_heads, d_head, n_vocab : int
        Of the LLM.
    d_vision, d_vision_mlp, n_vision_rows, n_pixels, n_vision_layers : int
        Of the vision encoder: rows and pixel values of one picture or tile; 0 where it is of another kind.
    n_seen : float
        Rows that a row of the encoder attends to, mean over layers.
    n_merged : int
        Rows of the encoder that the connector makes one of.
    """

    parameters: Mapping[str, int]
    matrices: tuple[int, ...]
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    n_vocab: int
    d_vision: int
    d_vision_mlp: int
    n_vision_rows: int
    n_pixels: int
    n_vision_layers: int
    n_seen: float
    n_merged: int = 1

    @classmethod
    def from_model(cls, model: Any, n_patches: int = 0) -> ModelShape:
        """Read the shape off a model; `benchmarks.checkpoints.empty_model` gives one without weights.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            A multimodal model that is not quantized.
        n_patches : int
            Rows of the picture in the vision encoder, where that reads pictures of any size.
        """
        llm = model.config.get_text_config()
        d_head = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
        parameters, matrices = _count(model)
        return cls(
            parameters,
            matrices,
            llm.num_hidden_layers,
            llm.hidden_size,
            llm.intermediate_size,
            llm.num_attention_heads,
            getattr(llm, "num_key_value_heads", None) or llm.num_attention_heads,
            d_head,
            llm.vocab_size,
            *_vision_shape(model.config.vision_config, n_patches),
        )

    @property
    def after_attention(self) -> int:
        """Count the numbers of a layer that rows go through after attention: its last matrix, and the gated MLP."""
        return self.d_model * (self.n_heads * self.d_head + 3 * self.d_mlp)

    @property
    def n_parameters(self) -> int:
        """Count the numbers of all parts."""
        return sum(self.parameters.values())


def _count(model: Any) -> tuple[dict[str, int], tuple[int, ...]]:
    """Count the numbers of each part of a model, and of each matrix of its LLM's layers."""
    counts = dict.fromkeys(("vision", "connector", "embeddings", "layers", "head", "rest"), 0)
    matrices = []
    llm, embedding, head = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    owner = {id(parameter): "rest" for parameter in llm.parameters()}
    for module in llm.modules():
        if isinstance(module, torch.nn.Linear):
            owner[id(module.weight)] = "layers"
            matrices.append(module.weight.numel())
    owner[id(head.weight)] = "head"
    owner[id(embedding.weight)] = "embeddings"  # also where the head shares them
    for name in outside_llm(model):
        for own, parameter in model.get_submodule(name).named_parameters(prefix=name):
            part = "connector" if any(word in own for word in _CONNECTORS) else "vision"
            owner.setdefault(id(parameter), part)
    for parameter in model.parameters():  # each shared one once
        counts[owner.get(id(parameter), "rest")] += parameter.numel()
    return counts, tuple(matrices)


def _vision_shape(config: Any, n_patches: int) -> tuple[int, int, int, int, int, float, int]:
    if config.model_type == "qwen2_5_vl_vision":
        n_window = min(
            (config.window_size // config.patch_size) ** 2, n_patches
        )  # the most: those at borders are smaller
        n_whole = len(config.fullatt_block_indexes)
        n_seen = (n_whole * n_patches + (config.depth - n_whole) * n_window) / config.depth
        n_pixels = n_patches * config.in_channels * config.temporal_patch_size * config.patch_size**2
        widths = (config.hidden_size, config.intermediate_size)
        return *widths, n_patches, n_pixels, config.depth, n_seen, config.spatial_merge_size**2
    if config.model_type not in HAS_CLS:
        return 0, 0, 0, 0, 0, 0, 1
    n_rows = (config.image_size // config.patch_size) ** 2 + HAS_CLS[config.model_type]
    n_pixels = config.num_channels * config.image_size**2
    ratio = getattr(config, "mlp_ratio", None)  # DINOv2's config says the MLP's width by it
    d_mlp = config.intermediate_size if ratio is None else int(ratio * config.hidden_size)
    return config.hidden_size, d_mlp, n_rows, n_pixels, config.num_hidden_layers, n_rows, 1


def number_bytes(storage: str) -> int:
    """Return the bytes of a number that is computed with.

    Raises
    ------
    ParameterError
        If `storage` is none of `STORAGES`.
    """
    if storage not in STORAGES:
        raise ParameterError("storage", storage, ", ".join(map(repr, STORAGES)))
    return STORAGES[storage]


def nf4_bytes(n_numbers: int) -> int:
    """Return the bytes of a matrix stored as 4-bit NF4 numbers with quantized block constants.

    Parameters
    ----------
    n_numbers : int
        Numbers in the matrix.

    Notes
    -----
    Half a byte each; one byte for the constant of each block of 64; four bytes for each 256 of those; and a value
    table of 16 numbers, one of 256, and a mean: about 4.13 bits a number.
    """
    n_blocks = math.ceil(n_numbers / _NF4_BLOCK)
    n_superblocks = math.ceil(n_blocks / _NF4_SUPERBLOCK)
    return math.ceil(n_numbers / 2) + n_blocks + 4 * n_superblocks + _NF4_TABLES


def weight_bytes(shape: ModelShape, storage: str) -> dict[str, int]:
    """Return the bytes of each part's weights.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        ``"float32"``; ``"half"``, two bytes each; or ``"4bit"``: the LLM's linear layers as `nf4_bytes` says, the
        rest in half, as `load_model` does.

    Returns
    -------
    dict of str to int
        Parts as in `ModelShape.parameters`.
    """
    n_bytes = number_bytes(storage)
    sizes = {part: n * n_bytes for part, n in shape.parameters.items()}
    if storage == "4bit":
        sizes["layers"] = sum(map(nf4_bytes, shape.matrices))
    return sizes
