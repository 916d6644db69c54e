import json
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rcblib.data import questions
from rcblib.data.questions import COUNT_WORDS, DIGITS
from rcblib.records import ONE_WORD_QUESTION, ParameterError
from worlds.scenes import generator
from worlds.scenes.captions import captions
from worlds.scenes.coco import encode_mask, export_coco, scene_sample
from worlds.scenes.generator import SPLITS, SceneConfig, generate_scene, shape_mask
from worlds.scenes.language import all_texts
from worlds.scenes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOR_NAMES,
    COLORS,
    SHAPES,
    category_weights,
    co_occurrence,
)

SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(4, i, "validation") for i in range(700)]


# Drawing


def same(one, other):
    return one.pixels.shape == other.pixels.shape and (one.pixels == other.pixels).all()


def test_a_scene_is_drawn_the_same_again_whatever_was_drawn_between():
    first = generate_scene(1, 2)
    others = [generate_scene(2, 2), generate_scene(1, 3), generate_scene(1, 2, "test")]
    again = generate_scene(1, 2)
    assert same(first, again)
    for one, other in zip(first.objects, again.objects, strict=True):
        assert (one.category, one.color, one.corner) == (other.category, other.color, other.corner)
        assert (one.mask == other.mask).all()
    assert not any(same(first, other) for other in others)


@given(
    SEEDS,
    st.integers(0, 10**6),
    st.sampled_from(SPLITS),
    st.tuples(*[st.sampled_from([96, 100, 144, 200])] * 2),
    st.sampled_from([None, (0.8, 1.0)]),
)
def test_objects_lie_apart_inside_the_image(seed, index, split, size, object_scale):
    scene = generate_scene(seed, index, split, SceneConfig(sizes=(size,), object_scale=object_scale))
    assert scene.pixels.shape == (*size, 3)
    assert (scene.height, scene.width) == size
    assert scene.pixels.dtype == np.uint8
    assert scene.pixels.flags.c_contiguous
    assert scene.background in BACKGROUNDS
    assert 1 <= len(scene.objects) <= 4
    areas = [item.area for item in scene.objects]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] > 0
    covered = np.zeros(size, int)
    for item in scene.objects:
        assert item.category in CATEGORIES
        assert item.color in COLOR_NAMES
        mask = item.full_mask(*size)
        assert mask.sum() == item.area == item.mask.sum()
        covered += mask
    assert covered.max() == 1
    for one, other in combinations(scene.objects, 2):
        gaps = [
            max(b - (a + n), a - (b + m))
            for a, b, n, m in zip(one.corner, other.corner, one.mask.shape, other.mask.shape, strict=True)
        ]
        assert max(gaps) >= 2


def test_the_center_is_that_of_the_mask_not_of_the_drawn_square():
    item = next(o for i in range(100) for o in generate_scene(0, i).objects if o.category == "moon")
    rows, columns = np.nonzero(item.full_mask(96, 96))
    assert item.center == ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)


def test_pixels_under_a_mask_have_the_color_that_is_named(scenes):
    """Also of antialiased strokes: the median of a mask is nearest to its palette colour."""
    named = 0
    for scene in scenes[:300]:
        for item in scene.objects:
            median = np.median(scene.pixels[item.full_mask(96, 96)], axis=0)
            distances = {name: np.abs(median - np.array(rgb)).sum() for name, rgb in COLORS.items()}
            named += min(distances, key=distances.get) == item.color
    assert named / sum(len(scene.objects) for scene in scenes[:300]) > 0.98


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fill_their_square(name):
    coverage = shape_mask(name, 40)
    assert coverage.shape == (40, 40)
    assert 0 <= coverage.min() < 0.01
    assert coverage.max() == 1
    assert 0.2 < coverage.mean() < 0.8
    assert coverage.any(1).mean() > 0.6


def test_area_of_a_circle_and_a_square():
    assert shape_mask("circle", 60).mean() == pytest.approx(np.pi / 4 * 0.95**2, abs=2e-3)
    assert shape_mask("square", 50).mean() == pytest.approx(0.88**2, abs=2e-2)


