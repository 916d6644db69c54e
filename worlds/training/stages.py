"""Run stages of a recipe from where the last one ended, and write what they made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser
from rcblib.runs.files import write_json
from rcblib.runs.options import results_folder
from rcblib.runs.provenance import provenance
from worlds.models import (
    IMAGE_ID,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    build_clip,
    build_llm,
    build_mllm,
    build_processor,
    build_siglip,
    build_tokenizer,
)
from worlds.scenes.language import all_texts
from worlds.training.language import PixelTrainer, SymbolicTrainer
from worlds.training.loop import LoopConfig, run_stage
from worlds.training.packing import LanguageBatches, Packer
from worlds.training.recipe import LLAVA_SCENES, RECIPES, Recipe, Stage, find_stage
from worlds.training.sequences import SequenceBatches
from worlds.training.transfer import adopt, identity_layers
from worlds.training.vision import ClipTrainer, SiglipTrainer, VisionBatches, VisionLoss, VisionTrainer
from worlds.weights import WEIGHTS_FILE, share_weights

WEIGHTS = Path("data/training")


def run_stages(
    recipe: Recipe,
    names: Sequence[str],
    folder: Path,
    weights: Path = WEIGHTS,
    scale: float = 1.0,
    device: str = "auto",
    n_workers: int | None = None,
) -> list[dict[str, Any]]:
    """Run stages one after another, writing each one's weights and record when it ends.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    names : sequence of str
        Stages in the order to run them.
    folder : Path
        Checkpoints, weights (`<stage>.safetensors`, float32) and records (`<stage>.json`) go there.
    weights : Path
        Where an earlier stage's weights are looked for when `folder` lacks them.
    scale : float
        Multiplies the steps of every stage; below 1 for a trial.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    n_workers : int, optional
        Processes that draw scenes, in place of each stage's own number; 0 draws them in this process, as a notebook
        should: a forked kernel shares its kernel's sockets.

    Raises
    ------
    ParameterError
        For an unknown stage, a scale that is not positive, or a stage whose predecessor has no weights yet.
    """
    if scale <= 0:
        raise ParameterError("scale", scale, "a positive number")
    stages = [recipe.stage(name) for name in names]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    records = []
    for stage in stages:
        n_steps = max(1, round(stage.loop.n_steps * scale))
        loop = replace(
            stage.loop, n_steps=n_steps, log_every=min(stage.loop.log_every, max(1, n_steps // 10))
        )
        if n_workers is not None:
            loop = replace(loop, n_workers=n_workers)
        torch.manual_seed(loop.seed)
        trainer, batches, groups = _prepare(recipe, stage, loop, folder, weights, torch.device(device))
        record = run_stage(stage.name, trainer, batches, trainer.loss, loop, folder, groups)
        record = {"stage": asdict(replace(stage, loop=loop)), **record, "provenance": provenance()}
        # Copies, because head and word embeddings are one tensor, and a file may not hold that tensor twice.
        state = {k: v.detach().cpu().clone().contiguous() for k, v in trainer.state_dict().items()}
        save_file(state, folder / f"{stage.name}.safetensors")
        write_json(folder / f"{stage.name}.json", record)
        records.append(record)
    return records


def _prepare(
    recipe: Recipe, stage: Stage, loop: LoopConfig, folder: Path, weights: Path, device: torch.device
) -> tuple[nn.Module, Any, list[tuple[nn.Module, float]] | None]:
    tokenizer = tokenizer_of(recipe)
    packer = Packer(tokenizer, IMAGE_ID)
    before = {name: _load(name, folder, weights) for name in stage.starts_from}
    batches: Any
    symbolic = stage.kind == "symbols"
    if stage.kind == "vision":
        n_side = recipe.vision["image_size"] // recipe.vision["patch_size"]
        batches = VisionBatches(tokenizer, loop.seed, loop.batch_size, n_side, stage.scenes)
    elif stage.forms:
        batches = SequenceBatches(
            packer,
            loop.seed,
            loop.batch_size,
            stage.n_side,
            stage.forms,
            symbolic,
            stage.n_choices,
            stage.n_drills,
            stage.frame_counts,
        )
    else:
        tiled = recipe.pinpoints and not symbolic
        processor = processor_of(recipe, tokenizer).image_processor if tiled else None
        batches = LanguageBatches(
            packer, loop.seed, loop.batch_size, stage.n_side, stage.scenes, symbolic, processor
        )
    trainer = trainer_of(recipe, stage, tokenizer)
    parts = _parts(trainer)
    for name, state in before.items():
        origin, earlier = find_stage(name)
        if len(before) == 1 and (origin.family, earlier.kind) == (recipe.family, stage.kind):
            if stage.kind == "symbols":
                state |= identity_layers(trainer.llm.model, state, "llm.model.")
            trainer.load_state_dict(state)
            continue
        pair = "siglip" if origin.family == "llava_onevision" else "vision"
        for part, prefix in _PREFIXES[pair if earlier.kind == "vision" else earlier.kind].items():
            if part in parts:
                report = adopt(parts[part], _below(state, prefix))
                print(f"{stage.name}: {part} from {name}: " + _adopted(report), flush=True)
    groups = [(parts[name], rate) for name, rate in stage.scales] or None
    return trainer.to(device), batches, groups


def trainer_of(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    """Build what a stage trains, untrained."""
    if stage.kind == "vision":
        loss = VisionLoss(n_tokens=stage.n_tokens)
        if recipe.family == "llava_onevision":
            return SiglipTrainer(build_siglip(len(tokenizer), recipe.vision, recipe.caption), loss)
        clip = build_clip(len(tokenizer), recipe.vision, recipe.caption, recipe.vision["hidden_size"])
        return ClipTrainer(clip, loss)
    packer = Packer(tokenizer, IMAGE_ID)
    text = recipe.text | ({"num_hidden_layers": stage.n_layers} if stage.n_layers else {})
    if stage.kind == "symbols":
        llm = build_llm(recipe.family, len(tokenizer), text)
        return SymbolicTrainer(llm, packer, newline=bool(stage.forms), word_layer=stage.word_layer)
    video_id = len(tokenizer) - 1 if recipe.family == "llava_onevision" else None
    mllm = build_mllm(recipe.family, len(tokenizer), recipe.vision, text, recipe.pinpoints, video_id)
    trainer = PixelTrainer(mllm, packer, "vision" not in dict(stage.scales), stage.word_layer, stage.dropping)
    for name, part in _parts(trainer).items() if stage.scales else ():
        part.requires_grad_(name in dict(stage.scales))
    return trainer


# Where the weights of a stage of each kind hold each part of an MLLM.
_PREFIXES = {
    "vision": {"vision": "clip.vision_model."},
    "siglip": {"vision": "siglip.vision_model."},
    "symbols": {"llm": "llm.model.", "newline": "newline"},
    "pixels": {
        "vision": "llava.model.vision_tower.",
        "connector": "llava.model.multi_modal_projector.",
        "newline": "llava.model.image_newline",
        "llm": "llava.model.language_model.",
    },
}


def _parts(trainer: nn.Module) -> dict[str, nn.Module]:
    """Name the parts of an MLLM that a trainer holds."""
    if isinstance(trainer, VisionTrainer):
        pair = trainer.siglip if isinstance(trainer, SiglipTrainer) else trainer.clip
        return {"vision": pair.vision_model}
    if isinstance(trainer, SymbolicTrainer):
        return {"llm": trainer.llm.model}
    model = trainer.llava.model
    parts = {
        "vision": model.vision_tower,
        "connector": model.multi_modal_projector,
        "llm": model.language_model,
    }
    if hasattr(model, "image_newline"):
        parts["newline"] = nn.ParameterList([model.image_newline])
    return parts


def _adopted(report: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(names)} {kind}" for kind, names in report.items() if names)


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a recipe's model."""
    return build_tokenizer(all_texts(), video=recipe.family == "llava_onevision")


