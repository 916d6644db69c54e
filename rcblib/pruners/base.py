"""Say what a pruner is: it scores visual tokens, and a budget says how many of them the LLM reads."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rcblib.mllm import Adapter
from rcblib.mllm.layer_state import RowCounts, Spans
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.budget import Budget
from rcblib.pruners.context import OF_SAMPLES, QUESTION, PruningContext
from rcblib.pruners.entering import pruning
from rcblib.pruners.generation import Pruned
from rcblib.records import LAYOUTS, EncodedImage, ParameterError, VisualView

if TYPE_CHECKING:
    import PIL.Image

POSITION_IDS = ("auto", "renumbered", "kept")
SCOPES = ("tile", "image", "video")


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Prune visual tokens: ``with pruner(model) as pruned: model.generate(**inputs)``.

    A method is a frozen dataclass that overrides `score`; or `select` where tokens are chosen jointly; or `reduce`
    where they are merged; or `inside` where they are dropped at a layer of the LLM, before which all are kept. A
    budget must be given only where `score` is overridden. Inside the context `generate` encodes the images once, keeps
    some tokens of each, cuts the placeholders of the prompt to match, and returns sequences as without pruning: the
    prompt as given, then the new tokens. The forward, ``model(**inputs)``, is pruned too; its logits are of what is
    left. Prompts without images pass through. The model is left as it was, also after an error. Retaining everything,
    packed, gives the unpruned model's tokens; with a model that counts positions on several axes only where they are
    kept, as by default.

    Parameters
    ----------
    retain_ratio : float or None
        Share of the tokens to keep, in [0, 1]; ``round(n_tokens * retain_ratio)`` of each set that `scope` says,
        half to even. Newlines are not counted.
    position_ids : {"auto", "renumbered", "kept"}
        Positions of the shortened prompt: numbered anew, as the release does, or those that the tokens had in
        the full prompt, the answer continuing after it. With ``"flatten"`` the full prompt is the one that has all
        tokens in that layout. With a model that counts positions on several axes, ``"kept"`` keeps a token's position
        on each; ``"renumbered"`` numbers all that is left one after the other, the same on every axis, which forgets
        where in the photo a token was. ``"auto"`` is ``"kept"`` for such a model, else ``"renumbered"``.
    layout : {"packed", "flatten"}
        How what survives of an image with tiles is read. ``"packed"``: in the model's own order, with every newline;
        padding is no token and is never kept. ``"flatten"``, as in the release: tile after tile, tokens of padding
        among them, and one newline at the end. Other images, and videos, are the same in both.
    scope : {"tile", "image", "video"}
        On which tokens a budget is applied, and softmaxes over tokens taken. ``"tile"``, as in the release: each grid
        by itself: the reduced image, each tile, each frame. ``"image"``: all grids of an image together; a frame is
        one image. ``"video"``: also all frames of a video together.

    Attributes
    ----------
    needs : frozenset of str
        Signals of the vision encoder that the method reads (`VisualView.signals`), ``"question"`` where its choice
        depends on the prompt, and what only samples tell (`rcblib.pruners.context.OF_SAMPLES`). Where it does not
        depend on the prompt, the choice for an image is made once for all questions about it.
    kept, kept_by_view, n_tokens, n_retained
        What the latest context says (`Pruned`), for reading; empty before the first.

    Notes
    -----
    At least one token of an image or video survives: where the method keeps none, the one of the highest score stays,
    or the first where it has no scores, with a warning (the release then feeds an empty image). A tile or frame among
    others may lose all.

    A streamer, stopping criteria and logits processors that are given see the prompt as given; attentions and hidden
    states that `generate` returns are of the shortened one, and so is what its own logits processors see, a video's
    placeholders as those of an image. Lengths (``max_length``, ``min_length``) count the prompt as given. Beam
    search and several returned sequences work. Inputs that bring images past the pruner, such as
    ``inputs_embeds``, are refused.

    A conversation goes on inside a context: the next turn is the returned sequences and the new tokens, beside the
    returned ``past_key_values``, pixels of new images, if any, with them; the answer is that of the conversation pruned
    as one prompt. The cache holds fewer columns than the sequences have, which it knows: without a pruner's context it
    is refused. So it is by methods that act inside the LLM or read the prompt, whose choice is another for every turn.

    A context is the thread's that enters it, or the asynchronous task's: other threads run the same model as it is, or
    enter contexts of their own. One that is entered in a generator, such as a stream of answers, prunes while that
    runs. A thread that is started inside prunes if it is handed `generate`: ``Thread(target=model.generate)``, or
    `Pruned.generate`; not what calls it there.
    """

    retain_ratio: float | None = None
    position_ids: str = "auto"
    layout: str = "packed"
    scope: str = "tile"

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        choices = {"position_ids": POSITION_IDS, "layout": LAYOUTS, "scope": SCOPES}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ParameterError(name, getattr(self, name), f"one of {accepted}")
        if self.has_budget or self._overrides("score"):
            self.budget()
        if self.has_budget and not self._overrides("score", "select", "reduce", "inside"):
            accepted = f"none; {type(self).__name__} overrides neither score, select, reduce nor inside"
            raise ParameterError("budget", self.budget(), accepted)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: not the latest context's log, which may hold a model."""
        return {name: value for name, value in vars(self).items() if name != "_log"}

    @classmethod
    def _overrides(cls, *names: str) -> bool:
        return any(getattr(cls, name) is not getattr(Pruner, name) for name in names)

    def budget(self) -> Budget:
        """Say how many tokens of a set stay."""
        return Budget(retain_ratio=self.retain_ratio)

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score the tokens of some views that share a budget.

        Parameters
        ----------
        views : tuple of VisualView
            One view, or all that share a budget, as `scope` says, with the signals that the method `needs`.
        context : PruningContext, optional
            What else is known; ``None`` outside of a pruner's context.

        Returns
        -------
        torch.Tensor
            ``(n_tokens of these views,)``, view after view; higher = keep.
        """
        raise NotImplementedError(f"{type(self).__name__} does not override score")

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose the tokens of some views that survive.

        Parameters
        ----------
        views, context
            As in `score`.

        Returns
        -------
        torch.Tensor
            ``(n_kept,)`` int64 positions among the tokens of these views, ascending; none of them if the budget says
            so; all of them where the method has no scores, such as one that acts inside the LLM.
        """
        if not self._overrides("score"):
            return torch.arange(sum(view.n_tokens for view in views))
        return self.budget().keep(self.score(views, context))

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Choose the tokens of some views that survive, and what stands in their places.

        Parameters
        ----------
        views, context
            As in `score`.

        Returns
        -------
        Reduced
            Positions number the tokens of these views, view after view.
        """
        return Reduced(self.select(views, context))

    def resize(self, pictures: Sequence[PIL.Image.Image], adapter: Adapter) -> list[PIL.Image.Image]:
        """Return the pictures that are processed instead of those given, such as smaller ones; by default the same.

        It is called for each question by itself: with its images, or the frames of a video.
        """
        return list(pictures)

    def inside(self, adapter: Adapter, spans: Spans) -> AbstractContextManager[RowCounts | None]:
        """Return the context in which an LLM reads assembled prompts, for methods that drop rows at its layers.

        Parameters
        ----------
        adapter : Adapter
            The model.
        spans : Spans
            Where the visual rows are that were left before.

        Returns
        -------
        context manager
            `rcblib.mllm.layers.dropping`, whose counts say what was read; by default one that does nothing.
        """
        return nullcontext()

    @classmethod
    def defaults(cls, family: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings that go with a model's family where `settings` leave them open; by default none."""
        return {}

    def description(self) -> dict[str, Any]:
        """Return everything by which this method differs from others, as plain values, to name results by.

        Raises
        ------
        ParameterError
            If it holds values that are no fields of a dataclass: two methods that differ would have one name.
        """
        known = {"_log", *(entry.name for entry in fields(self))}
        for name in vars(self).keys() - known:
            if not isinstance(getattr(type(self), name, None), functools.cached_property):
                accepted = "settings that are fields of a frozen dataclass"
                raise ParameterError("pruner", f"{type(self).__name__}.{name}", accepted)
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"class": type(self).__name__} | own

    @property
    def has_budget(self) -> bool:
        """Tell whether how many tokens stay is asked for, and not the method's own affair."""
        return self.retain_ratio is not None or self._overrides("budget")

    @property
    def asked_share(self) -> float | None:
        """Return the share of the tokens that is asked for; ``None`` where it is a count, a cut-off or nothing."""
        return self.budget().retain_ratio if self.has_budget else None

    @property
    def signals(self) -> frozenset[str]:
        """Return the vision encoder's signals among `needs`."""
        return self.needs - {QUESTION} - OF_SAMPLES

    @property
    def of_samples(self) -> frozenset[str]:
        """Return what among `needs` is known of samples only, which an evaluation adds to views as signals."""
        return self.needs & OF_SAMPLES

    @property
    def reads_prompt(self) -> bool:
        """Tell whether the choice depends on the prompt."""
        return QUESTION in self.needs

    @property
    def acts_inside(self) -> bool:
        """Tell whether the method drops rows at layers of the LLM."""
        return self._overrides("inside")

    @property
    def resizes(self) -> bool:
        """Tell whether the method changes pictures before they are processed."""
        return self._overrides("resize")

    def keeps_positions(self, adapter: Adapter) -> bool:
        """Tell whether tokens keep the positions that they had in the full prompt of a model."""
        return self.position_ids == "kept" or self.position_ids == "auto" and adapter.n_position_axes > 1

    def check(self, adapter: Adapter) -> None:
        """Raise where the method does not fit the model; called before anything is generated."""
        missing = sorted(self.signals - adapter.offers)
        if missing:
            told = " and ".join(name.replace("cls_", "[CLS] ").replace("_", " ") for name in missing)
            raise ParameterError(
                "model",
                f"family {adapter.family!r}, a vision encoder without {told}",
                f"one with it; {type(self).__name__} does not serve this one",
            )

    def reduce_image(
        self,
        image: EncodedImage,
        image_index: int = 0,
        prompt_ids: torch.Tensor | None = None,
        adapter: Adapter | None = None,
    ) -> Reduced:
        """Choose the tokens of an image or video that survive, set by set as `scope` says.

        Parameters
        ----------
        image : EncodedImage
            What the adapter returned; it is taken in this pruner's layout.
        image_index, prompt_ids, adapter
            As in `PruningContext`.

        Returns
        -------
        Reduced
            Positions, on the CPU, number the tokens of all views of ``image.arranged(layout)``; at least one in all.
            `split_by_view` gives them view by view.

        Raises
        ------
        ParameterError
            If what the method returns is not what `reduce` promises.
        """
        views = image.arranged(self.layout).views
        prompt_ids = prompt_ids if self.reads_prompt else None
        together = self.scope == "video" or (self.scope == "image" and not image.is_video)
        sets = [views] if together else [(view,) for view in views]
        chosen, n_before = [], 0
        for first, own in enumerate(sets):  # as many views as sets, or one set
            reduced = self.reduce(own, PruningContext(image_index, first, adapter, prompt_ids))
            n_tokens = sum(view.n_tokens for view in own)
            reduced.check(n_tokens, own[0].tokens.shape[-1], type(self).__name__)
            chosen.append(replace(reduced, positions=reduced.positions.cpu() + n_before))
            n_before += n_tokens
        positions = torch.cat([own.positions for own in chosen])
        if len(positions) == 0:
            survivor = "one of the highest score" if self._overrides("score") else "first"
            warnings.warn(
                f"{type(self).__name__} keeps none of {n_before} visual tokens; the {survivor} stays",
                stacklevel=2,
            )
            if survivor == "first":
                return Reduced(positions.new_zeros(1))
            scores = self.score(views, PruningContext(image_index, 0, adapter, prompt_ids))
            return Reduced((-scores).argmin().reshape(1).cpu())
        sizes = None
        if any(own.sizes is not None for own in chosen):
            sizes = torch.cat(
                [torch.ones_like(own.positions) if own.sizes is None else own.sizes.cpu() for own in chosen]
            )
        if all(own.rows is None for own in chosen):
            return Reduced(positions, sizes=sizes)
        tokens = torch.cat([view.tokens for view in views])
        rows = [
            tokens[own.positions.to(tokens.device)] if own.rows is None else own.rows.to(tokens)
            for own in chosen
        ]
        return Reduced(positions, torch.cat(rows), sizes)

    @contextmanager
    def __call__(
        self, model: Any, processor: Any = None, *, image_indices: Sequence[int] | None = None
    ) -> Iterator[Pruned]:
        """Prune what `model` generates inside the ``with`` block.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            A model of a supported family, or one wrapped in something (`rcblib.mllm.wrapping.wrapping`).
        processor : transformers.ProcessorMixin, optional
            Handed to methods that need it.
        image_indices : sequence of int, optional
            Number of each image and video of the context, in prompt order, as methods see it
            (`PruningContext.image_index`); by default 0, 1, 2, … Numbers that go with the images make a random choice
            independent of how a run is cut into contexts and processes.

        Yields
        ------
        Pruned
            What is kept, and the steps of pruned generation one by one.

        Raises
        ------
        UnsupportedModelError
            If the family has no adapter.
        ParameterError
            If the model, or this pruner, is already inside a pruner's context here, or the method does not fit. Inside
            the context, if there are more images than `image_indices`.

        Warns
        -----
        UserWarning
            On leaving, if nothing was pruned.
        """
        with pruning(self, model, processor, image_indices) as pruned:
            yield pruned

    @property
    def log(self) -> Pruned | None:
        """Return the latest context's log, of this thread or else of any; ``None`` before the first."""
        logs = vars(self).get("_log")
        return None if logs is None else logs.here or logs.latest[0]

    @property
    def kept(self) -> list[torch.Tensor]:
        """Return `Pruned.kept` of the latest context."""
        return [] if self.log is None else self.log.kept

    @property
    def kept_by_view(self) -> list[tuple[torch.Tensor, ...]]:
        """Return `Pruned.kept_by_view` of the latest context."""
        return [] if self.log is None else self.log.kept_by_view

    @property
    def n_tokens(self) -> list[int]:
        """Return `Pruned.n_tokens` of the latest context."""
        return [] if self.log is None else self.log.n_tokens

    @property
    def n_retained(self) -> list[float]:
        """Return `Pruned.n_retained` of the latest context."""
        return [] if self.log is None else self.log.n_retained
