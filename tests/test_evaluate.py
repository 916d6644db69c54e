"""Check evaluation against `generate` called for one question at a time, with and without pruners."""

import dataclasses
from pathlib import Path

import accelerate
import pandas as pd
import pytest
import tiny
import tiny_qwen
import torch
from families import FAMILIES
from messages import refused
from pruner_examples import First, LastAttention, Smaller
from pycocotools.mask import encode

from rcblib.codebook.codebook import Codebook
from rcblib.evaluate import session
from rcblib.evaluate.grid import evaluate, evaluate_grid
from rcblib.evaluate.metrics import score_predictions
from rcblib.evaluate.timing import latency_and_memory
from rcblib.mllm import ADAPTERS, adapter_for
from rcblib.pruners import ClsSimilarityPruner, CodebookPruner, RandomPruner
from rcblib.records import (
    CodebookError,
    ImageError,
    ParameterError,
    Question,
    Sample,
    SceneObject,
    SequenceSample,
)
from rcblib.tensors.scoring import redundancy_scores

N_IMAGES = 3
N_NEW = 4
TEXTS = [
    "What does this image show ?",
    "Is there a cat in the image ?",
    "How many red apple are there in and on it ?",
]
TASKS = ["one_word", "yes_no", "count"]
ANSWERS = ["cat", "no", "2"]


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def samples():
    """Return images by descending id, each with a cat in it."""
    mask = {"size": [31, 40], "counts": encode_all(31, 40)}
    cat = SceneObject("cat", (0, 0, 40, 31), mask, 1240.0)
    return [
        Sample(100 - i, lambda p=p: p, *p.size, objects=(cat,), source="scenes/test")
        for i, p in enumerate(tiny.random_images(N_IMAGES))
    ]


def encode_all(height, width):
    mask = torch.ones(height, width, dtype=torch.uint8).numpy()
    return encode(mask.copy(order="F"))["counts"]


@pytest.fixture(scope="module")
def questions(samples):
    """Return questions of unequal lengths, images mixed."""
    return [
        Question(sample.image_id, task, text, answer, subset="popular" if task == "yes_no" else "")
        for task, text, answer in zip(TASKS, TEXTS, ANSWERS, strict=True)
        for sample in samples
    ]


@pytest.fixture(scope="module")
def codebook(pair):
    tokens = adapter_for(*pair).encode(tiny.random_images(1, seed=7))[0].tokens
    return Codebook(tokens[::5].clone(), tuple(range(8)), "llava")


@pytest.fixture(scope="module")
def cut_off(pair, codebook):
    """Return a cosine that half of the tokens lie below."""
    images = adapter_for(*pair).encode(tiny.random_images(N_IMAGES))
    return float(
        torch.cat([redundancy_scores(image.tokens, codebook.prototypes) for image in images]).median()
    )


@pytest.fixture
def pruner(request, codebook, cut_off):
    return {
        "all": None,
        "threshold": CodebookPruner(codebook, max_similarity=cut_off),
        "threshold, kept positions": CodebookPruner(codebook, max_similarity=cut_off, position_ids="kept"),
        "ratio": CodebookPruner(codebook, rule="double_softmax", retain_ratio=0.3),
        "most": ClsSimilarityPruner(0.2),
        "everything": RandomPruner(1.0),
    }[request.param]


every_pruner = pytest.mark.parametrize(
    "pruner",
    ["all", "threshold", "threshold, kept positions", "ratio", "most", "everything"],
    indirect=True,
)


def plain_answer(pair, question, samples, pruner):
    """Ask one question by `generate` with pixels, inside the pruner's own context."""
    model, processor = pair
    picture = next(s.image for s in samples if s.image_id == question.image_id)
    prompt = adapter_for(*pair).prompt(question.text)
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    settings = {"max_new_tokens": N_NEW, "do_sample": False}
    if pruner is None:
        sequence, n_kept = model.generate(**inputs, **settings), 36
    else:
        with pruner(model):
            sequence = model.generate(**inputs, **settings)
        n_kept = len(pruner.kept[0])
    new = sequence[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), n_kept


