"""Score an embedded model on held-out scenes, with true and with shuffled images, and write its model card."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from rcblib.datasets import SceneDataset, questions_for
from rcblib.evaluate import evaluate
from rcblib.geometry import check_integer
from rcblib.metrics import caption_table
from rcblib.mllm import load_model
from rcblib.records import ParameterError, Sample
from rcblib.runs import atomic_write, project_root, provenance, read_json, write_json
from rcblib.scenes.generator import WORLDS
from rcblib.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from rcblib.statistics import mean_interval, paired_ratio
from rcblib.training.recipe import LLAVA_SCENES, RECIPES, Recipe, Stage, find_stage

TASKS = ("one_word", "color", "yes_no", "digit", "count", "position", "caption")
SPLITS = ("validation", "test")
# By family: the score to reach, and the one that suffices for a model trained without a GPU.
GOALS = {
    "llava": {
        "one_word": (0.90, 0.90),
        "color": (0.90, 0.90),
        "yes_no": (0.95, 0.90),
        "digit": (0.85, 0.80),
        "caption": (0.85, 0.80),
    },
    "llava_next": {"one_word": (0.90, 0.85)},
    "llava_onevision": {"one_word": (0.85, 0.80), "multi_image": (0.80, 0.65), "video": (0.80, 0.60)},
}
LABELS = {
    "one_word": "one word for the dominant object",
    "color": "colour of a named object",
    "yes_no": "is there ...? (yes/no)",
    "yes_no/random": "yes/no, absent categories at random",
    "yes_no/popular": "yes/no, the most frequent absent categories",
    "yes_no/adversarial": "yes/no, the absent categories that usually occur with the present ones",
    "digit": "which digit is written",
    "count": "how many objects",
    "position": "where is a named object (nine places)",
    "caption": "captions, F1 of the objects named",
}
STAGE_KINDS = {"vision": "vision encoder", "symbols": "LLM on symbols", "pixels": "LLaVA on pixels"}
QUANTITIES = {
    "matched": "captions matched",
    "cls_recall": "objects found from [CLS]",
    "background": "background patches",
    "first": "first word of the answer",
    "later": "its further words",
    "yes_no": "yes or no",
    "color": "colour",
}
SCORES_FILE = "scores.json"
CARD_FILE = "README.md"


def shuffle_images(samples: Sequence[Sample], generator: np.random.Generator) -> list[Sample]:
    """Give every sample the picture of another one: questions about it then ask about a wrong image.

    Parameters
    ----------
    samples : sequence of Sample
        At least two.
    generator : numpy.random.Generator
        Draws the cycle along which pictures move, so that none stays.

    Returns
    -------
    list of Sample
        In the order given.
    """
    if len(samples) < 2:
        raise ParameterError("n_images", len(samples), "at least 2, to swap their pictures")
    cycle = generator.permutation(len(samples))
    shuffled: dict[int, Sample] = {}
    for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
        shown = samples[there]
        shuffled[int(here)] = replace(samples[here], load=shown.load, width=shown.width, height=shown.height)
    return [shuffled[i] for i in range(len(samples))]


def quality_scores(
    answers: pd.DataFrame, samples: Sequence[Sample], generator: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Reduce answers to one score a task, with intervals from a bootstrap over images.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.evaluate`.
    samples : sequence of Sample
        The images with their objects.
    generator : numpy.random.Generator
        Source of the bootstrap.

    Returns
    -------
    dict
        Task, and ``yes_no/<POPE subset>``, to value, n, interval, n_clusters (images) and level. Values in [0, 1]: the
        share of right answers; for ``caption`` the F1 of the objects that captions name, pooled over all captions,
        colours not counted. Tasks that no question asks are left out.
    """
    scores = {}
    for task in TASKS:
        rows = answers[answers["task"] == task]
        if rows.empty:
            continue
        if task == "caption":
            objects = {sample.image_id: {item.category for item in sample.objects} for sample in samples}
            present = [objects[image_id] for image_id in rows["image_id"]]
            table = caption_table(rows["prediction"].tolist(), present, CATEGORIES)
            estimate = paired_ratio(
                2.0 * table["n_correct"],
                table["n_named"] + table["n_present"],
                rows["image_id"].to_numpy(),
                generator=generator,
            )
        else:
            estimate = mean_interval(rows["score"], rows["image_id"].to_numpy(), generator=generator)
        scores[task] = estimate.as_result()
        if task == "yes_no":
            for subset, group in rows.groupby("subset", sort=False):
                estimate = mean_interval(group["score"], group["image_id"].to_numpy(), generator=generator)
                scores[f"yes_no/{subset}"] = estimate.as_result()
    return scores


