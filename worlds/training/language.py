"""Train the LLM: first on symbols, where it learns to look words up in its context, then behind the vision encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rcblib.data.choices import LETTERS
from rcblib.data.questions import COUNT_WORDS
from rcblib.mllm import adapter_for
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from worlds.training.dropping import Dropping, VisualBatch
from worlds.training.packing import FORMS, IGNORED, Packer, block_mask
from worlds.training.vision import SIGLIP_MEAN, SIGLIP_STD, to_pixels

if TYPE_CHECKING:
    from worlds.models import PreTrainedModel, PreTrainedTokenizerFast


def answer_loss(
    llm: nn.Module,
    embed: nn.Embedding,
    head: nn.Module,
    prefix: list[int],
    visual: torch.Tensor | VisualBatch,
    batch: dict,
    word_layer: int = 0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the mean cross-entropy of the answer tokens after visual tokens `(n_scenes, n_visual, d)`.

    A `VisualBatch` holds as many for each scene as were not dropped.

    With a `word_layer` that of the `words` is added, read off behind that layer: what the answer to a multiple-choice
    question is comes first, at the end of the question, and which option's letter it has after it.

    Parameters
    ----------
    llm : torch.nn.Module
        The decoder without its head.
    embed, head : torch.nn.Module
        Word embeddings and output head.
    prefix : list of int
        Token ids before the image.
    word_layer : int
        Counted from 1; 0 asks for letters alone.
    """
    if isinstance(visual, torch.Tensor):
        visual = VisualBatch.whole(visual)
    n, device = len(batch["ids"]), visual.rows.device
    n_prefix, n_before = len(prefix), len(prefix) + visual.rows.shape[1]
    begin = embed(torch.tensor(prefix, device=device)).expand(n, -1, -1)
    inputs = torch.cat([begin, visual.rows.to(embed.weight.dtype), embed(batch["ids"])], 1)
    mask = block_mask(batch["segment"], n_before)
    mask[:, :, n_prefix:n_before] &= visual.is_there.unsqueeze(1)
    behind = n_prefix + visual.n_positions[:, None] + batch["offset"]
    begin_at = torch.arange(n_prefix, device=device).expand(n, -1)
    positions = torch.cat([begin_at, n_prefix + visual.offsets, behind], 1)
    hidden = llm(
        inputs_embeds=inputs,
        attention_mask=mask.unsqueeze(1),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=bool(word_layer),
    )
    wanted = batch["labels"] != IGNORED
    logits = head(hidden.last_hidden_state[:, n_before:][wanted])
    target = batch["labels"][wanted]
    loss = F.cross_entropy(logits.float(), target)
    numbers = _accuracies(logits, target, batch, wanted)
    chosen = batch["words"] != IGNORED
    if word_layer and chosen.any():
        said = head(llm.norm(hidden.hidden_states[word_layer][:, n_before:][chosen]))
        words = batch["words"][chosen]
        loss = loss + F.cross_entropy(said.float(), words) * len(words) / len(target)
        numbers["word"] = (said.argmax(-1) == words).float().mean()
    return loss, numbers


