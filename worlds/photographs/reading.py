"""Teach the LLM to read visual tokens: low-rank adapters and the connector, answers alone in the loss.

First on symbolic scenes, whose rows are the LLM's own words for what stands where; then on photographs. An arm that is
trained with dropping sees photographs with tokens left out, chosen without masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import AttentionInterface

from rcblib.data.questions import task_questions, yes_no_question
from rcblib.records import ONE_WORD_QUESTION, Question, VisualView
from worlds.photographs.sources import backdrops, nouns
from worlds.photographs.words import Connector, PlaceCode
from worlds.scenes.captions import captions
from worlds.training.dropping import Dropping, VisualBatch, left_positions
from worlds.training.packing import IGNORED, Packer, block_mask

SIDE = 12
"""Tokens along a side of a picture."""

N_TOKENS = SIDE * SIDE

MIX = {
    "one_word": 1.0,
    "caption": 0.5,
    "larger": 0.6,
    "left": 0.6,
    "count": 0.5,
    "position": 0.5,
    "backdrop": 0.4,
}
"""How often a question of a family is asked about an image that has one."""

DROPPING = Dropping({"scattered": 0.3, "window": 0.15, "alike": 0.1, "rare": 0.15})
"""How tokens are left out in the arm that is trained with dropping."""


NAMED_BACKDROPS, BARE_SCENES = 0.6, 0.25
"""Share of symbolic scenes whose rows say what is behind the things, and of those the share in which no thing is."""


@dataclass(frozen=True)
class Thing:
    """Describe one object as far as questions ask about it: noun, area, centre; units are those of the picture."""

    category: str
    area: float
    center: tuple[float, float]
    color: str | None = None


@dataclass(frozen=True)
class Picture:
    """Hold what is asked about one picture: its things, its backdrop, and its size."""

    things: tuple[Thing, ...]
    backdrop: str | None
    side: float


def training_questions(picture: Picture, rng: np.random.Generator) -> list[Question]:
    """Draw what one picture is asked: a present and an absent noun, and some of the other families, in random order.

    Where nothing stands, the one word is what is behind, and two absent nouns are asked about.
    """
    asked = []
    present = [thing.category for thing in picture.things]
    for task, share in MIX.items():
        if (present or task in ("one_word", "backdrop")) and rng.random() < share:
            asked += _one_question(picture, task, rng)
    absent = [noun for noun in nouns() if noun not in present]
    named = [(present[rng.integers(len(present))], "yes")] if present else []
    for noun in rng.choice(absent, 2 - len(named), replace=False):
        named.append((str(noun), "no"))
    asked += [Question(0, "yes_no", yes_no_question(noun), answer) for noun, answer in named]
    return [asked[i] for i in rng.permutation(len(asked))]


def _one_question(picture: Picture, task: str, rng: np.random.Generator) -> list[Question]:
    """Draw one question of a family, or none where the picture has none."""
    if task == "one_word" and not picture.things:
        return [Question(0, task, ONE_WORD_QUESTION, picture.backdrop)]
    caption = captions(picture.things, "")[0] if picture.things else None
    size = picture.side, picture.side
    found = task_questions(0, picture.things, *size, caption, task, picture.backdrop)
    return [found[i] for i in rng.permutation(len(found))[:1]]


class ChatPacker(Packer):
    """Lay the questions about one picture behind its visual tokens, in the words of a chat template."""

    def __init__(self, processor: Any):
        self.tokenizer = processor.tokenizer
        mark = "\x00"
        content = [{"type": "image"}, {"type": "text", "text": mark}]
        chat = [{"role": "user", "content": content}]
        before, self.after = processor.apply_chat_template(chat, add_generation_prompt=True).split(mark)
        before, self.between = before.split(processor.image_token)
        self.before = self.tokenizer(before).input_ids
        self._ids = lru_cache(maxsize=20_000)(self._encode)

    def _encode(self, question: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        asked = self.tokenizer(f"{self.between}{question}{self.after}", add_special_tokens=False).input_ids
        said = self.tokenizer(answer, add_special_tokens=False).input_ids + [self.tokenizer.eos_token_id]
        nothing = [IGNORED] * (len(asked) + len(said))  # no options whose telling word would be practised
        return asked + said, [IGNORED] * (len(asked) - 1) + said + [IGNORED], nothing


class PhotographBatches(Dataset):
    """Draw the batch of step *k*: features of photographs, which tokens are left, and packed questions.

    Parameters
    ----------
    features : numpy.ndarray
        ``(n, N_TOKENS, d)`` of the training photographs.
    pictures : sequence of Picture
        What is asked about each.
    dropping : Dropping
        How tokens are left out.
    """

    def __init__(
        self,
        features: np.ndarray,
        pictures: Sequence[Picture],
        packer: ChatPacker,
        seed: int,
        batch_size: int,
        dropping: Dropping,
    ):
        self.features, self.pictures, self.packer = features, pictures, packer
        self.seed, self.batch_size, self.dropping = seed, batch_size, dropping

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, step, 11])
        start = step * self.batch_size
        epoch = start // len(self.pictures)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))
        chosen = [order[(start + i) % len(order)] for i in range(self.batch_size)]
        batch = self.packer.pack([training_questions(self.pictures[i], rng) for i in chosen])
        drawn = [self._left(torch.from_numpy(self.features[i].astype(np.float32)), rng) for i in chosen]
        return batch | vars(VisualBatch.of(drawn))

    def _left(self, rows: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Choose what is left of a picture: its rows, where each is read, and where the text goes on."""
        kind = self.dropping.kind(rng)
        if kind == "all":
            return rows, torch.arange(N_TOKENS), N_TOKENS
        left = left_positions([VisualView(rows, (SIDE, SIDE))], kind, rng)
        if rng.random() < self.dropping.kept_positions:
            return rows[left], left, N_TOKENS
        return rows[left], torch.arange(len(left)), len(left)