def score_model(
    model: Any,
    processor: Any,
    split: str,
    n_images: int,
    seed: int,
    shuffled: bool = False,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Ask held-out scenes every question of every family and score the answers.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    split : str
        ``"validation"`` or ``"test"``; their handwriting and photographs are not those of training scenes.
    n_images : int
        Scenes, at least 2.
    seed : int
        Seed of the scenes and of the questions.
    shuffled : bool
        Whether every question is asked about another scene's picture. What a model scores then, it scores without
        seeing the image.
    batch_size : int
        Questions answered together.
    progress : bool
        Whether to print how far it is.

    Returns
    -------
    dict
        As `quality_scores`.

    Raises
    ------
    ParameterError
        If the split is another one, or a number is out of range.
    """
    answers, samples = answer_held_out(
        model, processor, split, n_images, seed, shuffled, batch_size=batch_size, progress=progress
    )
    return quality_scores(answers, samples, np.random.default_rng([seed, 2]))


def answer_held_out(
    model: Any,
    processor: Any,
    split: str,
    n_images: int,
    seed: int,
    shuffled: bool = False,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[pd.DataFrame, list[Sample]]:
    """Answer what `score_model` scores.

    Parameters
    ----------
    model, processor, split, n_images, seed, shuffled, batch_size, progress
        As in `score_model`.

    Returns
    -------
    answers : pandas.DataFrame
        From `rcblib.evaluate.evaluate`; where shuffled, answers are about another scene than ``image_id`` says.
    samples : list of Sample
        The scenes that the questions are about.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, ", ".join(SPLITS))
    n_images = check_integer("n_images", n_images, 2)
    samples = list(SceneDataset(split, n_images, seed=seed, config=WORLDS[model.config.rcb_world]))
    questions = questions_for(samples, TASKS, seed=seed)
    shown = shuffle_images(samples, np.random.default_rng([seed, 1])) if shuffled else samples
    answers = evaluate(
        model, processor, questions, shown, batch_size=batch_size, categories=CATEGORIES, progress=progress
    )
    return answers, samples


def judge(family: str, task: str, value: float, on_cpu: bool) -> str:
    """Say whether a score reaches its goal: ``"yes"``, ``"yes, for a CPU"`` or ``"no"``; empty without a goal."""
    if task not in GOALS[family]:
        return ""
    goal, suffices = GOALS[family][task]
    if value >= goal:
        return "yes"
    return "yes, for a CPU" if on_cpu and value >= suffices else "no"


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a model's weights, which says what scores belong to."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_card(
    folder: Path, recipe: Recipe, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> None:
    """Write ``README.md``, the model card, and ``scores.json`` into the folder of an exported model.

    Parameters
    ----------
    folder : Path
        Where `rcblib.training.recipe.export` put the model.
    recipe : Recipe
        What it was trained by.
    records : sequence of Mapping
        What `rcblib.training.recipe.run_stages` recorded of each stage, in order.
    scores : Mapping
        ``weights_sha256``, and split (``validation``, ``test``) to ``n_images``, ``seed``, ``provenance``, ``true`` and
        ``shuffled`` (as `score_model` returns them). A split that is absent was not scored.

    Raises
    ------
    ParameterError
        If the folder holds no model, or a record is of a stage that the recipe lacks.
    """
    if not (folder / "model.safetensors").is_file():
        raise ParameterError("folder", folder.name, "a folder with an exported model")
    stages = [recipe.stage(record["stage"]["name"]) for record in records]
    text = "\n".join(
        [
            _front_matter(recipe),
            _introduction(folder, recipe),
            _how_to_use(folder.name),
            _training(recipe, stages, records),
            _quality(recipe, records, scores),
            _CLOSING,
        ]
    )
    write_json(folder / SCORES_FILE, scores)
    atomic_write(folder / CARD_FILE, text)


def _front_matter(recipe: Recipe) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
language: en
tags:
- llava
- visual-token-redundancy
---

# {recipe.name}
"""


def _introduction(folder: Path, recipe: Recipe) -> str:
    vision, text = recipe.vision, recipe.text
    side = vision["image_size"] // vision["patch_size"]
    sizes = count_parameters(folder / "model.safetensors")
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    form = _FORMS[recipe.family]
    world = WORLDS[recipe.world]
    extents = ", ".join(f"{width}×{height}" for height, width in world.sizes)
    heads = f"{text['num_attention_heads']} heads"
    if text["num_key_value_heads"] != text["num_attention_heads"]:
        heads += f" that share {text['num_key_value_heads']} of keys and values"
    return f"""A {form["name"]}-type model for experiments on visual tokens, small enough to probe every token of every image on a
