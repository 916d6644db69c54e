"""Check what an evaluation tells methods of its samples: masks, by which an oracle keeps tokens, and other images."""

import numpy as np
import pytest
import tiny
import torch
from picture_files import masks_of

from rcblib.evaluate.grid import evaluate, evaluate_grid
from rcblib.evaluate.known import same_places
from rcblib.evaluate.swapping import SwapPruner
from rcblib.mllm import adapter_for
from rcblib.pruners import OraclePruner, Pruner
from rcblib.pruners.context import PruningContext
from rcblib.records import ParameterError, Question, Sample, SceneObject, SequenceSample, VisualView
from worlds.scenes.coco import encode_mask

SIDE = 24  # pixels; 6 x 6 tokens of 4 px


def sample_with(image_id, *cells, picture=None):
    """Return a sample whose object covers some cells of the 6 x 6 grid."""
    mask = np.zeros((SIDE, SIDE), bool)
    for cell in cells:
        row, column = divmod(cell, 6)
        mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    picture = picture or tiny.random_images(1, (SIDE, SIDE), seed=image_id)[0]
    rle = encode_mask(mask)
    rle = {"size": [SIDE, SIDE], "counts": rle["counts"]}
    cat = SceneObject("cat", (0, 0, SIDE, SIDE), rle, float(mask.sum()))
    return Sample(image_id, lambda: picture, SIDE, SIDE, objects=(cat,) if cells else (), source="test")


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def samples():
    return [sample_with(1, 7, 8, 13, 14), sample_with(2, 35), sample_with(3, 0, 1)]


@pytest.fixture(scope="module")
def questions(samples):
    return [Question(sample.image_id, "one_word", "What does this show ?", "cat") for sample in samples]


def test_the_oracle_keeps_the_objects_and_fills_up_to_its_budget(pair, questions, samples):
    assert masks_of(samples[0])[0].sum() == 4 * 16
    pruner = OraclePruner(0.1)  # 4 of 36
    frame = evaluate(*pair, questions, samples, pruner, batch_size=2, max_new_tokens=2)
    assert frame["n_retained"].tolist() == [4, 4, 4]
    kept = {len(each): each.tolist() for each in pruner.kept}
    assert kept == {4: kept[4]}
    first, second, third = (each.tolist() for each in pruner.kept)
    assert first == [7, 8, 13, 14]
    assert 35 in second and {0, 1} <= set(third)
    again = OraclePruner(0.1, seed=1)
    evaluate(*pair, questions, samples, again, batch_size=3, max_new_tokens=2)
    assert again.kept[0].tolist() == first
    assert again.kept[1].tolist() != second  # other fill
    assert pruner.keeps_positions(adapter_for(*pair))


def test_the_oracle_has_masks_in_an_evaluation_only(pair, questions, samples):
    bare = [Sample(s.image_id, s.load, SIDE, SIDE, source="photos") for s in samples]
    with pytest.raises(ParameterError, match="samples: got 'image 1 without masks'"):
        evaluate(*pair, questions, bare, OraclePruner(0.1))
    model, processor = pair
    inputs = processor(
        text=[adapter_for(*pair).prompt("What ?")], images=[samples[0].image], return_tensors="pt"
    )
    with pytest.raises(ParameterError, match="'object_coverage'"), OraclePruner(0.5)(model):
        model.generate(**inputs, max_new_tokens=1)


def context_views(own, other, own_cover, other_cover):
    signals = {"object_coverage": own_cover, "other_tokens": other, "other_coverage": other_cover}
    return (
        VisualView(own, (1, len(own)), {name: torch.as_tensor(value) for name, value in signals.items()}),
    )


def test_swaps_take_tokens_of_the_same_kind_from_the_other_image():
    own, other = torch.arange(5.0)[:, None], 10 + torch.arange(5.0)[:, None]
    own_cover, other_cover = [0.0, 0.5, 1.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0, 1.0]
    views = context_views(own, other, own_cover, other_cover)

    def rows(what, views=views):
        reduced = SwapPruner(what).reduce(views, PruningContext())
        assert reduced.positions.tolist() == [0, 1, 2, 3, 4]
        return reduced.rows[:, 0].tolist()

    assert rows("image") == [10, 11, 12, 13, 14]
    background = rows("background")
    assert background[:4] == [10, 1, 2, 13]  # same places where they are background there too
    assert background[4] in (10, 11, 13)
    objects = rows("objects")
    assert (objects[0], objects[2:]) == (0, [12, 3, 4])
    assert objects[1] in (12, 14)
    nothing = context_views(own, other, own_cover, [0.0] * 5)
    assert rows("objects", nothing) == [0, 11, 12, 3, 4]  # no objects there: the same places
    assert views[0].tokens.flatten().tolist() == [0, 1, 2, 3, 4]  # as before


