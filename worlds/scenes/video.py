"""Draw short videos in which objects move, appear, disappear or change colour, and ask what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rcblib.data.questions import DIGITS
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
    paint_object,
    place_boxes,
    to_pixels,
)
from worlds.scenes.vocabulary import BACKGROUNDS, CATEGORIES, COLOR_NAMES

VIDEO_KINDS = ("direction", "appear", "disappear", "color_change", "count", "order")

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

AXES = (("left", "right"), ("up", "down"))

N_OBJECTS = (2, 3, 4)

N_MOVING = (0, 1, 2)

FEWEST_FRAMES = 4

SIZE = 96

# Sides of objects, and how far one moves from the start of the clip to its end, both ends included, in pixels.
SHAPE_SIDES, DIGIT_SIDES, DISTANCES = (20, 30), (26, 32), (32, 48)

# When events happen, as shares of the clip, by how many there are: with four frames or more, one lies between any two
# events, before the first and after the last.
EVENT_TIMES = {
    1: ((0.3, 0.7),),
    2: ((0.2, 0.37), (0.63, 0.8)),
    3: ((0.23, 0.27), (0.48, 0.52), (0.73, 0.77)),
}

# Keeps these random numbers apart from those of single scenes and of groups with the same seed and index.
STREAM = 2


@dataclass(frozen=True)
class Actor:
    """Describe one object of a video and what it does.

    Attributes
    ----------
    category, color : str
        What it is, and its colour when it is first seen.
    action : str
        ``"still"``, ``"move"``, ``"appear"``, ``"disappear"`` or ``"change"`` (of colour).
    time : float or None
        When it appears, disappears or changes, as a share of the clip in (0, 1); ``None`` for other actions.
    to : str
        The direction it moves in or the colour it changes to; empty for other actions.
    """

    category: str
    color: str
    action: str
    time: float | None = None
    to: str = ""

    def is_visible(self, time: float) -> bool:
        """Tell whether it can be seen at a time, a share of the clip in [0, 1]."""
        if self.action == "appear":
            return time >= self.time
        return self.action != "disappear" or time < self.time

    def color_at(self, time: float) -> str:
        """Name its colour at a time, a share of the clip in [0, 1]."""
        return self.to if self.action == "change" and time >= self.time else self.color


@dataclass(frozen=True)
class Video:
    """Hold the frames of a clip, in order and evenly spaced, its objects with what they do, and how it was drawn.

    Frame *f* of *n* shows the time (*f* + 1/2) / *n*; what happens does not depend on *n*.
    """

    frames: tuple[Scene, ...] = field(repr=False)
    actors: tuple[Actor, ...]
    split: str
    seed: int
    index: int

    @property
    def events(self) -> tuple[Actor, ...]:
        """Return the objects that appear, disappear or change, in the order in which they do."""
        return tuple(sorted((a for a in self.actors if a.time is not None), key=lambda actor: actor.time))


def frame_times(n_frames: int) -> list[float]:
    """Return the time of every frame as a share of the clip in (0, 1)."""
    return [(f + 0.5) / n_frames for f in range(n_frames)]


def generate_video(seed: int, index: int, split: str = "train", n_frames: int = 16) -> Video:
    """Generate a video; the same arguments give the same pixels, and another `n_frames` samples the same clip.

    Two to four objects of different categories, and none, one or two that move, each number equally likely. Two that
    move do so along the same axis: no object enters a place where another has been or will be. Categories and colours
    are drawn uniformly, unlike those of single scenes: what a question names then tells nothing about its answer. At
    least one object is visible all the time.

    Parameters
    ----------
    seed, index : int
        Which stream and which video of it; both at least 0.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``, as for single scenes.
    n_frames : int
        At least 4.

    Raises
    ------
    ParameterError
        For a negative seed or index, an unknown split, or too few frames.
    """
    check_stream(seed, index, split)
    if n_frames < FEWEST_FRAMES:
        raise ParameterError("n_frames", n_frames, f"at least {FEWEST_FRAMES}")
    rng = np.random.default_rng([seed, index, SPLITS.index(split), STREAM])
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    background = draw_background(kind, SIZE, SIZE, split, rng)
    actors = _draw_actors(rng)
    sprites = _draw_sprites(actors, split, rng)
    frames = []
    for time in frame_times(n_frames):
        canvas = background.copy()
        objects = tuple(sprite.paint(canvas, time) for sprite in sprites if sprite.actor.is_visible(time))
        frames.append(Scene(to_pixels(canvas), objects, kind, split, seed, index))
    return Video(tuple(frames), actors, split, seed, index)


def _draw_actors(rng: np.random.Generator) -> tuple[Actor, ...]:
    n_objects = int(rng.choice(N_OBJECTS))
    n_moving = int(rng.choice(N_MOVING))
    actions = _draw_actions(n_objects, n_moving, rng)
    names = [CATEGORIES[i] for i in rng.permutation(len(CATEGORIES))[:n_objects]]
    n_events = sum(action not in ("still", "move") for action in actions)
    times = iter([rng.uniform(*EVENT_TIMES[n_events][i]) for i in rng.permutation(n_events)])
    axis = AXES[rng.integers(len(AXES))]
    actors = []
    for name, action in zip(names, actions, strict=True):
        color, other = (COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[:2])
        actor = Actor(name, color, action)
        if action == "move":
            actor = replace(actor, to=axis[rng.integers(len(axis))])
        elif action != "still":
            actor = replace(actor, time=float(next(times)), to=other if action == "change" else "")
        actors.append(actor)
    return tuple(actors)


def _draw_actions(n_objects: int, n_moving: int, rng: np.random.Generator) -> list[str]:
    """Draw what each object does: each event at most once a video, and not every object comes or goes."""
    choices = ("appear", "disappear", "change", "still")
    while True:
        others = [choices[i] for i in rng.permutation(len(choices))[: n_objects - n_moving]]
        actions = ["move"] * n_moving + others
        if set(actions) - {"appear", "disappear"}:
            return [actions[i] for i in rng.permutation(n_objects)]


@dataclass(frozen=True)
class _Sprite:
    """Hold how an actor is drawn: coverage, mask, first and last place of its corner, and a paint for each colour."""

    actor: Actor
    coverage: np.ndarray
    mask: np.ndarray
    start: np.ndarray
    end: np.ndarray
    paints: dict[str, np.ndarray]

    def paint(self, canvas: np.ndarray, time: float) -> PlacedObject:
        """Paint the actor as it is at a time onto a canvas `(3, height, width)`."""
        x, y = np.rint(self.start + time * (self.end - self.start)).astype(int).tolist()
        color = self.actor.color_at(time)
        paint_object(canvas, self.coverage, self.paints[color], (x, y))
        return PlacedObject(self.actor.category, color, (x, y), self.mask)


def _draw_sprites(actors: Sequence[Actor], split: str, rng: np.random.Generator) -> list[_Sprite]:
    """Place the objects with the room that they move in; return them by decreasing area."""
    placed = None
    while placed is None:
        sides = [
            int(rng.integers(low, high + 1))
            for low, high in (DIGIT_SIDES if actor.category in DIGITS else SHAPE_SIDES for actor in actors)
        ]
        steps = [
            np.array(DIRECTIONS[actor.to] if actor.action == "move" else (0, 0))
            * rng.integers(DISTANCES[0], DISTANCES[1] + 1)
            for actor in actors
        ]
        boxes = [(side + abs(int(y)), side + abs(int(x))) for side, (x, y) in zip(sides, steps, strict=True)]
        order = sorted(range(len(boxes)), key=lambda i: -boxes[i][0] * boxes[i][1])
        placed = place_boxes([boxes[i] for i in order], SIZE, SIZE, rng)
    sprites = []
    corners = dict(zip(order, placed, strict=True))
    for i, (actor, side, step) in enumerate(zip(actors, sides, steps, strict=True)):
        coverage = draw_coverage(actor.category, side, split, rng)
        start = np.array(corners[i]) + np.maximum(-step, 0)
        colors = (actor.color, actor.to) if actor.action == "change" else (actor.color,)
        paints = {color: draw_paint(color, rng) for color in colors}
        sprites.append(_Sprite(actor, coverage, coverage > 0.5, start, start + step, paints))
    return sorted(sprites, key=lambda sprite: -np.count_nonzero(sprite.mask))


def video_questions(video: Video, rng: np.random.Generator) -> list[Question]:
    """Ask every kind of question that has one right answer for this clip.

    Two to four options each, in random order. Kinds, as `Question.subset`:

    - ``direction`` in which an object moves, for each that does;
    - ``appear``, ``disappear``: which object does; where the clip has them, one that does the opposite and others that
      are visible all the time are among the wrong options;
    - ``color_change``: the colour that an object changes to, or from; the other of the two is a wrong option;
    - ``count``: how many objects there are, and how many move;
    - ``order``: which of two or three events is the first, or the last.

    Parameters
    ----------
    video : Video
        The clip; its index becomes the image id.
    rng : numpy.random.Generator
        Draws what is asked about, wrong options and the order of options.

    Returns
    -------
    list of Question
        Up to eight, of the task ``"video"``. The same for any number of frames.

    Notes
    -----
    Source: Li et al. 2024 (MVBench) for the kinds.
    """
    actors = video.actors
    asker = ChoiceAsker(video.index, "video", rng)
    for actor in actors:
        if actor.action == "move":
            question = f"In which direction does the {actor.category} move?"
            asker.add("direction", question, tuple(DIRECTIONS), actor.to)
    for kind, opposite in (("appear", "disappear"), ("disappear", "appear")):
        for actor in actors:
            if actor.action == kind:
                options = _object_options(actor, opposite, actors, rng)
                asker.add(kind, f"Which object {kind}s?", options, actor.category)
    for actor in actors:
        if actor.action == "change":
            word, right, wrong = ("to", actor.to, actor.color)
            if rng.random() < 0.5:
                word, right, wrong = ("from", wrong, right)
            others = draw_options(wrong, [c for c in COLOR_NAMES if c != right], 3, rng)
            question = f"Which color does the {actor.category} change {word}?"
            asker.add("color_change", question, [right, *others], right)
    words = [NUMBER_WORDS[n] for n in N_OBJECTS]
    asker.add("count", "How many objects are there in the video?", words, NUMBER_WORDS[len(actors)])
    n_moving = sum(actor.action == "move" for actor in actors)
    asker.add("count", "How many objects move?", [NUMBER_WORDS[n] for n in N_MOVING], NUMBER_WORDS[n_moving])
    events = [_event_words(actor) for actor in video.events]
    if len(events) > 1:
        word, right = ("first", events[0]) if rng.random() < 0.5 else ("last", events[-1])
        asker.add("order", f"Which event is {word}?", events, right)
    return asker.asked


def _object_options(
    actor: Actor, opposite: str, actors: Sequence[Actor], rng: np.random.Generator
) -> list[str]:
    """Return an actor and two or three others: first what does the opposite, then what is there, then absent ones."""
    shuffled = [actors[i] for i in rng.permutation(len(actors))]
    ranked = sorted((a for a in shuffled if a is not actor), key=lambda other: other.action != opposite)
    wrong = [other.category for other in ranked][:3]
    present = {other.category for other in actors}
    absent = sorted(set(CATEGORIES) - present)
    if len(wrong) < 2:
        wrong += draw_options(actor.category, absent, 3 - len(wrong), rng)[1:]
    return [actor.category, *wrong]


def _event_words(actor: Actor) -> str:
    verb = "changes color" if actor.action == "change" else f"{actor.action}s"
    return f"{actor.category} {verb}"
