"""Build randomly initialised models of every family as `transformers` would save them; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from benchmarks.checkpoints import (
    CHECKPOINTS,
    CLIP_L_336,
    LLAMA_3_8B,
    QWEN_2_7B,
    SIGLIP_SO400M_384,
    VICUNA_7B,
    checkpoint_config,
)
from rcblib.mllm.frames import FrameProcessor, LlavaOnevisionProcessor

WORDS = (
    "USER ASSISTANT : What does this image show ? You must provide a single word that best describes the . "
    "Is there A an cat dog bird apple red green blue yes no How many are in and of on left right Describe"
).split()

VICUNA_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] | upper }}: "
    "{% for part in turn['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Conversation form of the converted LLaVA-1.5 checkpoints."""

LLAMA_3_TEMPLATE = (
    "{% for turn in messages %}<|start_header_id|>{{ turn['role'] }}<|end_header_id|>\n\n"
    "{% for part in turn['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}<|eot_id|>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Conversation form of the converted LLaVA-NeXT checkpoint with Llama-3."""

QWEN_2_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] + ' ' }}"
    "{% for part in turn['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Conversation form of the converted OneVision checkpoints."""

CHATML_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% for part in turn['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Conversation form of SmolLM2, with images."""

TINY_VISION = dict(
    image_size=24,
    patch_size=4,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
)
TINY_DINOV2 = dict(patch_size=4, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2)
TINY_TEXT = dict(
    hidden_size=40,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
)

REAL_IDS = {"unk": 0, "bos": 1, "eos": 2, "image": 32000, "pad": 32001}
TINY_IDS = {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "image": 4}
CHATML_IDS = {"unk": 0, "bos": 1, "eos": 2, "pad": 2, "image": 3}


def stand_in_tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    """Build a word tokenizer whose special tokens have the given ids."""
    special = {name: f"<{name}>" for name in ids} | {"bos": "<s>", "eos": "</s>"}
    free = (i for i in range(3, 10**6) if i not in ids.values())
    vocabulary = {special[name]: i for name, i in ids.items()} | dict(
        zip(dict.fromkeys(WORDS), free, strict=False)
    )
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["bos"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": special[name] for name in ("unk", "bos", "eos", "pad")},
        extra_special_tokens={
            f"{name}_token": special[name] for name in ("image", "video") if name in special
        },
    )


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word tokenizer like SmolLM2's: nothing put in front, padding that ends answers, blanks part of words."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    words = [*special, "\n", "user", "assistant", *WORDS, *(f" {word}" for word in WORDS)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\n"), "removed", invert=True)
    backend.decoder = decoders.Fuse()
    names = ("unk", "bos", "eos", "pad")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": special[CHATML_IDS[name]] for name in names},
        extra_special_tokens={"image_token": special[CHATML_IDS["image"]]},
    )


def stand_in_processor(image_size: int, patch_size: int, ids: dict[str, int]) -> LlavaProcessor:
    """Build LLaVA-1.5's processor around the stand-in tokenizer."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=stand_in_tokenizer(ids),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )


def llava_config(vision: dict, text: dict, ids: dict[str, int]) -> LlavaConfig:
    """Return a LLaVA-1.5 config; of the pieces only sizes are free."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["pad"], **text
        ),
        image_token_index=ids["image"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw weights so large that answers depend on every input; the usual ones give near-constant logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5, generator=generator)
            elif "norm" not in name:
                parameter.normal_(std=0.3, generator=generator)


def tiny_llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build a LLaVA of 6 x 6 = 36 tokens; it never ends an answer, so that lengths are known."""
    config = llava_config(TINY_VISION, TINY_TEXT, TINY_IDS)
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    model.generation_config.update(bos_token_id=1, eos_token_id=None, pad_token_id=0)
    processor = stand_in_processor(TINY_VISION["image_size"], TINY_VISION["patch_size"], TINY_IDS)
    processor.tokenizer.padding_side = "left"
    return model, processor


def reduced_llava_15() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build LLaVA-1.5 with its real settings (336 px, 576 tokens, ids, template), narrow and shallow."""
    config = llava_config(
        CLIP_L_336 | dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4),
        VICUNA_7B
        | dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
        REAL_IDS,
    )
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model)
    processor = stand_in_processor(336, 14, REAL_IDS)
    processor.tokenizer.padding_side = "left"
    return model, processor