class SymbolicBatches(Dataset):
    """Draw the batch of step *k* of symbolic scenes: no picture at all, rows are the LLM's words for what stands there.

    Parameters
    ----------
    words : torch.Tensor
        ``(n_words, d_model)`` embeddings of the nouns, and of the words for what is behind them.
    places : PlaceCode
        What is added to each row for where it stands.
    """

    def __init__(
        self, words: torch.Tensor, places: PlaceCode, packer: ChatPacker, seed: int, batch_size: int
    ):
        self.words, self.places, self.packer = words, places, packer
        self.seed, self.batch_size = seed, batch_size

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, step, 12])
        side = int(rng.integers(4, SIDE + 1)) if rng.random() < 0.75 else SIDE
        norm, width = float(self.words.norm(dim=-1).mean()), self.words.shape[-1]
        pictures, rows = [], []
        for _ in range(self.batch_size):
            owner, things = _blobs(side, rng)
            behind = str(rng.choice(backdrops())) if rng.random() < NAMED_BACKDROPS else None
            if behind and rng.random() < BARE_SCENES:
                owner, things = np.full(side * side, -1), []
            noise = (
                torch.from_numpy(rng.standard_normal((side * side, width)).astype(np.float32)) / width**0.5
            )
            is_on = torch.from_numpy(owner >= 0)[:, None]
            ground = rng.uniform(0.1, 0.6) * norm * noise
            if behind:
                ground = self.words[len(nouns()) + backdrops().index(behind)] + 0.75 * norm * noise
            said = self.words[[*(nouns().index(t.category) for t in things), 0]][owner]  # -1 is not looked at
            rows.append(torch.where(is_on, said + 0.75 * norm * noise, ground))
            pictures.append(Picture(tuple(things), behind, float(side)))
        batch = self.packer.pack([training_questions(picture, rng) for picture in pictures])
        return batch | vars(VisualBatch.whole(torch.stack(rows) + self.places(side)))


