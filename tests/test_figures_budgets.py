"""Check what the figures of many methods draw: curves by kind, kept patches and answers, read back from the axes."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rcblib.reading import figures
from rcblib.records import ParameterError

GRID = (3, 4)


@pytest.fixture
def axes():
    yield plt.subplots(figsize=(4, 3))[1]
    plt.close("all")


@pytest.fixture
def image():
    """Draw 3×4 patches of 8×8 pixels, each of its own colour."""
    rng = np.random.default_rng(0)
    return Image.fromarray(np.repeat(np.repeat(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), 8, 0), 8, 1))


def points(method, kind, start):
    return pd.DataFrame(
        {
            "method": method,
            "kind": kind,
            "retained": [0.4, 0.1],
            "mean": [start + 0.2, start],
            "low": [start + 0.1, start - 0.1],
            "high": [start + 0.3, start + 0.1],
        }
    )


def test_methods_are_drawn_by_kind_with_two_of_them_in_all_panels():
    kinds = ["controls", "codebook", "inside the LLM", "bounds"]
    frame = pd.concat(
        [
            points("codebook", "codebook", 0.5),
            points("random tokens", "controls", 0.3),
            points("FastV", "inside the LLM", 0.6),
            points("oracle by masks", "bounds", 0.7),
        ]
    )
    figure = figures.curves_by_kind(frame, kinds)
    figures.mark_setting(figure, "12 questions, this run")
    assert figure.texts[-1].get_text() == "12 questions, this run"
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() or axes.get_title(loc="left") for axes in panels] == ["inside the LLM", "bounds"]
    for axes, name in zip(panels, ("FastV", "oracle by masks"), strict=True):
        drawn = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
        assert list(drawn) == [*(["codebook", "random tokens"] if axes is panels[0] else []), name]
        codebook, _ = (line for line in axes.get_lines() if line.get_linewidth() == 2.2)
        assert codebook.get_xdata().tolist() == [0.1, 0.4] and codebook.get_ydata().tolist() == [0.5, 0.7]
        assert len(axes.collections) == 2  # bands of these two only
    with pytest.raises(ParameterError, match=r"frame: got \['controls'\]; accepted: methods of the kinds"):
        figures.curves_by_kind(points("random tokens", "controls", 0.3), kinds)


def test_what_methods_keep_stands_over_what_is_answered(image):
    kept = [
        figures.Kept("codebook", [0, 5], "2 tokens", "a dog", True),
        figures.Kept("FastV", None, "drops inside the LLM", "", False),
    ]
    figure = figures.kept_grid(image, kept, GRID, n_columns=3)
    first, second, empty = figure.axes
    assert (
        first.get_title() or first.get_title(loc="left")
    ) == "codebook: 2 tokens" and first.get_xlabel() == "✓ a dog"
    assert second.get_xlabel() == "✗ (nothing)" and not empty.get_visible()
    assert first.xaxis.label.get_color() != second.xaxis.label.get_color()
    opacity = first.get_images()[1].get_array()[..., 3]
    assert opacity.reshape(3, 8, 4, 8).mean((1, 3)).flatten().nonzero()[0].tolist() == [0, 5]
    with pytest.raises(ParameterError, match="kept: got 'none'"):
        figures.kept_grid(image, [], GRID)


def test_kept_patches_are_shown_beside_the_objects(axes, image):
    coverage = np.zeros(GRID)
    coverage[1, 1] = 0.9
    figures.kept_beside_objects(axes, image, [0], coverage, "lost")
    (outline,) = [own for own in axes.collections if len(own.get_paths())]
    x, y = outline.get_paths()[0].vertices.T
    assert 7 < x.min() < x.max() < 17 and 7 < y.min() < y.max() < 17  # of the second patch of the second row
    assert axes.get_xlabel() == "lost"
