"""Draw several scenes that are asked about together, in the form of multi-image benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from rcblib.data.questions import DIGITS, DOMINANCE, with_article
from rcblib.records import ParameterError, Question
from worlds.scenes.choices import NUMBER_WORDS, ChoiceAsker, draw_options
from worlds.scenes.generator import (
    SPLITS,
    PlacedObject,
    Scene,
    check_stream,
    draw_background,
    draw_coverage,
    draw_paint,
    draw_side,
    paint_object,
    place_boxes,
    to_pixels,
)
from worlds.scenes.vocabulary import BACKGROUNDS, CATEGORIES, COLOR_NAMES

GROUP_KINDS = ("which_image", "same_different", "count", "ordering", "unanswerable")

N_IMAGES = (2, 3, 4)

SIZE = 96

IMAGE_NAMES = tuple(f"image {word}" for word in NUMBER_WORDS[1 : N_IMAGES[-1] + 1])

NO_IMAGE, NOT_SHOWN = "none of the images", "not shown"

# Keeps these random numbers apart from those of single scenes and of videos with the same seed and index.
STREAM = 1


@dataclass(frozen=True)
class SceneGroup:
    """Hold scenes that are asked about together.

    Attributes
    ----------
    scenes : tuple of Scene
        Two to four images of one to three objects; in each the largest object, the "big" one, has at least 1.5 times
        the area of the next, and no category occurs twice.
    pair : tuple of int
        The two images, counted from 0 and ascending, whose big objects are compared.
    compared : str
        ``"category"`` or ``"color"``: in what they are, and are the same in half of all groups.
    theme : str
        A value of the other attribute, which a random number of the images show, from none to all.
    split, seed, index
        How the group was drawn.
    """

    scenes: tuple[Scene, ...] = field(repr=False)
    pair: tuple[int, int]
    compared: str
    theme: str
    split: str
    seed: int
    index: int


def generate_group(seed: int, index: int, split: str = "train", n_images: int | None = None) -> SceneGroup:
    """Generate a group of scenes; the same arguments give the same pixels.

    Categories and colours are drawn uniformly, unlike those of single scenes: what a question names then tells
    nothing about its answer.

    Parameters
    ----------
    seed, index : int
        Which stream and which group of it; both at least 0.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``, as for single scenes.
    n_images : int, optional
        2, 3 or 4; drawn by default.

    Raises
    ------
    ParameterError
        For a negative seed or index, an unknown split, or another number of images.
    """
    check_stream(seed, index, split)
    if n_images is not None and n_images not in N_IMAGES:
        raise ParameterError("n_images", n_images, f"{', '.join(map(str, N_IMAGES))} or None")
    rng = np.random.default_rng([seed, index, SPLITS.index(split), STREAM])
    n = int(n_images or rng.choice(N_IMAGES))
    counts = _draw_counts(n, rng)
    pair = tuple(sorted(int(i) for i in rng.permutation(n)[:2]))
    are_same = rng.random() < 0.5
    with_theme = {int(i) for i in rng.permutation(n)[: rng.integers(n + 1)]}
    compared, other = ("category", "color") if rng.random() < 0.5 else ("color", "category")
    theme, themed = _draw_themed(other, counts, with_theme, rng)
    values = {compared: _draw_paired(compared, counts, pair if are_same else None, rng), other: themed}
    scenes = tuple(
        _draw_scene(names, colors, (seed, index, split), rng)
        for names, colors in zip(values["category"], values["color"], strict=True)
    )
    return SceneGroup(scenes, pair, compared, theme, split, seed, index)


def total_words(n_images: int) -> tuple[str, ...]:
    """List how many objects a group can hold in all, each number equally likely."""
    return NUMBER_WORDS[n_images : 2 * n_images + 2]


def _draw_counts(n_images: int, rng: np.random.Generator) -> list[int]:
    """Draw how many objects each image holds, one to three; their sum is uniform over `total_words`."""
    n_further = int(rng.integers(n_images + 2))
    places = rng.permutation(2 * n_images)[:n_further] // 2
    return (1 + np.bincount(places, minlength=n_images)).tolist()


def _draw_paired(
    attribute: str, counts: Sequence[int], same: tuple[int, ...] | None, rng: np.random.Generator
) -> list[list[str]]:
    """Draw a value for every object, big ones first; those differ between images except for the pair `same`."""
    order = _shuffled(attribute, rng)
    big, rest = order[: len(counts)], order[len(counts) :]
    if same:
        big[same[1]] = big[same[0]]
    further = _further(attribute, rest if attribute == "category" else order, rng)
    return [[first, *(next(further) for _ in range(n - 1))] for first, n in zip(big, counts, strict=True)]


def _draw_themed(
    attribute: str, counts: Sequence[int], with_theme: set[int], rng: np.random.Generator
) -> tuple[str, list[list[str]]]:
    """Draw a value for every object, one of which occurs once in each of some images and nowhere else."""
    theme, *rest = _shuffled(attribute, rng)
    further = _further(attribute, rest, rng)
    values = [[next(further) for _ in range(n)] for n in counts]
    for i, row in enumerate(values):
        place = rng.integers(len(row))
        if i in with_theme:
            row[place] = theme
    return theme, values


def _shuffled(attribute: str, rng: np.random.Generator) -> list[str]:
    vocabulary = CATEGORIES if attribute == "category" else COLOR_NAMES
    return [vocabulary[i] for i in rng.permutation(len(vocabulary))]


def _further(attribute: str, values: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yield categories one after the other, colours at random: there are fewer of them than objects."""
    if attribute == "category":
        yield from values
    while True:
        yield values[rng.integers(len(values))]


