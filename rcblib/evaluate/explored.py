"""Measure what a reader may point at: the words of each token, what each method keeps, and what is answered then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from rcblib.codebook.codebook import Codebook
from rcblib.data.base import AnySample
from rcblib.data.samples import load_pictures
from rcblib.evaluate.exhibits import FREE, choose_exhibits, exhibit_questions
from rcblib.evaluate.grid import evaluation_code, grid_units, session_description, setting_of
from rcblib.evaluate.replacing import ReplacePruner
from rcblib.evaluate.session import Session
from rcblib.mllm import Adapter
from rcblib.probe.config import ProbeConfig
from rcblib.probe.context import ProbedInput, ProbedView
from rcblib.pruners.base import Pruner
from rcblib.pruners.registry import PRUNERS
from rcblib.records import CodebookError, ImageId, ParameterError, UnsupportedModelError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import to_plain
from rcblib.runs.records import sample_hash, table_facts
from rcblib.runs.results import cached_unit
from rcblib.runs.shards import Shard
from rcblib.tensors.scoring import RULES, redundancy_scores

ALL, REMOVED, REPLACED = "all", "removed", "replaced"
TOKENS, KEPT, ANSWERS, NEIGHBOURS = "tokens", "kept", "answers", "neighbours"
N_WORDS, N_NEIGHBOURS = 5, 3
BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
KEYS = ("part", "setting", "task", "question", "view", "position", "prototype", "place")

ROUNDING = ("batch_size", "sharing", "compiled")
"""Settings of probing that change what single tokens say by rounding only."""

Settings = Mapping[str, Mapping[float, Pruner]]
"""Registered name of a method to its pruner at each budget."""


def exhibit_pruners(
    names: Iterable[str], budgets: Sequence[float], family: str, codebook: Codebook | None, rule: str | None
) -> tuple[dict[str, dict[float, Pruner]], dict[str, str]]:
    """Make registered methods at every budget, and say why for each that cannot be made.

    Returns
    -------
    tuple
        Name to share to pruner, without that of all tokens; and name to the reason of the others, one line.
    """
    made: dict[str, dict[float, Pruner]] = {}
    unfit: dict[str, str] = {}
    for name in names:
        method = PRUNERS[name]
        if name == ALL:
            continue
        own: dict[str, Any] = {}
        if "codebook" in method.parameters and codebook is not None:
            own = {"codebook": codebook, "rule": rule if "rule" in method.parameters else None}
        try:
            if not method.waits_for_ratio(own):
                raise ParameterError("retain_ratio", name, "a method whose share of tokens can be chosen")
            made[name] = {
                share: method.make({**own, "retain_ratio": share}, family=family) for share in budgets
            }
        except (ParameterError, CodebookError) as error:
            unfit[name] = str(error)
    return made, unfit


def explore(
    model: Any,
    processor: Any,
    samples: Sequence[AnySample],
    pruners: Settings,
    *,
    codebook: Codebook | None = None,
    config: ProbeConfig | None = None,
    shown: Sequence[ImageId] | None = None,
    n_shown: int = 12,
    more: bool = False,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    folder: str | os.PathLike,
    shard: Shard | None = None,
    skipped: Mapping[ImageId, str] | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Measure images in full: words of their tokens, kept tokens and answers of every method at every budget.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    samples : sequence of Sample or SequenceSample
        Candidates, which are all asked with all tokens. Random choices depend on all of them.
    pruners : Mapping
        As `exhibit_pruners` makes them.
    codebook : Codebook, optional
        Whose prototypes tokens are compared with.
    config : ProbeConfig, optional
        What each token is asked alone, and which positions of which views; by default as in probing.
    shown : sequence of int or str, optional
        Images that are measured in full; by default those of `choose_exhibits`.
    n_shown : int
        How many that chooses.
    more : bool
        Only what adds methods to images measured before: what they keep, and answers after dropped tokens are removed.
    batch_size, max_new_tokens, folder, shard, skipped, progress
        As in `rcblib.evaluate.parts.evaluate_parts`; a part is one image.

    Returns
    -------
    table : pandas.DataFrame
        ``part`` tells four kinds of rows apart; columns of one kind are empty in the others.
        ``"tokens"``, one a token of a shown image: ``view``, ``position``; ``word_1`` to ``word_5`` and
        ``probability_1`` to ``probability_5``, what it says alone (renormalised as the top-1 probability of probing);
        with a codebook ``redundancy_<rule>`` and ``prototype``, the nearest by cosine.
        ``"neighbours"``: for each ``prototype`` that is nearest to a token of the image, the ``place``-th (0, 1, 2) of
        the tokens of other shown images that are nearest to it, one an image: ``other_image``, ``other_view``,
        ``other_position``, ``similarity``.
        ``"kept"``, one a method and budget, for each question where the choice depends on it: ``kept``, a text of 1
        (stays) and 0, token by token through all views.
        ``"answers"``: as `evaluate_parts`; ``method`` is the registered name and ``how`` ``"removed"`` or
        ``"replaced"``. The score of questions without a right answer is NaN.
    facts : dict
        As `evaluate_parts` returns them; also ``unfit``, method to the reason why it is not there.

    Raises
    ------
    ParameterError
        If an image to be shown is no sample, and as `evaluate_parts`.
    """
    samples, config, shard = list(samples), config or ProbeConfig(attention=False), shard or Shard()
    by_id = {sample.image_id: sample for sample in samples}
    if strangers := [i for i in shown or () if i not in by_id]:
        raise ParameterError("shown", strangers[:5], "ids of the samples")
    questions = exhibit_questions(samples)
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, None)
    settings, unfit = _fitting(session, pruners, (REMOVED,) if more else (REMOVED, REPLACED))
    places: dict[ImageId, list[int]] = {}
    for place, question in enumerate(session.questions):
        places.setdefault(question.image_id, []).append(place)
    everything = PRUNERS[ALL].make()
    alone = [(ALL, REMOVED, everything)]
    units: list[Mapping[str, Any]] = []

    def answered(image_id: ImageId, listed: Sequence[tuple[str, str, Pruner]]) -> pd.DataFrame:
        part, frames = session.part(places[image_id]), []
        given = [(name, pruner) for name, _, pruner in listed]
        for (_, how, pruner), (frame, made) in zip(
            listed, grid_units(part, given, folder, False), strict=True
        ):
            units.append(made)
            frames.append(frame.assign(setting=setting_of(pruner), how=how))
        table = pd.concat(frames, ignore_index=True).drop(columns=["max_similarity", "settings", "seed"])
        table.loc[table["task"] == FREE, ["score", "guess"]] = float("nan")
        return table.assign(part=ANSWERS)

    if shown is None:
        first = pd.concat([answered(image_id, alone) for image_id in by_id], ignore_index=True)
        shown = choose_exhibits(first, n_shown)
    shown = sorted(shown)
    others = [] if more else [image_id for image_id in by_id if image_id not in set(shown)]
    mine = shard.of(shown)
    if not mine:
        raise ParameterError("shard", str(shard), f"one of at most {len(shown)} images that are shown")
    frames = [answered(image_id, alone) for image_id in shard.of(others)]
    near: dict[ImageId, list[torch.Tensor]] = {}
    if codebook is not None and not more:
        near = {i: [_cosines(own, codebook) for own in _tokens(session.adapter, by_id[i])] for i in shown}
    common = session_description(session) | {
        "config": to_plain(config),
        "codebook": None
        if codebook is None
        else setting_of(PRUNERS["codebook"].make({"codebook": codebook, "retain_ratio": 0.5})),
    }
    for number, image_id in enumerate(mine, 1):
        frames.append(answered(image_id, [*alone, *settings]))
        frames.append(_kept(session, image_id, places[image_id], settings))
        if progress:
            print(f"explored image {number} of {len(mine)} (id {image_id})", flush=True)
        if more:
            continue
        words, made = cached_unit(
            folder,
            "explored",
            {**common, "image": session.identities[image_id]},
            code_digest(__name__),
            lambda image_id=image_id: _words(session.adapter, by_id[image_id], config, codebook),
        )
        units.append(made)
        frames.append(words)
        if codebook is not None:
            frames.append(_neighbours(words, image_id, near))
    table = pd.concat(frames, ignore_index=True)
    codes = {evaluation_code(pruner) for _, _, pruner in [*alone, *settings]} | {code_digest(__name__)}
    description = (
        session_description(session)
        | {
            "code": " ".join(sorted(codes)),
            "config": {name: value for name, value in to_plain(config).items() if name not in ROUNDING},
            "shown": list(shown),
        }
        | ({"more": True} if more else {})
    )
    own = {i: sample_hash(session.identities[i]) for i in by_id if i in {*mine, *shard.of(others)}}
    facts = table_facts(description, KEYS, own, units)
    methods = {name: PRUNERS[name].label for name in [ALL, *pruners]}
    share = shard.share(shown if more else by_id, skipped or {})
    return table, facts | share | {"unfit": unfit, "methods": methods}


