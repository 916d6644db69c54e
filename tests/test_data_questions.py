"""Questions drawn about annotated images."""

from collections import Counter

import pytest

from rcblib.data.coco import CocoDataset
from rcblib.data.questions import POPE_SUBSETS, TASKS, default_tasks, questions_for
from rcblib.records import ParameterError, Sample, SceneObject
from worlds.datasets import GroupDataset, SceneDataset


@pytest.fixture(scope="module")
def scene_samples():
    return list(SceneDataset("validation", 120, seed=1))


def test_families_get_the_same_number_of_questions(scene_samples):
    asked = questions_for(scene_samples, n_per_task=30)
    tasks = [task for task in TASKS if task not in ("larger", "left", "backdrop")]
    assert list(default_tasks(scene_samples)) == tasks
    assert Counter(question.task for question in asked) == dict.fromkeys(tasks, 30)
    assert list(dict.fromkeys(question.task for question in asked)) == tasks
    assert len(set(asked)) == len(asked)
    for task in tasks:
        images = [question.image_id for question in asked if question.task == task]
        assert images == sorted(images)


def test_yes_no_questions_are_balanced_over_samplings_and_answers(scene_samples):
    for wanted, found in ((60, 60), (61, 66), (600, 600), (1, 6)):
        asked = questions_for(scene_samples, "yes_no", wanted)
        assert Counter((q.subset, q.answer) for q in asked) == {
            (subset, answer): found // 6 for subset in POPE_SUBSETS for answer in ("yes", "no")
        }
        present = {s.image_id: {item.category for item in s.objects} for s in scene_samples}
        for question in asked:
            assert (question.text.split()[3] in present[question.image_id]) == (question.answer == "yes")
        by_subset = [
            [(q.image_id, q.text) for q in asked if q.subset == subset and q.answer == "yes"]
            for subset in POPE_SUBSETS
        ]
        assert by_subset[0] == by_subset[1] == by_subset[2]


def test_all_questions_there_are(scene_samples):
    asked = questions_for(scene_samples)
    counts = Counter(question.task for question in asked)
    assert counts["caption"] == counts["count"] == 120
    assert counts["yes_no"] == 720
    assert counts["one_word"] <= 120 < counts["color"]
    first = {sample.image_id: sample.captions[0] for sample in scene_samples}
    assert all(first[q.image_id] == q.answer for q in asked if q.task == "caption")


def test_a_family_does_not_depend_on_the_others_and_follows_the_seed(scene_samples):
    asked = questions_for(scene_samples, ["digit", "yes_no"], 24, seed=5)
    assert asked == questions_for(scene_samples, ["digit"], 24, seed=5) + questions_for(
        scene_samples, ["yes_no"], 24, seed=5
    )
    assert asked != questions_for(scene_samples, ["digit", "yes_no"], 24, seed=6)


def test_questions_about_coco_leave_out_what_is_unknown(coco):
    samples = list(CocoDataset(coco, "train2014")) + list(CocoDataset(coco, "val2014"))
    asked = questions_for(samples)
    assert {question.task for question in asked} == {"one_word", "caption", "yes_no", "count", "position"}
    assert 5 not in {question.image_id for question in asked}
    with pytest.raises(ParameterError, match="tasks: got 'color'"):
        questions_for(samples, ["color"])


def test_wrong_questions_are_named(scene_samples):
    few = scene_samples[:10]
    with pytest.raises(ParameterError, match=r"tasks: got \['colour'\]; accepted: one_word"):
        questions_for(few, ["color", "colour"])
    with pytest.raises(ParameterError, match="tasks"):
        questions_for(few, [])
    with pytest.raises(ParameterError, match="n_per_task: got 0"):
        questions_for(few, n_per_task=0)
    with pytest.raises(ParameterError, match="n_per_task: got 11; accepted: at most 10 for caption"):
        questions_for(few, ["caption"], 11)
    n_categories = sum(len({item.category for item in sample.objects}) for sample in few)
    with pytest.raises(ParameterError, match=f"at most {6 * n_categories} for yes_no"):
        questions_for(few, ["yes_no"], 6 * n_categories + 1)
    assert len(questions_for(few, ["yes_no"], 6 * n_categories)) == 6 * n_categories
    with pytest.raises(ParameterError, match="samples: got 'none'"):
        questions_for([])
    with pytest.raises(ParameterError, match="image id more than once"):
        questions_for([few[0], few[0]])
    bare = Sample(77, lambda: None, 10, 10)
    with pytest.raises(
        ParameterError, match="samples: got 'several images, or a video'; accepted: single images"
    ):
        questions_for(GroupDataset("test", 2))
    with pytest.raises(ParameterError, match="image 77 without annotation"):
        questions_for([*few, bare])


def test_two_objects_are_compared_where_they_differ_enough():
    def thing(category, x, width, height=10):
        return SceneObject(category, (x, 0, width, height), {}, width * height)

    cat, dog, cup = thing("cat", 0, 20), thing("dog", 60, 30), thing("cup", 62, 22)
    sample = Sample(
        1,
        lambda: None,
        100,
        100,
        objects=(cat, dog, cup, thing("pea", 5, 1), thing("pea", 9, 1)),
        backdrop="grass",
    )
    asked = questions_for([sample], ["larger", "left", "backdrop"])
    found = {(q.task, frozenset(w for w in ("cat", "dog", "cup") if w in q.text)): q.answer for q in asked}
    assert found == {
        ("larger", frozenset({"cat", "dog"})): "dog",  # 300 against 200 px; cat and cup are too alike
        ("larger", frozenset({"cup", "dog"})): "dog",
        ("left", frozenset({"cat", "dog"})): "cat",
        ("left", frozenset({"cat", "cup"})): "cat",  # dog and cup lie too close
        ("backdrop", frozenset()): "grass",
    }
    assert "larger" in default_tasks([sample])
