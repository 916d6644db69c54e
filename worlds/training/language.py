"""Train the LLM: first on symbols, where it learns to look words up in its context, then behind the vision encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from rcblib.data.choices import LETTERS, read_options
from rcblib.data.questions import task_questions, yes_no_question
from rcblib.records import Question
from worlds.scenes.captions import captions
from worlds.scenes.generator import Scene, SceneConfig, generate_scene
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES, co_occurrence
from worlds.training.vision import SIGLIP_MEAN, SIGLIP_STD, patch_owners, to_pixels

if TYPE_CHECKING:
    from worlds.models import PreTrainedModel, PreTrainedTokenizerFast

IGNORED = -100

# How an item's pictures stand in a prompt.
FORMS = ("image", "images", "video")

# How many questions of a family one scene contributes, at most.
QUESTION_MIX = {"one_word": 1, "caption": 1, "color": 3, "count": 1, "position": 1, "digit": 1}

N_YES_NO_PAIRS = 2


def training_questions(
    scene: Scene, rng: np.random.Generator, mix: dict[str, int], n_pairs: int
) -> list[Question]:
    """Draw the questions that one training scene is asked, in random order.

    Yes/no questions come in pairs of a present and an absent category; absent ones are drawn with the odds that the
    co-occurrence of categories gives them, so that they are neither all far-fetched nor all likely.
    """
    caption = captions(scene.objects, scene.background)[0]
    asked: list[Question] = []
    for task, most in mix.items():
        found = task_questions(scene.index, scene.objects, scene.width, scene.height, caption, task)
        asked += [found[i] for i in rng.permutation(len(found))[:most]]
    present = sorted({CATEGORIES.index(o.category) for o in scene.objects})
    odds = co_occurrence()[present].prod(0)
    odds[present] = 0
    absent = rng.choice(len(CATEGORIES), n_pairs, replace=False, p=odds / odds.sum())
    for no in absent:
        yes = present[rng.integers(len(present))]
        asked.append(Question(scene.index, "yes_no", yes_no_question(CATEGORIES[yes]), "yes"))
        asked.append(Question(scene.index, "yes_no", yes_no_question(CATEGORIES[no]), "no"))
    return [asked[i] for i in rng.permutation(len(asked))]


class Packer:
    """Lay the questions about one image behind its visual tokens in a single sequence.

    Every question sees the image and itself only (block mask) and starts at the position that follows the image, so
    that each reads exactly what it would read alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_token_id: int):
        self.tokenizer = tokenizer
        text = tokenizer(f"USER: {tokenizer.convert_ids_to_tokens(image_token_id)}\n").input_ids
        self.prefix = text[: text.index(image_token_id)]
        self.question_mark = tokenizer.convert_tokens_to_ids("?")
        self._ids = lru_cache(maxsize=4096)(self._encode)

    def __getstate__(self) -> dict:
        # A cache does not travel to worker processes; where they are spawned, a packer is pickled.
        return {key: value for key, value in self.__dict__.items() if key != "_ids"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._ids = lru_cache(maxsize=4096)(self._encode)

    def _encode(self, question: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        """Return the token ids of a question with its answer, their labels, and their words, as `pack` says."""
        asked = self.tokenizer(f"{question} ASSISTANT:", add_special_tokens=False).input_ids
        said = self.tokenizer(answer, add_special_tokens=False).input_ids
        said += [self.tokenizer.eos_token_id]
        words = [IGNORED] * (len(asked) + len(said))
        if options := read_options(question):
            words[asked.index(self.question_mark)] = self._telling_word(options, answer)
        return asked + said, [IGNORED] * (len(asked) - 1) + said + [IGNORED], words

    def _telling_word(self, options: Mapping[str, str], answer: str) -> int:
        """Return the token that tells the right option from all others: two in "image two", of images."""
        spelled = {
            letter: self.tokenizer(option, add_special_tokens=False).input_ids
            for letter, option in options.items()
        }
        right = spelled.pop(answer)
        for n in range(1, len(right)):
            if all(other[:n] != right[:n] for other in spelled.values()):
                return right[n - 1]
        return right[-1]

    def pack(self, scenes: Sequence[Sequence[Question]]) -> dict[str, torch.Tensor]:
        """Return `ids`, `labels`, `words`, `segment` and `offset`, each `(n_scenes, n_text)`, padded on the right.

        `labels` holds the answer tokens (each shifted to where it is predicted), `words`, at the question mark before
        options, the token that tells the right one from the others, `segment` numbers questions from 1 (0 is padding),
        `offset` counts positions inside a question.
        """
        rows = []
        for questions in scenes:
            ids, labels, words, segment, offset = [], [], [], [], []
            for number, question in enumerate(questions, 1):
                part, said, word = self._ids(question.text, question.answer)
                ids += part
                labels += said
                words += word
                segment += [number] * len(part)
                offset += range(len(part))
            rows.append((ids, labels, words, segment, offset))
        longest = max(len(r[0]) for r in rows)
        fill = (self.tokenizer.pad_token_id, IGNORED, IGNORED, 0, 0)
        return {
            key: torch.tensor([r[i] + [fill[i]] * (longest - len(r[i])) for r in rows])
            for i, key in enumerate(("ids", "labels", "words", "segment", "offset"))
        }


class LanguageBatches(Dataset):
    """Draw the batch of step *k*: scenes as pixels or as patch owners, and their packed questions.

    All scenes of a step have one size, so that their visual tokens stack. With an image processor, pixels are what it
    makes of the images (tiles, say); without, the images themselves.
    """

    def __init__(
        self,
        packer: Packer,
        seed: int,
        batch_size: int,
        n_side: int,
        scenes: SceneConfig,
        symbolic: bool,
        split: str = "train",
        mix: dict[str, int] | None = None,
        n_pairs: int = N_YES_NO_PAIRS,
        image_processor: Callable[..., Mapping[str, torch.Tensor]] | None = None,
    ):
        self.packer, self.seed, self.batch_size, self.n_side = packer, seed, batch_size, n_side
        self.scenes, self.symbolic, self.split = scenes, symbolic, split
        self.mix, self.n_pairs = mix or QUESTION_MIX, n_pairs
        self.image_processor = image_processor

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        n_sizes = len(self.scenes.sizes)
        first, size = step // n_sizes * self.batch_size, step % n_sizes
        scenes = [
            generate_scene(self.seed, (first + i) * n_sizes + size, self.split, self.scenes)
            for i in range(self.batch_size)
        ]
        rng = np.random.default_rng([self.seed, step, 1])
        batch = self.packer.pack([training_questions(s, rng, self.mix, self.n_pairs) for s in scenes])
        if self.image_processor is not None:
            images = [Image.fromarray(scene.pixels) for scene in scenes]
            return batch | dict(self.image_processor(images, return_tensors="pt"))
        if not self.symbolic:
            batch["images"] = torch.from_numpy(np.stack([s.pixels for s in scenes]))
            return batch
        owners = [patch_owners(s, self.n_side) for s in scenes]
        for i, key in enumerate(("category", "color", "covered")):
            batch[key] = torch.from_numpy(np.stack([o[i] for o in owners]))
        batch["noise_seed"] = torch.tensor(int(rng.integers(2**31)))
        return batch


def block_mask(segment: torch.Tensor, n_before: int) -> torch.Tensor:
    """Let every question see the image and itself only.

    Parameters
    ----------
    segment : torch.Tensor
        ``(n_scenes, n_text)`` number of the question that each token belongs to, from `Packer.pack`.
    n_before : int
        Tokens before the questions, the image's among them, which every question sees.

    Returns
    -------
    torch.Tensor
        ``(n_scenes, n, n)`` with n = n_before + n_text; true where a row may attend to a column.
    """
    segment = F.pad(segment + 1, (n_before, 0))
    n = segment.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=segment.device).tril()
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    return causal & (same | (segment == 0).unsqueeze(1))


def answer_loss(
    llm: nn.Module,
    embed: nn.Embedding,
    head: nn.Module,
    prefix: list[int],
    visual: torch.Tensor,
    batch: dict,
    word_layer: int = 0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the mean cross-entropy of the answer tokens after visual tokens `(n_scenes, n_visual, d)`.

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
    n = len(batch["ids"])
    before = torch.tensor(prefix, device=visual.device)
    n_before = len(prefix) + visual.shape[1]
    inputs = torch.cat(
        [embed(before).expand(n, -1, -1), visual.to(embed.weight.dtype), embed(batch["ids"])], 1
    )
    mask = block_mask(batch["segment"], n_before)
    positions = torch.cat(
        [torch.arange(n_before, device=visual.device).expand(n, -1), n_before + batch["offset"]], 1
    )
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
            mine = first & torch.isin(target, ids)
            if mine.any():
                numbers[name] = right[mine].mean()
    return numbers


@dataclass(frozen=True)
class AnswerKinds:
    """Group the first answer token's ids by what they answer, for the numbers printed while training."""

    yes_no: list[int]
    color: list[int]
    category: list[int]
    count: list[int]
    position: list[int]
    letter: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> AnswerKinds:
        """Look the ids up in a tokenizer."""

        def ids(*words: str) -> list[int]:
            return tokenizer.convert_tokens_to_ids(list(words))

        return cls(
            ids("yes", "no"),
            ids(*COLOR_NAMES),
            ids(*CATEGORIES),
            ids("one", "two", "three", "four"),
            ids("top", "left", "center", "right", "bottom"),
            ids(*LETTERS),
        )


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
        self.kinds = AnswerKinds.of(packer.tokenizer)
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
            {**batch, "kinds": kind_tensors(self.kinds, batch["ids"].device)},
            self.word_layer,
        )


class PixelTrainer(nn.Module):
    """Train a whole MLLM on pixels; what is frozen is decided by what the caller lets learn."""

    def __init__(self, llava: PreTrainedModel, packer: Packer, vision_frozen: bool, word_layer: int = 0):
        super().__init__()
        self.llava, self.packer, self.vision_frozen = llava, packer, vision_frozen
        self.word_layer = word_layer
        self.kinds = AnswerKinds.of(packer.tokenizer)
        llava.model.vision_tower.requires_grad_(not vision_frozen)

    def visual(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode a batch's images into visual tokens `(n_scenes, n_tokens, d)`."""
        if "form" in batch:
            return self._pictures(batch["images"], FORMS[int(batch["form"])])
        if "images" in batch:
            return self._crops(batch["images"])
        features = self.llava.get_image_features(
            pixel_values=batch["pixel_values"], image_sizes=batch["image_sizes"], return_dict=True
        )
        return torch.stack(list(features.pooler_output))

    def _pictures(self, images: torch.Tensor, form: str) -> torch.Tensor:
        """Encode uint8 pictures `(n, n_pictures, height, width, 3)` of the encoder's own size as OneVision does.

        A single image is shown twice, as a base and as its only tile; of several images only the base is.
        """
        n_items, n_pictures, height, width, _ = images.shape
        pixels = to_pixels(images.flatten(0, 1), SIGLIP_MEAN, SIGLIP_STD)
        if form == "video":
            videos = pixels.view(n_items, n_pictures, *pixels.shape[1:])
            return self.llava.get_video_features(pixel_values_videos=videos, return_dict=True).pooler_output
        sizes = torch.tensor([(height, width)] * len(pixels), device=pixels.device)
        tiles = pixels.unsqueeze(1)
        features = self.llava.get_image_features(
            pixel_values=tiles.repeat(1, 2, 1, 1, 1) if form == "image" else tiles,
            image_sizes=sizes,
            batch_num_images=torch.tensor([n_pictures] * n_items),
            return_dict=True,
        )
        return torch.stack(list(features.pooler_output)).view(
            n_items, -1, features.pooler_output[0].shape[-1]
        )

    def _crops(self, images: torch.Tensor) -> torch.Tensor:
        """Encode uint8 images `(n, height, width, 3)` of the encoder's own size, without its unread last layer."""
        layer = self.llava.config.vision_feature_layer
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_frozen):
            hidden = self.llava.model.vision_tower(
                to_pixels(images), output_hidden_states=True
            ).hidden_states[layer]
        return self.llava.model.multi_modal_projector(hidden[:, 1:])

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a batch and accuracies on it."""
        return answer_loss(
            self.llava.model.language_model,
            self.llava.get_input_embeddings(),
            self.llava.lm_head,
            self.packer.prefix,
            self.visual(batch),
            {**batch, "kinds": kind_tensors(self.kinds, batch["ids"].device)},
            self.word_layer,
        )


def kind_tensors(kinds: AnswerKinds, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the answer kinds as tensors on a device."""
    return {name: torch.tensor(ids, device=device) for name, ids in vars(kinds).items()}