def _fitting(
    session: Session, pruners: Settings, hows: Sequence[str]
) -> tuple[list[tuple[str, str, Pruner]], dict[str, str]]:
    """Return (method, how, pruner) for those that the model and the images allow, and the reasons of the others."""
    settings: list[tuple[str, str, Pruner]] = []
    unfit: dict[str, str] = {}
    for name, by_budget in pruners.items():
        for how in hows:
            try:
                own = [p if how == REMOVED else ReplacePruner(p) for p in by_budget.values()]
                session.prepare(own)
                settings += [(name, how, pruner) for pruner in own]
            except (ParameterError, CodebookError, UnsupportedModelError) as error:
                unfit[name if how == REMOVED else f"{name}, {how}"] = str(error)
    return settings, {
        name: why for name, why in unfit.items() if name.partition(",")[0] not in unfit or "," not in name
    }


def _kept(
    session: Session, image_id: ImageId, places: Sequence[int], settings: Iterable[tuple[str, str, Pruner]]
) -> pd.DataFrame:
    """List which tokens each method keeps of a single image, by question where it depends on that."""
    rows, index = [], session.image_index[image_id]
    for name, how, pruner in settings:
        if how != REMOVED or pruner.acts_inside or pruner.resizes:
            continue
        images = session.features.encode([image_id])
        if pruner.of_samples:
            images = session.known.add([image_id], images, pruner.of_samples)
        for place in places if pruner.reads_prompt else places[:1]:
            counts = [session.adapter.n_placeholders(image) for image in images[0]]
            prompt, text = session.prompts[place].expanded(counts).ids, ""
            for number, image in enumerate(images[0]):
                image = image.to(session.device)
                reduced = pruner.reduce_image(image, index + number, prompt, session.adapter)
                stays = torch.zeros(image.arranged(pruner.layout).n_tokens, dtype=torch.int8)
                stays[reduced.positions] = 1
                text += "".join(map(str, stays.tolist()))
            question = session.questions[place].text if pruner.reads_prompt else ""
            rows.append(
                {
                    "image_id": image_id,
                    "setting": setting_of(pruner),
                    "method": name,
                    "retain_ratio": pruner.budget().retain_ratio,
                    "question": question,
                    "kept": text,
                }
            )
    return pd.DataFrame(rows).assign(part=KEPT)


