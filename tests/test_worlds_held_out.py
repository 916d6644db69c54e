"""Score with true and shuffled pictures, and without any."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from rcblib.data.opening import open_dataset
from rcblib.data.questions import task_questions, yes_no_question
from rcblib.data.samples import load_pictures
from rcblib.records import ParameterError, Question, Sample, SceneObject, SequenceSample
from worlds import held_out
from worlds.datasets import GroupDataset, SceneDataset, VideoDataset
from worlds.held_out import (
    blind_scores,
    judge,
    likeliest_options,
    quality_scores,
    score_model,
    shuffle_images,
)
from worlds.scenes.groups import GROUP_KINDS
from worlds.scenes.video import VIDEO_KINDS

SEQUENCE_NAMES = {
    "multi_image",
    "video",
    *(f"multi_image/{kind}" for kind in GROUP_KINDS),
    *(f"video/{kind}" for kind in VIDEO_KINDS),
}


def scene(image_id: int, *categories: str) -> Sample:
    """Make a sample of which only the objects' categories matter."""
    objects = tuple(SceneObject(name, (0, 0, 1, 1), {}, 1.0, "red") for name in categories)
    return Sample(
        image_id, lambda: f"picture {image_id}", 96, 96, objects=objects, source="scenes/validation"
    )


def answers(*rows: tuple) -> pd.DataFrame:
    """Make a frame as `evaluate` returns it."""
    return pd.DataFrame(rows, columns=["image_id", "task", "subset", "prediction", "answer", "score"])


def group(image_id: int, n: int) -> SequenceSample:
    return SequenceSample(image_id, lambda: (f"picture {image_id}",) * n, "images", ((image_id + 1, 9),) * n)


def choice(right: str, *options: str, asked: str = "Which?", kind: str = "k") -> Question:
    """Make a multiple-choice question with the options in order."""
    letters = dict(zip(options, "abcd", strict=False))
    listed = " ".join(f"{letter}. {option}" for option, letter in letters.items())
    return Question(0, "video", f"{asked} {listed} Answer with the letter.", letters[right], kind)


class TestShuffle:
    @pytest.mark.parametrize("n", [2, 3, 20])
    def test_every_picture_moves_and_everything_else_stays(self, n):
        samples = [scene(i, "star") for i in range(n)]
        shuffled = shuffle_images(samples, np.random.default_rng(n))
        pictures = [sample.load() for sample in shuffled]
        assert sorted(pictures) == sorted(sample.load() for sample in samples)
        assert all(picture != sample.load() for picture, sample in zip(pictures, samples, strict=True))
        restored = [replace(s, load=original.load) for s, original in zip(shuffled, samples, strict=True)]
        assert restored == samples

    def test_groups_get_the_pictures_of_groups_of_as_many(self):
        samples = [group(i, 2 + i % 3) for i in range(12)]
        shuffled = shuffle_images(samples, np.random.default_rng(0))
        for sample, other in zip(samples, shuffled, strict=True):
            assert other.image_id == sample.image_id
            assert other.n_images == sample.n_images == len(other.load())
            assert other.load() != sample.load() and other.sizes != sample.sizes
        assert sorted(s.load() for s in shuffled) == sorted(s.load() for s in samples)

    def test_pictures_of_another_size_show_nothing_of_the_objects(self):
        samples = list(open_dataset("large-scenes", "validation", 6))
        assert len({(sample.width, sample.height) for sample in samples}) > 1
        for sample, other in zip(samples, shuffle_images(samples, np.random.default_rng(0)), strict=True):
            (picture,) = load_pictures(other)
            assert picture.size == (other.width, other.height)
            assert [item.category for item in other.objects] == [item.category for item in sample.objects]
            if picture.size != (sample.width, sample.height):
                assert all(coco_mask.area(item.rle) == 0 for item in other.objects)

    def test_refuses_a_group_without_another_of_as_many(self):
        samples = [group(0, 2), group(1, 3), group(2, 2)]
        with pytest.raises(ParameterError, match="n_images: got '3, of which one has 3 pictures'"):
            shuffle_images(samples, np.random.default_rng(0))

    def test_refuses_a_single_scene(self):
        with pytest.raises(ParameterError, match="n_images: got 1; accepted: at least 2"):
            shuffle_images([scene(0, "star")], np.random.default_rng(0))


