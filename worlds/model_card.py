"""Write the model card of an embedded model: what it is, how it was trained, and what `worlds.held_out` measured."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from rcblib.data.questions import COUNT_WORDS
from rcblib.data.video import N_FRAMES
from rcblib.mllm import load_model
from rcblib.records import ParameterError
from rcblib.runs.files import atomic_write, read_json, write_json
from rcblib.runs.provenance import project_root, provenance
from worlds.held_out import GOALS, SEQUENCES, SPLITS, blind_scores, judge, score_model, sequence_tasks
from worlds.scenes.generator import WORLDS
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from worlds.training.recipe import LLAVA_SCENES, RECIPES, Recipe, Stage, find_stage
from worlds.training.sequences import IMAGE_COUNTS

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
    "multi_image": "about several images",
    "multi_image/which_image": "which image shows ...",
    "multi_image/same_different": "same or different",
    "multi_image/count": "counting over images",
    "multi_image/ordering": "order of the big objects",
    "multi_image/unanswerable": "which image, or what colour, if any",
    "video": "about a video",
    "video/direction": "in which direction an object moves",
    "video/appear": "which object appears",
    "video/disappear": "which object disappears",
    "video/color_change": "which colour an object changes to or from",
    "video/count": "how many objects there are, or move",
    "video/order": "which event is first or last",
}

BLIND = {"chance": "chance", "letter": "most frequent letter", "text": "text only"}
"""Baselines that see no picture, and what the card calls them; see `blind_scores`."""

STAGE_KINDS = {"vision": "vision encoder", "symbols": "LLM on symbols", "pixels": "LLaVA on pixels"}

QUANTITIES = {
    "matched": "captions matched",
    "cls_recall": "objects found from [CLS]",
    "background": "background patches",
    "first": "first word of the answer",
    "later": "its further words",
    "yes_no": "yes or no",
    "color": "colour",
    "word": "word of the right option",
    "letter": "its letter",
}

SCORES_FILE = "scores.json"

CARD_FILE = "README.md"


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
        Where `worlds.training.recipe.export` put the model.
    recipe : Recipe
        What it was trained by.
    records : sequence of Mapping
        What `worlds.training.recipe.run_stages` recorded of each stage, in order.
    scores : Mapping
        ``weights_sha256``, and split (``validation``, ``test``) to ``n_images``, ``seed``, ``provenance``, ``true`` and
        ``shuffled`` (as `score_model` returns them), and ``blind`` (as `blind_scores`) where that is not empty. A split
        that is absent was not scored.

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
            _how_to_use(folder.name, recipe.family),
            _training(recipe, stages, records),
            _quality(recipe, records, scores),
            _CLOSING + _FORMS[recipe.family]["sources"],
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
knows one world, *{recipe.world}*: drawings of {extents} pixels with one to {COUNT_WORDS[len(world.n_objects) - 1]} objects out of {len(CATEGORIES)} categories (ten shapes,
ten handwritten digits) in {len(COLOR_NAMES)} colours, on plain, graded, noisy or photographed backgrounds.{form["also"]}

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
        "also": "",
        "use": "Nothing but `transformers` is needed; images larger than a scene are resized and cropped.",
        "further use": "",
        "sources": "",
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
        "also": "",
        "use": "Nothing but `transformers` is needed; an image of any size is fitted into tiles.",
        "further use": "",
        "sources": (
            "Tiles: Liu et al. 2024, *LLaVA-NeXT: Improved reasoning, OCR, and world\nknowledge*. Shared keys and "
            "values: Ainslie et al. 2023, *GQA*.\n"
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
        "also": (
            " Two to four drawings make\na group. In a video two to four objects move, appear, disappear, change "
            "colour or stand still. About groups and videos\nit answers multiple-choice questions with a letter."
        ),
        "use": (
            "`transformers` and torchvision are needed, or, without torchvision, `rcblib.load_model`, which returns "
            "model and\nprocessor. An image of any size is fitted into tiles."
        ),
        "further use": (
            '\nSeveral images stand in one turn as often as there are, `{"type": "image"}`, and go in as one list, '
            '`images=[[first, second]]`;\na video as `{"type": "video"}` and `videos=[frames]`. Options follow the '
            "question: `Which image shows a star? a. image two\nb. image one Answer with the letter.`\n"
        ),
        "sources": (
            "Several images and video: Li et al. 2024, *LLaVA-OneVision: Easy visual task\ntransfer*. Vision encoder: "
            "Zhai et al. 2023, *Sigmoid loss for language image pre-training*. Kinds of multiple-choice\nquestions: "
            "Wang et al. 2024 (MUIRBench), Jiang et al. 2024 (Mantis-Eval), Li et al. 2024 (MVBench).\n"
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


def _how_to_use(name: str, family: str) -> str:
    form = _FORMS[family]
    return f"""## Use

