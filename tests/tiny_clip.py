"""Build a CLIP model whose image tower has the sizes of the tiny models' vision encoder."""

import functools
import tempfile

import tiny
import torch
from transformers import CLIPConfig, CLIPModel


@functools.cache
def text_tower():
    """Save the model with a tokenizer, once; return the folder, which lasts as long as tests run."""
    folder = tempfile.TemporaryDirectory()
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    text |= dict(max_position_embeddings=16, eos_token_id=2, bos_token_id=1, pad_token_id=0, projection_dim=8)
    vision = tiny.TINY_VISION | {"projection_dim": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder.name)
    tiny.stand_in_tokenizer(tiny.TINY_IDS).save_pretrained(folder.name)
    return folder
