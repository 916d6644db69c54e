"""Intervene in what a model sees, and measure how much less likely it then holds the right answer to be.

Two interventions leave the input natural, where zeros or padding would overstate what a token does: a token gives way
to one of another image's background, from the same place; and a picture is drawn again without one of its objects.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from rcblib.data.base import AnySample
from rcblib.data.samples import load_pictures
from rcblib.evaluate.known import same_places
from rcblib.mllm import Adapter
from rcblib.mllm.language import VisualInput
from rcblib.probe.inputs import Place, places_of
from rcblib.probe.pictures import view_coverage
from rcblib.records import EncodedImage, ImageId, ParameterError, Question

N_COPIES = 32
"""Copies of an image that are held at once, each with another token swapped."""

N_HELD = 64
"""Other images whose tokens are held at once."""


class Answer:
    """Read how likely a model holds the right answer to a question about one image to be.

    Of the forms that an answer may take (as it is, capitalised, after a blank) the one counts throughout that is
    likeliest for the image as it is: a model that says "Yes" is not asked for "yes".

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    question : Question
        About one image.
    rows : VisualInput
        The image as it is.
    batch_size : int, optional
        Inputs per forward pass.
    sharing : {"auto", "always", "never"}
        Of what inputs begin with, as in `rcblib.probe.config.ProbeConfig`.

    Attributes
    ----------
    form : tuple of int
        Token ids of the answer.
    own_id : int
        First token of what the model itself says of the image as it is.
    is_own : bool
        Whether the right answer begins with that token.
    intact : torch.Tensor
        ``(2,)`` what `log_probabilities` gives for it.

    Raises
    ------
    ParameterError
        If the tokenizer cannot write the answer.
    """

    def __init__(
        self,
        adapter: Adapter,
        question: Question,
        rows: VisualInput,
        batch_size: int | None = None,
        sharing: str = "auto",
    ):
        self.adapter, self.question, self.batch_size = adapter, question, batch_size
        self.prompt = adapter.prompt(question.text)
        self.prefix = adapter.shared_prefix(sharing)
        self.own_id = int(self._read([rows], ()).argmax(-1))
        found = {
            form: self.log_probabilities([rows], form)[0]
            for form in answer_forms(adapter.processor.tokenizer, question.answer)
        }
        self.form = max(found, key=lambda form: float(found[form][0]))
        self.intact = found[self.form]
        self.is_own = self.form[0] == self.own_id

    def log_probabilities(
        self, visual: Sequence[VisualInput], form: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Return ``(n, 2)`` log-probabilities in nats: of the right answer, and of the model's own first token."""
        total, own = torch.zeros(len(visual)), torch.zeros(len(visual))
        form = self.form if form is None else form
        for k, token_id in enumerate(form):
            said = self._read(visual, form[:k])
            total += said[:, token_id]
            own = said[:, self.own_id] if k == 0 else own
        return torch.stack([total, own], dim=1)

    def falls(self, visual: Sequence[VisualInput]) -> torch.Tensor:
        """Return ``(n, 2)`` by how many nats either is lower than for the image as it is."""
        return self.intact - self.log_probabilities(visual)

    def _read(self, visual: Sequence[VisualInput], begun: Sequence[int]) -> torch.Tensor:
        answer_prefix = [list(begun)] * len(visual) if begun else None
        logits = self.adapter.first_token_logits(
            self.prompt, visual, batch_size=self.batch_size, answer_prefix=answer_prefix, prefix=self.prefix
        )
        return logits.log_softmax(-1)


