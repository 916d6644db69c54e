"""Write the model card of an embedded model: what it is, how it was trained, and what `worlds.held_out` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from rcblib.data.questions import COUNT_WORDS
from rcblib.data.video import N_FRAMES
from rcblib.mllm import load_model
from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser
from rcblib.runs.files import atomic_write, read_json, write_json
from rcblib.runs.provenance import project_root, provenance
from worlds.fewer_tokens import fewer_token_scores, fewer_token_table
from worlds.held_out import GOALS, SEQUENCES, SPLITS, blind_scores, judge, score_model, sequence_tasks
from worlds.scenes.generator import WORLDS
from worlds.scenes.vocabulary import CATEGORIES, COLOR_NAMES
from worlds.training.recipe import LLAVA_SCENES, RECIPES, Recipe, Stage, find_stage
from worlds.training.sequences import IMAGE_COUNTS
from worlds.weights import count_parameters, weight_files, weights_digest

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

STAGE_FORMATS = {"scenes": "{:,}", "minutes": "{:.0f}", "last loss": "{:.3f}"}
"""How the card writes the numbers of `stage_table`; the others as they are."""

SCORES_FILE = "scores.json"

CARD_FILE = "README.md"


PRUNED = "fewer_tokens"
"""Key of what `worlds.fewer_tokens.fewer_token_scores` returned, with number of images and seed."""

SHORT_LABELS = {
    "one_word": "one word",
    "color": "colour",
    "yes_no": "yes/no",
    "count": "how many",
    "position": "where",
    "corrected": "relative, above guessing",
}


def card_data() -> ModelCardData:
    """Return what heads the card of every model of this project."""
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        language="en",
        tags=["llava", "visual-token-redundancy"],
    )


def write_card(
    folder: Path, recipe: Recipe, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> None:
    """Write ``README.md``, the model card, and ``scores.json`` into the folder of an exported model.

    Parameters
    ----------
    folder : Path
        Where `worlds.training.stages.export` put the model.
    recipe : Recipe
        What it was trained by.
    records : sequence of Mapping
        What `worlds.training.stages.run_stages` recorded of each stage, in order.
    scores : Mapping
        ``weights_sha256``, and split (``validation``, ``test``) to ``n_images``, ``seed``, ``provenance``, ``true`` and
        ``shuffled`` (as `score_model` returns them), and ``blind`` (as `blind_scores`) where that is not empty. A split
        that is absent was not scored.

    Raises
    ------
    ParameterError
        If the folder holds no model, or a record is of a stage that the recipe lacks.
    """
    files = weight_files(folder)
    if not files:
        raise ParameterError("folder", folder.name, "a folder with an exported model")
    stages = [recipe.stage(record["stage"]["name"]) for record in records]
    sequences = [stage for stage in stages if stage.forms]
    world = WORLDS[recipe.world]
    card = ModelCard.from_template(
        card_data(),
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        folder=folder.name,
        recipe=recipe,
        records=records,
        world=world,
        max_objects=COUNT_WORDS[len(world.n_objects) - 1],
        n_categories=len(CATEGORIES),
        n_colors=len(COLOR_NAMES),
        n_frames=N_FRAMES,
        side=recipe.vision["image_size"] // recipe.vision["patch_size"],
        n_parameters=count_parameters(files),
        megabytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
        stages=_as_text(stage_table(stages, records), STAGE_FORMATS),
        minutes=sum(record["seconds"] for record in records) / 60,
        kinds={stage.kind for stage in stages},
        image_counts=IMAGE_COUNTS,
        frame_counts=sorted({n for stage in sequences for n in stage.frame_counts}),
        starts_from=_further(stages),
        dropping={stage.name: stage.dropping for stage in stages if stage.dropping},
        pruned=scores.get(PRUNED),
        fewer=fewer_token_table(scores[PRUNED]["settings"], SHORT_LABELS) if PRUNED in scores else None,
        default_model=LLAVA_SCENES.name,
        reads_sequences=bool(sequence_tasks(recipe.family)),
        blind=BLIND,
        arms=[name for name, other in RECIPES.items() if other.arm_of == recipe.name],
        splits=[(split, *_split_tables(recipe, records, scores.get(split))) for split in SPLITS],
    )
    write_json(folder / SCORES_FILE, scores)
    atomic_write(folder / CARD_FILE, f"{card}\n")


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
                "hardware": hardware_text(record),
                "precision": record["autocast"],
                "last loss": record["loss"],
            }
        )
    return pd.DataFrame(rows)


def history_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out what was averaged while stages were trained, for `rcblib.reading.figures.learning_curves`.

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


def hardware_text(record: Mapping[str, Any]) -> str:
    """Say on what a stage was trained, from its record."""
    if record["device"] != "cpu":
        return record["device"]
    facts = record["provenance"]
    return f"{facts['cpu']}, {facts['n_threads']} thread{'s' if facts['n_threads'] != 1 else ''}"


def _as_text(table: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """Write columns of numbers as text; a table without rows has none of them."""
    return table.assign(
        **{name: table[name].map(form.format) for name, form in formats.items() if name in table}
    )


def _further(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """List which other models' stages the first ones start from, each with the name of its model."""
    own = {stage.name for stage in stages}
    names = sorted({name for stage in stages for name in stage.starts_from} - own)
    return [(name, find_stage(name)[0].name) for name in names]