TINY_NEXT_PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
"""LLaVA-NeXT's five resolutions, for tiles of 24 px."""

NEXT_PINPOINTS, ONEVISION_PINPOINTS = (
    checkpoint_config(name).image_grid_pinpoints for name in CHECKPOINTS[2:]
)
NEXT_IDS = {"bos": 128000, "eos": 128009, "image": 128256, "pad": 128257, "unk": 128258}

TINY_ONEVISION_VISION = TINY_VISION | dict(image_size=22, num_hidden_layers=2, vision_use_head=False)
"""5 x 5 tokens, and two pixels left over, as 384 px leave six beside 27 patches."""

TINY_ONEVISION_PINPOINTS = [[22 * i, 22 * j] for i in range(1, 5) for j in range(1, 5)]
TINY_ONEVISION_IDS = TINY_IDS | {"video": 5}

ONEVISION_IDS = {"pad": 151643, "eos": 151645, "image": 151646, "video": 151647, "bos": 151650, "unk": 151651}
NARROW_VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
NARROW_TEXT = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)


def next_config(vision: dict, text: dict, ids: dict[str, int], pinpoints: list[list[int]]) -> LlavaNextConfig:
    """Return a LLaVA-NeXT config; of the pieces only sizes are free."""
    base = llava_config(vision, text, ids)
    return LlavaNextConfig(
        vision_config=base.vision_config,
        text_config=base.text_config,
        image_token_index=ids["image"],
        image_grid_pinpoints=pinpoints,
    )


def onevision_config(
    vision: dict,
    text: dict,
    ids: dict[str, int],
    pinpoints: list[list[int]],
    n_largest: int = 9,
) -> LlavaOnevisionConfig:
    """Return a OneVision config; of the pieces only sizes are free, and how many tiles are not resampled."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(
            bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["pad"], **text
        ),
        image_token_index=ids["image"],
        video_token_index=ids["video"],
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{n_largest}",
    )


def next_processor(
    tile: int, patch: int, ids: dict[str, int], pinpoints: list[list[int]]
) -> LlavaNextProcessor:
    """Build LLaVA-NeXT's processor around the stand-in tokenizer."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": tile},
            crop_size={"height": tile, "width": tile},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=stand_in_tokenizer(ids),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAMA_3_TEMPLATE,
    )