def _blobs(side: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Thing]]:
    """Draw one to three ellipses on a grid; return each cell's owner, -1 for none, and the things by their nouns."""
    n = int(rng.integers(1, 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    owner = np.full(side * side, -1)
    for k in range(n):
        y, x = rng.uniform(0, side - 1, 2)
        height, width = rng.uniform(0.15, 0.45, 2) * side
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1
        inside[int(round(y)) * side + int(round(x))] = True
        owner[inside] = k
    there = [k for k in range(n) if (owner == k).any()]
    names = rng.choice(nouns(), size=len(there), replace=False)
    things = []
    for k, name in zip(there, names, strict=True):
        cells = np.flatnonzero(owner == k)
        y, x = np.divmod(cells, side)
        center = ((x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2)
        things.append(Thing(str(name), float(len(cells)), center))
    renumber = {k: i for i, k in enumerate(there)} | {-1: -1}
    return np.array([renumber[k] for k in owner]), things


class PhotographReader(nn.Module):
    """Hold what is trained: a connector and an LLM with low-rank adapters on its attention.

    Parameters
    ----------
    llm : transformers.LlamaForCausalLM
        Frozen; its weights in bfloat16 where that is fast.
    connector : Connector
        Not used where rows are given as the LLM reads them.
    before : sequence of int
        Ids that stand before the picture.
    """

    def __init__(
        self, llm: Any, connector: Connector, before: Sequence[int], rank: int, connect: bool = True
    ):
        super().__init__()
        self.connector, self.connect = connector, connect
        self.register_buffer("before", torch.tensor(before))
        self.llm = llm if isinstance(llm, PeftModel) else get_peft_model(llm, lora_config(rank))

    def loss(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the mean cross-entropy of the answers' tokens, and the share of them that would be said."""
        decoder = self.llm.get_base_model()
        table = decoder.get_input_embeddings()
        rows = self.connector(batch["rows"]) if self.connect else batch["rows"]
        (n_pictures, n_rows), n_before = rows.shape[:2], len(self.before)
        before = table(self.before).expand(n_pictures, -1, -1)
        embedded = torch.cat([before, rows.to(before.dtype), table(batch["ids"])], dim=1)
        mask = block_mask(batch["segment"], n_before + n_rows)
        mask[:, :, n_before : n_before + n_rows] &= batch["is_there"][:, None]
        places = torch.cat(
            [
                torch.arange(n_before).expand(n_pictures, -1),
                n_before + batch["offsets"],
                n_before + batch["n_positions"][:, None] + batch["offset"],
            ],
            dim=1,
        )
        zero = torch.zeros((), dtype=embedded.dtype)
        bias = zero.where(mask, torch.finfo(embedded.dtype).min)[:, None]
        hidden = decoder.model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=places
        ).last_hidden_state
        told = batch["labels"] != IGNORED
        logits = decoder.lm_head(hidden[:, -batch["ids"].shape[1] :][told])
        targets = batch["labels"][told]
        value = nn.functional.cross_entropy(logits.float(), targets)
        right = (logits.argmax(-1) == targets).float().mean()
        return value, {"right": float(right)}


def plain_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend by two products and a softmax: on a CPU in bfloat16 less than half the time of the fused kernel."""
    n_pictures, n_heads, n, d = query.shape
    grouped = query.view(n_pictures, key.shape[1], -1, n, d)
    scores = grouped @ key.unsqueeze(2).transpose(-1, -2) * scaling + attention_mask.unsqueeze(1)
    attended = scores.softmax(-1) @ value.unsqueeze(2)
    return attended.view(n_pictures, n_heads, n, d).transpose(1, 2), None


AttentionInterface.register("plain", plain_attention)


def lora_config(rank: int) -> LoraConfig:
    """Return which of the LLM's layers are adapted: the projections of attention."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