@pytest.mark.parametrize("keep_all", [None, RandomPruner(1.0)], ids=["unpruned", "everything kept"])
def test_answers_end_where_the_llm_ends_them_though_it_pads_with_the_same_word(questions, samples, keep_all):
    """Some of a batch's answers have ChatML's mark in them, others go on."""
    model, processor = FAMILIES["llava with DINOv2"].build()
    tokenizer, end = processor.tokenizer, processor.tokenizer.eos_token_id
    assert (tokenizer.pad_token_id, tokenizer.eos_token) == (end, "<|im_end|>")
    pictures = {sample.image_id: sample.image for sample in samples}

    def said(question):
        prompt = adapter_for(model, processor).prompt(question.text)
        inputs = processor(text=[prompt], images=[pictures[question.image_id]], return_tensors="pt")
        return model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False)[0, -N_NEW:].tolist()

    swapped = [said(questions[0])[2], end]  # the third word of an answer becomes the mark
    model.lm_head.weight.data[swapped] = model.lm_head.weight.data[swapped[::-1]]
    whole = [said(question) for question in questions]
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert {len(ids) for ids in cut} > {N_NEW}
    expected = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in cut]
    model.generation_config.eos_token_id = end
    frame = evaluate(model, processor, questions, samples, keep_all, batch_size=9, max_new_tokens=N_NEW)
    assert frame["prediction"].tolist() == expected


@every_pruner
def test_answers_equal_those_of_generate_one_by_one(pair, questions, samples, pruner):
    frame = evaluate(*pair, questions, samples, pruner, batch_size=4, max_new_tokens=N_NEW)
    expected = [plain_answer(pair, question, samples, pruner) for question in questions]
    assert list(zip(frame["prediction"], frame["n_retained"], strict=True)) == expected
    assert len({prediction for prediction, _ in expected}) > 1


def test_random_choices_are_those_of_a_run_over_the_images_by_id(pair, questions, samples):
    pruner = RandomPruner(0.25, seed=3)
    asked = questions[:N_IMAGES]
    frame = evaluate(*pair, asked, samples, pruner, batch_size=2, max_new_tokens=N_NEW)
    model, processor = pair
    by_id = sorted(samples, key=lambda sample: sample.image_id)
    inputs = processor(
        text=[adapter_for(*pair).prompt(TEXTS[0])] * N_IMAGES,
        images=[sample.image for sample in by_id],
        return_tensors="pt",
    )
    with pruner(model):
        sequences = model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False)
    texts = processor.tokenizer.batch_decode(sequences[:, -N_NEW:], skip_special_tokens=True)
    assert frame["prediction"].tolist() == [text.strip() for text in reversed(texts)]


@every_pruner
def test_answers_do_not_depend_on_batch_size_or_order(pair, questions, samples, pruner):
    frame = evaluate(*pair, questions, samples, pruner, batch_size=2, max_new_tokens=N_NEW)
    again = evaluate(*pair, questions[::-1], samples[::-1], pruner, batch_size=50, max_new_tokens=N_NEW)
    pd.testing.assert_frame_equal(again[::-1].reset_index(drop=True), frame)


@pytest.mark.parametrize(
    ("needs", "n_calls"), [((), N_IMAGES), (("question",), N_IMAGES * len(TEXTS))], ids=["alone", "question"]
)
def test_a_choice_that_does_not_depend_on_the_prompt_is_made_once_an_image(
    pair, questions, samples, needs, n_calls
):
    calls = []

    class Counted(RandomPruner):
        def select(self, views, context=None):
            calls.append(context.question if needs else context.prompt_ids)
            return super().select(views, context)

    Counted.needs = frozenset(needs)
    frame = evaluate(*pair, questions, samples, Counted(0.25), max_new_tokens=N_NEW)
    assert len(calls) == n_calls
    if needs:
        assert {"there a cat" in call for call in calls} == {True, False}
    else:
        assert set(calls) == {None}
    plain = evaluate(*pair, questions, samples, RandomPruner(0.25), max_new_tokens=N_NEW)
    pd.testing.assert_frame_equal(frame, plain)


def test_the_frame_has_one_scored_row_a_question(pair, questions, samples):
    plain = evaluate(*pair, questions, samples, max_new_tokens=N_NEW)
    assert plain["image_id"].tolist() == [q.image_id for q in questions]
    assert plain["question"].tolist() == [q.text for q in questions]
    assert plain["subset"].tolist() == [q.subset for q in questions]
    assert (plain["n_visual_tokens"] == 36).all()
    assert (plain["n_retained"] == 36).all()
    right = [
        dataclasses.replace(q, answer=said) if q.task == "count" else q
        for q, said in zip(questions, plain["prediction"], strict=True)
    ]
    frame = evaluate(*pair, right, samples, max_new_tokens=N_NEW)
    assert (frame.loc[frame["task"] == "count", "score"] == 1).all()
    assert frame["score"].tolist() == score_predictions(frame).tolist()
    assert frame["score"].min() == 0


def test_captions_are_scored_by_their_objects(pair, samples):
    asked = [Question(samples[0].image_id, "caption", "Describe the image", "a cat")]
    frame = evaluate(*pair, asked, samples, max_new_tokens=N_NEW, categories=["cat", "dog", "bird"])
    expected = score_predictions(frame, {samples[0].image_id: {"cat"}}, ["cat", "dog", "bird"])
    assert frame["score"].tolist() == expected.tolist()