def _split_tables(
    recipe: Recipe, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, pd.DataFrame | None, pd.DataFrame | None]:
    """Return a split's scores, and tables of those about scenes and about sequences; `None` for what is not there."""
    if found is None:
        return None, None, None
    on_cpu = all(record["device"] == "cpu" for record in records)
    sequences = [name for name in found["true"] if name.split("/")[0] in SEQUENCES]
    scenes = [name for name in found["true"] if name not in sequences]
    about_scenes = _score_table(recipe, found, scenes, {}, on_cpu)
    blind = found.get("blind", {})
    return found, about_scenes, _score_table(recipe, found, sequences, blind, on_cpu) if sequences else None


def _score_table(
    recipe: Recipe,
    found: Mapping[str, Any],
    names: Sequence[str],
    blind: Mapping[str, Mapping[str, Any]],
    on_cpu: bool,
) -> pd.DataFrame:
    """Lay out some scores of a split, a row each, with what baselines get."""
    rows = []
    for name in names:
        score = found["true"][name]
        goal, suffices = GOALS[recipe.family].get(name, (None, None))
        rows.append(
            {
                "question": LABELS.get(name, name),
                "score": estimate_text(score),
                "n": f"{score['n']:,}",
                "shuffled": estimate_text(found["shuffled"][name]),
                **{BLIND[kind]: f"{values[name]['value']:.3f}" for kind, values in blind.items()},
                "goal": "" if goal is None else f"{goal:.2f} ({suffices:.2f})",
                "reached": judge(recipe.family, name, score["value"], on_cpu),
            }
        )
    return pd.DataFrame(rows)


def estimate_text(score: Mapping[str, Any]) -> str:
    """Write a score with its interval."""
    low, high = score["interval"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Score an embedded model on a split and write its card, from the command line."""
    parser = OneLineParser(
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
    parser.add_argument(
        "--fewer-tokens",
        type=int,
        metavar="N",
        help="ask about so many validation scenes with fewer visual tokens too",
    )
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
    if options.fewer_tokens:
        model, processor = load_model(options.model, device=options.device)
        n_images, seed = options.fewer_tokens, options.seed
        found = fewer_token_scores(model, processor, n_images, seed, batch_size=options.batch_size)
        told = {"n_images": n_images, "seed": seed, "provenance": provenance()}
        scores[PRUNED] = {**told, "settings": found}
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
