"""Check the truth of redundancy: interventions, what each method ranks, and statistics that set signals against it."""

import math
from dataclasses import replace

import families
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from test_evaluate_known import sample_with

from rcblib.__main__ import main
from rcblib.codebook.scorer import Scorer
from rcblib.evaluate.interventions import (
    Answer,
    Donors,
    answer_forms,
    coverage_of,
    removal_falls,
    swap_falls,
)
from rcblib.evaluate.token_scores import BUDGETS, method_scores, rankable, token_measures
from rcblib.evaluate.truth import (
    REMOVED,
    SWAPPED,
    TOKENS,
    TruthConfig,
    chosen_questions,
    measure_truth,
    part_of,
)
from rcblib.mllm import adapter_for
from rcblib.probe.inputs import places_of
from rcblib.pruners.registry import PRUNERS
from rcblib.reading.kinds import leading_of_kinds
from rcblib.reading.statistics import mean_interval
from rcblib.reading.trust import over_trainings, stepped_up, validate
from rcblib.reading.truth import (
    Ranked,
    area,
    average_precision,
    candidate_label,
    image_values,
    positives,
    signals_against_truth,
    summarize,
    with_candidates,
)
from rcblib.records import ParameterError, Question, Sample, SceneObject
from rcblib.runs.agreement import compare_with_record
from rcblib.runs.files import read_table
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import read_record, write_record
from rcblib.runs.shards import Shard
from worlds.coco import encode_mask
from worlds.datasets import SceneDataset
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import generate_scene

QUESTION = "What does this image show ?"


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def adapter(pair):
    return adapter_for(*pair)


@pytest.fixture(scope="module")
def samples():
    return [sample_with(1, 7, 8, 13, 14), sample_with(2, 7, 35), sample_with(3, 0, 1), sample_with(4, 7, 0)]


def encoded(adapter, sample, needs=()):
    return adapter.encode([sample.image], needs)[0]


# Interventions


def test_an_answer_takes_the_form_that_is_likeliest(adapter, samples):
    rows = adapter.assemble(encoded(adapter, samples[0]))
    answer = Answer(adapter, Question(1, "one_word", QUESTION, "cat"), rows)
    assert answer.form in answer_forms(adapter.processor.tokenizer, "cat")
    logits = adapter.first_token_logits(adapter.prompt(QUESTION), [rows])[0].log_softmax(-1)
    assert float(answer.intact[0]) == pytest.approx(float(logits[answer.form[0]]), abs=1e-5)
    assert answer.own_id == int(logits.argmax()) and float(answer.intact[1]) == pytest.approx(
        float(logits.max())
    )
    torch.testing.assert_close(answer.falls([rows]), torch.zeros(1, 2), atol=1e-5, rtol=0)
    assert answer.is_own == (answer.form[0] == answer.own_id)
    with pytest.raises(ParameterError, match="answer: got 'zebra'"):
        answer_forms(adapter.processor.tokenizer, "zebra")


def test_an_answer_of_two_words_is_as_likely_as_both_one_after_the_other(adapter, samples):
    rows = adapter.assemble(encoded(adapter, samples[0]))
    answer = Answer(adapter, Question(1, "position", QUESTION, "red apple"), rows)
    prompt, total = adapter.prompt(QUESTION), 0.0
    for k, token_id in enumerate(answer.form):
        logits = adapter.first_token_logits(prompt, [rows], answer_prefix=[list(answer.form[:k])])[0]
        total += float(logits.log_softmax(-1)[token_id])
    assert len(answer.form) == 2 and float(answer.intact[0]) == pytest.approx(total, abs=1e-4)