def processor_of(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """Build the processor of a recipe's model around its tokenizer."""
    vision = recipe.vision
    return build_processor(
        recipe.family, tokenizer, vision["image_size"], vision["patch_size"], recipe.pinpoints
    )


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the parameters of a part by their names inside it; a part that is one parameter calls it "0"."""
    return {key.removeprefix(prefix) or "0": value for key, value in state.items() if key.startswith(prefix)}


def _load(name: str, folder: Path, weights: Path) -> dict[str, torch.Tensor]:
    for path in (folder / f"{name}.safetensors", weights / f"{name}.safetensors"):
        if path.exists():
            return {key: value.float() for key, value in load_file(path).items()}
    raise ParameterError(
        "stage", name, f"run it first: {name}.safetensors is neither in {folder} nor in {weights}"
    )


def export(recipe: Recipe, folder: Path, destination: Path) -> None:
    """Write a trained MLLM as a folder that `from_pretrained` opens: half-precision weights, tokenizer, processor.

    Of a second arm whose first one lies beside it, only the weights that differ are written.
    """
    tokenizer = tokenizer_of(recipe)
    stage = recipe.stages[-1]
    trainer = trainer_of(recipe, stage, tokenizer)
    trainer.load_state_dict(_load(stage.name, folder, WEIGHTS))
    mllm = trainer.llava
    mllm.config.rcb_world = recipe.world
    mllm.half().save_pretrained(destination)
    processor_of(recipe, tokenizer).save_pretrained(destination)
    first_arm = destination.parent / recipe.arm_of / WEIGHTS_FILE
    if recipe.arm_of and first_arm.is_file():
        share_weights(destination, first_arm)


def keep_weights(folder: Path, names: Sequence[str], destination: Path = WEIGHTS) -> None:
    """Copy stages' weights in half precision to where later stages find them in a fresh clone, with their records."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        state = load_file(folder / f"{name}.safetensors")
        save_file({k: v.half() for k, v in state.items()}, destination / f"{name}.safetensors")
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        write_json(destination / f"{name}.json", record)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = OneLineParser(prog="worlds train", description="Train an embedded model, stage by stage.")
    parser.add_argument("stages", nargs="*", help="stages of one recipe, in order (default: all of --recipe)")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="default: that of the stages")
    parser.add_argument(
        "--folder", type=results_folder, default=Path("runs/train"), help="checkpoints, weights and records"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    parser.add_argument("--export", type=results_folder, help="write the finished model to this folder")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    named = find_stage(options.stages[0])[0] if options.stages else LLAVA_SCENES
    recipe = RECIPES[options.recipe] if options.recipe else named
    names = options.stages or [s.name for s in recipe.stages]
    run_stages(recipe, names, options.folder, scale=options.scale, device=options.device)
    if options.export:
        export(recipe, options.folder, options.export)