def test_samples_may_come_by_id(pair, questions, samples):
    listed = evaluate(*pair, questions[:2], samples, max_new_tokens=2)
    mapped = evaluate(*pair, questions[:2], {s.image_id: s for s in samples}, max_new_tokens=2)
    pd.testing.assert_frame_equal(listed, mapped)


def test_llava_15_with_its_real_settings_is_pruned():
    model, processor = tiny.reduced_llava_15()
    (picture,) = tiny.random_images(1, (500, 375))
    sample = Sample(1, lambda: picture, 500, 375)
    tokens = adapter_for(model, processor).encode([picture])[0].tokens
    pruner = CodebookPruner(Codebook(tokens[:9].clone(), tuple(range(9)), "llava"), retain_ratio=0.1)
    frame = evaluate(
        model, processor, [Question(1, "one_word", TEXTS[0], "cat")], [sample], pruner, max_new_tokens=2
    )
    assert frame["n_visual_tokens"].tolist() == [576]
    assert frame["n_retained"].tolist() == [58]


def test_models_in_parts_answer_as_whole_ones(questions, samples, tmp_path):
    model, processor = tiny.tiny_llava()
    asked, pruners = questions[:4], {"all": None, "most": ClsSimilarityPruner(0.2)}
    timed = {"n_repeats": 1, "n_warmup": 0, "max_new_tokens": 2}

    def run():
        grid = evaluate_grid(
            model, processor, asked, samples, pruners, max_new_tokens=N_NEW, folder=tmp_path, progress=False
        )
        return grid, latency_and_memory(model, processor, asked[:1], samples, pruners, **timed)["n_prompt"]

    grid, n_prompt = run()
    kept = set(tmp_path.glob("*.parquet"))
    places = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
    places |= {"model.language_model": "disk", "lm_head": "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.device.type == "meta"
    again, n_again = run()
    assert set(tmp_path.glob("*.parquet")) == kept  # the same model wherever its parts lie
    pd.testing.assert_frame_equal(again, grid, check_dtype=False)
    assert n_again.tolist() == n_prompt.tolist()
    for path in kept:
        path.unlink()
    pd.testing.assert_frame_equal(run()[0], grid, check_dtype=False)


# Tiles, several images, videos


def single(image_id, size, seed):
    (picture,) = tiny.random_images(1, size, seed=seed)
    return Sample(image_id, lambda: picture, *size)


def sequence(image_id, kind, sizes, seed=0):
    pictures = tuple(tiny.random_images(1, size, seed=seed + i)[0] for i, size in enumerate(sizes))
    return SequenceSample(image_id, lambda: pictures, kind, tuple(sizes))


WORLDS = {
    "next": (
        tiny.tiny_next,
        [
            single(3, (40, 31), 1),
            single(5, (24, 24), 2),
            single(1, (20, 90), 3),
            sequence(2, "images", [(24, 24), (30, 100)], 4),
        ],
    ),
    "onevision": (
        tiny.tiny_onevision,
        [
            sequence(4, "video", [(40, 31)] * 3, 1),
            single(2, (40, 31), 5),
            sequence(7, "images", [(22, 22), (20, 90), (66, 66)], 6),
            sequence(0, "video", [(22, 22)] * 2, 10),
            sequence(9, "images", [(40, 31)], 13),
            single(1, (66, 66), 12),
        ],
    ),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    """Return a model with its processor, samples of every kind that it reads, and two questions about each."""
    build, samples = WORLDS[request.param]
    asked = [Question(s.image_id, "count", text, "2") for text in TEXTS[1:] for s in samples]
    return build(), samples, asked


def processed(pair, question, sample):
    """Return what `generate` takes of one question, from the processor."""
    is_video, pictures = sample.kind == "video", list(sample.images)
    prompt = adapter_for(*pair).prompt(question.text, 0 if is_video else len(pictures), 1 if is_video else 0)
    given = {"videos": [pictures]} if is_video else {"images": [pictures]}
    if sample.kind == "images" and pair[0].config.model_type == "llava_next":
        given = {"images": pictures}
    return pair[1](text=[prompt], **given, return_tensors="pt")


def world_pruner(name, adapter):
    prototypes = adapter.encode(tiny.random_images(1, seed=70))[0].views[0].tokens[::5].clone()
    book = Codebook(prototypes, tuple(range(len(prototypes))), adapter.family)
    rule = "max_cosine" if adapter.family == "llava_next" else "double_softmax"
    return {
        "all": lambda: None,
        "everything": lambda: RandomPruner(1.0),
        "tiles": lambda: CodebookPruner(book, rule, retain_ratio=0.4),
        "flatten, image": lambda: CodebookPruner(
            book, rule, retain_ratio=0.4, layout="flatten", scope="image", position_ids="kept"
        ),
        "video, kept": lambda: CodebookPruner(
            book, rule, retain_ratio=0.4, scope="video", position_ids="kept"
        ),
    }[name]()


every_world_pruner = pytest.mark.parametrize(
    "name", ["all", "everything", "tiles", "flatten, image", "video, kept"]
)


@every_world_pruner
def test_samples_of_every_kind_are_answered_as_generate_answers_them(world, name):
    pair, samples, asked = world
    pruner = world_pruner(name, adapter_for(*pair))
    by_id = {sample.image_id: sample for sample in samples}
    frame = evaluate(*pair, asked, samples, pruner, batch_size=5, max_new_tokens=N_NEW)
    expected = []
    for question in asked:
        inputs = processed(pair, question, by_id[question.image_id])
        settings = {"max_new_tokens": N_NEW, "do_sample": False}
        placeholders = (pair[0].config.image_token_id, getattr(pair[0].config, "video_token_id", -1))
        n_rows = sum(int((inputs["input_ids"] == token).sum()) for token in placeholders)
        if pruner is None:
            sequence, n_kept = pair[0].generate(**inputs, **settings), n_rows
        else:
            with pruner(pair[0]):
                sequence = pair[0].generate(**inputs, **settings)
            n_kept = sum(pruner.n_retained)
        text = pair[1].tokenizer.decode(sequence[0, -N_NEW:], skip_special_tokens=True).strip()
        expected.append((text, n_rows, n_kept))
    columns = ["prediction", "n_visual_tokens", "n_retained"]
    assert list(frame[columns].itertuples(index=False, name=None)) == expected
    assert len({prediction for prediction, _, _ in expected}) > len(samples)
    if name in ("all", "everything"):
        assert (frame["n_retained"] == frame["n_visual_tokens"]).all()


@every_world_pruner
def test_answers_about_every_kind_do_not_depend_on_batch_size_or_order(world, name):
    pair, samples, asked = world
    pruner = RandomPruner(0.3, seed=4) if name == "everything" else world_pruner(name, adapter_for(*pair))
    frame = evaluate(*pair, asked, samples, pruner, batch_size=1, max_new_tokens=N_NEW)
    for batch_size in (3, 50):
        again = evaluate(
            *pair, asked[::-1], samples[::-1], pruner, batch_size=batch_size, max_new_tokens=N_NEW
        )
        pd.testing.assert_frame_equal(again[::-1].reset_index(drop=True), frame)


def test_random_choices_in_sequences_are_those_of_a_run_over_the_samples_by_id(world):
    pair, samples, asked = world
    pruner = RandomPruner(0.4, seed=3)
    frame = evaluate(*pair, asked[: len(samples)], samples, pruner, batch_size=2, max_new_tokens=N_NEW)
    said, by_id = {}, {question.image_id: question for question in asked[: len(samples)]}
    with pruner(pair[0]):
        for sample in sorted(samples, key=lambda sample: sample.image_id):
            inputs = processed(pair, by_id[sample.image_id], sample)
            output = pair[0].generate(**inputs, max_new_tokens=N_NEW, do_sample=False)
            text = pair[1].tokenizer.decode(output[0, -N_NEW:], skip_special_tokens=True)
            said[sample.image_id] = text.strip()
    assert frame.set_index("image_id")["prediction"].to_dict() == said


def test_methods_that_read_the_prompt_see_it_as_in_generate(world):
    pair, samples, asked = world
    seen = []

    class Reader(RandomPruner):
        needs = frozenset({"question"})

        def select(self, views, context=None):
            seen.append((context.image_index, context.view_index, context.prompt_ids.tolist()))
            return super().select(views, context)

    for sample in samples:
        question = next(q for q in asked if q.image_id == sample.image_id)
        pruner = Reader(0.5, layout="flatten")
        evaluate(*pair, [question], [sample], pruner, max_new_tokens=1)
        ours = list(seen)
        seen.clear()
        with pruner(pair[0]):
            pair[0].generate(**processed(pair, question, sample), max_new_tokens=1, do_sample=False)
        assert seen == ours
        seen.clear()


def test_sequences_are_encoded_once_and_kept_results_know_their_pictures(tmp_path, monkeypatch):
    pair = tiny.tiny_onevision()
    counts, original = [], ADAPTERS["llava_onevision"].encode_pixels

    def encode_pixels(self, model_inputs, needs=()):
        counts.append(
            len(model_inputs.get("pixel_values", ())) + len(model_inputs.get("pixel_values_videos", ()))
        )
        return original(self, model_inputs, needs)

    monkeypatch.setattr(ADAPTERS["llava_onevision"], "encode_pixels", encode_pixels)
    samples = [sequence(0, "images", [(22, 22)] * 2), sequence(1, "video", [(22, 22)] * 2, 5)]
    asked = [Question(i, "video", text, "b") for i in (0, 1) for text in TEXTS]
    pruners = {"all": None, "random": [RandomPruner(0.5, seed) for seed in (0, 1)]}

    def run(samples):
        evaluate_grid(*pair, asked, samples, pruners, max_new_tokens=2, folder=tmp_path, progress=False)
        return len(list(tmp_path.glob("*.parquet")))

    assert run(samples) == 3 and sum(counts) == 2 + 1
    assert run(samples) == 3
    assert run([samples[0], sequence(1, "video", [(22, 22)] * 2, 6)]) == 6
    assert run([samples[0], sequence(1, "images", [(22, 22)] * 2, 5)]) == 9


def test_options_are_read_from_the_question(monkeypatch):
    pair, sample = tiny.tiny_onevision(), sequence(0, "images", [(22, 22)] * 2)
    monkeypatch.setattr(pair[1].tokenizer, "batch_decode", lambda rows, **_: ["A ring."] * len(rows))
    listed = "Which object is in both images? a. star b. ring Answer with the letter."
    asked = [
        Question(0, "multi_image", listed, "b"),
        Question(0, "one_word", listed, "b"),
        Question(0, "one_word", "Which object is in both images?", "ring"),
        Question(0, "multi_image", listed, "a"),
    ]
    frame = evaluate(*pair, asked, [sample], max_new_tokens=1)
    assert frame["score"].tolist() == [1, 1, 1, 0]


def test_llava_15_reads_several_images(pair):
    sample = sequence(0, "images", [(40, 31), (24, 24)])
    question = Question(0, "count", TEXTS[2], "2")
    frame = evaluate(*pair, [question], [sample], max_new_tokens=N_NEW)
    prompt = adapter_for(*pair).prompt(question.text, 2)
    inputs = pair[1](text=[prompt], images=list(sample.images), return_tensors="pt")
    sequence_ids = pair[0].generate(**inputs, max_new_tokens=N_NEW, do_sample=False)
    text = pair[1].tokenizer.decode(sequence_ids[0, -N_NEW:], skip_special_tokens=True)
    assert frame["prediction"].tolist() == [text.strip()]
    assert frame["n_visual_tokens"].tolist() == [72]


def test_latency_is_measured_for_every_kind(world):
    pair, samples, asked = world
    frame = latency_and_memory(
        *pair,
        asked[: len(samples)],
        samples,
        {"all": None, "random": RandomPruner(0.3)},
        n_repeats=1,
        n_warmup=0,
        max_new_tokens=2,
    )
    for method, pruner in (("all", None), ("random", RandomPruner(0.3))):
        expected = evaluate(*pair, asked[: len(samples)], samples, pruner, max_new_tokens=1)["n_retained"]
        assert frame.loc[frame["method"] == method, "n_retained"].tolist() == expected.tolist()


@pytest.mark.parametrize("form", ["gathered", "masked"])
def test_methods_inside_the_llm_are_evaluated_and_timed_as_they_generate(pair, questions, samples, form):
    pruner = LastAttention(0.25, form=form)
    asked = questions[:4]
    frame = evaluate(*pair, asked, samples, pruner, batch_size=3, max_new_tokens=N_NEW)
    expected = [plain_answer(pair, question, samples, pruner) for question in asked]
    assert frame["prediction"].tolist() == [text for text, _ in expected]
    assert (
        frame["prediction"].tolist()
        != evaluate(*pair, asked, samples, max_new_tokens=N_NEW)["prediction"].tolist()
    )
    assert frame["n_retained"].tolist() == [(36 + 9) / 2] * 4
    times = latency_and_memory(
        *pair, asked[:1], samples, {"all": None, "inside": pruner}, n_repeats=1, n_warmup=0, max_new_tokens=3
    )
    assert times["n_retained"].tolist() == [36, 22.5]
    assert times["n_prompt"].diff()[1] == -13.5
    cached = times["kv_cache_bytes"]
    assert (cached[1] < cached[0]) == (form == "gathered")


def test_methods_that_resize_get_pictures():
    pair = tiny_qwen.tiny_qwen()
    samples = [single(i, (112, 112 + 28 * i), i) for i in range(2)]
    asked = [Question(sample.image_id, "one_word", TEXTS[0], "cat") for sample in samples]
    frame = evaluate(*pair, asked, samples, Smaller(), max_new_tokens=N_NEW)
    small = [
        Sample(s.image_id, lambda s=s: Smaller().resize([s.image], None)[0], s.width // 2, s.height // 2)
        for s in samples
    ]
    plain = evaluate(*pair, asked, small, max_new_tokens=N_NEW)
    assert frame["prediction"].tolist() == plain["prediction"].tolist()
    assert frame["n_retained"].tolist() == plain["n_visual_tokens"].tolist() == [4, 4]
    assert frame["n_visual_tokens"].tolist() == [9, 6]
    times = latency_and_memory(*pair, asked, samples, {"small": Smaller()}, n_repeats=1, max_new_tokens=2)
    assert times["n_retained"].tolist() == [4, 4]
    inputs = processed(pair, asked[0], samples[0])
    with pytest.raises(
        ParameterError, match="pixels of pictures that went through the context's resize, as Smaller"
    ):
        with Smaller()(pair[0]):
            pair[0].generate(**inputs, max_new_tokens=1)


def test_methods_that_resize_see_the_pictures_of_one_question(pair, questions, samples, tmp_path):
    seen = []

    class Counting(Smaller):
        def resize(self, pictures, adapter):
            seen.append(len(pictures))
            return super().resize(pictures, adapter)

    evaluate(*pair, questions, samples, Counting(), batch_size=N_IMAGES, max_new_tokens=1)
    assert seen == [1] * N_IMAGES
    latency_and_memory(*pair, questions[:1], samples, {"small": Counting()}, n_repeats=1, max_new_tokens=2)
    assert set(seen) == {1}


# Grids of pruners


@pytest.fixture
def encoded(monkeypatch):
    """Count the images that are encoded."""
    counts = []
    original = ADAPTERS["llava"].encode_pixels

    def encode_pixels(self, model_inputs, needs=()):
        counts.append(len(model_inputs["pixel_values"]))
        return original(self, model_inputs, needs)

    monkeypatch.setattr(ADAPTERS["llava"], "encode_pixels", encode_pixels)
    return counts


@pytest.fixture
def pruners(codebook, cut_off):
    return {
        "all tokens": None,
        "random": [RandomPruner(0.2, seed=0), RandomPruner(0.2, seed=1)],
        "least": ClsSimilarityPruner(0.2, keep="least"),
        "codebook": [CodebookPruner(codebook, max_similarity=cut_off)],
    }


def test_a_grid_holds_the_frames_of_its_pruners(pair, questions, samples, pruners, encoded, cut_off):
    grid = evaluate_grid(
        *pair, questions, samples, pruners, batch_size=4, max_new_tokens=N_NEW, progress=False
    )
    assert sum(encoded) == N_IMAGES
    n = len(questions)
    assert (
        grid["method"].tolist() == ["all tokens"] * n + ["random"] * 2 * n + ["least"] * n + ["codebook"] * n
    )
    heads = grid.iloc[::n]
    assert heads["retain_ratio"].fillna(-1).tolist() == [1.0, 0.2, 0.2, 0.2, -1]
    assert heads["max_similarity"].fillna(9).tolist() == [9, 9, 9, 9, cut_off]
    assert heads["settings"].tolist() == ["", "", "", "keep=least", ""]
    assert heads["seed"].fillna(-1).tolist() == [-1, 0, 1, -1, -1]
    alone = evaluate(*pair, questions, samples, pruners["random"][1], batch_size=4, max_new_tokens=N_NEW)
    part = grid[grid["seed"] == 1].drop(
        columns=["method", "retain_ratio", "max_similarity", "settings", "seed"]
    )
    pd.testing.assert_frame_equal(part.reset_index(drop=True), alone)


def test_methods_with_a_budget_of_their_own_are_told_apart(pair, questions, samples, codebook):
    own = {"first": [First(0.1), First(0.8), First(count=3), First(count=5, scope="image")]}
    own |= {"inside": [LastAttention(0.25, 1), LastAttention(0.25, 1, "masked")]}
    own |= {"codebook": [CodebookPruner(codebook, retain_ratio=0.5)], "random": RandomPruner(0.5, 3)}
    expected = [
        (0.1, "share=0.1"),
        (0.8, "share=0.8"),
        (None, "count=3"),
        (None, "count=5, scope=image"),
        (0.25, ""),
        (0.25, "form=masked"),
        (0.5, ""),
        (0.5, ""),
    ]
    grid = evaluate_grid(*pair, questions[:1], samples, own, max_new_tokens=1, progress=False)
    times = latency_and_memory(*pair, questions[:1], samples, own, n_repeats=1, n_warmup=0, max_new_tokens=2)
    for frame in (grid, times):
        told = frame[["retain_ratio", "settings"]].astype(object)
        assert list(told.where(told.notna(), None).itertuples(index=False, name=None)) == expected
    assert grid["n_retained"].tolist()[:4] == [4, 29, 3, 5]


def test_images_are_encoded_again_where_memory_is_short(
    pair, questions, samples, pruners, encoded, monkeypatch
):
    whole = evaluate_grid(*pair, questions, samples, pruners, max_new_tokens=2, progress=False)
    encoded.clear()
    monkeypatch.setattr(session, "FEATURE_BYTES", 0)
    short = evaluate_grid(*pair, questions, samples, pruners, batch_size=1, max_new_tokens=2, progress=False)
    assert sum(encoded) > N_IMAGES
    pd.testing.assert_frame_equal(short, whole)


def test_a_grid_resumes_pruner_by_pruner(pair, questions, samples, pruners, tmp_path, monkeypatch, capsys):
    arguments = (*pair, questions[:3], samples, pruners)
    first = evaluate_grid(*arguments, max_new_tokens=2, folder=tmp_path)
    assert capsys.readouterr().out.count("mean score") == 5
    files = sorted(tmp_path.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 5
    files[-1].unlink()
    calls, original = [], pair[0].generate

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return original(**inputs)

    monkeypatch.setattr(pair[0], "generate", counted)
    again = evaluate_grid(*arguments, max_new_tokens=2, folder=tmp_path, progress=False)
    assert sum(calls) == 3
    pd.testing.assert_frame_equal(again, first, check_dtype=False)


@pytest.mark.parametrize(
    "changed", ["max_new_tokens", "answer", "seed", "codebook", "model", "processor", "samples"]
)
def test_kept_results_are_used_for_the_same_run_only(pair, questions, samples, codebook, tmp_path, changed):
    def run(pair=pair, answer="cat", seed=0, scale=1.0, max_new_tokens=2, samples=samples):
        prototypes = codebook.prototypes * torch.tensor([scale, *[1.0] * 39])
        book = Codebook(prototypes, codebook.image_ids, "llava")
        pruners = {"random": RandomPruner(0.5, seed), "codebook": CodebookPruner(book, retain_ratio=0.5)}
        asked = [dataclasses.replace(questions[0], answer=answer)]
        evaluate_grid(
            *pair, asked, samples, pruners, max_new_tokens=max_new_tokens, folder=tmp_path, progress=False
        )
        return len(list(tmp_path.glob("*.parquet")))

    assert run() == 2
    assert run() == 2
    dimmed = tiny.tiny_llava()[1]
    dimmed.image_processor.image_mean = [0.1, 0.1, 0.1]
    n_new = {
        "max_new_tokens": lambda: run(max_new_tokens=1),
        "answer": lambda: run(answer="dog"),
        "seed": lambda: run(seed=1),
        "codebook": lambda: run(scale=1.5),
        "model": lambda: run(pair=tiny.tiny_llava(1)),
        "processor": lambda: run(pair=(pair[0], dimmed)),
        "samples": lambda: run(samples=samples[:2]),
    }[changed]()
    assert n_new == {"seed": 3, "codebook": 3}.get(changed, 4)


# Latency and memory


def test_latency_and_memory_are_measured_step_by_step(pair, questions, samples, capsys):
    pruners = {
        "all tokens": None,
        "random": RandomPruner(0.25),
        "kept": RandomPruner(0.25, position_ids="kept"),
    }
    frame = latency_and_memory(
        *pair, questions[:2], samples, pruners, n_repeats=2, max_new_tokens=3, progress=True
    )
    assert capsys.readouterr().out.splitlines()[-1] == "timing: round 3 of 3"
    assert frame["method"].tolist() == ["all tokens"] * 2 + ["random"] * 2 + ["kept"] * 2
    assert frame["n_retained"].tolist() == [36, 36, 9, 9, 9, 9]
    n_text = frame["n_prompt"] - frame["n_retained"]
    assert n_text.nunique() == 1
    n_heads, d_head, n_layers, n_bytes = 2, 10, 2, 4
    expected = 2 * n_layers * n_heads * d_head * n_bytes * frame["n_prompt"]
    assert frame["kv_cache_bytes"].tolist() == expected.tolist()
    assert (frame[["encode_seconds", "select_seconds", "prefill_seconds", "tokens_per_second"]] > 0).all(
        axis=None
    )
    n_weights = sum(weight.numel() for weight in pair[0].parameters())
    assert (frame["peak_memory_bytes"] == 4 * n_weights + frame["kv_cache_bytes"]).all()
    assert (frame["peak_memory_kind"] == "weights + cache").all()


# Wrong inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": []}, "questions: got 'none'"),
        ({"questions": [Question(7, "one_word", "What ?", "cat")]}, r"about images \[7\]"),
        ({"questions": [Question(100, "one_word", "What <image> ?", "cat")]}, "question: got"),
        ({"questions": [Question(100, "yes_no", "Is there a cat ?", "maybe")]}, "answer: got 'maybe'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        (
            {"pruner": CodebookPruner(Codebook(torch.ones(2, 7), (0, 1), "llava"), retain_ratio=0.5)},
            "width 7",
        ),
    ],
)
def test_wrong_inputs_end_before_any_image_is_loaded(pair, questions, changes, message):
    def fail():
        raise AssertionError("loaded")

    arguments = {"questions": questions[:1], "samples": [Sample(100, fail, 5, 5)]} | changes
    with pytest.raises((ParameterError, CodebookError), match=message) as error:
        evaluate(*pair, **arguments)
    assert "\n" not in str(error.value)


def test_captions_need_objects(pair):
    sample = Sample(1, lambda: None, 5, 5)
    with pytest.raises(ParameterError, match=r"captions of images \[1\]"):
        evaluate(*pair, [Question(1, "caption", "Describe", "a cat")], [sample])


def test_unreadable_images_are_named(pair):
    def fail():
        raise OSError("truncated")

    with pytest.raises(ImageError, match="'torn.jpg' cannot be read"):
        evaluate(
            *pair, [Question(1, "one_word", "What ?", "cat")], [Sample(1, fail, 5, 5, file_name="torn.jpg")]
        )


def test_features_that_are_not_finite_are_refused(questions, samples):
    model, processor = tiny.tiny_llava()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[3] = float("nan")
    with pytest.raises(ParameterError, match="visual tokens: got 'NaN or infinity"):
        evaluate(model, processor, questions, samples)


@pytest.mark.parametrize("given", [{}, {"none": []}, {"text": "random"}, {"wrong": [3]}])
def test_grids_need_pruners(pair, questions, samples, given):
    with pytest.raises(ParameterError, match="pruners: got"):
        evaluate_grid(*pair, questions, samples, given)


@pytest.mark.parametrize("changes", [{"n_repeats": 0}, {"n_warmup": -1}, {"max_new_tokens": 1}])
def test_counts_of_the_timing_are_checked(pair, questions, samples, changes):
    with pytest.raises(ParameterError, match=f"{next(iter(changes))}: got"):
        latency_and_memory(*pair, questions, samples, {"all": None}, **changes)


def test_ids_are_distinct(pair, questions, samples):
    with pytest.raises(ParameterError, match="samples: got 'an image id more than once'"):
        evaluate(*pair, questions, [*samples, samples[0]])


def test_videos_are_refused_by_families_without_before_they_are_loaded():
    def fail():
        raise AssertionError("loaded")

    sample = SequenceSample(0, fail, "video", ((8, 8),) * 3)
    with pytest.raises(ParameterError, match="n_videos: got 1; accepted: 0, as the family 'llava_next'"):
        evaluate(*tiny.tiny_next(), [Question(0, "video", "What ?", "a")], [sample])


def test_unreadable_sequences_are_named():
    def fail():
        raise OSError("truncated")

    sample = SequenceSample(0, fail, "images", ((8, 8),) * 3, file_name="torn")
    with pytest.raises(ImageError, match="'torn' cannot be read"):
        evaluate(*tiny.tiny_onevision(), [Question(0, "multi_image", "What ?", "a")], [sample])


def test_captions_of_sequences_need_objects():
    sample = SequenceSample(0, lambda: (), "images", ((8, 8),) * 2, objects=((), ()))
    with pytest.raises(ParameterError, match=r"captions of images \[0\]"):
        evaluate(*tiny.tiny_onevision(), [Question(0, "caption", "Describe", "a cat")], [sample])


def test_what_are_no_questions_samples_or_pruners_is_refused_in_one_line(pair, samples):
    asked = Question(samples[0].image_id, "one_word", "What does this image show ?", "cat")
    wrong = {
        "^questions: got 'dict'; accepted: an iterable of Question": ([dataclasses.asdict(asked)], samples),
        "^questions: got .answer None about image 100.; accepted: ": (
            [dataclasses.replace(asked, answer=None)],
            samples,
        ),
        "^questions: got .text 5 about image": ([dataclasses.replace(asked, text=5)], samples),
        "^samples: got 'str'; accepted: an iterable of samples": ([asked], "photos"),
        "^samples: got 'PosixPath'": ([asked], {asked.image_id: Path("photos/0.jpg")}),
        "^samples: got 'one sample'": ([asked], samples[0]),
    }
    for message, (questions, given) in wrong.items():
        with refused(message):
            evaluate(*pair, questions, given)
    for pruner, name in (("random", "random"), (RandomPruner, "type")):
        with refused(f"^pruner: got '{name}'; accepted: a pruner, such as RandomPruner"):
            evaluate(*pair, [asked], samples, pruner)
    assert len(evaluate(*pair, asked, samples, max_new_tokens=2)) == 1