class TestScores:
    def test_known_answers(self):
        samples = [scene(0, "star", "ring"), scene(1, "star", "moon", "8"), scene(2, "star")]
        frame = answers(
            (0, "one_word", "", "star", "star", 1.0),
            (1, "one_word", "", "moon", "star", 0.0),
            (0, "yes_no", "random", "yes", "yes", 1.0),
            (0, "yes_no", "random", "no", "no", 1.0),
            (0, "yes_no", "popular", "yes", "no", 0.0),
            (0, "yes_no", "popular", "no", "no", 1.0),
            (0, "caption", "", "a red star and a red moon.", "", 0.5),
            (1, "caption", "", "a red star, a red 8 and a blue moon.", "", 1.0),
            (2, "caption", "", "", "", 0.0),
        )
        scores = quality_scores(frame, samples, np.random.default_rng(0))
        assert {name: score["value"] for name, score in scores.items()} == {
            "one_word": 0.5,
            "yes_no": 0.75,
            "yes_no/random": 1.0,
            "yes_no/popular": 0.5,
            # Pooled: 4 right of 5 named and 6 present.
            "caption": pytest.approx(2 * 4 / (5 + 6)),
        }
        assert {name: score["n"] for name, score in scores.items()} == {
            "one_word": 2, "yes_no": 4, "yes_no/random": 2, "yes_no/popular": 2, "caption": 3,
        }  # fmt: skip
        for score in scores.values():
            low, high = score["interval"]
            assert 0 <= low <= score["value"] <= high <= 1

    def test_intervals_are_over_images(self):
        """All questions of an image share its fate, so four of them tell no more than one."""
        samples = [scene(i, "star") for i in range(8)]
        rows = [(i, "color", "", "red", "red", float(i % 2)) for i in range(8)]
        one, four = (
            quality_scores(answers(*(rows * times)), samples, np.random.default_rng(0))["color"]
            for times in (1, 4)
        )
        assert four["interval"] == one["interval"] and four["n"] == 32 and four["n_clusters"] == 8

    def test_an_answerer_that_sees_scores_one_until_images_are_shuffled(self, monkeypatch):
        """Shuffling changes what is seen, not what is asked: who answers by the picture fails."""
        seen_as = {sample.image.tobytes(): sample for sample in SceneDataset("validation", 40, seed=5)}

        def look(model, processor, questions, samples, **settings):
            shown = {sample.image_id: seen_as[sample.image.tobytes()] for sample in samples}
            rows = [(q, answer_by_looking(q, shown[q.image_id])) for q in questions]
            frame = pd.DataFrame(
                [(q.image_id, q.task, q.subset, said, q.answer) for q, said in rows],
                columns=["image_id", "task", "subset", "prediction", "answer"],
            )
            return frame.assign(score=(frame["prediction"] == frame["answer"]).astype(float))

        monkeypatch.setattr(held_out, "evaluate", look)
        model = SimpleNamespace(config=SimpleNamespace(rcb_world="scenes", model_type="llava"))
        true = score_model(model, None, "validation", 40, 5)
        shuffled = score_model(model, None, "validation", 40, 5, shuffled=True)
        assert {score["value"] for score in true.values()} == {1.0}
        assert all(shuffled[name]["n"] == score["n"] for name, score in true.items())
        assert shuffled["one_word"]["value"] < 0.5 and shuffled["color"]["value"] < 0.5
        assert 0.3 < shuffled["yes_no"]["value"] < 0.7
        assert shuffled["caption"]["value"] < 0.6

    def test_sequences_are_scored_by_kind_too(self):
        frame = answers(
            (0, "multi_image", "count", "a", "a", 1.0),
            (1, "multi_image", "count", "a", "b", 0.0),
            (1, "multi_image", "ordering", "a", "a", 1.0),
            (0, "video", "order", "a", "b", 0.0),
        )
        scores = quality_scores(frame, [], np.random.default_rng(0))
        assert {name: (score["value"], score["n"]) for name, score in scores.items()} == {
            "multi_image": (pytest.approx(2 / 3), 3),
            "multi_image/count": (0.5, 2),
            "multi_image/ordering": (1.0, 1),
            "video": (0.0, 1),
            "video/order": (0.0, 1),
        }

    def test_groups_and_videos_are_asked_of_a_family_that_reads_them(self, monkeypatch):
        """Whoever knows the answers only to the pictures that belong to a question fails on shuffled ones."""
        n, seed = 12, 1
        own = {
            "images": {s.image_id: s for s in GroupDataset("validation", n, seed=seed)},
            "video": {s.image_id: s for s in VideoDataset("validation", n, seed=seed)},
            "image": {s.image_id: s for s in SceneDataset("validation", n, seed=seed)},
        }
        n_pictures = []

        def look(model, processor, questions, samples, **settings):
            shown = {sample.image_id: sample for sample in samples}
            n_pictures.extend(sample.n_images for sample in samples if sample.kind == "video")
            rows = []
            for question in questions:
                sample = shown[question.image_id]
                original = own[sample.kind][sample.image_id]
                assert sample.n_images == original.n_images
                is_own = [p.tobytes() for p in sample.images] == [p.tobytes() for p in original.images]
                said = question.answer if is_own else "?"
                rows.append(
                    (question.image_id, question.task, question.subset, said, question.answer, is_own)
                )
            return answers(*rows)

        monkeypatch.setattr(held_out, "evaluate", look)
        model = SimpleNamespace(config=SimpleNamespace(rcb_world="scenes", model_type="llava_onevision"))
        true = score_model(model, None, "validation", n, seed)
        shuffled = score_model(model, None, "validation", n, seed, shuffled=True)
        assert set(true) > SEQUENCE_NAMES
        assert set(n_pictures) == {16}
        for name in SEQUENCE_NAMES:
            assert (true[name]["value"], shuffled[name]["value"]) == (1, 0)
            assert true[name]["n"] == shuffled[name]["n"]
        assert true["multi_image"]["n"] == sum(true[f"multi_image/{kind}"]["n"] for kind in GROUP_KINDS)

    def test_refuses_before_any_work(self):
        with pytest.raises(ParameterError, match="split: got 'train'; accepted: validation, test"):
            score_model(None, None, "train", 4, 0)
        with pytest.raises(ParameterError, match="n_images: got 1"):
            score_model(None, None, "validation", 1, 0)

    @pytest.mark.parametrize(
        ("task", "value", "on_cpu", "reached"),
        [
            ("yes_no", 0.95, False, "yes"),
            ("yes_no", 0.94, True, "yes, for a CPU"),
            ("yes_no", 0.94, False, "no"),
            ("yes_no", 0.89, True, "no"),
            ("one_word", 0.90, True, "yes"),
            ("one_word", 0.899, True, "no"),
            ("digit", 0.80, True, "yes, for a CPU"),
            ("caption", 0.85, True, "yes"),
            ("count", 0.1, True, ""),
        ],
    )
    def test_goals(self, task, value, on_cpu, reached):
        assert judge("llava", task, value, on_cpu) == reached