def _draw_scene(
    names: Sequence[str], colors: Sequence[str], where: tuple[int, int, str], rng: np.random.Generator
) -> Scene:
    """Draw an image whose first object is the big one."""
    seed, index, split = where
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    canvas = draw_background(kind, SIZE, SIZE, split, rng)
    corners = None
    while corners is None:
        roles = ["dominant"] + ["minor"] * (len(names) - 1)
        coverages = [
            draw_coverage(name, draw_side(name in DIGITS, role, 1.0, rng), split, rng)
            for name, role in zip(names, roles, strict=True)
        ]
        masks = [coverage > 0.5 for coverage in coverages]
        big, *others = map(np.count_nonzero, masks)
        if all(big >= DOMINANCE * area for area in others):
            corners = place_boxes([mask.shape for mask in masks], SIZE, SIZE, rng)
    objects = []
    for name, color, coverage, mask, corner in zip(names, colors, coverages, masks, corners, strict=True):
        paint_object(canvas, coverage, draw_paint(color, rng), corner)
        objects.append(PlacedObject(name, color, corner, mask))
    objects.sort(key=lambda item: -item.area)
    return Scene(to_pixels(canvas), tuple(objects), kind, split, seed, index)


def group_questions(group: SceneGroup, rng: np.random.Generator) -> list[Question]:
    """Ask every kind of question that has one right answer for these images, about objects drawn at random.

    Two to four options each, in random order. Kinds, as `Question.subset`:

    - ``which_image`` shows a category, or an object of a colour, that is in one image only;
    - ``same_different``: whether the big objects of two images are the same, or their colours;
    - ``count``: how many images show a category or a colour, and how many objects there are in all;
    - ``ordering``: the big objects in the order of the images, where they differ;
    - ``unanswerable``: which image shows a category, or an object of a category and a colour, and what colour a
      category has in an image, where what is asked for may be nowhere. An option says so, and it is right as often as
      any other.

    Parameters
    ----------
    group : SceneGroup
        The images; its index becomes the image id.
    rng : numpy.random.Generator
        Draws what is asked about, wrong options and the order of options.

    Returns
    -------
    list of Question
        Up to nine, of the task ``"multi_image"``.

    Notes
    -----
    Source: Wang et al. 2024 (MUIRBench) and Jiang et al. 2024 (Mantis-Eval) for the kinds.
    Differs: MUIRBench pairs every question with an unanswerable twin; here the option that nothing is right counts as
    one among the others, so that always choosing it gains nothing.
    """
    return _Asker(group, rng).ask()