def answer_forms(tokenizer: Any, answer: str) -> list[tuple[int, ...]]:
    """Return the token ids of the forms that an answer may take, each once.

    Raises
    ------
    ParameterError
        If the tokenizer knows none of them.
    """
    words = (answer, answer[:1].upper() + answer[1:])
    texts = [text for word in words for text in (word, f" {word}")]
    forms = dict.fromkeys(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    known = [form for form in forms if form and tokenizer.unk_token_id not in form]
    if not known:
        raise ParameterError("answer", answer, "an answer in words that the model's tokenizer knows")
    return known


class Donors:
    """Find for every token of an image one that shows background at the same place of another image.

    Other images are gone through in the order of the samples, from the one after the image on, and a token takes the
    first of them that no object touches there. Each turn begins one image later, so that several questions about an
    image see other donors.

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    samples : Mapping
        Id to single images with masks; at least two.
    """

    def __init__(self, adapter: Adapter, samples: Mapping[ImageId, AnySample]):
        self.adapter, self.samples, self.ids = adapter, samples, list(samples)
        self._held: OrderedDict[ImageId, tuple[EncodedImage, list[torch.Tensor]]] = OrderedDict()
        if len(self.ids) < 2:
            raise ParameterError("samples", f"{len(self.ids)} image", "at least two, to swap tokens between")

    def rows(self, image_id: ImageId, places: Sequence[Place], turn: int = 0) -> list[torch.Tensor]:
        """Return for each view ``(n_tokens, d_model)`` tokens of other images; NaN where all show objects there."""
        found = [torch.full_like(place.view.tokens, torch.nan) for place in places]
        own = self.ids.index(image_id)
        n = len(self.ids)
        for step in range(n - 1):
            other = self.ids[(own + 1 + (turn + step) % (n - 1)) % n]
            image, background = self._held_image(other)
            is_left = False
            for rows, place in zip(found, places, strict=True):
                k = min(place.inside, len(image.views) - 1)
                cells = same_places(place.view.grid, image.views[k].grid)
                missing = rows.isnan().any(-1)
                fits = missing & background[k][cells].to(missing.device)
                rows[fits] = image.views[k].tokens[cells.to(rows.device)][fits]
                is_left |= bool((missing & ~fits).any())
            if not is_left:
                break
        return found

    def _held_image(self, image_id: ImageId) -> tuple[EncodedImage, list[torch.Tensor]]:
        if image_id not in self._held:
            sample = self.samples[image_id]
            image = self.adapter.encode_input(load_pictures(sample), sample.kind)[0]
            background = [coverage_of(self.adapter, sample, view) == 0 for view in image.views]
            self._held[image_id] = (image, background)
            if len(self._held) > N_HELD:
                self._held.popitem(last=False)
        return self._held[image_id]


def coverage_of(adapter: Adapter, sample: AnySample, view: Any) -> torch.Tensor:
    """Return the share of each patch of a view that objects cover, ``(n_tokens,)``.

    Raises
    ------
    ParameterError
        Where the sample has no masks, or nothing says what the view shows.
    """
    found = view_coverage(adapter.processor, sample, view)
    if found is None:
        given = f"image {sample.image_id} without masks, or with a {view.kind} of unknown place"
        raise ParameterError(
            "samples", given, "images with masks, and views of which it is known what they cover"
        )
    return found.share


def swap_falls(
    adapter: Adapter,
    image: EncodedImage,
    answer: Answer,
    donors: Sequence[torch.Tensor],
    positions: Mapping[int, Sequence[int]],
) -> pd.DataFrame:
    """Swap tokens one by one with those of other images, and read the answer.

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    image : EncodedImage
        What the answer is about.
    answer : Answer
        Of the question.
    donors : sequence of torch.Tensor
        For each view, as `Donors.rows` returns them.
    positions : Mapping
        Number of a view to the positions of it that are swapped, one after the other.

    Returns
    -------
    pandas.DataFrame
        One row a position that has a donor: ``view``, ``position``, ``fall`` and ``own_fall``, by how many nats the
        log-probability of the right answer, and that of the first token that the model itself says, is lower than
        for the image as it is; below 0 where the other image's token makes it likelier.
    """
    where = [
        (place, position)
        for place in places_of([image])
        for position in positions.get(place.number, ())
        if not donors[place.number][position].isnan().any()
    ]
    falls = [torch.zeros(0, 2)]
    for start in range(0, len(where), N_COPIES):
        copies = [
            adapter.assemble(image, _swapped(image, place.inside, position, donors[place.number]))
            for place, position in where[start : start + N_COPIES]
        ]
        falls.append(answer.falls(copies))
    fall, own = torch.cat(falls).T.numpy()
    cells = {"view": [place.number for place, _ in where], "position": [position for _, position in where]}
    return pd.DataFrame(cells | {"fall": fall, "own_fall": own})


def _swapped(
    image: EncodedImage, inside: int, position: int, donors: torch.Tensor
) -> list[torch.Tensor | None]:
    tokens = image.views[inside].tokens.clone()
    tokens[position] = donors[position]
    return [tokens if k == inside else None for k in range(len(image.views))]


def removal_falls(
    adapter: Adapter,
    sample: AnySample,
    questions: Sequence[Question],
    read: Callable[[Question, VisualInput], Answer],
) -> Iterator[dict[str, Any]]:
    """Draw the picture again without one object after the other, and read the answers.

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    sample : Sample
        A picture that can be drawn again (`Sample.without`).
    questions : sequence of Question
        About it.
    read : callable
        Returns the answer to a question about the rows of the picture with all objects.

    Yields
    ------
    dict
        For each question and object: ``task``, ``question``, ``object`` (its number), ``object_category``, ``fall``
        and ``own_fall``, as in `swap_falls`, against the picture drawn again with all objects.
    """
    numbers = [None, *range(len(sample.objects))]
    pictures = [sample.without(number) for number in numbers]
    rows = [adapter.assemble(image) for image in adapter.encode(pictures)]
    for question in questions:
        falls = read(question, rows[0]).falls(rows[1:]).tolist() if rows[1:] else []
        for number, (fall, own) in enumerate(falls):
            yield {
                "task": question.task,
                "question": question.text,
                "object": number,
                "object_category": sample.objects[number].category,
                "fall": fall,
                "own_fall": own,
            }