def test_donors_show_background_at_the_same_place(adapter, samples):
    by_id = {sample.image_id: sample for sample in samples}
    donors, tokens = Donors(adapter, by_id), {i: encoded(adapter, s).tokens for i, s in by_id.items()}
    places = places_of([encoded(adapter, samples[0])])
    rows = donors.rows(1, places)[0]
    for position in range(36):
        # Image 2 covers 7 and 35, so image 3 gives 35, and image 3, which covers 0 and 1, gives 7.
        other = 3 if position in (7, 35) else 2
        torch.testing.assert_close(rows[position], tokens[other][position])
    turned = donors.rows(1, places, turn=1)[0]
    torch.testing.assert_close(turned[20], tokens[3][20])
    covered = {i: sample_with(i, 5) for i in (1, 2)}
    assert Donors(adapter, covered).rows(1, places)[0].isnan().any(-1).nonzero().flatten().tolist() == [5]
    with pytest.raises(ParameterError, match="samples: got '1 image'"):
        Donors(adapter, {1: samples[0]})


def test_swapping_falls_as_far_as_logits_of_the_swapped_image_say(adapter, samples):
    image = encoded(adapter, samples[0])
    answer = Answer(adapter, Question(1, "one_word", QUESTION, "cat"), adapter.assemble(image))
    other = encoded(adapter, samples[1]).tokens
    other[3] = torch.nan  # no donor there
    falls = swap_falls(adapter, image, answer, [other], {0: [3, 7, 20]})
    assert falls["position"].tolist() == [7, 20]
    swapped = image.tokens.clone()
    swapped[20] = other[20]
    logits = adapter.first_token_logits(adapter.prompt(QUESTION), [swapped])[0].log_softmax(-1)
    expected = float(answer.intact[0]) - float(logits[answer.form[0]])
    assert falls["fall"][1] == pytest.approx(expected, abs=1e-5)
    same = swap_falls(adapter, image, answer, [image.tokens], {0: range(36)})
    np.testing.assert_allclose(same[["fall", "own_fall"]], 0, atol=1e-5)


def test_removing_an_object_is_measured_on_the_picture_drawn_again(adapter):
    sample = next(s for s in SceneDataset("test", 9) if len(s.objects) == 2)
    question = Question(sample.image_id, "yes_no", "Is there a cat in this image ?", "yes")
    read = lambda q, rows: Answer(adapter, q, rows)  # noqa: E731
    rows = list(removal_falls(adapter, sample, [question], read))
    assert [row["object"] for row in rows] == [0, 1]
    assert [row["object_category"] for row in rows] == [item.category for item in sample.objects]
    whole, without = (adapter.assemble(adapter.encode([sample.without(k)])[0]) for k in (None, 1))
    answer = Answer(adapter, question, whole)
    assert rows[1]["fall"] == pytest.approx(float(answer.falls([without])[0, 0]), abs=1e-5)
    assert np.array_equal(sample.without(None), sample.image)


# Scores of methods


def test_every_method_ranks_tokens_or_says_why_not(adapter, samples):
    methods, left_out = rankable(adapter)
    assert set(methods) | set(left_out) == set(PRUNERS) and not set(methods) & set(left_out)
    assert {"all", "oracle", "pooled", "downsampled"} <= set(left_out)
    assert all("\n" not in why for why in left_out.values())
    needs = {need for method in methods.values() for need in method.needs} & adapter.offers
    image = encoded(adapter, samples[0], needs)
    for name, method in methods.items():
        scores = method_scores(adapter, image, [adapter.prompt(QUESTION)], method)
        assert scores.shape == (36,) and scores.isfinite().all(), name


def test_scores_agree_with_what_methods_keep(adapter, samples):
    methods, _ = rankable(adapter)
    needs = {"cls_similarity", "cls_attention", "keys", "hidden_states"}
    image, prompt = encoded(adapter, samples[0], needs), adapter.prompt(QUESTION)
    similar = method_scores(adapter, image, [prompt], methods["cls_most"])
    torch.testing.assert_close(similar, image.views[0].signals["cls_similarity"])
    strided = method_scores(adapter, image, [prompt], methods["strided"])
    kept = sum(
        torch.zeros(36).index_fill(
            0, PRUNERS["strided"].make({"retain_ratio": r}).reduce_image(image).positions, 1
        )
        for r in BUDGETS
    )
    torch.testing.assert_close(strided, kept / len(BUDGETS))