def test_sizes_alternate_by_index_and_scale_is_that_of_the_objects():
    config = SceneConfig(
        sizes=((96, 192), (192, 96)), n_objects=(1.0,), dominant_share=1.0, object_scale=(1.0, 1.0)
    )
    scenes = [generate_scene(4, i, config=config) for i in range(40)]
    assert [(s.height, s.width) for s in scenes] == [(96, 192), (192, 96)] * 20
    # One large object in 96 pixels has a side of 36 to 60 pixels; here it keeps it though the image is larger.
    assert all(36 <= len(item.mask) <= 60 for s in scenes for item in s.objects)


@pytest.mark.parametrize(
    ("call", "parameter"),
    [
        (lambda: generate_scene(0, 0, "dev"), "split: got 'dev'; accepted: train, validation, test"),
        (lambda: generate_scene(-1, 0), "seed, index: got (-1, 0)"),
        (lambda: generate_scene(0, -1), "seed, index: got (0, -1)"),
        (lambda: SceneConfig(sizes=((96, 64),)), "sizes: got ((96, 64),)"),
        (lambda: SceneConfig(object_scale=(1.0, 1.5)), "object_scale: got (1.0, 1.5)"),
        (lambda: SceneConfig(n_objects=(0.5, 0.4)), "n_objects"),
        (lambda: SceneConfig(n_objects=(1.5, -0.5)), "n_objects"),
        (lambda: SceneConfig(n_objects=()), "n_objects"),
        (lambda: SceneConfig(dominant_share=1.1), "dominant_share: got 1.1"),
        (lambda: shape_mask("blob", 20), "shape: got 'blob'"),
    ],
)
def test_wrong_settings_are_named(call, parameter):
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value).startswith(parameter)


# Splits share nothing


def test_every_handwritten_digit_is_in_one_split_only():
    dealt = {
        split: {
            np.asarray(drawn).tobytes() for d in DIGITS for drawn in generator._handwriting()[f"{split}/{d}"]
        }
        for split in SPLITS
    }
    assert sum(len(images) for images in dealt.values()) == 1797
    for one, other in combinations(SPLITS, 2):
        assert not dealt[one] & dealt[other]
    assert all(
        len(generator._handwriting()[f"{split}/{digit}"]) >= 20 for split in SPLITS for digit in DIGITS
    )


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_drawn_from_the_handwriting_of_their_split(split):
    """A drawn digit is a resized member of its own pool, and of no other split's."""
    items = [o for i in range(60) for o in generate_scene(5, i, split).objects if o.category in DIGITS]
    assert len(items) > 20
    for item in items:
        found = {
            other
            for other in SPLITS
            for drawn in generator._handwriting()[f"{other}/{item.category}"]
            if item.area
            and (_strokes(drawn.resize(item.mask.shape, Image.Resampling.BICUBIC)) == item.mask).all()
        }
        assert found == {split}


def _strokes(drawn):
    return np.asarray(drawn, np.float32) / 255 * 1.6 - 0.2 > 0.5