def _tokens(adapter: Adapter, sample: AnySample) -> list[torch.Tensor]:
    """Return the visual tokens of each view of an input, on the CPU in float32."""
    images = adapter.encode_input(load_pictures(sample), sample.kind)
    return [view.tokens.float().cpu() for image in images for view in image.views]


@torch.no_grad()
def _words(
    adapter: Adapter, sample: AnySample, config: ProbeConfig, codebook: Codebook | None
) -> pd.DataFrame:
    """Ask every token alone, and compare it with the prototypes."""
    probed = ProbedInput(adapter, load_pictures(sample), sample.kind, sample, config)
    frames = []
    for place in probed.wanted:
        view = ProbedView(probed, place)
        logits = view.answers("single").logits
        head = logits.topk(min(config.n_head_candidates, logits.shape[-1]), dim=-1)
        probability = (head.values.double() - head.values.double().logsumexp(-1, keepdim=True)).exp()
        columns: dict[str, Any] = {"image_id": sample.image_id, "view": place.number}
        columns["position"] = view.positions
        for k in range(N_WORDS):
            columns[f"word_{k + 1}"] = [view.reader.word(i) for i in head.indices[:, k].tolist()]
            columns[f"probability_{k + 1}"] = probability[:, k].tolist()
        if codebook is not None:
            tokens = place.view.tokens.float().cpu()
            for rule in RULES:
                scores = redundancy_scores(tokens, codebook.unit_prototypes, rule)
                columns[f"redundancy_{rule}"] = scores[view.positions].double().tolist()
            columns["prototype"] = _cosines(tokens[view.positions], codebook).argmax(-1).tolist()
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True).assign(part=TOKENS)


def _cosines(tokens: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """Return ``(n_tokens, n_prototypes)`` cosines."""
    return F.normalize(tokens, dim=-1) @ codebook.unit_prototypes.like(tokens).T


def _neighbours(
    words: pd.DataFrame, image_id: ImageId, near: Mapping[ImageId, list[torch.Tensor]]
) -> pd.DataFrame:
    """Find, for each prototype that is nearest to a token of an image, tokens of other shown images near to it.

    Parameters
    ----------
    words : pandas.DataFrame
        What `_words` says of the image.
    image_id : int or str
        The image.
    near : Mapping
        Image id to `_cosines` of each view.
    """
    wanted = sorted(words["prototype"].unique().tolist())
    best = []
    for other, views in near.items():
        if other == image_id:
            continue
        similarity = torch.cat([own[:, wanted] for own in views])
        places = [(view, position) for view, own in enumerate(views) for position in range(len(own))]
        value, at = similarity.max(0)
        best += [
            {
                "prototype": prototype,
                "other_image": str(other),
                "other_view": places[i][0],
                "other_position": places[i][1],
                "similarity": v,
            }
            for prototype, v, i in zip(wanted, value.tolist(), at.tolist(), strict=True)
        ]
    if not best:
        return pd.DataFrame()
    frame = pd.DataFrame(best).sort_values(
        ["prototype", "similarity", "other_image"], ascending=[True, False, True], ignore_index=True
    )
    frame["place"] = frame.groupby("prototype").cumcount()
    return frame[frame["place"] < N_NEIGHBOURS].assign(image_id=image_id, part=NEIGHBOURS)
