"""Check an explorer's data against what it was made from: probe tables, pruners, evaluations, and its own limits."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pydantic
import pytest
import torch
import torch.nn.functional as F
from explored import BUDGETS, METHODS
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st

from rcblib.__main__ import main
from rcblib.data.photos import PhotoFolder
from rcblib.evaluate.exhibits import FREE_QUESTIONS, choose_exhibits, exhibit_questions
from rcblib.evaluate.explored import ALL, exhibit_pruners, explore
from rcblib.evaluate.grid import evaluate, evaluation_code
from rcblib.evaluate.replacing import ReplacePruner
from rcblib.mllm import adapter_for
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.pruners.context import PruningContext
from rcblib.pruners.downsampled import DownsampledPruner
from rcblib.pruners.random import RandomPruner
from rcblib.pruners.registry import PRUNERS
from rcblib.reading.explorer import packing, writing
from rcblib.reading.explorer.build import Source, exhibit_of, shown_views, with_more
from rcblib.reading.explorer.hows import HOWS, in_ways, told_ways
from rcblib.reading.explorer.schema import Exhibit, Manifest, Pictures
from rcblib.reading.explorer.writing import MOST_BYTES_AT_FIRST, read_script, write_explorer
from rcblib.records import ParameterError, VisualView
from rcblib.runs.files import read_table
from rcblib.runs.records import read_record
from tools.notebook_list import read_notebook_list

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def exhibits(explored):
    found = {}
    for image_id in explored.source.shown:
        path = explored.folder / f"data/llava-scenes-{explored.source.key(image_id)}.js"
        found[image_id] = Exhibit.model_validate(read_script(path.read_text(encoding="utf-8")))
    return found


def rows_of(table, image_id):
    return table[table["image_id"] == image_id]


def numbers(own):
    return packing.unpack_numbers(own.low, own.high, own.codes, own.power)


# Packing


@given(st.lists(st.none() | st.integers(0, packing.STEPS)))
def test_integers_come_back(values):
    assert packing.unpack_integers(packing.pack_integers(values)) == values


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan"))), st.sampled_from([1, 2]))
def test_numbers_come_back_within_half_a_step(values, power):
    low, high, text = packing.pack_numbers(values, power)
    found = packing.unpack_numbers(low, high, text, power)
    assert len(text) <= 2 * len(values)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    if len(values):
        apart = np.abs(found - np.array(values))
        assert np.nanmax(np.append(apart, 0)) <= packing.largest_error(low, high, power)


def test_rows_of_nothing_take_three_letters():
    values = [7, None, *[None] * 9000, 7, None, 7]
    text = packing.pack_integers(values)
    assert packing.unpack_integers(text) == values and len(text) == 2 + 3 * 3 + 2 + 2 + 2


def test_small_numbers_keep_small_errors_in_growing_steps():
    low, high, text = packing.pack_numbers([0.0, 1e-6, 2e-6, 1.0], power=2)
    np.testing.assert_allclose(packing.unpack_numbers(low, high, text, 2)[1:3], [1e-6, 2e-6], rtol=0.15)
    assert packing.largest_error(0, 1, 1) == pytest.approx(1 / 8188)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_choices_come_back(kept):
    text = packing.pack_choices(kept)
    assert [packing.unpack_choice(text, k).tolist() for k in range(len(kept))] == kept
    assert len(text) == 7


@given(st.lists(st.text()))
def test_texts_come_back(parts):
    text = packing.pack_texts(parts)
    assert packing.unpack_text(text) == "".join(parts)
    assert re.fullmatch("[A-Za-z0-9+/]*=*", text)


def test_few_different_letters_take_few_bits_beside_many():
    rng = np.random.default_rng(0)
    few = ["".join(rng.choice(list("ABCDEF"), 720, p=(0.05, 0.05, 0.1, 0.15, 0.15, 0.5))) for _ in range(20)]
    many = "".join(rng.choice(list(packing.LETTERS), 6000))
    # Beside letters that are all as frequent, which take all of their room, those of tokens that stay take half of it.
    assert len(packing.pack_texts([many, "".join(few)])) <= len(many) + 20 * 720 / 2


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="got 4096 to 4096"):
        packing.pack_integers([4096])


# What is chosen and asked


def test_successes_and_failures_are_chosen_by_turns():
    answers = pd.DataFrame(
        {"image_id": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "score": [1, 1, 1, 1, 1, 0, 1, 1, 0.2, 1]}
    )
    assert choose_exhibits(answers, 3) == [1, 2, 3]
    assert choose_exhibits(answers, 4) == [1, 2, 3, 5]
    assert choose_exhibits(answers, 9) == [1, 2, 3, 4, 5]
    unknown = answers.assign(score=np.nan)
    assert choose_exhibits(unknown, 2) == [1, 2]
    with pytest.raises(ParameterError, match="n_images: got 0"):
        choose_exhibits(answers, 0)


def test_each_image_is_asked_five_questions_in_the_order_of_the_rule(explored):
    by_image = {}
    for question in explored.questions:
        by_image.setdefault(question.image_id, []).append(question)
    assert {len(own) for own in by_image.values()} == {5}
    for sample in explored.samples:
        names = {item.category for item in sample.objects}
        asked = {q.answer: q.text for q in by_image[sample.image_id] if q.task == "yes_no"}
        assert f" {min(names)} in the image" in asked["yes"]
        assert not any(f" {name} in the image" in asked["no"] for name in names)
    bare = replace(explored.samples[0], objects=None)
    assert [q.text for q in exhibit_questions([bare])] == list(FREE_QUESTIONS)


def test_shipped_records_show_what_the_rule_chooses_and_are_those_of_their_stages():
    stages = [stage for stage, *_ in read_notebook_list(REPOSITORY / "workflow/notebooks.yml").explored]
    assert [stage.run for stage in stages] == [
        "explorer",
        "explorer-llava-scenes",
        "explorer-llava-next-scenes",
        "explorer-llava-onevision-scenes",
        "explorer_plain",
    ]
    n_failures = 0
    for stage in stages:
        table = read_record(REPOSITORY / stage.table).table
        first = table[(table["part"] == "answers") & (table["method"] == ALL)]
        shown = stage.options["shown"].split(",")
        assert sorted(table.loc[table["part"] == "tokens", "image_id"].astype(str).unique()) == sorted(shown)
        assert [str(i) for i in choose_exhibits(first, len(shown))] == shown
        assert len(first) == 5 * stage.options["n_images"]
        n_failures += (
            first[first["image_id"].astype(str).isin(shown)].groupby("image_id")["score"].min() == 0
        ).sum()
    assert n_failures >= 8


def test_every_registered_method_was_asked_about_drawn_scenes_in_both_ways_and_others_as_their_stages_say():
    inside = {name for name, method in PRUNERS.items() if method.kind._overrides("inside")}
    every = {name for name, method in PRUNERS.items() if "scorer" not in method.parameters} - {ALL}
    for stage, _, *others in read_notebook_list(REPOSITORY / "workflow/notebooks.yml").explored:
        record = read_record(REPOSITORY / stage.table)
        table, facts = record.table, record.facts
        for other in others:
            more = read_record(REPOSITORY / other.table)
            table, facts = with_more(table, facts, more.table, more.facts)
        answers = table[(table["part"] == "answers") & (table["method"] != ALL)]
        n_images = len(stage.options["shown"].split(","))
        assert set(answers.groupby(["method", "how", "retain_ratio"]).size()) == {5 * n_images}, stage.run
        for budget in (0.05, 0.1, 0.2, 0.35, 0.5):
            own = answers[answers["retain_ratio"] == budget]
            asked = {how: set(rows["method"]) for how, rows in own.groupby("how")}
            for other in others:
                for how in ["removed"] if other.options["more"] is True else other.options["more"]:
                    missing = set(other.options["pruner"]) - asked[how] - set(facts["unfit"])
                    assert missing <= (inside if how == "replaced" else set()), (other.run, budget)
            if stage.options["model"] == "llava-photographs":
                continue
            assert asked["removed"] - asked["replaced"] == asked["removed"] & inside, (stage.run, budget)
            assert asked["removed"] | set(facts["unfit"]) >= every, (stage.run, budget)


# What is shown is what was measured


def test_scores_equal_the_probe_table_within_the_stated_step(explored, exhibits):
    for image_id, exhibit in exhibits.items():
        rows = rows_of(explored.source.probed.table, image_id)
        where = rows["position"].to_numpy()
        assert {"entropy", "region_divergence", "global_divergence", "cls_similarity"} <= set(exhibit.signals)
        for name in set(exhibit.signals) & set(rows):
            own, found = exhibit.signals[name], numbers(exhibit.signals[name])
            apart = np.abs(found[where] - rows[name].to_numpy())
            assert apart.max() <= packing.largest_error(own.low, own.high, own.power), name
            assert np.isnan(np.delete(found, where)).all()
        assert [i for i, letter in enumerate(exhibit.probed) if letter == "1"] == where.tolist()
        objects = packing.unpack_integers(exhibit.object_ids)
        told = [None if objects[i] is None else exhibit.objects[objects[i]] for i in where]
        assert told == [name if isinstance(name, str) else None for name in rows["object_category"]]


def test_words_are_those_of_probing_with_their_probabilities(explored, exhibits):
    for image_id, exhibit in exhibits.items():
        rows = rows_of(explored.source.probed.table, image_id)
        ids = np.array(packing.unpack_integers(exhibit.word_ids)).reshape(-1, 5)
        shares = numbers(exhibit.word_probabilities).reshape(-1, 5)
        where = rows["position"].to_numpy()
        assert [exhibit.words[i] for i in ids[where, 0]] == rows["top1_word"].tolist()
        np.testing.assert_allclose(shares[where, 0], rows["top1_probability"], atol=2e-4)
        assert (np.diff(shares, axis=1) <= 0).all() and (shares.sum(1) <= 1.001).all()


def test_kept_tokens_are_the_pruners(explored, exhibits):
    adapter, ids = explored.source.adapter, [sample.image_id for sample in explored.samples]
    for image_id, exhibit in exhibits.items():
        assert set(exhibit.kept) == set(METHODS)
        image = adapter.encode([explored.samples[ids.index(image_id)].image], needs={"cls_similarity"})[0]
        for name in ("random", "codebook"):
            for k, share in enumerate(BUDGETS):
                chosen = explored.pruners[name][share].reduce_image(image, ids.index(image_id), None, adapter)
                assert (
                    np.flatnonzero(packing.unpack_choice(exhibit.kept[name][0], k)).tolist()
                    == chosen.positions.tolist()
                )
        kept = packing.unpack_choice(exhibit.kept["oracle"][0], 0)
        covered = rows_of(explored.source.table, image_id).query("part == 'tokens'")
        assert kept.sum() == round(0.1 * len(covered))


def test_answers_are_the_evaluation_s(explored, exhibits):
    for name, how, share in (
        ("random", "removed", 0.1),
        ("codebook", "replaced", 0.5),
        (ALL, "removed", 1.0),
    ):
        pruner = PRUNERS[ALL].make() if name == ALL else explored.pruners[name][share]
        pruner = ReplacePruner(pruner) if how == "replaced" else pruner
        frame = evaluate(
            explored.model,
            explored.processor,
            explored.questions,
            explored.samples,
            pruner,
            max_new_tokens=16,
        )
        for image_id, exhibit in exhibits.items():
            rows = rows_of(frame, image_id)
            said = exhibit.answers[name][how][BUDGETS.index(share)]
            assert [asked.text for asked in exhibit.questions] == rows["question"].tolist()
            assert [a.texts[i] for a, i in zip(exhibit.questions, said, strict=True)] == rows[
                "prediction"
            ].tolist()
            assert [a.scores[i] for a, i in zip(exhibit.questions, said, strict=True)] == rows[
                "score"
            ].tolist()


def test_prototypes_are_the_nearest_and_their_neighbours_lie_in_other_pictures(explored, exhibits):
    unit = F.normalize(explored.pruners["codebook"][0.5].codebook.prototypes.float(), dim=-1)
    by_id = {sample.image_id: sample for sample in explored.samples}
    for image_id, exhibit in exhibits.items():
        tokens = explored.source.adapter.encode([by_id[image_id].image])[0].tokens.float()
        nearest = (F.normalize(tokens, dim=-1) @ unit.T).argmax(-1).tolist()
        ids = packing.unpack_integers(exhibit.prototype_ids)
        assert [exhibit.prototypes[i] for i in ids] == nearest
        table = explored.source.table
        rows = table[(table["part"] == "neighbours") & (table["image_id"] == image_id)]
        for prototype, near in zip(exhibit.prototypes, exhibit.near, strict=True):
            others = [explored.source.key(i) for i in exhibits if i != image_id]
            assert [exhibit.near_images[number] for number, *_ in near] == others
            assert near[0][2] == rows.loc[rows["prototype"] == prototype, "other_position"].iloc[0]


def test_the_manifest_says_what_is_not_recorded(explored):
    manifest = Manifest.model_validate(
        read_script((explored.folder / "manifest.js").read_text(encoding="utf-8"))
    )
    assert {own.name for own in manifest.methods} >= set(PRUNERS)
    assert manifest.budgets == list(BUDGETS)
    assert [own.models["llava-scenes"].grids for own in manifest.images] == [[(12, 12)]] * 2
    assert [own.models["llava-scenes"].pictures for own in manifest.images] == [
        own.key for own in manifest.images
    ]
    kinds = {own.name: own.kind for own in manifest.methods}
    assert (kinds["random"], kinds["fastv"], kinds["oracle"], kinds["codebook"], kinds["divprune"]) == (
        "controls",
        "inside the LLM",
        "bounds that know the answer",
        "codebook",
        "spread and merging",
    )
    assert any("code" in line for line in manifest.models[0].origin)


def test_tiles_are_named_by_where_they_lie_and_frames_by_number():
    def view(kind, *region):
        return VisualView(torch.zeros(4, 1), (2, 2), {}, kind, region or None)

    corners = [(x, y, x + 0.5, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5)]
    told = shown_views([view("image", 0.0, 0.0, 1.0, 1.0), *(view("tile", *own) for own in corners)])
    assert [(own.label, own.box) for own in told] == [
        ("whole picture", None),
        ("upper left tile", corners[0]),
        ("upper right tile", corners[1]),
        ("lower left tile", corners[2]),
        ("lower right tile", corners[3]),
    ]
    row = [view("tile", k / 4, 0.0, (k + 1) / 4, 1.0) for k in range(4)]
    assert [own.label for own in shown_views(row[:3])] == ["left tile 1", "left tile 2", "right tile"]
    assert [own.label for own in shown_views([view("tile", 0.0, 0.0, 1.0, 1.0)])] == [
        "tile of the whole picture"
    ]
    assert [own.label for own in shown_views([view("image")] * 2)] == ["picture 1", "picture 2"]
    assert [own.label for own in shown_views([view("frame")] * 2)] == ["frame 1", "frame 2"]


def test_where_all_tokens_stay_every_method_answers_as_without_it(explored, exhibits):
    source = explored.source
    asked = source.table[(source.table["retain_ratio"] != 1) | (source.table["method"] == ALL)]
    fewer = replace(source, table=asked)
    assert fewer.budgets == source.budgets == list(BUDGETS)
    for image_id, whole in exhibits.items():
        views = [
            VisualView(torch.zeros(view.rows * view.columns, 1), (view.rows, view.columns))
            for view in whole.views
        ]
        own = exhibit_of(fewer, image_id, views)
        assert own.kept == whole.kept
        assert [asked.texts for asked in own.questions] == [asked.texts for asked in whole.questions]
        assert own.answers == whole.answers
    for stage, *_ in read_notebook_list(REPOSITORY / "workflow/notebooks.yml").explored:
        table = read_record(REPOSITORY / stage.table).table
        rows = table[(table["part"] == "answers") & (table["retain_ratio"] == 1)]
        assert rows.groupby(["image_id", "question"])["prediction"].nunique().eq(1).all(), stage.run


def test_methods_are_added_to_pictures_measured_before(explored, exhibits, tmp_path):
    adapter, shown = explored.source.adapter, explored.source.shown
    pruners, _ = exhibit_pruners(["cls_most", "random"], BUDGETS, adapter.family, None, None)
    given = explored.model, explored.processor, explored.samples, pruners
    more = explore(*given, shown=shown, more=True, folder=tmp_path, progress=False)
    assert set(more[0]["part"]) == {"answers", "kept"} and set(more[0]["image_id"]) == set(shown)
    table, facts = with_more(explored.source.table, explored.source.facts, *more)
    source = replace(explored.source, table=table, facts=facts)
    own = exhibit_of(source, shown[0], [VisualView(torch.zeros(144, 1), (12, 12))])
    before = exhibits[shown[0]]
    assert set(own.kept) == {*before.kept, "cls_most"}
    assert set(own.answers["cls_most"]) == {"removed"}
    for name in before.answers:
        assert own.kept.get(name) == before.kept.get(name)
        assert own.answers[name].keys() == before.answers[name].keys()
    chosen = pruners["cls_most"][0.1].reduce_image(
        adapter.encode([explored.samples[0].image], needs={"cls_similarity"})[0], 0, None, adapter
    )
    assert shown[0] == explored.samples[0].image_id
    kept = np.flatnonzero(packing.unpack_choice(own.kept["cls_most"][0], 0))
    assert kept.tolist() == chosen.positions.tolist()
    assert [line for line in source.origin if line.startswith("more methods")]
    strange = more[1] | {"description": more[1]["description"] | {"shown": [9]}}
    with pytest.raises(ParameterError, match="recorded: got 'shown"):
        with_more(explored.source.table, explored.source.facts, more[0], strange)


def test_added_methods_are_asked_in_both_ways_as_at_first(explored, tmp_path):
    adapter, source = explored.source.adapter, explored.source
    pruners, _ = exhibit_pruners(["random", "fastv"], BUDGETS, adapter.family, None, None)
    ways, unfit = in_ways(pruners, HOWS, adapter)
    assert list(unfit) == ["fastv, replaced"] and "drops inside the LLM" in unfit["fastv, replaced"]
    given = explored.model, explored.processor, explored.samples
    shown = {"shown": source.shown, "progress": False}
    table, facts = explore(*given, {"random": ways["random"]}, more=True, folder=tmp_path, **shown)
    found = told_ways(table, ways)
    for part in ("answers", "kept"):
        at_first = source.table[(source.table["part"] == part) & (source.table["method"] == "random")]
        own = found[(found["part"] == part) & (found["method"] == "random")]
        keys = ["image_id", "how", "retain_ratio", "question"]
        wanted, told = (t.sort_values(keys)[found.columns].reset_index(drop=True) for t in (at_first, own))
        pd.testing.assert_frame_equal(told, wanted)
    assert set(found["how"].dropna()) == {"removed", "replaced"}
    whole, _ = with_more(source.table, source.facts, found, facts)
    assert len(whole) == len(source.table)
    is_replaced = (source.table["method"] == "random") & (source.table["how"] == "replaced")
    whole, _ = with_more(source.table[~is_replaced], source.facts, found, facts)
    assert len(whole) == len(source.table)
    assert whole["how"].value_counts().to_dict() == source.table["how"].value_counts().to_dict()
    only, _ = in_ways(pruners, ["replaced"], adapter)
    assert list(only) == ["random"] and all(isinstance(own, ReplacePruner) for own in only["random"].values())
    assert in_ways(pruners, ["removed"], adapter)[1] == {}


def test_models_share_a_picture_that_they_see_alike_and_no_other(explored, tmp_path):
    facts = explored.source.facts
    other = facts | {"description": facts["description"] | {"model": "another"}}
    large = replace(explored.source, facts=other, images="large-scenes")
    manifest = write_explorer(tmp_path, [explored.source, replace(explored.source, facts=other), large])
    first, _, third, _ = manifest.images
    assert [own.pictures for own in first.models.values()] == [first.key] * 2
    assert (third.title, list(third.models)) == ("large drawn scene 0", ["another"])


# Removed and replaced


def test_a_replaced_token_is_the_stand_in_and_the_rest_is_as_it_was(explored):
    adapter, tokens = explored.source.adapter, torch.randn(6, explored.source.adapter.d_model)
    inner = RandomPruner(0.5)
    views, context = (VisualView(tokens, (2, 3)),), PruningContext(adapter=adapter)
    reduced = ReplacePruner(inner).reduce(views, context)
    stays = inner.reduce(views, context).positions
    dropped = [i for i in range(6) if i not in stays.tolist()]
    assert reduced.positions.tolist() == list(range(6)) and len(dropped) == 3
    assert torch.equal(reduced.rows[stays], tokens[stays])
    assert (reduced.rows[dropped] == adapter.replacement_embedding()).all()
    assert evaluation_code(ReplacePruner(inner)) != evaluation_code(
        ReplacePruner(PRUNERS["cls_most"].make({"retain_ratio": 0.5}))
    )
    with pytest.raises(ParameterError, match="inner: got 'NoneType'"):
        ReplacePruner()


def test_what_a_smaller_picture_does_not_show_is_replaced(explored):
    smaller = DownsampledPruner(0.25)
    given = explored.model, explored.processor, explored.questions, explored.samples
    frame = evaluate(*given, ReplacePruner(smaller), max_new_tokens=2)
    everything = evaluate(*given, PRUNERS[ALL].make(), max_new_tokens=2)
    assert frame["n_retained"].tolist() == everything["n_retained"].tolist()
    picture = explored.samples[0].image
    own, wrapped = (
        each.resize([picture], explored.source.adapter) for each in (smaller, ReplacePruner(smaller))
    )
    assert own[0].tobytes() == wrapped[0].tobytes() != picture.tobytes()


# Every family, a reader's own photos, limits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_an_explorer(name, tmp_path):
    family = FAMILIES[name]
    model, processor = family.build()
    own = zip(family.sizes, family.grids, strict=True)
    photos = [(size, grids) for size, grids in own if min(min(grid) for grid in grids) >= 3][:2]
    for i, (size, _) in enumerate(photos):
        array = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        PIL.Image.fromarray(array).save(tmp_path / f"photos/{i}.png")
    samples, adapter = list(PhotoFolder(tmp_path / "photos")), adapter_for(model, processor)
    config = ProbeConfig(positions=(0, 1), attention=False)
    probed = probe_dataset(model, processor, samples, config, tmp_path / "probed", progress=False)
    pruners, _ = exhibit_pruners(["random", "oracle"], (0.5, 1.0), adapter.family, None, None)
    table, facts = explore(
        model,
        processor,
        samples,
        pruners,
        config=config,
        folder=tmp_path / "e",
        progress=False,
        max_new_tokens=2,
    )
    assert "masks" in facts["unfit"]["oracle"]
    source = Source(table, facts, probed, {s.image_id: s for s in samples}, adapter)
    manifest = write_explorer(tmp_path / "page", [source])
    for own, grids in zip(manifest.images, [grids for _, grids in photos], strict=True):
        exhibit = Exhibit.model_validate(
            read_script((tmp_path / f"page/data/{source.model}-{own.key}.js").read_text(encoding="utf-8"))
        )
        assert [(view.rows, view.columns) for view in exhibit.views] == list(grids)
        assert exhibit.probed.count("1") == 2 * len(grids)
        assert {score for asked in exhibit.questions for score in asked.scores} == {None}
        shown = Pictures.model_validate(
            read_script((tmp_path / f"page/data/{own.key}.js").read_text(encoding="utf-8"))
        )
        assert len(shown.views) == len(grids)


def test_the_command_writes_a_page_of_own_photos(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a b.png", "c.png"):
        PIL.Image.new("RGB", (64, 48), "red" if name == "c.png" else "blue").save(tmp_path / "photos" / name)
    given = ["--model", "llava-scenes", "--images", str(tmp_path / "photos"), "--positions", "0,1,2"]
    assert main(["probe", *given, "--folder", str(tmp_path / "probed")]) == 0
    wanted = [*given, "--folder", str(tmp_path / "e"), "--pruner", "random", "--retain-ratio", "0.5"]
    wanted += ["--page", str(tmp_path / "page")]
    assert main(["explorer", *wanted]) == 2
    assert "page: got" in capsys.readouterr().err
    table = str(tmp_path / "t.parquet")
    assert main(["explorer", *wanted, "--probed", str(tmp_path / "probed"), "--table", table]) == 0
    first = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert "rx-static" in first and "noscript" in first
    again = ["--probed", str(tmp_path / "probed"), "--recorded", table]
    assert main(["explorer", *wanted, *again]) == 0
    assert (tmp_path / "page/index.html").read_text(encoding="utf-8") == first
    some = ["--retain-ratio", "0.2", "0.5", "--settings", "2/2", "--table", str(tmp_path / "s.parquet")]
    assert main(["explorer", *wanted[:-2], *some]) == 0
    whole, (found, facts) = read_table(table)[0], read_table(tmp_path / "s.parquet")
    assert facts["only"] == {"setting": sorted(whole["setting"].dropna().unique())}  # without those at 0.2
    pd.testing.assert_frame_equal(found, whole)
    more = [
        "--pruner",
        "cls_most",
        "--more",
        "removed",
        "replaced",
        "--table",
        str(tmp_path / "more.parquet"),
    ]
    assert main(["explorer", *wanted[:-2], *more, "--shown", "a b.png,c.png"]) == 0
    assert main(["explorer", *wanted, *again, str(tmp_path / "more.parquet")]) == 0
    (page,) = (tmp_path / "page/data").glob("llava-scenes-*c-png.js")
    answers = Exhibit.model_validate(read_script(page.read_text(encoding="utf-8"))).answers
    assert set(answers["cls_most"]) == set(answers["random"]) == {"removed", "replaced"}
    capsys.readouterr()
    for option, words in (
        (["--retain-ratio", "0.5", "0.2"], "retain-ratio: got [0.5, 0.2]"),
        (["--shown", "d.png"], "shown: got ['d.png']"),
        (["--pruner", "nobody"], "pruner: got 'nobody'"),
    ):
        assert main(["explorer", *wanted, *again, *option]) == 2
        assert words in capsys.readouterr().err


def test_wrong_data_are_refused(exhibits):
    content = next(iter(exhibits.values())).model_dump(mode="json")
    for change in ({"probed": "1"}, {"version": "rcb-explorer/1"}, {"more": 1}, {"kept": {"random": ["A"]}}):
        with pytest.raises(pydantic.ValidationError):
            Exhibit.model_validate(content | change)
    assert Exhibit.model_validate(json.loads(json.dumps(content)))


def test_bytes_are_limited(explored, monkeypatch, tmp_path):
    sizes = {path.name: path.stat().st_size for path in explored.folder.glob("*")}
    assert sizes["explorer.js"] <= 30_000 and sizes["explorer.css"] <= 8_000
    data = {path.stem: path.stat().st_size for path in (explored.folder / "data").glob("*.js")}
    for image_id in explored.source.shown:
        key = explored.source.key(image_id)
        assert data[key] + data[f"llava-scenes-{key}"] <= writing.MOST_BYTES
    assert sum(sizes.values()) <= MOST_BYTES_AT_FIRST
    monkeypatch.setattr(writing, "MOST_BYTES_IN_ALL", 1000)
    with pytest.raises(ParameterError, match="accepted: at most 0.001 MB"):
        write_explorer(tmp_path, [explored.source])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    first = explored.source.key(explored.source.shown[0])
    monkeypatch.setattr(
        writing, "MOST_BYTES", data[f"llava-scenes-{first}"]
    )  # nothing is left for its picture
    with pytest.raises(ParameterError, match="views: got"):
        write_explorer(tmp_path, [explored.source])


def test_the_script_is_sent_with_its_texts_as_they_are(explored):
    source = (writing.PAGE / "explorer.js").read_text(encoding="utf-8")
    # The minifier takes a text inside a text for code, and blanks out of what surrounds it.
    assert not re.search(r"\$\{[^}`]*`", source)
    sent = (explored.folder / "explorer.js").read_text(encoding="utf-8")
    texts = re.findall(r"`[^`]*`", source)
    assert len(texts) > 50 and all(text in sent for text in texts)


def test_a_probe_run_of_another_model_is_refused(explored):
    other = replace(explored.source.probed, description={"model_fingerprint": "another"})
    with pytest.raises(ParameterError, match="a run of the model another"):
        replace(explored.source, probed=other)
    empty = replace(explored.source.probed, table=explored.source.probed.table.head(0))
    with pytest.raises(ParameterError, match="no rows of images"):
        replace(explored.source, probed=empty)