def test_photographs_are_cut_without_overlap():
    from sklearn.datasets import load_sample_images

    for number, photograph in enumerate(load_sample_images().images):
        strips = [generator._photographs()[split][number] for split in SPLITS]
        assert sum(strip.shape[2] for strip in strips) == photograph.shape[1]
        assert all(strip.shape[1] == photograph.shape[0] for strip in strips)
        grey = photograph.mean(2)
        joined = np.concatenate(strips, 2).mean(0)
        assert np.corrcoef(grey.ravel(), joined.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("split", SPLITS)
def test_photograph_backgrounds_come_from_the_strip_of_their_split(monkeypatch, split):
    marked = {name: [np.full((3, 427, 128), 50.0 * i, np.float32)] for i, name in enumerate(SPLITS, 1)}
    monkeypatch.setattr(generator, "_photographs", lambda: marked)
    drawn = [scene for i in range(80) if (scene := generate_scene(6, i, split)).background == "photo"]
    assert len(drawn) > 8
    for scene in drawn:
        outside = np.ones((96, 96), bool)
        for item in scene.objects:
            x, y = item.corner
            outside[y : y + item.mask.shape[0], x : x + item.mask.shape[1]] = False
        assert set(scene.pixels[outside].ravel()) == {50 * (SPLITS.index(split) + 1)}


# Frequencies


def test_categories_have_unequal_frequencies(scenes):
    share = Counter(o.category for scene in scenes for o in scene.objects)
    assert set(share) == set(CATEGORIES)
    for shapes in (SHAPES, DIGITS):
        frequencies = np.array([share[name] for name in shapes], float)
        assert frequencies[:3].sum() > 1.2 * frequencies[-3:].sum()
    assert share["circle"] > 1.8 * share["moon"]
    digits = sum(share[d] for d in DIGITS) / share.total()
    assert 0.3 < digits < 0.6


def test_the_first_category_follows_its_weights():
    """With one object a scene, frequencies are the weights, within four standard errors."""
    single = SceneConfig(n_objects=(1.0,))
    n = 1000
    found = Counter(generate_scene(8, i, config=single).objects[0].category for i in range(n))
    weights = category_weights()
    assert weights.sum() == pytest.approx(1)
    for name, weight in zip(CATEGORIES, weights, strict=True):
        assert abs(found[name] / n - weight) < 4 * np.sqrt(weight * (1 - weight) / n), name


def test_partners_occur_together_more_often_than_by_chance(scenes):
    present = [{o.category for o in scene.objects} for scene in scenes]
    together = expected = 0.0
    for shape, digit in zip(SHAPES, DIGITS, strict=True):
        both = [sum(name in names for names in present) / len(present) for name in (shape, digit)]
        expected += both[0] * both[1]
        together += sum({shape, digit} <= names for names in present) / len(present)
    assert together > 2 * expected
    factor = co_occurrence()
    assert (factor == factor.T).all()
    assert factor[SHAPES.index("star"), len(SHAPES) + 3] == 5


def test_repeated_categories_are_rare(scenes):
    repeated = [len({o.category for o in s.objects}) < len(s.objects) for s in scenes if len(s.objects) > 1]
    assert 0 < np.mean(repeated) < 0.1


def test_numbers_of_objects_and_backgrounds_follow_the_config(scenes):
    counts = Counter(len(scene.objects) for scene in scenes)
    for n, probability in zip((1, 2, 3, 4), SceneConfig().n_objects, strict=True):
        assert counts[n] / len(scenes) == pytest.approx(probability, abs=0.06)
    backgrounds = Counter(scene.background for scene in scenes)
    assert all(backgrounds[kind] / len(scenes) == pytest.approx(0.25, abs=0.06) for kind in BACKGROUNDS)


# Questions


def from_masks(scene):
    """Describe a scene by nothing but its masks and pixels: area, extent and nearest colour of every object."""
    seen = []
    for item in scene.objects:
        mask = item.full_mask(scene.height, scene.width)
        rows, columns = np.nonzero(mask)
        middle = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
        seen.append((item.category, int(mask.sum()), middle))
    return seen


def test_the_dominant_object_is_at_least_half_as_large_again_as_the_next(scenes):
    n_dominant = 0
    for scene in scenes:
        asked = questions.task_questions(0, scene.objects, 96, 96, None, "one_word")
        (_, largest, _), *others = sorted(from_masks(scene), key=lambda seen: -seen[1])
        is_dominant = all(largest >= 1.5 * area for _, area, _ in others)
        assert bool(asked) == is_dominant
        if asked:
            n_dominant += 1
            assert asked[0].text == ONE_WORD_QUESTION
            assert asked[0].answer == max(from_masks(scene), key=lambda seen: seen[1])[0]
    assert n_dominant / len(scenes) > SceneConfig().dominant_share


def test_most_scenes_laid_out_with_a_dominant_object_have_one():
    share = {
        wanted: np.mean(
            [
                questions.dominant(generate_scene(9, i, config=SceneConfig(dominant_share=wanted)).objects)
                is not None
                for i in range(150)
            ]
        )
        for wanted in (0.0, 1.0)
    }
    assert share[1.0] > 0.9
    assert share[0.0] < 0.7


@pytest.mark.parametrize("task", ["color", "count", "position", "digit"])
def test_answers_follow_from_the_masks(scenes, task):
    n_asked = 0
    for scene in scenes:
        seen = from_masks(scene)
        times = Counter(category for category, _, _ in seen)
        expected = set()
        if task == "color":
            colors = {item.category: item.color for item in scene.objects}
            expected = {(f"What color is the {c}?", colors[c]) for c, n in times.items() if n == 1}
        elif task == "count":
            expected = {("How many objects are there in the image?", COUNT_WORDS[len(seen) - 1])}
        elif task == "digit" and sum(times[d] for d in DIGITS) == 1:
            expected = {("Which digit is written in the image?", next(c for c, _, _ in seen if c in DIGITS))}
        elif task == "position":
            for category, _, (x, y) in seen:
                near_line = any(abs(v - line) < 0.03 * 96 for v in (x, y) for line in (32, 64))
                if times[category] == 1 and not near_line:
                    row = "top" if y < 32 else "bottom" if y > 64 else ""
                    column = "left" if x < 32 else "right" if x > 64 else ""
                    place = f"{row} {column}".strip() or "center"
                    expected.add((f"Where in the image is the {category}?", place))
        asked = questions.task_questions(7, scene.objects, 96, 96, None, task)
        assert {(q.text, q.answer) for q in asked} == expected
        assert len(asked) == len(expected)
        assert all(q.image_id == 7 and q.task == task for q in asked)
        n_asked += len(asked)
    assert n_asked > 150


def test_position_words_of_the_nine_thirds():
    places = {
        (10, 10): "top left", (50, 10): "top", (90, 10): "top right",
        (10, 50): "left", (50, 50): "center", (90, 50): "right",
        (10, 90): "bottom left", (50, 90): "bottom", (90, 90): "bottom right",
        (34, 50): None, (50, 66): None,
    }  # fmt: skip
    for (x, y), words in places.items():
        assert questions.position_words((2 * x, y), 200, 100) == words


def test_articles():
    assert [questions.with_article(noun) for noun in ("star", "arrow", "8", "orange 1", "1")] == [
        "a star",
        "an arrow",
        "an 8",
        "an orange 1",
        "a 1",
    ]


def test_five_captions_name_every_object(scenes):
    for scene in scenes[:300]:
        sentences = captions(scene.objects, scene.background)
        assert len(set(sentences)) == 5
        nouns = [f"{item.color} {item.category}" for item in scene.objects]
        for sentence in sentences:
            for noun, times in Counter(nouns).items():
                assert len(re.findall(rf"\b{noun}\b", sentence)) == times
        by_area = [sentences[0].index(noun) for noun in dict.fromkeys(nouns)]
        assert by_area == sorted(by_area)
        from_left = sorted(scene.objects, key=lambda o: o.center[0])
        by_column = [sentences[1].index(f"{o.color} {o.category}") for o in from_left]
        assert len(set(nouns)) < len(nouns) or by_column == sorted(by_column)
        assert scene.background in sentences[3]
        assert COUNT_WORDS[len(nouns) - 1] in sentences[2].split()


def test_captions_of_a_known_scene():
    scene = next(s for i in range(200) if len((s := generate_scene(0, i)).objects) == 1)
    (item,) = scene.objects
    noun = questions.with_article(f"{item.color} {item.category}")
    assert captions(scene.objects, scene.background) == (
        f"{noun}.",
        f"from left to right: {noun}.",
        f"the image shows one object: {noun}.",
        f"{noun} on a {scene.background} background.",
        f"an image of {noun}.",
    )


def test_unknown_task_is_named():
    with pytest.raises(ParameterError, match="task: got 'yes_no'"):
        questions.task_questions(0, (), 96, 96, None, "yes_no")


def test_every_word_that_is_asked_or_said_is_in_the_vocabulary(scenes):
    def words(text):
        return set(re.findall(r"\w+|[^\w\s]", text.lower()))

    known = set().union(*map(words, all_texts()))
    for scene in scenes[:200]:
        caption = captions(scene.objects, scene.background)
        for task in set(questions.TASKS) - {"yes_no", *questions.PAIR_TASKS}:
            for question in questions.task_questions(0, scene.objects, 96, 96, caption[0], task):
                assert words(question.text) | words(question.answer) <= known
        assert set().union(*map(words, caption)) <= known
    for name in CATEGORIES:
        assert words(questions.yes_no_question(name)) <= known


# POPE


POPE_WORLD = [(1, "ab"), (2, "ab"), (3, "ac"), (4, "ad"), (5, "d"), (6, "bd")]
"""Frequencies a 4, b 3, d 3, c 1; a occurs with b twice, with c and d once; b with d once."""


def absent_categories(asked, image_id, subset):
    return [q.text for q in asked if (q.image_id, q.subset, q.answer) == (image_id, subset, "no")]


def test_pope_questions_of_a_known_world():
    asked = questions.pope_questions(POPE_WORLD, np.random.default_rng(0), n_pairs=1)
    assert len(asked) == 6 * 3 * 2
    assert absent_categories(asked, 5, "popular") == ["Is there an a in the image?"]
    assert absent_categories(asked, 3, "popular") == ["Is there a b in the image?"]
    # Beside d: a once and b once, alphabetical order decides. Beside a and c: b twice, d once.
    assert absent_categories(asked, 5, "adversarial") == ["Is there an a in the image?"]
    assert absent_categories(asked, 3, "adversarial") == ["Is there a b in the image?"]
    # Image 6 holds b and d: a occurred with either three times, c never.
    assert absent_categories(asked, 6, "adversarial") == ["Is there an a in the image?"]


def test_pope_answers_are_true_and_balanced(scenes):
    images = [(scene.index, [o.category for o in scene.objects]) for scene in scenes]
    asked = questions.pope_questions(images, np.random.default_rng(1), n_pairs=2)
    present = dict(images)
    for question in asked:
        name = re.fullmatch(r"Is there an? (\w+) in the image\?", question.text)[1]
        assert question.answer == ("yes" if name in present[question.image_id] else "no")
        assert question.task == "yes_no"
    assert len(set(Counter((q.subset, q.answer) for q in asked).values())) == 1
    assert len(set(asked)) == len(asked)


def test_the_world_makes_popes_samplings_differ(scenes):
    """Popular absent categories are frequent ones; adversarial ones more usual beside what is there than chance."""
    images = [(scene.index, {o.category for o in scene.objects}) for scene in scenes]
    asked = questions.pope_questions(images, np.random.default_rng(2), n_pairs=1)
    frequency = Counter(name for _, names in images for name in names)
    together = Counter(pair for _, names in images for pair in combinations(sorted(names), 2))
    present = dict(images)
    absent = {subset: [] for subset in ("random", "popular", "adversarial")}
    for question in asked:
        if question.answer == "no":
            name = question.text.split()[3]
            others = present[question.image_id]
            beside = sum(together[tuple(sorted((name, other)))] for other in others)
            by_chance = sum(frequency[name] * frequency[other] / len(images) for other in others)
            absent[question.subset].append((name, frequency[name], beside, beside / by_chance))
    mean = {
        subset: dict(
            zip(("frequency", "together", "lift"), np.mean([row[1:] for row in rows], 0), strict=True)
        )
        for subset, rows in absent.items()
    }
    assert mean["popular"]["frequency"] > 1.5 * mean["random"]["frequency"]
    assert mean["popular"]["frequency"] > mean["adversarial"]["frequency"]
    assert mean["adversarial"]["together"] > mean["popular"]["together"] > mean["random"]["together"]
    assert mean["adversarial"]["lift"] > 1.15 > 1 > mean["popular"]["lift"]
    for one, other in combinations(absent, 2):
        differ = [a[0] != b[0] for a, b in zip(absent[one], absent[other], strict=True)]
        assert np.mean(differ) > 0.25, (one, other)


# COCO records


@given(SEEDS, st.sampled_from(SPLITS))
def test_a_sample_says_what_the_scene_holds(seed, split):
    scene = generate_scene(seed, 12, split)
    sample = scene_sample(scene)
    assert (sample.image_id, sample.width, sample.height) == (12, 96, 96)
    assert sample.source == f"scenes/{split}"
    assert len(sample.captions) == 5
    assert sample.image.mode == "RGB"
    assert (np.asarray(sample.image) == scene.pixels).all()
    for item, drawn in zip(sample.objects, scene.objects, strict=True):
        assert (item.category, item.color) == (drawn.category, drawn.color)
        assert item.area == drawn.area == coco_mask.area(item.rle)
        assert item.center == drawn.center
        assert (coco_mask.decode(item.rle) == drawn.full_mask(96, 96)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_masks_survive_run_length_encoding(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    rle = encode_mask(mask)
    assert rle["size"] == [height, width]
    assert (coco_mask.decode(rle).astype(bool) == mask).all()


def test_exported_scenes_are_read_by_pycocotools(tmp_path, capsys):
    drawn = [generate_scene(3, i, "test") for i in (4, 9, 2)]
    export_coco(drawn, tmp_path, "test")
    coco = COCO(tmp_path / "annotations" / "instances_test.json")
    assert list(coco.imgs) == [4, 9, 2]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CATEGORIES)
    for scene in drawn:
        record = coco.imgs[scene.index]
        assert (record["background"], record["seed"]) == (scene.background, 3)
        pixels = np.asarray(Image.open(tmp_path / "images" / "test" / record["file_name"]))
        assert (pixels == scene.pixels).all()
        annotations = coco.loadAnns(coco.getAnnIds([scene.index]))
        for annotation, item in zip(annotations, scene.objects, strict=True):
            mask = coco.annToMask(annotation)
            assert (mask == item.full_mask(96, 96)).all()
            x, y, width, height = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == item.area
            assert annotation["color"] == item.color
            assert coco.cats[annotation["category_id"]]["name"] == item.category
    written = json.loads((tmp_path / "annotations" / "captions_test.json").read_text())["annotations"]
    assert Counter(caption["image_id"] for caption in written) == {4: 5, 9: 5, 2: 5}
    assert written[0]["caption"] == captions(drawn[0].objects, drawn[0].background)[0]


def test_export_refuses_what_it_cannot_name(tmp_path):
    scene = generate_scene(0, 0, "train")
    with pytest.raises(ParameterError, match="at least one scene"):
        export_coco([], tmp_path, "train")
    with pytest.raises(ParameterError, match="scenes of train'; accepted: scenes of test"):
        export_coco([scene], tmp_path, "test")
    with pytest.raises(ParameterError, match="distinct indices"):
        export_coco([scene, generate_scene(1, 0, "train")], tmp_path, "train")
    assert not any(tmp_path.iterdir())


def test_a_scene_without_an_object_is_the_same_around_it():
    for index in range(12):
        scene = generate_scene(4, index, "validation")
        for number, item in enumerate(scene.objects):
            other = generate_scene(4, index, "validation", without=number)
            assert [o.category for o in other.objects] == [
                o.category for k, o in enumerate(scene.objects) if k != number
            ]
            changed = (scene.pixels.astype(int) != other.pixels).any(2)
            x, y = item.corner
            height, width = item.mask.shape
            assert not changed[:y].any() and not changed[y + height :].any()
            assert not changed[:, :x].any() and not changed[:, x + width :].any()
            assert changed[item.full_mask(96, 96)].mean() > 0.95
    with pytest.raises(ParameterError, match="without: got 4"):
        generate_scene(4, 0, without=4)