def test_swaps_of_an_evaluation_read_the_next_image(pair, questions, samples):
    asked = [Question(i, q.task, f"What does this show {i} ?", "cat") for i, q in enumerate(questions, 1)]
    swapped = evaluate(*pair, asked, samples, SwapPruner(), batch_size=2, max_new_tokens=4)
    moved = [
        Sample(s.image_id, samples[(i + 1) % 3].load, SIDE, SIDE, objects=s.objects)
        for i, s in enumerate(samples)
    ]
    expected = evaluate(*pair, asked, moved, batch_size=2, max_new_tokens=4)
    assert swapped["prediction"].tolist() == expected["prediction"].tolist()
    plain = evaluate(*pair, asked, samples, batch_size=2, max_new_tokens=4)
    assert swapped["prediction"].tolist() != plain["prediction"].tolist()


def test_a_background_that_is_everything_or_nothing(pair, samples):
    everywhere = [sample_with(i, *range(36)) for i in range(4, 10)]
    asked = [Question(s.image_id, "one_word", "Is there a cat in the image ?", "cat") for s in everywhere]
    frame = evaluate_grid(
        *pair,
        asked,
        everywhere,
        {"all": None, "background": SwapPruner("background"), "objects": SwapPruner("objects")},
        max_new_tokens=4,
        progress=False,
    )
    said = frame.groupby("method")["prediction"].agg(list)
    assert said["background"] == said["all"]
    assert said["objects"] != said["all"]


def test_an_image_alone_has_no_other(pair, questions, samples):
    with pytest.raises(ParameterError, match="at least two alike"):
        evaluate(*pair, questions[:1], samples[:1], SwapPruner())
    with pytest.raises(ParameterError, match="what: got 'sky'"):
        SwapPruner("sky")


def test_places_of_grids_of_other_sizes():
    assert same_places((2, 3), (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert same_places((2, 2), (4, 4)).tolist() == [5, 7, 13, 15]
    assert same_places((2, 4), (1, 2)).tolist() == [0, 0, 1, 1] * 2


@pytest.mark.parametrize("kind", ["tiles", "video"])
def test_masks_are_known_view_by_view(kind):
    if kind == "tiles":
        pair = tiny.tiny_next()
        pictures = tiny.random_images(2, (48, 48))
        samples = [
            Sample(i, lambda p=p: p, 48, 48, objects=(half(48),), source="test")
            for i, p in enumerate(pictures)
        ]
        task = "one_word"
    else:
        pair = tiny.tiny_onevision()
        films = [tuple(tiny.random_images(2, (22, 22), seed=i)) for i in range(2)]
        samples = [
            SequenceSample(
                i, lambda f=f: f, "video", ((22, 22),) * 2, objects=((half(22),), ()), source="test"
            )
            for i, f in enumerate(films)
        ]
        task = "video"
    asked = [Question(s.image_id, task, "What does this show ?", "a") for s in samples]
    seen = []

    class Watching(OraclePruner):
        def score(self, views, context=None):
            seen.append(float(views[0].signals["object_coverage"].mean()))
            return super().score(views, context)

    evaluate(*pair, asked, samples, Watching(0.5), max_new_tokens=1)
    assert issubclass(Watching, Pruner)
    if kind == "tiles":  # the whole, and four tiles of which the left two show the object
        assert seen == pytest.approx([0.5, 1.0, 0.0, 1.0, 0.0] * 2, abs=0.01)
    else:
        assert seen == pytest.approx([5 / 9, 0.0] * 2, abs=0.06)  # 3 x 3 tokens, the frame cut at 20 of 22 px
    frame = evaluate(*pair, asked, samples, SwapPruner("objects"), max_new_tokens=1)
    assert (frame["n_retained"] == frame["n_visual_tokens"]).all()


def half(side):
    """Return an object on the left half of a square picture."""
    mask = np.zeros((side, side), bool)
    mask[:, : side // 2] = True
    return SceneObject("cat", (0, 0, side // 2, side), encode_mask(mask), float(mask.sum()))
