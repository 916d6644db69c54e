"""Build the embedded models from configs, all plain `transformers` classes: tokenizers, processors, towers, MLLMs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
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
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

from rcblib.mllm.frames import FrameProcessor, LlavaOnevisionProcessor

SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "image": "<image>"}

PAD_ID, BOS_ID, EOS_ID, UNK_ID, IMAGE_ID = range(5)

VIDEO_TOKEN = "<video>"

# LLaVA-1.5's conversation form, without the system sentence, as the converted Hugging Face checkpoints have it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for content in message['content'] if content['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }} {% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# OneVision's has videos too.
VIDEO_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% for content in message['content'] if content['type'] == 'text' %}",
    "{% for content in message['content'] if content['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}",
)


def build_tokenizer(texts: Iterable[str], video: bool = False) -> PreTrainedTokenizerFast:
    """Build a lower-casing word tokenizer whose vocabulary is every word of `texts`, in alphabetical order.

    The five special tokens come first: padding is id 0, as in LLaVA-1.5, so that leave-one-out replaces by its row.
    With `video`, the placeholder of a video comes last, so that all other ids stay the same.
    """
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    tokens = [*SPECIAL_TOKENS.values(), *words, *([VIDEO_TOKEN] if video else [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL_TOKENS["pad"],
        bos_token=SPECIAL_TOKENS["bos"],
        eos_token=SPECIAL_TOKENS["eos"],
        unk_token=SPECIAL_TOKENS["unk"],
        extra_special_tokens={
            "image_token": SPECIAL_TOKENS["image"],
            **({"video_token": VIDEO_TOKEN} if video else {}),
        },
        padding_side="left",
        model_max_length=2048,
    )


def build_processor(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
    patch_size: int,
    pinpoints: Sequence[tuple[int, int]] = (),
) -> ProcessorMixin:
    """Build a family's processor.

    LLaVA-1.5's resizes the shorter side and crops the centre; LLaVA-NeXT's adds tiles of the best of `pinpoints`;
    OneVision's takes the whole image as its base instead of a crop. All normalise as their checkpoints do.
    """
    sizes = [list(size) for size in pinpoints]
    square = {"height": image_size, "width": image_size}
    template = VIDEO_CHAT_TEMPLATE if family == "llava_onevision" else CHAT_TEMPLATE
    shared = {"tokenizer": tokenizer, "chat_template": template}
    if family == "llava_onevision":
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessorPil(
                size=square, image_grid_pinpoints=sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3
            ),
            video_processor=FrameProcessor(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3),
            num_image_tokens=(image_size // patch_size) ** 2,
            vision_feature_select_strategy="full",
            **shared,
        )
    crop = {"size": {"shortest_edge": image_size}, "crop_size": square}
    shared |= {
        "patch_size": patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if family == "llava_next":
        tiles = LlavaNextImageProcessorPil(image_grid_pinpoints=sizes, **crop)
        return LlavaNextProcessor(image_processor=tiles, **shared)
    return LlavaProcessor(image_processor=CLIPImageProcessorPil(**crop), **shared)


def build_clip(n_vocab: int, vision: dict, text: dict, projection: int) -> CLIPModel:
    """Build the CLIP pair whose vision half becomes the embedded model's encoder.

    Parameters
    ----------
    n_vocab : int
        Size of the tokenizer's vocabulary.
    vision, text : dict
        Settings of `CLIPVisionConfig` and `CLIPTextConfig`.
    projection : int
        Width of the space in which images and captions are compared.
    """
    config = CLIPConfig(
        vision_config=vision,
        text_config={
            **text,
            "vocab_size": n_vocab,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        projection_dim=projection,
    )
    return CLIPModel(config)


def build_siglip(n_vocab: int, vision: dict, text: dict) -> SiglipModel:
    """Build the SigLIP pair whose vision half, without its pooling head, becomes OneVision's encoder."""
    config = SiglipConfig(
        vision_config=vision,
        text_config={
            **text,
            "vocab_size": n_vocab,
            "projection_size": vision["hidden_size"],
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
    )
    return SiglipModel(config)


def build_llm(family: str, n_vocab: int, text: dict) -> LlamaForCausalLM | Qwen2ForCausalLM:
    """Build a family's decoder alone, as it starts before it has seen a pixel."""
    if family == "llava_onevision":
        return Qwen2ForCausalLM(_text_config(Qwen2Config, n_vocab, text))
    return LlamaForCausalLM(_text_config(LlamaConfig, n_vocab, text))


def build_mllm(
    family: str,
    n_vocab: int,
    vision: dict,
    text: dict,
    pinpoints: Sequence[tuple[int, int]] = (),
    video_id: int | None = None,
) -> PreTrainedModel:
    """Build an untrained MLLM: vision encoder, two-layer GELU connector, decoder.

    Parameters
    ----------
    family : str
        ``"llava"`` (CLIP, Llama), ``"llava_next"`` (the same, with tiles) or ``"llava_onevision"`` (SigLIP, Qwen2).
    n_vocab : int
        Size of the tokenizer's vocabulary.
    vision, text : dict
        Settings of the encoder's and the decoder's config.
    pinpoints : sequence of (int, int)
        Heights and widths in pixels that images are tiled to; not read by LLaVA-1.5's form.
    video_id : int, optional
        Id of a video's placeholder, for OneVision.
    """
    common = {
        "image_token_index": IMAGE_ID,
        "projector_hidden_act": "gelu",
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2,
        "tie_word_embeddings": True,
    }
    if family == "llava_onevision":
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
            text_config=_text_config(Qwen2Config, n_vocab, text),
            video_token_index=video_id,
            image_grid_pinpoints=[list(size) for size in pinpoints],
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            **common,
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    else:
        common |= {
            "vision_config": CLIPVisionConfig(**vision),
            "text_config": _text_config(LlamaConfig, n_vocab, text),
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -2,
        }
        if family == "llava_next":
            sizes = [list(size) for size in pinpoints]
            model = LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=sizes, **common))
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**common))
    model.generation_config.eos_token_id = EOS_ID
    model.generation_config.pad_token_id = PAD_ID
    model.generation_config.bos_token_id = BOS_ID
    return model


def _text_config(
    kind: type[LlamaConfig | Qwen2Config], n_vocab: int, text: dict
) -> LlamaConfig | Qwen2Config:
    return kind(
        vocab_size=n_vocab,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
        **text,
    )