def test_a_token_is_measured_by_itself(adapter, samples):
    image = encoded(adapter, samples[0])
    found, words = token_measures(adapter, image), adapter.model.get_input_embeddings().weight
    torch.testing.assert_close(found["token_norm"], image.tokens.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(image.tokens[5], words, dim=-1).max()
    torch.testing.assert_close(found["token_word_similarity"][5], cosine)


def test_methods_inside_the_llm_rank_by_what_they_read(monkeypatch, samples):
    monkeypatch.setattr(tiny, "TINY_TEXT", tiny.TINY_TEXT | {"num_hidden_layers": 4})
    adapter = adapter_for(*tiny.tiny_llava())
    methods, _ = rankable(adapter)
    assert {"fastv", "sparsevlm", "pyramiddrop"} <= set(methods)
    image, prompt = encoded(adapter, samples[0]), adapter.prompt(QUESTION)
    attention = adapter.text_to_image_attention(prompt, adapter.assemble(image))["last"]
    scores = method_scores(adapter, image, [prompt], methods["fastv"])
    torch.testing.assert_close(scores, attention[1], rtol=1e-4, atol=1e-6)  # the layer before its second
    both = method_scores(adapter, image, [prompt, adapter.prompt("How many are there ?")], methods["fastv"])
    assert not torch.equal(both, scores)


# The whole run


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    export_coco([generate_scene(0, i, "validation") for i in range(4)], folder, "validation")
    return folder


def test_truth_runs_on_a_coco_folder_in_shards_and_agrees_with_its_record(coco_folder, tmp_path, capsys):
    saved = tiny.save_tiny_llava(tmp_path / "model")
    arguments = ["truth", "--model", str(saved), "--images", f"coco:{coco_folder}", "--split", "validation"]
    arguments += ["--tasks", "yes_no", "--n-questions", "2", "--positions", "grid", "--n-side", "3"]
    arguments += ["--folder", str(tmp_path / "truth")]
    tables = [tmp_path / f"{k}.parquet" for k in (1, 2)]
    for k, path in enumerate(tables, 1):
        assert main([*arguments, "--shard", f"{k}/2", "--table", str(path)]) == 0
    assert "no rank by pooled: it takes the mean" in capsys.readouterr().out
    table, facts = merge_tables(tables)
    tokens, swapped = part_of(table, TOKENS), part_of(table, SWAPPED)
    assert tokens["position"].dtype.kind == swapped["view"].dtype.kind == "i"
    assert len(tokens) == 4 * 9 and len(part_of(table, REMOVED)) == 0
    assert swapped.groupby(["image_id", "question"]).size().max() <= 9
    assert swapped["question"].str.startswith("Is there").all()
    mean = swapped.groupby(["image_id", "view", "position"])["fall"].mean()
    own = tokens.set_index(["image_id", "view", "position"])["swap_fall"].reindex(mean.index)
    np.testing.assert_allclose(own, mean, rtol=1e-6, atol=1e-9)
    write_record(tmp_path / "recorded" / "tiny" / "truth.parquet", table, facts)
    assert main([*arguments, "--first", "1", "--table", str(tmp_path / "first.parquet")]) == 0
    record = read_record(tmp_path / "recorded" / "tiny" / "truth.parquet")
    found = compare_with_record(record, *read_table(tmp_path / "first.parquet"))
    assert found.n_images == 1 and not found.disagreements
    assert main([*arguments, "--rerender"]) == 2
    assert "rerender: got 'True, with image 0 of scenes/validation, which cannot" in capsys.readouterr().err


def test_ranks_stand_for_signals_and_compare_as_they_do(pair, tmp_path):
    adapter, scenes = adapter_for(*pair), SceneDataset("test", 2)
    asked = [Question(s.image_id, "yes_no", "Is there a cat in this image ?", "yes") for s in scenes]
    scorer = Scorer(torch.randn(2, adapter.d_model, generator=torch.manual_seed(0)), torch.tensor([0.5, 0.5]))
    plain, ranked = (
        measure_truth(
            *pair,
            asked,
            scenes,
            TruthConfig(n_questions=1, positions="grid", n_side=4, ranks=ranks),
            None,
            scorer,
            folder=tmp_path / str(ranks),
            progress=False,
        )
        for ranks in (False, True)
    )
    assert plain[1]["description"]["scorer"] == ranked[1]["description"]["scorer"] is not None
    assert ranked[1]["left_out"]["cls_most"] == "its score is the signal cls_similarity"
    assert "ranks" not in plain[1]["description"]["config"] and ranked[1]["description"]["config"]["ranks"]
    both = [part_of(table, SWAPPED).sort_values(["image_id", "position"]) for table, _ in (plain, ranked)]
    np.testing.assert_array_equal(both[0]["fall"], both[1]["fall"])
    for image_id, own in both[1].groupby("image_id"):
        asked_yes = Question(image_id, "yes_no", asked[0].text, "yes")
        sample = next(s for s in scenes if s.image_id == image_id)
        answer = Answer(adapter, asked_yes, adapter.assemble(encoded(adapter, sample)))
        assert ("own_fall" not in own or own["own_fall"].isna().all()) == answer.is_own
    values, ranks = part_of(plain[0], TOKENS), part_of(ranked[0], TOKENS)
    assert {"score_distilled", "token_predicted", "attention_last"} <= set(ranks)
    assert not {"score_random", "score_cls_most", "cls_rank", "top1_id", "row"} & set(ranks)
    assert len(ranks.columns) < len(values.columns)
    for name in ("top1_probability", "score_divprune", "pixel_edges", "token_predicted"):
        own = values.groupby("image_id")[name].rank()
        np.testing.assert_allclose(ranks[name], (own - 1) / 15)
    pd.testing.assert_series_equal(ranks["swap_change"], values["swap_change"])
    image = encoded(adapter, scenes[0])
    heads = scorer.predict(image.tokens).mean(-1).numpy()
    first = values[values["image_id"] == scenes[0].image_id]
    np.testing.assert_allclose(first["token_predicted"], heads[first["position"]], rtol=1e-5)
    tables = []
    for table in (values, ranks):
        tokens, candidates = with_candidates(table.dropna(subset="swap_fall"), np.random.default_rng(0))
        tables.append(image_values(tokens, positives(tokens)["change"], candidates))
    pd.testing.assert_frame_equal(
        *(table.sort_values(["image_id", "signal"], ignore_index=True) for table in tables)
    )


def test_drawn_scenes_are_drawn_again(pair, tmp_path):
    scenes = SceneDataset("test", 3)
    questions = [
        Question(s.image_id, "yes_no", f"Is there a cat in this image {s.image_id} ?", "yes") for s in scenes
    ]
    config = TruthConfig(n_questions=1, rerender=True)
    table, _ = measure_truth(*pair, questions, scenes, config, folder=tmp_path, progress=False)
    tokens, removed = part_of(table, TOKENS), part_of(table, REMOVED)
    assert len(removed) == sum(len(scene.objects) for scene in scenes)
    assert set(tokens["background"]) <= {"plain", "gradient", "noise", "photo"}
    bare = tokens[tokens["object_coverage"] == 0]
    assert (bare["removal_fall"] == 0).all() and bare["object_share"].isna().all()
    falls = removed.groupby(["image_id", "object"])["fall"].mean()
    for scene in scenes:
        image = encoded(adapter_for(*pair), scene)
        shares = {
            k: coverage_of(adapter_for(*pair), replace(scene, objects=(item,)), image.views[0]).numpy()
            for k, item in enumerate(scene.objects)
        }
        own = tokens[tokens["image_id"] == scene.image_id].sort_values("position")
        expected = sum(falls[scene.image_id, k] * share for k, share in shares.items())
        np.testing.assert_allclose(own["removal_fall"], expected, rtol=1e-5, atol=1e-9)
        assert (own["removal_fall"] != 0).any()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_is_measured_token_by_token(family, tmp_path):
    known, pair = families.FAMILIES[family], families.FAMILIES[family].build()
    fits = (size for size, grids in zip(known.sizes, known.grids, strict=True) if min(map(min, grids)) > 2)
    width, height = next(fits)
    mask = np.zeros((height, width), bool)
    mask[: height // 2, : width // 2] = True
    rle = encode_mask(mask)
    samples = [
        Sample(
            i,
            lambda i=i: tiny.random_images(1, (width, height), seed=i)[0],
            width,
            height,
            objects=(SceneObject("cat", (0, 0, width // 2, height // 2), rle, float(mask.sum())),)
            if i
            else (),
            source="test",
        )
        for i in range(2)
    ]
    asked = [Question(i, "one_word", QUESTION, "cat") for i in range(2)]
    config = TruthConfig(positions=(0, 8), n_questions=1)
    table, facts = measure_truth(
        *pair, asked, samples, config, folder=tmp_path, shard=Shard(2, 2), progress=False
    )
    tokens, swapped = part_of(table, TOKENS), part_of(table, SWAPPED)
    n_views = len(adapter_for(*pair).encode([samples[1].image])[0].views)
    assert len(tokens) == 2 * n_views == len(swapped)
    assert (swapped["fall"] != 0).any() and tokens["swap_change"].notna().all()
    assert tokens.filter(like="score_").notna().all().all()
    if adapter_for(*pair).has_cls:
        assert "score_cls_attention" in tokens
    else:
        assert "without [CLS] attention" in facts["left_out"]["cls_attention"]


def test_questions_are_of_different_families_and_need_an_object():
    asked = [Question("a", "color", f"color {k}", "red") for k in range(5)]
    asked += [Question("a", "count", "count", "two"), Question("a", "yes_no", "there", "no")]
    asked += [Question("a", "caption", "say", "a cat"), Question("b", "yes_no", "there", "no")]
    chosen = chosen_questions(asked, 3)
    assert list(chosen) == ["a"]
    assert sorted(q.task for q in chosen["a"]) == ["color", "color", "count"]
    assert chosen_questions(asked[:6], 3)["a"] == chosen["a"]  # whatever else is asked


def test_samples_without_masks_end_the_run_before_it_begins(pair, tmp_path):
    bare = replace(sample_with(1), objects=None)
    with pytest.raises(ParameterError, match="samples: got 'image 1, without masks'"):
        measure_truth(*pair, [Question(1, "count", "?", "two")], [bare, bare], folder=tmp_path)


# Statistics


def test_areas_and_precisions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.3
        assert area(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert math.isnan(area(scores, truth & False)) and math.isnan(average_precision(scores, truth & False))


@pytest.fixture
def made_up():
    """Forty images of 36 tokens, four of them on an object that alone matters."""
    rng = np.random.default_rng(1)
    n = 40 * 36
    on_object = np.tile(np.arange(36) < 4, 40)
    return pd.DataFrame(
        {
            "image_id": np.repeat(range(40), 36),
            "view": 0,
            "position": np.tile(range(36), 40),
            "top1_probability": on_object + 0.1 * rng.random(n),
            "influence": rng.random(n),
            "entropy": 1.0 - on_object,
            "cls_similarity": rng.random(n),
            "object_coverage": on_object.astype(float),
            "object_category": np.where(on_object, "cat", None),
            "object_share": np.where(on_object, np.repeat(rng.choice([0.02, 0.3], 40), 36), np.nan),
            "swap_fall": on_object + 0.01 * rng.random(n),
            "swap_change": on_object + 0.01 * rng.random(n),
            "removal_fall": 2.0 * on_object,
            "background": np.repeat(["sky", "grass"], n // 2),
        }
    )


def test_a_perfect_signal_a_reversed_one_and_chance(made_up):
    tokens, candidates = with_candidates(made_up, np.random.default_rng(0))
    assert {"information", "random_numbers", "entropy", "cls_similarity"} <= set(candidates)
    table = signals_against_truth(tokens, candidates, generator=np.random.default_rng(0))
    whole = table[table["factor"] == "all"].set_index(["truth", "signal"])
    for truth in ("coverage", "swap", "change", "removal"):
        best = whole.loc[truth, "entropy"]  # a low one is kept, so it is turned
        assert best["value"] == best["precision"] == 1
        random = whole.loc[truth, "random_numbers"]
        assert random["low"] < 0.5 < random["high"]
        assert best["prevalence"] == pytest.approx(4 / 36)
        assert whole.loc[(truth, "top1_probability"), "reversed_precision"] < best["prevalence"]
    assert set(table.loc[table["factor"] == "background", "level"]) == {"sky", "grass"}
    sizes = table[(table["factor"] == "size") & (table["truth"] == "coverage")].set_index("level")["n_images"]
    assert set(sizes.index) == {"small", "large"} and sizes.groupby(level=0).first().sum() == 40
    few = signals_against_truth(tokens, candidates, generator=np.random.default_rng(0), followed=["entropy"])
    assert set(few.loc[few["factor"] != "all", "signal"]) == {"entropy"}
    assert set(few.loc[few["factor"] == "all", "signal"]) == set(candidates)
    values = image_values(tokens, ~positives(tokens)["coverage"], ["entropy"])
    assert summarize(values, np.random.default_rng(0))["value"][0] == 0


def test_candidates_have_names_for_readers():
    names = {
        "token_norm": "length of the token",
        "information": "top-1 probability and influence",
        "pixel_median_distance": "pixels: median distance",
        "score_visionzip": "VisionZip",
        "score_codebook_distinct": "codebook without copies",
        "score_codebook_double_softmax": "codebook, softmax over tokens and prototypes",
        "attention_last_layer_3": "attention, last token, layer 3",
        "cls_similarity": "similarity to [CLS]",
    }
    assert {name: candidate_label(name) for name in names} == names


def test_the_best_of_every_kind_leads():
    ordered = ["object_coverage", "pixel_entropy", "cls_similarity", "pixel_median_distance", "cls_attention"]
    ordered += [
        "entropy",
        "attention_last",
        "score_codebook_max_cosine",
        "score_fastv",
        "score_strided",
        "random_numbers",
    ]
    labels = leading_of_kinds(ordered, named=["cls_attention"])
    assert list(labels) == [name for name in ordered if name != "pixel_median_distance"]
    assert labels["object_coverage"] == "masks (oracle)\n(control)"
    assert labels["pixel_entropy"].endswith("\n(best of 2 by pixels)")
    assert labels["score_strided"].endswith("\n(control)")
    assert labels["cls_attention"].endswith("\n(by [CLS])")
    assert labels["score_fastv"] == f"{candidate_label('score_fastv')}\n(methods inside the LLM)"
    assert labels["score_codebook_max_cosine"] == "codebook, largest cosine\n(made from probing)"


def test_the_truth_is_validated_by_itself(made_up):
    rng = np.random.default_rng(2)
    parts = []
    for k in range(4):
        fall = made_up["swap_fall"] * (1 if k % 2 else -1) + 0.001 * rng.random(len(made_up))
        rows = made_up[["image_id", "view", "position"]].assign(fall=fall, question=f"q{k}", task="count")
        parts.append(rows.assign(own_fall=np.nan))
    swapped = pd.concat(parts, ignore_index=True)
    removed = pd.DataFrame(
        {
            "image_id": 0,
            "question": "q0",
            "object": [0, 1],
            "object_category": ["cat", "dog"],
            "fall": [2.0, 0.0],
        }
    )
    two = made_up.copy()
    two.loc[two["position"] == 30, "object_category"] = "dog"
    found = validate(two, swapped, removed, generator=np.random.default_rng(0))
    assert found.over_questions["change"].value > 0.9 > -0.9 > found.over_questions["fall"].value
    assert found.over_answers is None  # the model's own answer is the right one
    other = swapped.assign(own_fall=-swapped["fall"])
    assert validate(
        two, other, removed, generator=np.random.default_rng(0)
    ).over_answers.value == pytest.approx(-1)
    assert found.between["object_coverage", "removal_fall"].value == pytest.approx(1)
    assert found.objects.value == 1 and found.objects_by_chance == 0.5
    assert validate(two, swapped, None, generator=np.random.default_rng(0)).objects is None
    assert stepped_up(0.5) == pytest.approx(2 / 3)


def test_another_training_agrees_where_it_needs_the_same_tokens(made_up):
    rng, noise = np.random.default_rng(3), made_up["swap_change"]
    other = made_up[made_up["image_id"] >= 10].assign(
        swap_change=lambda rows: rng.permutation(rows["swap_change"])
    )
    found = over_trainings(made_up, other, generator=np.random.default_rng(0))
    same, by_place = found["swap_fall"]
    assert same.value == pytest.approx(1) and same.n_clusters == 30
    assert 0.1 < by_place.value < 0.9  # objects stand at the same place of all images, and the rest is noise
    moved, place = found["swap_change"]
    assert moved.low < 0 < moved.high and place.low < 0.1
    turned = over_trainings(made_up, made_up.assign(swap_fall=-noise), generator=np.random.default_rng(0))
    assert turned["swap_fall"][0].value < -0.2
    with pytest.raises(ParameterError, match="other: got '1 of the images'"):
        over_trainings(made_up, made_up[made_up["image_id"] == 3], generator=np.random.default_rng(0))


def test_many_scores_at_once_are_measured_as_each_alone():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 4, (30, 5)).astype(float), rng.random(30) < 0.3
    for measure in (area, average_precision):
        np.testing.assert_allclose(measure(scores, truth), [measure(own, truth) for own in scores.T])
        assert np.isnan(measure(scores, truth & False)).all()


def test_ranks_made_once_measure_every_truth_among_some_rows_as_ranks_of_those_alone():
    rng = np.random.default_rng(5)
    scores = np.stack([rng.normal(size=60), rng.integers(0, 5, 60), np.zeros(60)], axis=1)
    ranked = Ranked.of(scores)
    for share in (0.1, 0.5, 0.9):
        truth, among = rng.random(60) < share, rng.random(60) < 0.6
        among[:2], truth[:2] = True, [True, False]
        for rows in (None, among):
            own = slice(None) if rows is None else rows
            found = ranked.columns([0, 1, 2]).measures(truth, rows)
            for column in range(3):
                alone, needed = scores[own, column], truth[own]
                assert found["area"][column] == pytest.approx(roc_auc_score(needed, alone), abs=1e-12)
                precision = average_precision_score(needed, alone)
                assert found["precision"][column] == pytest.approx(precision, abs=1e-12)
                turned = average_precision_score(needed, -alone)
                assert found["reversed_precision"][column] == pytest.approx(turned, abs=1e-12)
    assert all(np.isnan(values).all() for values in ranked.measures(np.zeros(60, dtype=bool)).values())


def test_a_summary_holds_what_each_signal_has_alone(made_up):
    tokens, candidates = with_candidates(made_up, np.random.default_rng(0))
    values = image_values(tokens, positives(tokens)["coverage"], candidates)
    table = summarize(values, np.random.default_rng(2)).set_index("signal")
    wide = values.pivot(index="image_id", columns="signal", values="area")
    for name in candidates:
        alone = mean_interval(wide[name], generator=np.random.default_rng(2))
        own = table.loc[name]
        np.testing.assert_allclose(
            [own["value"], own["low"], own["high"]], [alone.value, alone.low, alone.high]
        )
        assert own["n_images"] == len(wide)
    with pytest.raises(ParameterError, match="no image"):
        summarize(values.iloc[:0], np.random.default_rng(2))