class TestBlind:
    def test_the_option_that_was_right_most_often_when_offered_is_chosen(self):
        training = [choice("ring", "star", "ring"), choice("ring", "ring", "star")] * 5
        training += [choice("moon", "star", "moon")] * 3
        asked = [
            choice("star", "star", "ring"),
            choice("star", "moon", "star"),  # moon: always right, but offered too rarely to tell: chance
            choice("star", "ring", "moon", "star"),
            choice("star", "8", "9", "star"),
        ]
        assert likeliest_options(training, asked) == ["b", "a", "a", "a"]

    def test_questions_of_the_same_words_count_first(self):
        training = [choice("ring", "star", "ring", asked="Which comes?")] * 10
        training += [choice("star", "star", "ring", asked="Which goes?")] * 20
        asked = [
            choice("star", "star", "ring", asked=words) for words in ("Which comes?", "Which goes?", "Which?")
        ]
        assert likeliest_options(training, asked) == ["b", "a", "a"]
        other_kind = [choice("star", "star", "ring", asked="Which comes?", kind="other")]
        assert likeliest_options(training, other_kind) == ["a"]

    def test_no_baseline_is_far_from_chance(self):
        scores = blind_scores("llava_onevision", "validation", 80, 0)
        assert list(scores) == ["chance", "letter", "text"]
        for found in scores.values():
            assert set(found) == SEQUENCE_NAMES
        assert scores["chance"]["multi_image/same_different"]["value"] == 0.5
        assert scores["chance"]["video/direction"]["value"] == 0.25
        for task in ("multi_image", "video"):
            low = scores["chance"][task]["value"] - 0.08
            assert low < scores["letter"][task]["value"] < low + 0.16
            assert low < scores["text"][task]["value"] < low + 0.16

    @pytest.mark.parametrize("family", ["llava", "llava_next"])
    def test_families_of_single_images_have_none(self, family):
        assert blind_scores(family, "validation", 4, 0) == {}


def answer_by_looking(question, sample: Sample) -> str:
    """Answer from the objects of the scene that is shown; what it does not hold is answered by "none"."""
    if question.task == "yes_no":
        present = {yes_no_question(item.category) for item in sample.objects}
        return "yes" if question.text in present else "no"
    found = task_questions(0, sample.objects, 96, 96, sample.captions[0], question.task)
    return next((other.answer for other in found if other.text == question.text), "none")