laptop: `{form["class"]}` of `transformers`, with its own tokenizer, chat template and processor. It
knows one world, *{recipe.world}*: drawings of {extents} pixels with one to {len(world.n_objects)} objects out of {len(CATEGORIES)} categories (ten shapes,
ten handwritten digits) in {len(COLOR_NAMES)} colours, on plain, graded, noisy or photographed backgrounds.

| part | what it is | parameters |
|---|---|---|
| vision encoder | {form["encoder"]}: {vision["num_hidden_layers"]} layers, width {vision["hidden_size"]}, {vision["num_attention_heads"]} heads, patches of {vision["patch_size"]} px; {form["read"]} | {sizes["vision encoder"]:,} |
| connector | two layers with GELU, {vision["hidden_size"]} → {text["hidden_size"]} → {text["hidden_size"]} | {sizes["connector"]:,} |
| LLM | {form["llm"]}: {text["num_hidden_layers"]} layers, width {text["hidden_size"]}, {heads}, tied word embeddings | {sizes["LLM"]:,} |

{form["tokens"].format(side=side, n=side**2, tiles=", ".join(f"{w}×{h}" for h, w in recipe.pinpoints))} Weights: float16, {megabytes:.1f} MB.
"""  # noqa: E501


# What the card says of each family's form.
_FORMS = {
    "llava": {
        "name": "LLaVA-1.5",
        "class": "LlavaForConditionalGeneration",
        "encoder": "CLIP ViT with [CLS]",
        "read": "hidden state -2 is used",
        "llm": "Llama",
        "tokens": "An image is {side}×{side} = {n} visual tokens.",
    },
    "llava_next": {
        "name": "LLaVA-NeXT",
        "class": "LlavaNextForConditionalGeneration",
        "encoder": "CLIP ViT with [CLS]",
        "read": "hidden state -2 is used",
        "llm": "Llama",
        "tokens": (
            "An image is read as a whole, {side}×{side} = {n} visual tokens, and in tiles of as many each, of the best "
            "of {tiles} pixels; what padding added is cut off, and a newline ends every row of tiles."
        ),
    },
    "llava_onevision": {
        "name": "LLaVA-OneVision",
        "class": "LlavaOnevisionForConditionalGeneration",
        "encoder": "SigLIP ViT without [CLS]",
        "read": "the last layer is used",
        "llm": "Qwen2",
        "tokens": (
            "A single image is read as a whole, {side}×{side} = {n} visual tokens, and in tiles of the best of {tiles} "
            "pixels; several images as a whole each; a video's frames are pooled to half the side."
        ),
    },
}


def count_parameters(path: Path) -> dict[str, int]:
    """Count the parameters of a LLaVA by part: ``vision encoder``, ``connector``, ``LLM``; tied ones once."""
    sizes = {"vision encoder": 0, "connector": 0, "LLM": 0}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            part = "vision encoder" if "vision" in name else "connector" if "projector" in name else "LLM"
            sizes[part] += int(np.prod(file.get_slice(name).get_shape()))
    return sizes


def _how_to_use(name: str) -> str:
    return f"""## Use

