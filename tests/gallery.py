"""Draw every figure of the library once, with data as the notebooks hand it in: names of columns, tasks and models."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rcblib.reading import figures

GALLERY: dict[str, Callable[[], Figure]] = {}


def entry(draw: Callable[[], Figure | None]) -> Callable[[], Figure | None]:
    GALLERY[draw.__name__] = draw
    return draw


def drawing(*args: object, figsize: tuple[float, float] = (5, 3.4), **kwargs: object):
    """Return a function that draws one figure of the library on new axes."""

    def draw(function: Callable) -> Figure:
        figure, axes = plt.subplots(figsize=figsize)
        function(axes, *args, **kwargs)
        return figure

    return draw


def generator() -> np.random.Generator:
    return np.random.default_rng(3)


def picture() -> np.ndarray:
    return np.repeat(np.repeat(generator().integers(0, 256, (4, 5, 3), dtype=np.uint8), 24, 0), 24, 1)


def tokens(n_images: int = 6, n_ranks: int = 40) -> pd.DataFrame:
    rng = generator()
    frame = pd.DataFrame(
        {
            "image_id": np.repeat(np.arange(n_images), n_ranks),
            "rank": np.tile(np.arange(1, n_ranks + 1), n_images),
        }
    )
    frame["cls_rank"] = frame["rank"]
    frame["attention_last"] = 0.5 / frame["rank"] + 0.02 * rng.random(len(frame))
    frame["top1_probability"] = 0.2 + 0.5 * rng.random(len(frame))
    frame["global_divergence"] = 1e-3 * (0.01 + rng.random(len(frame)) ** 3)
    frame["cls_similarity"] = np.tanh(frame["attention_last"] + 0.1 * rng.random(len(frame)))
    return frame


def estimates(labels: list[str], label: str = "signal", **more: object) -> pd.DataFrame:
    values = np.linspace(0.3, 0.9, len(labels))
    frame = pd.DataFrame({label: labels, "value": values, "low": values - 0.05, "high": values + 0.04})
    return frame.assign(**more)


def scores() -> pd.DataFrame:
    rows = [
        {"task": task, "method": method, "retained": share, "mean": level * share**0.2}
        for task, level in (("one_word", 0.95), ("yes_no", 0.8), ("color", 0.7), ("multi_image", 0.6))
        for method, level in (("codebook", level), ("random", 0.9 * level), ("cls_most", 0.95 * level))
        for share in (0.05, 0.1, 0.2, 0.5)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["mean"] - 0.03, high=frame["mean"] + 0.03)


@entry
def heat_map() -> Figure:
    return drawing(picture(), np.arange(20.0), (4, 5), label="cls_similarity")(figures.heat_map)


@entry
def word_map() -> Figure:
    words = [f"word{i}" if i % 3 else "a" for i in range(20)]
    return drawing(picture(), words, np.linspace(0.05, 0.9, 20), (4, 5))(figures.word_map)


@entry
def kept_map() -> Figure:
    return drawing(picture(), [0, 3, 7, 19], (4, 5), "max_cosine")(figures.kept_map)


@entry
def grid_map() -> Figure:
    return drawing(np.arange(20.0), (4, 5), label="object_coverage")(figures.grid_map)


@entry
def outlined_objects() -> Figure:
    mask = np.zeros((96, 120), bool)
    mask[20:50, 30:80] = True
    return drawing(picture(), [mask], "a red star above a blue ring")(figures.outlined_objects)


@entry
def patches_gallery() -> Figure:
    patches = [[figures.crop_patch(picture(), i, (4, 5), margin=1) for i in range(4)] for _ in range(2)]
    return figures.patches_gallery(patches, ["first", "second"], [["a"] * 4, ["b"] * 4], margin=1)


@entry
def signals_over_rank() -> Figure:
    figure, axes = plt.subplots(figsize=(7.5, 3))
    figures.signals_over_rank(axes, tokens(), ("attention_last", "top1_probability", "global_divergence"))
    return figure


@entry
def scatter_with_median() -> Figure:
    return drawing(tokens(), "cls_similarity", "global_divergence")(figures.scatter_with_median)


@entry
def score_against_retained() -> Figure:
    frame = scores().query("task == 'yes_no'")
    return drawing(frame, reference=0.83, chance=0.5)(figures.score_against_retained)


@entry
def score_grid() -> Figure:
    return figures.score_grid(scores(), references={"yes_no": 0.83}, chances={"yes_no": 0.5})


@entry
def interval_plot() -> Figure:
    names = ["top1_probability", "cls_similarity", "attention_question", "random_numbers", "yes_no"]
    return drawing(estimates(names), reference=0.5, xlabel="area")(figures.interval_plot)


@entry
def interval_plot_of_models() -> Figure:
    models = ["llava-scenes", "llava-next-scenes"]
    frame = pd.concat([estimates(["one_word", "yes_no"], model=name, bound=0.4) for name in models])
    return drawing(frame, hue="model", bound="bound", xlabel="share")(figures.interval_plot)


@entry
def mean_with_band() -> Figure:
    frame = tokens(1).rename(columns={"top1_probability": "mean"})
    frame = frame.assign(low=frame["mean"] - 0.1, high=frame["mean"] + 0.1)
    return drawing(frame, "cls_rank", "top1_probability")(figures.mean_with_band)


@entry
def mean_with_band_over_classes() -> Figure:
    frame = pd.DataFrame({"n_on_object": ["none", "some", "all"], "mean": [0.1, 0.4, 0.8]})
    frame = frame.assign(low=frame["mean"] - 0.1, high=frame["mean"] + 0.1)
    return drawing(frame, "n_on_object", "region_divergence")(figures.mean_with_band)


@entry
def correlation_matrix() -> Figure:
    names = ["cls_similarity", "attention_last", "top1_probability", "region_divergence_textbook"]
    rows = [
        (first, second, rho, rho - 0.08, rho + 0.05)
        for number, first in enumerate(names)
        for second, rho in zip(names[number + 1 :], (0.9, -0.7, 0.2), strict=False)
    ]
    frame = pd.DataFrame(rows, columns=["first", "second", "value", "low", "high"])
    return drawing(frame, frame, figsize=(6, 5))(figures.correlation_matrix)


@entry
def funnel() -> Figure:
    return drawing({"probed": 14000, "low-information": 900, "kept": 45})(figures.funnel)


@entry
def histograms() -> Figure:
    rng = generator()
    groups = {"on_object": rng.normal(0, 1, 500), "background": rng.normal(1, 1, 300)}
    return drawing(groups, label="entropy", cuts={"tau_p": 0.4})(figures.histograms)


@entry
def grouped_scatter() -> Figure:
    rng = generator()
    groups = {"all": rng.random((300, 2)), "codebook": rng.random((20, 2))}
    return drawing(groups, highlight="codebook", labels=("top1_probability", "influence"))(
        figures.grouped_scatter
    )


@entry
def confusion_matrix() -> Figure:
    rng = generator()
    answers = rng.choice(["red", "green", "blue"], 90)
    said = np.where(rng.random(90) < 0.7, answers, rng.choice(["red", "green", "blue", "seven"], 90))
    return drawing(answers, said, ["red", "green", "blue"], "yes_no")(figures.confusion_matrix)


@entry
def learning_curves() -> Figure:
    rows = [
        (kind, stage, scenes, quantity, value)
        for kind in ("vision encoder", "LLM")
        for stage, start in (("masked_patches", 0), ("full", 1000))
        for scenes in range(start + 100, start + 1001, 100)
        for quantity, value in (
            ("loss", 100 / scenes),
            ("cls_recall", scenes / 2000),
            ("yes_no", scenes / 3000),
        )
    ]
    frame = pd.DataFrame(rows, columns=["kind", "stage", "scenes", "quantity", "value"])
    return figures.learning_curves(frame)


@entry
def curves_by_kind() -> Figure:
    names = {"codebook": "codebook", "random tokens": "controls", "VisionZip": "states of the encoder"}
    rows = [
        {"method": method, "kind": kind, "retained": share, "mean": 0.5 + share / 2, "low": 0.4, "high": 1.1}
        for method, kind in names.items()
        for share in (0.05, 0.2, 1.0)
    ]
    return figures.curves_by_kind(pd.DataFrame(rows), ["states of the encoder", "bounds"])


@entry
def kept_grid() -> Figure:
    kept = [figures.Kept("codebook", [0, 5, 19], "3 of 20 tokens", "a dog", True)]
    return figures.kept_grid(picture(), kept, (4, 5))


@entry
def kept_beside_objects() -> Figure:
    coverage = np.zeros((4, 5))
    coverage[1:3, 1:4] = 0.8
    return drawing(picture(), [0, 6, 7], coverage, "the answer is lost")(figures.kept_beside_objects)