{form["use"]}

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
{form["further use"]}
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
    """Lay out what was averaged while stages were trained, for `rcblib.reading.figures.charts.learning_curves`.

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

By the recipe `{recipe.name}` of `worlds.training.recipe`, stage by stage, as CLIP and then LLaVA were trained:

{_markdown(table)}

{minutes:.0f} minutes in all, on a machine that did other work besides. Scenes are drawn on the fly: scene *i* of a
stage is number *i* of the training split under the stage's seed, so none is seen twice in a stage. To train again:
`python -m worlds train --recipe {recipe.name} --export <folder>`.

{notes}{"".join(_HOW_TRAINED[kind] for kind in dict.fromkeys(stage.kind for stage in stages))}{_turns(stages)}{_further(stages)}- Every input held all visual tokens of its image. Inputs of one or nine tokens were never seen in training.
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


def _turns(stages: Sequence[Stage]) -> str:
    """Say what steps in turn show where that is more than single images."""
    if not any(stage.forms for stage in stages):
        return ""
    frames = sorted({n for stage in stages if stage.forms for n in stage.frame_counts})
    return f"""\
- *Several images and videos.* Steps show single scenes, groups of {_either(IMAGE_COUNTS)} and videos of {_either(frames)} frames in turn.
  Questions about groups and videos are multiple choice, some of them also asked without options; every picture comes
  with practice in finding the letter of an option that is named.
"""  # noqa: E501


def _either(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


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
    command = "" if recipe.name == LLAVA_SCENES.name else f" --model {recipe.name}"
    parts = [
        f"""## Quality

On scenes whose handwriting and photographs are not those of training. Greedy answers; the share that is right, for
captions the F1 of the objects named; in brackets the 95 % interval from a bootstrap over images, then the number of
questions. *Shuffled* asks the same questions about another scene's picture: what is left there needs no image. *Goal*:
the score to reach, in parentheses the one that suffices for training without a GPU. Measured by
`python -m worlds card{command} --split <split>`.
"""
    ]
    if sequence_tasks(recipe.family):
        parts.append(_SEQUENCE_QUALITY)
    for split in SPLITS:
        if split not in scores:
            parts.append(f"**{split.capitalize()}**: not scored with these weights.\n")
            continue
        found = scores[split]
        n, blind = f"{found['n_images']:,}", found.get("blind", {})
        about_sequences = [name for name in found["true"] if name.split("/")[0] in SEQUENCES]
        about_scenes = [name for name in found["true"] if name not in about_sequences]
        parts.append(f"**{split.capitalize()}**, {n} scenes, seed {found['seed']}:\n")
        parts.append(_score_table(recipe, found, about_scenes, {}, on_cpu))
        if about_sequences:
            what = f"{n} groups and {n} videos of {N_FRAMES} frames"
            parts.append(f"**{split.capitalize()}**, {what}, seed {found['seed']}, multiple choice:\n")
            parts.append(_score_table(recipe, found, about_sequences, blind, on_cpu))
    return "\n".join(parts)


_SEQUENCE_QUALITY = f"""\
Questions about several images and about videos are multiple choice, with two to four options. *Shuffled* asks them
about another group's pictures, as many, or about another video. Three baselines see no picture at all:
*{BLIND["chance"]}*; the *{BLIND["letter"]}* of the right options in training questions, always; and *{BLIND["text"]}*,
the option that was right most often when it was offered in training questions of the same words or kind.
"""


def _score_table(
    recipe: Recipe,
    found: Mapping[str, Any],
    names: Sequence[str],
    blind: Mapping[str, Mapping[str, Any]],
    on_cpu: bool,
) -> str:
    """Lay out some scores of a split, a row each, with what baselines get."""
    rows = []
    for name in names:
        score = found["true"][name]
        goal, suffices = GOALS[recipe.family].get(name, (None, None))
        rows.append(
            {
                "question": LABELS.get(name, name),
                "score": _estimate(score),
                "n": f"{score['n']:,}",
                "shuffled": _estimate(found["shuffled"][name]),
                **{BLIND[kind]: f"{values[name]['value']:.3f}" for kind, values in blind.items()},
                "goal": "" if goal is None else f"{goal:.2f} ({suffices:.2f})",
                "reached": judge(recipe.family, name, score["value"], on_cpu),
            }
        )
    return _markdown(pd.DataFrame(rows)) + "\n"


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
        prog="worlds card", description="Score an embedded model on held-out scenes and write its model card."
    )
    parser.add_argument("--model", default=LLAVA_SCENES.name, choices=sorted(RECIPES))
    parser.add_argument("--split", choices=SPLITS, help="split to score (default: none, write the card only)")
    parser.add_argument(
        "--n-images",
        type=int,
        default=600,
        help="scenes of the split, and groups, and videos, if it reads them",
    )
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
        blind = blind_scores(recipe.family, options.split, options.n_images, options.seed)
        if blind:
            scores[options.split]["blind"] = blind
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
