"""Draw training batches of several images, of videos and of single scenes, one form a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from rcblib.data.choices import read_options
from rcblib.data.questions import COUNT_WORDS, DIGITS, POSITION_WORDS, position_words, with_article
from rcblib.records import ParameterError, Question
from worlds.scenes.captions import captions
from worlds.scenes.choices import NUMBER_WORDS, draw_options, multiple_choice
from worlds.scenes.generator import Scene, generate_scene
from worlds.scenes.groups import IMAGE_NAMES, generate_group, group_questions
from worlds.scenes.video import DIRECTIONS, generate_video, video_questions
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from worlds.training.packing import FORMS, N_YES_NO_PAIRS, QUESTION_MIX, Packer, training_questions
from worlds.training.vision import patch_owners

IMAGE_COUNTS = (2, 3, 4)

FRAME_COUNTS = (4, 6, 8)

# The chance that a question of the benchmarks' form is asked openly too.
OPEN_SHARE = 0.5

# Plain questions about single images that are asked with options too: the wrong answers to draw from.
_PLACES = tuple(words for row in POSITION_WORDS for words in row)

ANSWERS = {
    "one_word": CATEGORIES,
    "color": COLOR_NAMES,
    "count": COUNT_WORDS,
    "position": _PLACES,
    "digit": DIGITS,
}

# What options are made of, for practice in finding the letter of an option that is named.
PRACTICE = (CATEGORIES, COLOR_NAMES, NUMBER_WORDS[:6], IMAGE_NAMES, tuple(DIRECTIONS), _PLACES)


def open_question(question: Question) -> Question | None:
    """Ask a multiple-choice question without its options; `None` for one of another form."""
    options = read_options(question.text)
    if not options:
        return None
    asked = question.text[: question.text.index("?") + 1]
    return Question(question.image_id, question.task, asked, options[question.answer], question.subset)


def with_options(question: Question, rng: np.random.Generator) -> Question | None:
    """Ask a plain question about a single image with options; `None` where its family has no set of answers."""
    if question.task not in ANSWERS:
        return None
    options = draw_options(question.answer, ANSWERS[question.task], int(rng.integers(2, 5)), rng)
    asked = question.text[: question.text.index("?") + 1]
    text, letter = multiple_choice(asked, options, question.answer, rng)
    return Question(question.image_id, question.task, text, letter, "choice")


def practice_question(image_id: int, rng: np.random.Generator) -> Question:
    """Ask which letter a named option has; the picture does not matter."""
    words = PRACTICE[rng.integers(len(PRACTICE))]
    right = words[rng.integers(len(words))]
    options = draw_options(right, words, int(rng.integers(2, 5)), rng)
    text, letter = multiple_choice(f"Which option is {right}?", options, right, rng)
    return Question(image_id, "practice", text, letter)


def drill_questions(image_id: int, scenes: Sequence[Scene], form: str) -> list[Question]:
    """Ask plainly what each image of a group, or the first and the last frame of a video, shows, object by object.

    Answered by a description, a colour, a place, or the only image that shows something: dense practice in telling
    which picture is which, and what is where in it.
    """
    if form == "video":
        named = [(scenes[0], "the first frame"), (scenes[-1], "the last frame")]
    else:
        named = list(zip(scenes, IMAGE_NAMES, strict=False))
    asked = []
    for scene, name in named:
        said = captions(scene.objects, scene.background)[0] if scene.objects else "none."
        asked.append((f"Describe {name}.", said))
        for item in scene.objects:
            asked.append((f"What color is the {item.category} in {name}?", item.color))
            place = position_words(item.center, scene.width, scene.height)
            if place:
                asked.append((f"Where is the {item.category} in {name}?", place))
            elsewhere = [other for other, _ in named if other is not scene]
            if form == "images" and not any(_shows(other, item.category) for other in elsewhere):
                asked.append((f"Which image shows {with_article(item.category)}?", name))
    return [Question(image_id, "drill", *texts) for texts in asked]


def _shows(scene: Scene, category: str) -> bool:
    return any(item.category == category for item in scene.objects)


class SequenceBatches(Dataset):
    """Draw the batch of step *k*: pictures of one form and number, and their packed questions.

    A batch holds ``images`` uint8 ``(n_items, n_pictures, height, width, 3)``, or, symbolic, the owners of the patches
    of every picture, ``(n_items, n_pictures, n_patches)``; ``form`` is the index of its form in `FORMS`.

    Parameters
    ----------
    packer : Packer
        Lays questions behind their pictures.
    seed, batch_size : int
        Stream, and items a step.
    n_side : int
        Symbols a side of a picture's grid.
    forms : sequence of str
        Forms of the steps in turn, from `FORMS`.
    symbolic : bool
        Whether the LLM is shown symbols in place of pixels.
    n_choices : int
        Questions of the benchmarks' form about each item, at most.
    n_drills : int
        Questions of `drill_questions` about each group or video besides those of the benchmarks' form, at most; with
        any, all of the latter are asked openly too.
    frame_counts : tuple of int
        Frames of a video, one number a step.
    """

    def __init__(
        self,
        packer: Packer,
        seed: int,
        batch_size: int,
        n_side: int,
        forms: tuple[str, ...],
        symbolic: bool,
        n_choices: int = 3,
        n_drills: int = 0,
        frame_counts: tuple[int, ...] = FRAME_COUNTS,
    ):
        if not forms or set(forms) - set(FORMS):
            raise ParameterError("forms", forms, f"some of {', '.join(FORMS)}")
        self.packer, self.seed, self.batch_size, self.n_side = packer, seed, batch_size, n_side
        self.forms, self.symbolic = forms, symbolic
        self.n_choices, self.n_drills, self.frame_counts = n_choices, n_drills, frame_counts

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        form = self.forms[step % len(self.forms)]
        rng = np.random.default_rng([self.seed, step, 2])
        drawn = {"image": 1, "images": rng.choice(IMAGE_COUNTS), "video": rng.choice(self.frame_counts)}
        indices = range(step * self.batch_size, (step + 1) * self.batch_size)
        items = [self._item(form, index, int(drawn[form]), rng) for index in indices]
        batch = self.packer.pack([questions for _, questions in items])
        batch["form"] = torch.tensor(FORMS.index(form))
        batch["noise_seed"] = torch.tensor(int(rng.integers(2**31)))
        if not self.symbolic:
            pixels = [[scene.pixels for scene in scenes] for scenes, _ in items]
            batch["images"] = torch.from_numpy(np.array(pixels))
            return batch
        owners = [[patch_owners(scene, self.n_side) for scene in scenes] for scenes, _ in items]
        for i, key in enumerate(("category", "color", "covered")):
            batch[key] = torch.from_numpy(np.array([[picture[i] for picture in item] for item in owners]))
        return batch

    def _item(
        self, form: str, index: int, n_pictures: int, rng: np.random.Generator
    ) -> tuple[tuple[Scene, ...], list[Question]]:
        """Draw one item's pictures and what is asked about them."""
        if form == "image":
            scene = generate_scene(self.seed, index)
            asked = training_questions(scene, rng, QUESTION_MIX, N_YES_NO_PAIRS)
            choices = [choice for question in asked if (choice := with_options(question, rng))]
            asked += choices[: self.n_choices]
            pictures: tuple[Scene, ...] = (scene,)
        else:
            if form == "images":
                group = generate_group(self.seed, index, n_images=n_pictures)
                pictures, found = group.scenes, group_questions(group, rng)
            else:
                video = generate_video(self.seed, index, n_frames=n_pictures)
                pictures, found = video.frames, video_questions(video, rng)
            asked = [found[i] for i in rng.permutation(len(found))[: self.n_choices]]
            if self.n_drills:
                drills = drill_questions(index, pictures, form)
                chosen = rng.permutation(len(drills))[: self.n_drills]
                asked += [open_question(question) for question in found] + [drills[i] for i in chosen]
            else:
                asked += [open_question(question) for question in asked if rng.random() < OPEN_SHARE]
        asked.append(practice_question(index, rng))
        return pictures, [asked[i] for i in rng.permutation(len(asked))]
