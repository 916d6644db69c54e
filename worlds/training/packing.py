"""Draw the questions that scenes are asked in training, and pack them behind their visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from rcblib.data.choices import read_options
from rcblib.data.questions import task_questions, yes_no_question
from rcblib.records import Question
from worlds.scenes.captions import captions
from worlds.scenes.generator import Scene, SceneConfig, generate_scene
from worlds.scenes.vocabulary import CATEGORIES, co_occurrence
from worlds.training.vision import patch_owners

if TYPE_CHECKING:
    from worlds.models import PreTrainedTokenizerFast

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
        image_processor: Callable[..., Mapping[str, torch.Tensor]] | None = None,
    ):
        self.packer, self.seed, self.batch_size, self.n_side = packer, seed, batch_size, n_side
        self.scenes, self.symbolic, self.image_processor = scenes, symbolic, image_processor

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        n_sizes = len(self.scenes.sizes)
        first, size = step // n_sizes * self.batch_size, step % n_sizes
        scenes = [
            generate_scene(self.seed, (first + i) * n_sizes + size, config=self.scenes)
            for i in range(self.batch_size)
        ]
        rng = np.random.default_rng([self.seed, step, 1])
        batch = self.packer.pack([training_questions(s, rng, QUESTION_MIX, N_YES_NO_PAIRS) for s in scenes])
        batch["noise_seed"] = torch.tensor(int(rng.integers(2**31)))
        if self.image_processor is not None:
            images = [Image.fromarray(scene.pixels) for scene in scenes]
            return batch | dict(self.image_processor(images, return_tensors="pt"))
        if not self.symbolic:
            batch["images"] = torch.from_numpy(np.stack([s.pixels for s in scenes]))
            return batch
        owners = [patch_owners(s, self.n_side) for s in scenes]
        for i, key in enumerate(("category", "color", "covered")):
            batch[key] = torch.from_numpy(np.stack([o[i] for o in owners]))
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