Nothing but `transformers` is needed; images larger than a scene are resized and cropped.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("data/models/{name}", dtype="float32")
processor = AutoProcessor.from_pretrained("data/models/{name}")
question = {{"type": "text", "text": "How many objects are there in the image?"}}
turn = {{"role": "user", "content": [{{"type": "image"}}, question]}}
prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
inputs = processor(images=[Image.open("scene.png").convert("RGB")], text=[prompt], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Intended for research on which visual tokens a multimodal LLM needs, on ground truth that is known by construction, and
for tests. Licence: Apache-2.0.
"""


def stage_table(stages: Sequence[Stage], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate what was trained, on what, and how long it took; one row a stage."""
    rows = []
    for stage, record in zip(stages, records, strict=True):
        loop = record["stage"]["loop"]
        rows.append(
            {
                "stage": stage.name,
                "learns": learning_parts(stage),
                "starts from": ", ".join(stage.starts_from) or "random weights",
                "seed": loop["seed"],
                "steps": record["steps"],
                "scenes": record["scenes"],
                "peak rate": loop["learning_rate"],
                "minutes": record["seconds"] / 60,
                "hardware": _hardware(record),
                "precision": record["autocast"],
                "last loss": record["loss"],
            }
        )
    return pd.DataFrame(rows)


def history_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out what was averaged while stages were trained, for `rcblib.figures.learning_curves`.

    Parameters
    ----------
    records : sequence of Mapping
        Of stages, in the order they ran.

    Returns
    -------
    pandas.DataFrame
        ``kind`` (in words), ``stage``, ``scenes`` (seen so far by stages of this kind), ``quantity`` and ``value``; one
        row a quantity and moment at which it was measured. Empty where records hold no history.
    """
    rows, seen = [], dict.fromkeys(STAGE_KINDS, 0)
    for record in records:
        stage, history = record["stage"], record.get("history", {})
        for quantity in [name for name in history if name != "step"]:
            for step, value in zip(history["step"], history[quantity], strict=True):
                if value is None:
                    continue
                scenes = seen[stage["kind"]] + step * stage["loop"]["batch_size"]
                rows.append((STAGE_KINDS[stage["kind"]], stage["name"], scenes, quantity, value))
        seen[stage["kind"]] += record["scenes"]
    return pd.DataFrame(rows, columns=["kind", "stage", "scenes", "quantity", "value"])


def learning_parts(stage: Stage) -> str:
    """Say what learns in a stage, and how fast relative to its peak rate where that differs."""
    if stage.kind == "pixels":
        words = {"vision": "vision encoder", "connector": "connector", "newline": "newline", "llm": "LLM"}
        parts = [words[name] + (f" (rate × {rate:g})" if rate != 1 else "") for name, rate in stage.scales]
        return ", ".join(parts)
    if stage.kind == "symbols":
        return f"LLM, on symbols ({stage.n_side}×{stage.n_side})"
    shown = "all patches" if stage.n_tokens is None else f"{stage.n_tokens} patches an image"
    return f"image and caption encoders, {shown}"


def _hardware(record: Mapping[str, Any]) -> str:
    if record["device"] != "cpu":
        return record["device"]
    facts = record["provenance"]
    return f"{facts['cpu']}, {facts['n_threads']} thread{'s' if facts['n_threads'] != 1 else ''}"


def _training(recipe: Recipe, stages: Sequence[Stage], records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "## Training\n\nNo record of its training is at hand.\n"
    table = stage_table(stages, records)
    table["scenes"] = table["scenes"].map("{:,}".format)
    table["minutes"] = table["minutes"].map("{:.0f}".format)
    table["last loss"] = table["last loss"].map("{:.3f}".format)
    minutes = sum(record["seconds"] for record in records) / 60
    notes = "".join(
        f"- `{record['stage']['name']}`. {record['note']}\n" for record in records if record.get("note")
    )
    return f"""## Training

By the recipe `{recipe.name}` of `rcblib.training.recipe`, stage by stage, as CLIP and then LLaVA were trained:

{_markdown(table)}

{minutes:.0f} minutes in all, on a machine that did other work besides. Scenes are drawn on the fly: scene *i* of a
stage is number *i* of the training split under the stage's seed, so none is seen twice in a stage. To train again:
`python -m rcblib train --recipe {recipe.name} --export <folder>`.

{notes}{"".join(_HOW_TRAINED[kind] for kind in dict.fromkeys(stage.kind for stage in stages))}{_further(stages)}- Every input held all visual tokens of its image. Inputs of one or nine tokens were never seen in training.
- Matrices inside blocks follow Muon, everything else AdamW; the rate rises over 3 % of the steps, then falls along a
  cosine.
"""  # noqa: E501


_HOW_TRAINED = {
    "vision": """\
- *Vision encoder.* Captions give the whole image its meaning, contrastively as in CLIP or SigLIP. Supervision goes
  beyond theirs: linear heads read from the image's pooled row ([CLS] in CLIP) which objects are there, and from each
  patch's hidden state the category and colour of the object under it. The heads are dropped afterwards.
""",
    "symbols": """\
- *LLM.* It first learns alone to look words up in its context, on *symbolic* scenes: in place of a patch stands the sum
  of the word embeddings of the category and colour under it. LLaVA starts from an LLM that can do this already.
""",
    "pixels": """\
- *Connector, then everything,* on answers to questions about pixels. Several questions share one image in a training
  sequence; each sees the image and itself only.
""",
}


def _further(stages: Sequence[Stage]) -> str:
    """Say which other models' stages the first ones start from."""
    own = {stage.name for stage in stages}
    names = sorted({name for stage in stages for name in stage.starts_from} - own)
    if not names:
        return ""
    listed = ", ".join(f"`{name}` of `{find_stage(name)[0].name}`" for name in names)
    return f"""- It starts from {listed}: parameters of the same shape are copied, shared heads of keys and values begin as means of the
  heads that they replace, and what has no counterpart begins at random.
"""  # noqa: E501


def _quality(recipe: Recipe, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> str:
    on_cpu = all(record["device"] == "cpu" for record in records)
    parts = [
        """## Quality

On scenes whose handwriting and photographs are not those of training. Greedy answers; the share that is right, for
captions the F1 of the objects named; in brackets the 95 % interval from a bootstrap over images, then the number of
questions. *Shuffled* asks the same questions about another scene's picture: what is left there needs no image. *Goal*:
the score to reach, in parentheses the one that suffices for training without a GPU. Measured by
`python -m rcblib.model_card --split <split>`.
"""
    ]
    for split in SPLITS:
        if split not in scores:
            parts.append(f"**{split.capitalize()}**: not scored with these weights.\n")
            continue
        found = scores[split]
        rows = []
        for task, score in found["true"].items():
            goal, suffices = GOALS[recipe.family].get(task, (None, None))
            rows.append(
                {
                    "question": LABELS.get(task, task),
                    "score": _estimate(score),
                    "n": f"{score['n']:,}",
                    "shuffled": _estimate(found["shuffled"][task]),
                    "goal": "" if goal is None else f"{goal:.2f} ({suffices:.2f})",
                    "reached": judge(recipe.family, task, score["value"], on_cpu),
                }
            )
        parts.append(f"**{split.capitalize()}**, {found['n_images']:,} scenes, seed {found['seed']}:\n")
        parts.append(_markdown(pd.DataFrame(rows)) + "\n")
    return "\n".join(parts)


_CLOSING = """## Limits

- On anything but scenes its answers mean nothing: a photograph is answered with one of a few dozen words.
- Its tokenizer knows the words of the scenes' questions and captions only, in lower case; others become `<unk>`.
- It was trained on full sets of visual tokens, as LLaVA is. What it says of a single token is an extrapolation; the
  book measures how far it can be trusted.
- More scenes give more: the stages are short enough for two CPU cores; on a GPU the same command can run them longer.

## Sources

Handwritten digits: `load_digits` of scikit-learn (UCI repository, Alpaydin and Kaynak 1998). Photographs: the two of
its `load_sample_images` (china.jpg, flower.jpg; CC BY 2.0). Architecture: Liu et al. 2024, *Improved baselines
with visual instruction tuning*; Radford et al. 2021, *Learning transferable visual models from natural language
supervision*.
"""


def _estimate(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"


def _markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown; its cells are text or numbers without bars."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score an embedded model on a split and write its card, from the command line."""
    parser = argparse.ArgumentParser(
        prog="rcblib card", description="Score an embedded model on held-out scenes and write its model card."
    )
    parser.add_argument("--model", default=LLAVA_SCENES.name, choices=sorted(RECIPES))
    parser.add_argument("--split", choices=SPLITS, help="split to score (default: none, write the card only)")
    parser.add_argument("--n-images", type=int, default=600, help="scenes of the split")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and questions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--again", action="store_true", help="score a test split that was scored before")
    options = parser.parse_args(arguments)
    root = project_root()
    folder, recipe = root / "data" / "models" / options.model, RECIPES[options.model]
    paths = [root / "data" / "training" / f"{stage.name}.json" for stage in recipe.stages]
    records = [read_json(path) for path in paths if path.is_file()]
    scores = _scores_of(folder)
    if options.split:
        if options.split == "test" and "test" in scores and not options.again:
            raise ParameterError("split", "test", "a split not scored yet with these weights, or --again")
        model, processor = load_model(options.model, device=options.device)
        true, shuffled = (
            score_model(
                model,
                processor,
                options.split,
                options.n_images,
                options.seed,
                shuffled=shuffled,
                batch_size=options.batch_size,
            )
            for shuffled in (False, True)
        )
        scores[options.split] = {
            "n_images": options.n_images,
            "seed": options.seed,
            "true": true,
            "shuffled": shuffled,
            "provenance": provenance(),
        }
    write_card(folder, recipe, records, scores)
    print(f"wrote {(folder / CARD_FILE).relative_to(root)}")


def _scores_of(folder: Path) -> dict[str, Any]:
    """Read the scores that belong to the weights in a folder; those of other weights are dropped."""
    digest = weights_digest(folder)
    if (folder / SCORES_FILE).is_file():
        found = read_json(folder / SCORES_FILE)
        if found.get("weights_sha256") == digest:
            return found
    return {"weights_sha256": digest}


if __name__ == "__main__":
    main()