class _Asker(ChoiceAsker):
    """Ask about one group."""

    def __init__(self, group: SceneGroup, rng: np.random.Generator):
        super().__init__(group.index, "multi_image", rng)
        self.group = group
        self.n = len(group.scenes)
        self.colors = [{item.category: item.color for item in scene.objects} for scene in group.scenes]

    def ask(self) -> list[Question]:
        """Ask every kind in turn."""
        self._which_image()
        self._same_different()
        self._count()
        self._ordering()
        self._which_image_if_any()
        self._which_pair_if_any()
        self._color_if_shown()
        return self.asked

    def _pick(self, values: Sequence):
        return values[self.rng.integers(len(values))]

    def _in_one_image(self, shown: Sequence[set]) -> list[tuple]:
        """List what only one image shows, as (what, number of the image), in a fixed order."""
        everything = sorted(set().union(*shown))
        places = [(what, [i for i, inside in enumerate(shown) if what in inside]) for what in everything]
        return [(what, images[0]) for what, images in places if len(images) == 1]

    def _image_options(self, right: int | None) -> list[str]:
        """Return up to three images, the right one among them, and that it is none of them."""
        others = [i for i in self.rng.permutation(self.n).tolist() if i != right]
        images = others[:3] if right is None else [right, *others[:2]]
        return [*(IMAGE_NAMES[i] for i in images), NO_IMAGE]

    def _which_image(self) -> None:
        by_category = self._in_one_image([set(found) for found in self.colors])
        by_color = self._in_one_image([set(found.values()) for found in self.colors])
        for found, noun in ((by_category, "{}"), (by_color, "{} object")):
            if found:
                what, image = self._pick(found)
                question = f"Which image shows {with_article(noun.format(what))}?"
                self.add("which_image", question, IMAGE_NAMES[: self.n], IMAGE_NAMES[image])

    def _same_different(self) -> None:
        one, other = (self.group.scenes[i].objects[0] for i in self.group.pair)
        are_same = getattr(one, self.group.compared) == getattr(other, self.group.compared)
        what = "big object" if self.group.compared == "category" else "color of the big object"
        first, second = (IMAGE_NAMES[i] for i in self.group.pair)
        question = f"Is the {what} in {first} and {second} the same or different?"
        self.add("same_different", question, ("same", "different"), "same" if are_same else "different")

    def _count(self) -> None:
        theme, n = self.group.theme, self.n
        noun = theme if self.group.compared == "color" else f"{theme} object"
        n_showing = sum(theme in (*found, *found.values()) for found in self.colors)
        right = NUMBER_WORDS[n_showing]
        options = draw_options(right, NUMBER_WORDS[: n + 1], 4, self.rng)
        self.add("count", f"How many images show {with_article(noun)}?", options, right)
        right = NUMBER_WORDS[sum(map(len, self.colors))]
        options = draw_options(right, total_words(n), 4, self.rng)
        self.add("count", "How many objects are there in the images?", options, right)

    def _ordering(self) -> None:
        names = tuple(scene.objects[0].category for scene in self.group.scenes)
        if len(set(names)) == self.n:
            right, *others = map(", ".join, permutations(names))
            options = draw_options(right, others, 4, self.rng)
            self.add("ordering", "In which order are the big objects shown?", options, right)

    def _which_image_if_any(self) -> None:
        shown = [set(found) for found in self.colors]
        unique = self._in_one_image(shown)
        if unique:
            name, image = self._pick(unique)
            if self._is_none():
                name, image = self._pick(sorted(set(CATEGORIES) - set().union(*shown))), None
            self._ask_image(with_article(name), image)

    def _which_pair_if_any(self) -> None:
        """Ask for a colour and a category together, both of them in the images where their pair is not."""
        shown = [{(color, name) for name, color in found.items()} for found in self.colors]
        present = set().union(*shown)
        crossed = sorted({(color, name) for color, _ in present for _, name in present} - present)
        unique = self._in_one_image(shown)
        if unique and crossed:
            asked, image = self._pick(unique)
            if self._is_none():
                asked, image = self._pick(crossed), None
            self._ask_image(with_article(" ".join(asked)), image)

    def _is_none(self) -> bool:
        """Draw whether no image is the right one, as likely as any other option."""
        return self.rng.random() * (min(self.n, 3) + 1) < 1

    def _ask_image(self, noun: str, image: int | None) -> None:
        right = NO_IMAGE if image is None else IMAGE_NAMES[image]
        self.add("unanswerable", f"Which image shows {noun}?", self._image_options(image), right)

    def _color_if_shown(self) -> None:
        """Ask for the colour of a category in an image; where it is not shown there, another image shows it."""
        everything = sorted(set().union(*self.colors))
        absent = [(name, i) for name in everything for i in range(self.n) if name not in self.colors[i]]
        present = [(name, i) for i, found in enumerate(self.colors) for name in found]
        if not absent:
            return
        is_shown = self.rng.random() * 4 >= 1
        name, image = self._pick(present if is_shown else absent)
        elsewhere = [color for found in self.colors for what, color in found.items() if what == name]
        trap = self.colors[image][name] if is_shown else self._pick(elsewhere)
        options = [*draw_options(trap, COLOR_NAMES, 3, self.rng), NOT_SHOWN]
        question = f"What color is the {name} in {IMAGE_NAMES[image]}?"
        self.add("unanswerable", question, options, trap if is_shown else NOT_SHOWN)
