"""Answer what signals ask about the tokens of an input; every forward pass is made once, when first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch

from rcblib.data.base import AnySample
from rcblib.data.coverage import Coverage
from rcblib.data.samples import by_picture
from rcblib.mllm import Adapter
from rcblib.mllm.language import VisualInput
from rcblib.probe.config import ProbeConfig, by_similarity
from rcblib.probe.inputs import Place, places_of, wanted_places
from rcblib.probe.perturbation import global_inputs, region_inputs, single_token_inputs
from rcblib.probe.pictures import view_coverage
from rcblib.records import VisualView
from rcblib.signals import SIGNALS
from rcblib.tensors.checks import check_features
from rcblib.tensors.divergence import combined_influence, divergence, entropy, top1_probability
from rcblib.tensors.geometry import window

ARTICLES = frozenset({"a", "an", "the"})

ATTENTION = frozenset({"cls_attention", "received_attention", "text_attention"})
"""Needs that are met only where a configuration asks for attention."""


N_WINDOWS = 128
"""Windows whose answers are held at once: five distributions a position, each as wide as the vocabulary."""

N_COPIES = 32
"""Copies of an image that are held at once, each with another window replaced, where no batch size is given."""


class Answers(NamedTuple):
    """Hold what is said to some inputs: logits ``(n, n_vocab)``, and whether an article was passed, ``(n,)``."""

    logits: torch.Tensor
    article: torch.Tensor


class Reader:
    """Read the distributions after a prompt, past an article where the answer begins with one."""

    def __init__(self, adapter: Adapter, config: ProbeConfig, kind: str, n_pictures: int):
        self.adapter, self.batch_size = adapter, config.batch_size
        self.prompt = prompt_for(adapter, config.question, kind, n_pictures)
        self.prompt_alone = prompt_for(adapter, config.question, kind, 1)
        self.prefix = adapter.shared_prefix(config.sharing, config.compiled)
        self.words: dict[int, str] = {}

    def word(self, token_id: int) -> str:
        """Return the text of a token without spaces around it; long words may be cut where the tokenizer cuts them."""
        if token_id not in self.words:
            self.words[token_id] = self.adapter.processor.tokenizer.decode([token_id]).strip()
        return self.words[token_id]

    def read(self, visual: Sequence[VisualInput], alone: bool = False) -> Answers:
        """Read some inputs; with `alone` each is the only one of a prompt with one picture, else all its pictures."""
        prompt = self.prompt_alone if alone else self.prompt
        settings = {"batch_size": self.batch_size, "prefix": self.prefix}
        logits = self.adapter.first_token_logits(prompt, visual, **settings)
        first = logits.argmax(-1).tolist()
        begun = [i for i, token_id in enumerate(first) if self.word(token_id).lower() in ARTICLES]
        if begun:
            logits[begun] = self.adapter.first_token_logits(
                prompt,
                [visual[i] for i in begun],
                answer_prefix=[[first[i]] for i in begun],
                **settings,
            )
        article = torch.zeros(len(first), dtype=torch.bool)
        article[begun] = True
        return Answers(logits, article)


def prompt_for(adapter: Adapter, question: str, kind: str, n_pictures: int) -> str:
    """Write the question about an input; a video is one placeholder, however many frames it has."""
    if kind == "video":
        return adapter.prompt(question, n_images=0, n_videos=1)
    return adapter.prompt(question, n_images=n_pictures)


class ProbedInput:
    """Hold one input as the model reads it, and what the LLM says of the whole.

    Attributes
    ----------
    images : list of EncodedImage
        Its photos, or the one video.
    places : list of Place
        All views; `wanted` are those that are probed.
    rows : list of torch.Tensor
        What the LLM reads of each of `images`, ``(n_rows, d_model)``.
    met : set of str
        Needs of signals that this model and configuration meet: a signal that needs no others has a column.
    """

    def __init__(
        self,
        adapter: Adapter,
        pictures: list[PIL.Image.Image],
        kind: str,
        sample: AnySample | None,
        config: ProbeConfig,
    ):
        config.check_cls(adapter.has_cls)
        self.adapter, self.config, self.kind = adapter, config, kind
        self.image_id = sample.image_id if sample else 0
        asked = {need for signal in SIGNALS.values() for need in signal.needs}
        if not config.attention:
            asked -= ATTENTION
        self.met = asked & (adapter.offers | {"text_attention", "masks"})
        self.images = adapter.encode_input(pictures, kind, needs=asked & adapter.offers)
        self.places = places_of(self.images)
        self.tokens = torch.cat([place.view.tokens for place in self.places])
        check_features("visual tokens", self.tokens, "(n_tokens, d_model)")
        self.wanted = wanted_places(self.places, config, f"image {self.image_id}")
        self.known = by_picture(sample) if sample else [None] * len(pictures)
        self.reader = Reader(adapter, config, kind, len(pictures))
        self.rows = [adapter.assemble(image) for image in self.images]
        self.replacement = adapter.replacement_embedding()
        self._coverage: dict[int, Coverage | None] = {}

    @cached_property
    def whole(self) -> Answers:
        """Read the input as it is: one row."""
        return self.reader.read([self.rows])

    def parts(self) -> list[ProbedView]:
        """Divide the views that are probed into parts whose answers are held together; see `parts_of`."""
        return [
            ProbedView(self, place, part)
            for place in self.wanted
            for part in parts_of(self.config.choose(place.view), place.view.grid)
        ]

    def coverage(self, place: Place) -> Coverage | None:
        """Return what lies beneath a view, ``None`` where nothing is known of its photo."""
        if place.number not in self._coverage:
            sample = self.known[place.picture]
            self._coverage[place.number] = (
                None if sample is None else view_coverage(self.adapter.processor, sample, place.view)
            )
        return self._coverage[place.number]

    @cached_property
    def text_attention(self) -> dict[str, torch.Tensor]:
        """Return text-to-image attention ``(n_layers, n_tokens of all views)``, newlines left out."""
        starts = np.cumsum([0, *map(len, self.rows)]).tolist()
        pairs = zip(self.images, starts[:-1], strict=True)
        read_at = torch.cat([self.adapter.token_rows(image) + start for image, start in pairs])
        attention = self.adapter.text_to_image_attention(self.reader.prompt, self.rows)
        return {name: by_row[:, read_at] for name, by_row in attention.items()}


class ProbedView:
    """Answer what a `rcblib.signals.Signal` asks about the probed positions of one view: ``(n_positions,)`` each.

    Parameters
    ----------
    probed, place
        The input, and which of its views.
    positions : sequence of int, optional
        Some of those that are probed, ascending (default: all of them), as `parts_of` divides them.

    Attributes
    ----------
    input : ProbedInput
        The input that the view is of, with the adapter and the configuration.
    view : VisualView
        All tokens of the view, its grid, and what the vision encoder said of them.
    positions : list of int
        Which are probed, ascending.
    tokens : torch.Tensor
        ``(n_positions, d_model)``, the visual tokens at these positions.
    """

    def __init__(self, probed: ProbedInput, place: Place, positions: Sequence[int] | None = None):
        self.input, self.place, self.config, self.reader = probed, place, probed.config, probed.reader
        self.view: VisualView = place.view
        self.positions = probed.config.choose(place.view) if positions is None else list(positions)
        self.tokens = place.view.tokens[self.positions]
        # Targets at a border share their window, and so the runs that depend on the window alone.
        sharing = by_window(self.positions, self.view.grid)
        number = {position: i for i, targets in enumerate(sharing) for position in targets}
        self.own_window = torch.tensor([number[position] for position in self.positions])  # (n_positions,)
        self.first_of_window = [
            self.positions.index(targets[0]) for targets in sharing
        ]  # one for each window

    def top1(self, level: str) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Return the likeliest first word, its token and its probability."""
        probability, token_id = top1_probability(self.answers(level).logits, self.config.n_head_candidates)
        return [self.reader.word(i) for i in token_id.tolist()], token_id, probability

    def entropy(self, level: str) -> torch.Tensor:
        """Return the entropy of the first word, in nats."""
        return entropy(self.answers(level).logits)

    def article(self, level: str, ablated: bool = False) -> torch.Tensor:
        """Tell whether the answer began with an article, which was passed."""
        return self.answers(level, ablated).article

    def divergence(self, level: str, form: str = "released") -> torch.Tensor:
        """Return by how much the first word changes when the target (region) or its window (global) is left out."""
        intact = self.input.whole.logits if level == "global" else self._region.logits
        return divergence(intact, self.answers(level, ablated=True).logits, self.config.n_candidates, form)

    def influence(self) -> np.ndarray:
        """Return the weighted sum of the released divergences."""
        levels = (self.divergence(level).numpy() for level in ("region", "global"))
        return combined_influence(*levels, self.config.k_region, self.config.k_global)

    def encoder(self, name: str) -> torch.Tensor | float | None:
        """Return an encoder signal; NaN where it was not asked for, ``None`` where the encoder does not have it."""
        if name in self.view.signals:
            return self.view.signals[name][self.positions]
        return float("nan") if name in self.input.adapter.offers else None

    def cls_rank(self) -> torch.Tensor | None:
        """Return the rank in the view by similarity to [CLS], 1 = most similar."""
        if "cls_similarity" not in self.view.signals:
            return None
        rank = torch.empty(self.view.n_tokens, dtype=torch.long)
        rank[by_similarity(self.view)] = torch.arange(1, self.view.n_tokens + 1)
        return rank[self.positions]

    def covered(self) -> np.ndarray | float:
        """Return the share of each patch under any mask of its photo; NaN without masks."""
        return float("nan") if self._coverage is None else self._coverage.share[self.positions].numpy()

    def category(self) -> list[str | None]:
        """Return the category that covers most of each patch; ``None`` where none does, or without masks."""
        return [self._coverage and self._coverage.category[position] for position in self.positions]

    def text_attention(self, rows: str) -> torch.Tensor | None:
        """Return attention of the last prompt token, or of the question, ``(n_layers, n_positions)``."""
        if not self.config.attention:
            return None
        read_at = [self.place.n_before + position for position in self.positions]
        return self.input.text_attention[rows][:, read_at]

    def answers(self, level: str, ablated: bool = False) -> Answers:
        """Return what is said to ``"single"``, ``"region"`` or ``"global"`` inputs, as they are or without a part."""
        if level == "global" and not ablated:
            n = len(self.positions)
            return Answers(self.input.whole.logits.expand(n, -1), self.input.whole.article.expand(n))
        return getattr(self, f"_{level}_ablated" if ablated else f"_{level}")

    @cached_property
    def _single(self) -> Answers:
        return self.reader.read(single_token_inputs(self.view.tokens, self.positions), alone=True)

    @cached_property
    def _region_inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return region_inputs(self.view.tokens, self.view.grid, self.positions, self.input.replacement)

    @cached_property
    def _region(self) -> Answers:
        intact = self._region_inputs[0][self.first_of_window]
        return Answers(*(runs[self.own_window] for runs in self.reader.read(intact, alone=True)))

    @cached_property
    def _region_ablated(self) -> Answers:
        return self.reader.read(self._region_inputs[1], alone=True)

    @cached_property
    def _global_ablated(self) -> Answers:
        """Read the input with each window replaced, some at a time: each has a copy of the target's image."""
        targets = [self.positions[i] for i in self.first_of_window]
        at, rows, size = self.place.image, self.input.rows, self.reader.batch_size or N_COPIES
        image, parts = self.input.images[at], []
        for start in range(0, len(targets), size):
            batch = targets[start : start + size]
            inputs = []
            for tokens in global_inputs(self.view.tokens, self.view.grid, batch, self.input.replacement):
                views = [tokens if k == self.place.inside else None for k in range(len(image.views))]
                inputs.append([*rows[:at], self.input.adapter.assemble(image, views), *rows[at + 1 :]])
            parts.append(self.reader.read(inputs))
        return Answers(*(torch.cat(each)[self.own_window] for each in zip(*parts, strict=True)))

    @property
    def _coverage(self) -> Coverage | None:
        return self.input.coverage(self.place)


def by_window(positions: Sequence[int], grid: tuple[int, int]) -> list[list[int]]:
    """Group positions of a grid by the window that they have, in the order of the windows."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position in positions:
        groups.setdefault(tuple(window(position, *grid)), []).append(position)
    return list(groups.values())


def parts_of(positions: Sequence[int], grid: tuple[int, int]) -> list[list[int]]:
    """Divide positions so that no part has more than `N_WINDOWS` windows and none has a window of another's."""
    groups = by_window(positions, grid)
    starts = range(0, len(groups), N_WINDOWS)
    return [sorted(sum(groups[start : start + N_WINDOWS], [])) for start in starts]