def _accuracies(
    logits: torch.Tensor, target: torch.Tensor, batch: dict, wanted: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measure the first answer tokens, all and by kind where a kind is asked, and the later ones."""
    with torch.no_grad():
        right = (logits.argmax(-1) == target).float()
        segment = batch["segment"][wanted]
        rows = torch.arange(len(wanted), device=wanted.device).unsqueeze(1).expand_as(wanted)[wanted]
        key = rows * 1000 + segment
        first = torch.ones_like(right, dtype=torch.bool)
        first[1:] = key[1:] != key[:-1]
        numbers = {"first": right[first].mean(), "later": right[~first].mean()}
        for name, ids in batch.get("kinds", {}).items():
            mine = first & torch.isin(target, torch.tensor(ids, device=target.device))
            if mine.any():
                numbers[name] = right[mine].mean()
    return numbers


def answer_kinds(tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """Group the first answer token's ids by what they answer, for the numbers printed while training."""
    words = {
        "yes_no": ("yes", "no"),
        "color": COLOR_NAMES,
        "category": CATEGORIES,
        "count": COUNT_WORDS,
        "position": ("top", "left", "center", "right", "bottom"),
        "letter": LETTERS,
    }
    return {kind: tokenizer.convert_tokens_to_ids(list(those)) for kind, those in words.items()}


class SymbolicTrainer(nn.Module):
    """Show the LLM scenes as symbols: each patch is the sum of the word embeddings of its category and colour.

    A patch that an object covers by a share of one half or more is that sum, a bare one a learnt filler, in between
    a mixture; Gaussian noise keeps the LLM from expecting exact rows.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        packer: Packer,
        noise: float = 0.3,
        newline: bool = False,
        word_layer: int = 0,
    ):
        super().__init__()
        self.llm, self.packer, self.noise, self.word_layer = llm, packer, noise, word_layer
        self.filler = nn.Parameter(0.02 * torch.randn(llm.config.hidden_size))
        if newline:
            self.newline = nn.Parameter(0.02 * torch.randn(llm.config.hidden_size))
        self.kinds = answer_kinds(packer.tokenizer)
        ids = packer.tokenizer.convert_tokens_to_ids
        self.register_buffer("category_ids", torch.tensor(ids(list(CATEGORIES))), persistent=False)
        self.register_buffer("color_ids", torch.tensor(ids(list(COLOR_NAMES))), persistent=False)

    def visual(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return symbolic visual tokens `(n_scenes, n_patches, d)`.

        Several pictures, `(n_items, n_pictures, n_patches)`, stand one after another as in OneVision: a newline after
        every image, or one at the end of a video.
        """
        embed = self.llm.get_input_embeddings()
        words = embed(self.category_ids[batch["category"]]) + embed(self.color_ids[batch["color"]])
        weight = (2 * batch["covered"]).clamp(max=1).unsqueeze(-1)
        rows = weight * words + (1 - weight) * self.filler
        generator = torch.Generator().manual_seed(int(batch["noise_seed"]))
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        rows = rows + self.noise * embed.weight.detach().std() * noise
        if rows.ndim == 3:
            return rows
        n_items, n_pictures, _, width = rows.shape
        if FORMS[int(batch["form"])] == "video":
            rows, n_pictures = rows.flatten(1, 2).unsqueeze(1), 1
        newline = self.newline.expand(n_items, n_pictures, 1, width)
        return torch.cat([rows, newline], 2).flatten(1, 2)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch and accuracies on it."""
        return answer_loss(
            self.llm.model,
            self.llm.get_input_embeddings(),
            self.llm.lm_head,
            self.packer.prefix,
            self.visual(batch),
            {**batch, "kinds": self.kinds},
            self.word_layer,
        )


class PixelTrainer(nn.Module):
    """Train a whole MLLM on pixels; what is frozen is decided by what the caller lets learn.

    With `dropping`, of which encoder and connector learn nothing, the LLM reads some of the visual tokens, as
    `rcblib.mllm` gives it those that a pruner keeps.
    """

    def __init__(
        self,
        llava: PreTrainedModel,
        packer: Packer,
        vision_frozen: bool,
        word_layer: int = 0,
        dropping: Dropping | None = None,
    ):
        super().__init__()
        self.llava, self.packer, self.vision_frozen = llava, packer, vision_frozen
        self.word_layer, self.dropping = word_layer, dropping
        self.kinds = answer_kinds(packer.tokenizer)
        llava.model.vision_tower.requires_grad_(not vision_frozen)

    def visual(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode a batch's images into visual tokens `(n_scenes, n_tokens, d)`."""
        if "images" in batch and "form" not in batch:
            return self._crops(batch["images"])
        inputs = self._pixels(batch)
        if "pixel_values_videos" in inputs:
            return self.llava.get_video_features(**inputs, return_dict=True).pooler_output
        rows = torch.stack(list(self.llava.get_image_features(**inputs, return_dict=True).pooler_output))
        return rows.view(len(batch["images"]), -1, rows.shape[-1]) if "images" in batch else rows

    def _pixels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what the model's processor would make of a batch's images.

        Uint8 pictures of OneVision, `(n, n_pictures, height, width, 3)`, have the encoder's own size: a single image is
        shown twice, as a base and as its only tile; of several images only the base is.
        """
        if "images" not in batch:
            return {name: batch[name] for name in ("pixel_values", "image_sizes")}
        images = batch["images"]
        if "form" not in batch:
            return {"pixel_values": to_pixels(images)}
        n_items, n_pictures, height, width, _ = images.shape
        pixels = to_pixels(images.flatten(0, 1), SIGLIP_MEAN, SIGLIP_STD)
        form = FORMS[int(batch["form"])]
        if form == "video":
            return {"pixel_values_videos": pixels.view(n_items, n_pictures, *pixels.shape[1:])}
        tiles = pixels.unsqueeze(1)
        return {
            "pixel_values": tiles.repeat(1, 2, 1, 1, 1) if form == "image" else tiles,
            "image_sizes": torch.tensor([(height, width)] * len(pixels), device=pixels.device),
            "batch_num_images": torch.tensor([n_pictures] * n_items),
        }

    def _crops(self, images: torch.Tensor) -> torch.Tensor:
        """Encode uint8 images `(n, height, width, 3)` of the encoder's own size, without its unread last layer."""
        layer = self.llava.config.vision_feature_layer
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_frozen):
            hidden = self.llava.model.vision_tower(
                to_pixels(images), output_hidden_states=True
            ).hidden_states[layer]
        return self.llava.model.multi_modal_projector(hidden[:, 1:])

    def _some(self, batch: dict[str, torch.Tensor]) -> VisualBatch:
        """Encode a batch's images and drop tokens of each sequence."""
        adapter = adapter_for(self.llava)
        images = adapter.encode_pixels(self._pixels(batch))
        each = len(images) // len(batch["ids"])
        rng = np.random.default_rng(int(batch["noise_seed"]))
        starts = range(0, len(images), each)
        return VisualBatch.of([self.dropping.draw(adapter, images[i : i + each], rng) for i in starts])

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch and accuracies on it."""
        return answer_loss(
            self.llava.model.language_model,
            self.llava.get_input_embeddings(),
            self.llava.lm_head,
            self.packer.prefix,
            self.visual(batch) if self.dropping is None else self._some(batch),
            {**batch, "kinds": self.kinds},
            self.word_layer,
        )