def onevision_processor(
    tile: int, patch: int, ids: dict[str, int], pinpoints: list[list[int]], n_largest: int = 9
) -> LlavaOnevisionProcessor:
    """Build OneVision's processor around the stand-in tokenizer."""
    settings = dict(size={"height": tile, "width": tile}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(image_grid_pinpoints=pinpoints, **settings),
        tokenizer=stand_in_tokenizer(ids),
        video_processor=FrameProcessor(**settings),
        num_image_tokens=(tile // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{n_largest}",
        chat_template=QWEN_2_TEMPLATE,
    )


def endless(model: torch.nn.Module, ids: dict[str, int], seed: int = 0) -> torch.nn.Module:
    """Draw a model's weights and let it never end an answer, so that lengths are known."""
    randomise(model, seed)
    model.generation_config.update(bos_token_id=ids["bos"], eos_token_id=None, pad_token_id=ids["pad"])
    return model.eval()


def tiny_next(seed: int = 0) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Build a LLaVA-NeXT of tiles of 6 x 6 = 36 tokens."""
    config = next_config(TINY_VISION, TINY_TEXT, TINY_IDS, TINY_NEXT_PINPOINTS)
    processor = next_processor(24, 4, TINY_IDS, TINY_NEXT_PINPOINTS)
    processor.tokenizer.padding_side = "left"
    return endless(LlavaNextForConditionalGeneration(config), TINY_IDS, seed), processor


def with_encoder(
    pair: tuple[torch.nn.Module, LlavaProcessor], vision: PreTrainedConfig, strategy: str
) -> tuple[torch.nn.Module, LlavaProcessor]:
    """Return a tiny model like another but for its vision encoder, and the processor."""
    model, processor = pair
    model.config.update({"vision_config": vision, "vision_feature_select_strategy": strategy})
    return endless(type(model)(model.config), TINY_IDS), processor


def with_dinov2(
    pair: tuple[torch.nn.Module, LlavaProcessor], image_size: int, is_tied: bool = False
) -> tuple[torch.nn.Module, LlavaProcessor]:
    """Return a tiny model like another with DINOv2, its positions of `image_size`, and an LLM that talks ChatML."""
    model, processor = pair
    processor.tokenizer, processor.chat_template = chatml_tokenizer(), CHATML_TEMPLATE
    processor.tokenizer.padding_side = "left"
    processor.image_token_id = CHATML_IDS["image"]
    text = {f"{name}_token_id": CHATML_IDS[name] for name in ("bos", "eos", "pad")}
    text_config = LlamaConfig(**TINY_TEXT | text | {"vocab_size": 112, "tie_word_embeddings": is_tied})
    model.config.update({"text_config": text_config, "image_token_index": CHATML_IDS["image"]})
    model.config.tie_word_embeddings = is_tied
    return with_encoder((model, processor), Dinov2Config(image_size=image_size, **TINY_DINOV2), "default")


def tiny_onevision(seed: int = 0) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """Build a OneVision of tiles of 5 x 5 = 25 tokens; more than four of them are resampled."""
    config = onevision_config(
        TINY_ONEVISION_VISION, TINY_TEXT, TINY_ONEVISION_IDS, TINY_ONEVISION_PINPOINTS, n_largest=4
    )
    processor = onevision_processor(22, 4, TINY_ONEVISION_IDS, TINY_ONEVISION_PINPOINTS, n_largest=4)
    processor.tokenizer.padding_side = "left"
    return endless(LlavaOnevisionForConditionalGeneration(config), TINY_ONEVISION_IDS, seed), processor


def reduced_next() -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Build LLaVA-NeXT with Llama-3 with its real settings (tiles of 336 px, ids, template), narrow and shallow."""
    config = next_config(CLIP_L_336 | NARROW_VISION, LLAMA_3_8B | NARROW_TEXT, NEXT_IDS, NEXT_PINPOINTS)
    processor = next_processor(336, 14, NEXT_IDS, NEXT_PINPOINTS)
    processor.tokenizer.padding_side = "left"
    return endless(LlavaNextForConditionalGeneration(config), NEXT_IDS), processor


def reduced_onevision() -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """Build OneVision with its real settings (tiles of 384 px, anyres_max_9, ids, template), narrow and shallow."""
    config = onevision_config(
        SIGLIP_SO400M_384 | NARROW_VISION, QWEN_2_7B | NARROW_TEXT, ONEVISION_IDS, ONEVISION_PINPOINTS
    )
    processor = onevision_processor(384, 14, ONEVISION_IDS, ONEVISION_PINPOINTS)
    processor.tokenizer.padding_side = "left"
    return endless(LlavaOnevisionForConditionalGeneration(config), ONEVISION_IDS), processor


def save_tiny_llava(folder: Path, seed: int = 0) -> Path:
    """Save a tiny model and its processor to a folder, as `save_pretrained` writes them."""
    return save(folder, *tiny_llava(seed))


def save(folder: Path, model: torch.nn.Module, processor: object) -> Path:
    """Save a model and its processor to a folder, as `save_pretrained` writes them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_images(n: int, size: tuple[int, int] = (40, 31), seed: int = 0) -> list[PIL.Image.Image]:
    """Draw images of noise, ``(width, height)`` pixels."""
    generator = np.random.default_rng(seed)
    return [
        PIL.Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(n)
    ]
