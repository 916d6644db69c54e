"""Groups of scenes and videos, and the multiple-choice questions about them."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcblib.data.choices import LETTERS, read_options
from rcblib.records import ParameterError
from worlds.scenes.choices import NUMBER_WORDS, draw_options, multiple_choice
from worlds.scenes.generator import SPLITS, generate_scene
from worlds.scenes.groups import (
    GROUP_KINDS,
    NO_IMAGE,
    NOT_SHOWN,
    generate_group,
    group_questions,
    total_words,
)
from worlds.scenes.language import all_texts
from worlds.scenes.video import DIRECTIONS, VIDEO_KINDS, Video, frame_times, generate_video, video_questions
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from worlds.training.vision import patch_owners

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "models" / "llava-scenes"
SEEDS = st.integers(0, 2**32)
N_BALANCE = 2000


def rng_of(index):
    return np.random.default_rng([7, index])


@pytest.fixture(scope="module")
def groups():
    return [generate_group(11, i, "validation") for i in range(N_BALANCE)]


@pytest.fixture(scope="module")
def videos():
    return [generate_video(11, i, "validation", n_frames=4) for i in range(N_BALANCE)]


@pytest.fixture(scope="module")
def asked(groups, videos):
    """Questions by (task, kind), each with what it is about."""
    found = defaultdict(list)
    pairs = [(group_questions, group) for group in groups] + [(video_questions, video) for video in videos]
    for ask, what in pairs:
        for question in ask(what, rng_of(what.index)):
            found[question.task, question.subset].append((question, what))
    return found


# Multiple choice


def test_a_question_with_options_in_a_drawn_order():
    options = ["left", "right", "up"]
    seen = Counter()
    rng = np.random.default_rng(0)
    for _ in range(600):
        text, letter = multiple_choice("In which direction?", options, "up", rng)
        read = read_options(text)
        assert text == "In which direction? " + " ".join(f"{k}. {v}" for k, v in read.items()) + (
            " Answer with the letter."
        )
        assert list(read) == ["a", "b", "c"]
        assert sorted(read.values()) == options
        assert read[letter] == "up"
        seen[tuple(read.values())] += 1
    assert len(seen) == 6
    assert min(seen.values()) > 65


@pytest.mark.parametrize(
    ("options", "right", "parameter"),
    [
        (["x"], "x", "options"),
        (list("vwxyz"), "x", "options"),
        (["x", "x"], "x", "options"),
        (["x", "y"], "z", "right"),
    ],
)
def test_wrong_options_are_named(options, right, parameter):
    with pytest.raises(ParameterError, match=f"^{parameter}: got"):
        multiple_choice("What?", options, right, np.random.default_rng(0))


def test_only_texts_of_this_form_have_options():
    assert read_options("What color is the star?") == {}
    assert read_options("Is there a a. b?") == {}


def test_wrong_options_are_drawn_evenly_and_without_repeats():
    rng = np.random.default_rng(1)
    drawn = [draw_options("c", "abcdeb", 3, rng) for _ in range(900)]
    assert all(options[0] == "c" and len(set(options)) == 3 for options in drawn)
    times = Counter(option for options in drawn for option in options[1:])
    assert set(times) == set("abde")
    assert min(times.values()) > 390
    assert sorted(draw_options("c", "ac", 4, rng)) == ["a", "c"]


# Drawing


def digest(sequence):
    scenes = sequence.frames if isinstance(sequence, Video) else sequence.scenes
    found = hashlib.sha256()
    for scene in scenes:
        found.update(scene.pixels.tobytes())
        for item in scene.objects:
            found.update(repr((item.category, item.color, item.corner)).encode() + item.mask.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("generate", [generate_group, generate_video])
def test_the_same_arguments_give_the_same_pixels(generate):
    first = generate(1, 2)
    others = [generate(2, 2), generate(1, 3), generate(1, 2, "test")]
    assert digest(generate(1, 2)) == digest(first)
    assert digest(first) not in {digest(other) for other in others}


def check_scene(scene):
    assert scene.pixels.shape == (96, 96, 3)
    assert scene.pixels.dtype == np.uint8
    areas = [item.area for item in scene.objects]
    assert areas == sorted(areas, reverse=True)
    covered = sum(item.full_mask(96, 96).astype(int) for item in scene.objects)
    assert covered.max() == 1
    for one, other in combinations(scene.objects, 2):
        assert one.category != other.category
    category, _, share = patch_owners(scene, 12)
    assert {CATEGORIES[i] for i in set(category[share > 0.3])} <= {item.category for item in scene.objects}
    assert share.sum() * 64 == pytest.approx(sum(areas), rel=0.15)


@given(SEEDS, st.integers(0, 10**6), st.sampled_from(SPLITS), st.sampled_from([None, 2, 3, 4]))
def test_groups_hold_two_to_four_scenes_with_a_big_object_each(seed, index, split, n_images):
    group = generate_group(seed, index, split, n_images)
    n = len(group.scenes)
    assert n == n_images or n_images is None and 2 <= n <= 4
    assert 0 <= group.pair[0] < group.pair[1] < n
    for scene in group.scenes:
        assert (scene.seed, scene.index, scene.split) == (seed, index, split)
        assert 1 <= len(scene.objects) <= 3
        check_scene(scene)
        big, *others = (item.area for item in scene.objects)
        assert all(big >= 1.5 * area for area in others)


@given(SEEDS, st.integers(0, 10**6), st.sampled_from(SPLITS), st.integers(4, 16))
def test_every_frame_is_a_scene_that_shows_what_the_actors_do(seed, index, split, n_frames):
    video = generate_video(seed, index, split, n_frames)
    assert len(video.frames) == n_frames
    assert 2 <= len(video.actors) <= 4
    assert len({actor.category for actor in video.actors}) == len(video.actors)
    for scene, time in zip(video.frames, frame_times(n_frames), strict=True):
        assert (scene.seed, scene.index, scene.split) == (seed, index, split)
        assert scene.objects
        check_scene(scene)
        shown = {item.category: item.color for item in scene.objects}
        assert shown == {a.category: a.color_at(time) for a in video.actors if a.is_visible(time)}


def tracks(video):
    """Return where and in which colour each category is, by frame: `None` where it is not to be seen."""
    names = sorted({item.category for frame in video.frames for item in frame.objects})
    by_frame = [{item.category: item for item in frame.objects} for frame in video.frames]
    return {name: [found.get(name) for found in by_frame] for name in names}


@pytest.mark.parametrize(("n_frames", "fewest"), [(4, 1), (5, 1), (8, 2), (16, 3)])
def test_frames_show_what_was_before_between_and_after_events(n_frames, fewest):
    for index in range(300):
        video = generate_video(2, index, n_frames=n_frames)
        ends = [0.0, *(actor.time for actor in video.events), 1.0]
        for start, stop in zip(ends, ends[1:], strict=False):
            assert sum(start <= time < stop for time in frame_times(n_frames)) >= fewest


def test_objects_move_as_said_and_only_those():
    moved = Counter()
    for index in range(300):
        video = generate_video(3, index, n_frames=8)
        track = tracks(video)
        for actor in video.actors:
            corners = np.array([item.corner for item in track[actor.category] if item])
            steps = np.diff(corners, axis=0)
            if actor.action == "move":
                moved[actor.to] += 1
                along = steps @ np.array(DIRECTIONS[actor.to])
                assert (along > 0).all()
                assert 24 <= along.sum() <= 48
                assert (np.abs(steps).sum(1) == along).all()
            else:
                assert (steps == 0).all()
    assert set(moved) == set(DIRECTIONS)


def test_the_background_stands_still():
    for index in range(40):
        video = generate_video(4, index, n_frames=6)
        clear = np.ones((96, 96), bool)
        for frame in video.frames:
            for item in frame.objects:
                side, (x, y) = len(item.mask), item.corner
                clear[y : y + side, x : x + side] = False
        assert clear.any()
        assert all((frame.pixels[clear] == video.frames[0].pixels[clear]).all() for frame in video.frames)


def test_no_object_enters_a_place_of_another():
    for index in range(100):
        video = generate_video(5, index, n_frames=12)
        owner = np.full((96, 96), -1)
        for number, track in enumerate(tracks(video).values()):
            swept = np.any([item.full_mask(96, 96) for item in track if item], axis=0)
            assert (owner[swept] == -1).all()
            owner[swept] = number


@pytest.mark.parametrize("index", range(12))
def test_the_number_of_frames_does_not_change_what_happens(index):
    clips = [generate_video(6, index, n_frames=n) for n in (4, 8, 16)]
    assert clips[0].actors == clips[1].actors == clips[2].actors
    texts = [video_questions(clip, rng_of(index)) for clip in clips]
    assert texts[0] == texts[1] == texts[2]


def test_single_scenes_of_the_same_seed_and_index_are_other_scenes():
    scene, group, video = generate_scene(1, 1), generate_group(1, 1), generate_video(1, 1)
    pixels = {scene.pixels.tobytes(), group.scenes[0].pixels.tobytes(), video.frames[0].pixels.tobytes()}
    assert len(pixels) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_group(0, 0, "dev"), "split: got 'dev'; accepted: train, validation, test"),
        (lambda: generate_video(0, 0, "dev"), "split: got 'dev'; accepted: train, validation, test"),
        (lambda: generate_group(-1, 0), "seed, index: got (-1, 0)"),
        (lambda: generate_video(0, -1), "seed, index: got (0, -1)"),
        (lambda: generate_group(0, 0, n_images=5), "n_images: got 5; accepted: 2, 3, 4 or None"),
        (lambda: generate_video(0, 0, n_frames=3), "n_frames: got 3; accepted: at least 4"),
    ],
)
def test_wrong_settings_are_named(call, message):
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value).startswith(message)


# Answers follow from what is drawn


NUMBER = {word: number for number, word in enumerate(NUMBER_WORDS)}


def image_number(words):
    return NUMBER[words.removeprefix("image ")] - 1


def in_images(noun, scenes):
    """List the images in which something that a noun such as "red star", "star" or "red object" names is."""
    *color, name = noun.split()
    return [
        i
        for i, scene in enumerate(scenes)
        if any(
            name in ("object", item.category) and (not color or color == [item.color])
            for item in scene.objects
        )
    ]


def answer_about_images(text, options, scenes):
    """Answer a question about several images from their objects alone."""
    if found := re.match(r"Which image shows an? (.+?)\?", text):
        images = in_images(found[1], scenes)
        assert len(images) <= 1
        return f"image {NUMBER_WORDS[images[0] + 1]}" if images else NO_IMAGE
    if found := re.match(r"Is the (color of the )?big object in (image \w+) and (image \w+) the same", text):
        one, other = (
            max(scenes[image_number(words)].objects, key=lambda o: o.area) for words in found.groups()[1:]
        )
        attribute = "color" if found[1] else "category"
        return "same" if getattr(one, attribute) == getattr(other, attribute) else "different"
    if found := re.match(r"How many images show an? (.+?)\?", text):
        return NUMBER_WORDS[len(in_images(found[1], scenes))]
    if text.startswith("How many objects are there in the images?"):
        return NUMBER_WORDS[sum(len(scene.objects) for scene in scenes)]
    if text.startswith("In which order are the big objects shown?"):
        return ", ".join(max(scene.objects, key=lambda o: o.area).category for scene in scenes)
    name, words = re.match(r"What color is the (\w+) in (image \w+)\?", text).groups()
    colors = [item.color for item in scenes[image_number(words)].objects if item.category == name]
    return colors[0] if colors else NOT_SHOWN


def answer_about_video(text, options, video):
    """Answer a question about a clip from where objects are in its frames."""
    track = tracks(video)
    seen = {name: [item is not None for item in items] for name, items in track.items()}
    first = {name: next(item for item in items if item) for name, items in track.items()}
    last = {name: next(item for item in reversed(items) if item) for name, items in track.items()}
    if found := re.match(r"In which direction does the (\w+) move\?", text):
        steps = np.subtract(last[found[1]].corner, first[found[1]].corner)
        return next(word for word, unit in DIRECTIONS.items() if np.sign(steps).tolist() == list(unit))
    appears = [name for name, flags in seen.items() if not flags[0]]
    disappears = [name for name, flags in seen.items() if not flags[-1]]
    if text.startswith("Which object "):
        (name,) = appears if "appears?" in text.split() else disappears
        return name
    if found := re.match(r"Which color does the (\w+) change (to|from)\?", text):
        return (last if found[2] == "to" else first)[found[1]].color
    if text.startswith("How many objects are there"):
        return NUMBER_WORDS[len(track)]
    if text.startswith("How many objects move"):
        return NUMBER_WORDS[sum(first[name].corner != last[name].corner for name in track)]
    word = re.match(r"Which event is (first|last)\?", text)[1]
    when = {}
    for name, items in track.items():
        states = [item.color if item else None for item in items]
        change = next((f for f in range(1, len(states)) if states[f] != states[f - 1]), None)
        if change is not None:
            kind = "appears" if name in appears else "disappears" if name in disappears else "changes color"
            when[f"{name} {kind}"] = change
    assert set(when) == set(options.values())
    return (min if word == "first" else max)(when, key=when.get)


def test_answers_follow_from_the_objects(asked):
    answer = {
        "multi_image": lambda text, options, group: answer_about_images(text, options, group.scenes),
        "video": answer_about_video,
    }
    assert set(asked) == {("multi_image", kind) for kind in GROUP_KINDS} | {
        ("video", kind) for kind in VIDEO_KINDS
    }
    for (task, kind), items in asked.items():
        assert len(items) > 700, kind
        for question, what in items:
            options = read_options(question.text)
            assert 2 <= len(options) <= 4
            assert len(set(options.values())) == len(options)
            assert options[question.answer] == answer[task](question.text, options, what)
            assert question.image_id == what.index


def test_questions_follow_the_generator_of_random_numbers(groups, videos):
    for ask, what in ((group_questions, groups[0]), (video_questions, videos[0])):
        assert ask(what, rng_of(1)) == ask(what, rng_of(1))
        assert ask(what, rng_of(1)) != ask(what, rng_of(2))


# What can be guessed without looking


def guesses(items):
    """Score guesses from the text alone, as shares right; `chance` is the mean of 1 / number of options.

    Majorities are counted on one half of the questions and score the other.
    """
    options = [read_options(question.text) for question, _ in items]
    stems = [question.text.split("?")[0] for question, _ in items]
    right = [question.answer for question, _ in items]
    n, half = len(items), len(items) // 2
    scores = {"chance": np.mean([1 / len(found) for found in options])}
    scores["one letter"] = max(np.mean([letter == answer for answer in right]) for letter in LETTERS)
    for name, choose in (("longest", max), ("shortest", min)):
        picked = [choose(found, key=lambda letter: len(found[letter].split())) for found in options]
        scores[name] = np.mean([a == b for a, b in zip(picked, right, strict=True)])
    for name in ("last in order", "first in order"):
        place = -1 if name.startswith("last") else 0
        ordered = [sorted(found, key=lambda letter: _rank(found[letter])) for found in options]
        scores[name] = np.mean([found[place] == answer for found, answer in zip(ordered, right, strict=True)])
    keys = {
        "option": lambda stem, option: option,
        "question and option": lambda stem, option: (stem, option),
        "words of the option": lambda stem, option: tuple(sorted(set(option.split()) - set(CATEGORIES))),
    }
    for name, key in keys.items():
        offered, won = Counter(), Counter()
        for i in range(half):
            offered.update(key(stems[i], option) for option in options[i].values())
            won[key(stems[i], options[i][right[i]])] += 1
        n_right = 0
        for i in range(half, n):
            shares = {
                letter: (won[k] + 0.25) / (offered[k] + 1)
                for letter, option in options[i].items()
                for k in [key(stems[i], option)]
            }
            n_right += max(shares, key=shares.get) == right[i]
        scores[name] = n_right / (n - half)
    return scores


def _rank(option):
    """Order number words by their number, images by theirs, anything else by the alphabet."""
    return (NUMBER.get(option.removeprefix("image "), 99), option)


@pytest.mark.parametrize(
    ("task", "kind"),
    [("multi_image", kind) for kind in GROUP_KINDS] + [("video", kind) for kind in VIDEO_KINDS],
)
def test_guessing_from_the_text_is_near_chance(asked, task, kind):
    scores = guesses(asked[task, kind])
    chance = scores.pop("chance")
    assert 0.25 <= chance <= 0.5
    margin = 3.5 * np.sqrt(chance * (1 - chance) / (len(asked[task, kind]) / 2))
    assert margin < 0.09
    for name, score in scores.items():
        assert abs(score - chance) < margin, (name, score, chance)


def test_the_option_that_nothing_is_right_is_right_as_often_as_any_other(asked):
    for words in (NO_IMAGE, NOT_SHOWN):
        offered = [
            (read_options(question.text), question.answer)
            for question, _ in asked["multi_image", "unanswerable"]
            if words in read_options(question.text).values()
        ]
        share = np.mean([found[answer] == words for found, answer in offered])
        assert share == pytest.approx(np.mean([1 / len(found) for found, _ in offered]), abs=0.03)
    for (_, kind), items in asked.items():
        if kind != "unanswerable":
            assert not any(NO_IMAGE in q.text or NOT_SHOWN in q.text for q, _ in items)


def test_what_is_nowhere_is_pieced_together_from_what_is_there(asked):
    """A colour and a category that no image shows together are both shown; a category that is elsewhere too."""
    n_pairs = n_colors = 0
    for question, group in asked["multi_image", "unanswerable"]:
        options = read_options(question.text)
        pair = re.match(rf"Which image shows an? ({'|'.join(COLOR_NAMES)}) (\w+)\?", question.text)
        if pair and options[question.answer] == NO_IMAGE:
            n_pairs += 1
            assert in_images(f"{pair[1]} object", group.scenes)
            assert in_images(pair[2], group.scenes)
        if options[question.answer] == NOT_SHOWN:
            n_colors += 1
            name = question.text.split()[4]
            images = in_images(name, group.scenes)
            colors = {o.color for i in images for o in group.scenes[i].objects if o.category == name}
            assert colors & set(options.values())
    assert min(n_pairs, n_colors) > 300


def test_presence_does_not_tell_what_appears_or_disappears(asked):
    """All options but at most one are in the clip, one of them comes where another goes."""
    for kind, opposite in (("appear", "disappear"), ("disappear", "appear")):
        for question, video in asked["video", kind]:
            options = set(read_options(question.text).values())
            assert len(options - {actor.category for actor in video.actors}) <= 1
            assert {actor.category for actor in video.actors if actor.action == opposite} <= options
            assert any(a.category in options for a in video.actors if a.action in ("still", "move", "change"))


def test_a_change_offers_the_color_before_and_after(asked):
    for question, video in asked["video", "color_change"]:
        (actor,) = (actor for actor in video.actors if actor.action == "change")
        assert {actor.color, actor.to} <= set(read_options(question.text).values())


def test_orderings_offer_the_same_objects(asked):
    for question, _ in asked["multi_image", "ordering"]:
        assert len({frozenset(option.split(", ")) for option in read_options(question.text).values()}) == 1


def test_what_is_counted_is_uniform(groups, videos):
    for n in (2, 3, 4):
        chosen = [group for group in groups if len(group.scenes) == n]
        totals = Counter(NUMBER_WORDS[sum(len(s.objects) for s in group.scenes)] for group in chosen)
        assert set(totals) == set(total_words(n))
        shares = np.array(list(totals.values())) / len(chosen)
        assert abs(shares - 1 / len(totals)).max() < 4 * np.sqrt(1 / len(totals) / len(chosen))
    for count in (len, lambda actors: sum(actor.action == "move" for actor in actors)):
        times = Counter(count(video.actors) for video in videos)
        assert len(times) == 3
        assert all(abs(n / len(videos) - 1 / 3) < 0.045 for n in times.values())


# Words


def test_every_word_is_in_the_vocabulary(asked):
    known = {word for text in all_texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    used = {
        word
        for items in asked.values()
        for question, _ in items
        for word in re.findall(r"\w+|[^\w\s]", f"{question.text} {question.answer}".lower())
    }
    assert used <= known


def test_the_vocabulary_is_that_of_the_shipped_model():
    tokens = set(json.loads((SHIPPED / "tokenizer.json").read_text())["model"]["vocab"])
    words = {word for text in all_texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    assert words == {token for token in tokens if not re.fullmatch("<.+>", token)}


def test_no_word_is_unknown_to_the_tokenizer(asked):
    from worlds.models import build_tokenizer

    tokenizer = build_tokenizer(all_texts())
    for items in asked.values():
        ids = tokenizer([question.text for question, _ in items[:300]]).input_ids
        assert not any(tokenizer.unk_token_id in row for row in ids)
        assert max(map(len, ids)) <= 60
