"""Say how the embedded models are trained, stage by stage, and run any of the stages from where the last one ended."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rcblib.records import ParameterError
from rcblib.runs.files import write_json
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
from worlds.scenes.generator import WORLDS, SceneConfig
from worlds.scenes.language import all_texts
from worlds.training.language import LanguageBatches, Packer, PixelTrainer, SymbolicTrainer
from worlds.training.loop import LoopConfig, run_stage
from worlds.training.sequences import FRAME_COUNTS, SequenceBatches
from worlds.training.transfer import adopt, identity_layers
from worlds.training.vision import ClipTrainer, SiglipTrainer, VisionBatches, VisionLoss, VisionTrainer

WEIGHTS = Path("data/training")


@dataclass(frozen=True)
class Stage:
    """Describe one stage.

    Attributes
    ----------
    name : str
        Names its files.
    kind : str
        ``"vision"`` (CLIP pair with patch labels), ``"symbols"`` (LLM alone) or ``"pixels"`` (whole LLaVA).
    starts_from : tuple of str
        Stages whose weights it loads, of this recipe or another; one of its own kind alone continues, several supply
        parts, the later ones in place of the earlier ones'.
    loop : LoopConfig
        Length and pace.
    scenes : SceneConfig
        What the scenes are like.
    n_tokens : int or None
        Patches shown to the vision encoder; `None` shows all.
    n_side : int
        Symbols a side of the grid in a symbolic stage.
    forms : tuple of str
        Forms of the steps in turn (`image`, `images`, `video`) where a model reads more than single images.
    n_choices : int
        Questions of the benchmarks' form about a group or video, at most.
    n_drills : int
        Plain questions about what each picture of a group or video shows, see `SequenceBatches`.
    frame_counts : tuple of int
        Frames of a video, one number a step.
    n_layers : int
        Layers of the LLM in this stage; 0 for all of the recipe's. Those that the stage before lacks begin as the
        identity.
    word_layer : int
        The layer behind which the right option's words are asked for, see `answer_loss`; 0 for none.
    scales : tuple of (str, float)
        For a pixel stage, the parts that learn (`vision`, `connector`, `newline`, `llm`) and their rates relative to
        the loop's.
    """

    name: str
    kind: str
    starts_from: tuple[str, ...]
    loop: LoopConfig
    scenes: SceneConfig = field(default_factory=SceneConfig)
    n_tokens: int | None = None
    n_side: int = 12
    forms: tuple[str, ...] = ()
    n_choices: int = 3
    n_drills: int = 0
    frame_counts: tuple[int, ...] = FRAME_COUNTS
    n_layers: int = 0
    word_layer: int = 0
    scales: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Hold the architecture of an embedded model and the stages that train it.

    Attributes
    ----------
    name : str
        Names the model.
    family : str
        ``model_type`` of its config.
    world : str
        Name of the images that it is trained and asked on, see `worlds.scenes.generator.WORLDS`.
    vision, caption, text : dict
        Settings of the vision encoder, of the caption encoder beside it, and of the decoder.
    stages : tuple of Stage
        In the order of training; the last one's weights are the model.
    pinpoints : tuple of (int, int)
        Heights and widths in pixels that images are tiled to.
    """

    name: str
    family: str
    world: str
    vision: dict[str, Any]
    caption: dict[str, Any]
    text: dict[str, Any]
    stages: tuple[Stage, ...]
    pinpoints: tuple[tuple[int, int], ...] = ()

    def stage(self, name: str) -> Stage:
        """Return the stage of that name; a `ParameterError` lists them otherwise."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ParameterError("stage", name, ", ".join(s.name for s in self.stages))


_DENSE = SceneConfig(n_objects=(0.1, 0.25, 0.35, 0.3))

_MOSTLY_SEVERAL = ("images", "video", "images", "video", "image")

LLAVA_SCENES = Recipe(
    name="llava-scenes",
    family="llava",
    world="scenes",
    vision={
        "image_size": 96,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    },
    caption={
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    text={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    stages=(
        Stage("vision_masked", "vision", (), LoopConfig(2400, 64, 3e-3, seed=0), _DENSE, n_tokens=64),
        Stage("vision_full", "vision", ("vision_masked",), LoopConfig(400, 64, 1e-3, seed=2), _DENSE),
        Stage("symbols_coarse", "symbols", (), LoopConfig(1150, 32, 3e-3, seed=1), n_side=6),
        Stage("symbols_fine", "symbols", ("symbols_coarse",), LoopConfig(350, 32, 1.5e-3, seed=3)),
        Stage(
            "connector",
            "pixels",
            ("vision_full", "symbols_fine"),
            LoopConfig(320, 32, 2e-3, seed=4),
            scales=(("connector", 1.0), ("llm", 0.25)),
        ),
        Stage(
            "all",
            "pixels",
            ("connector",),
            LoopConfig(300, 32, 7e-4, seed=5),
            scales=(("vision", 0.5), ("connector", 1.0), ("llm", 1.0)),
        ),
    ),
)

LLAVA_NEXT_SCENES = Recipe(
    name="llava-next-scenes",
    family="llava_next",
    world="large-scenes",
    vision=LLAVA_SCENES.vision,
    caption=LLAVA_SCENES.caption,
    text=LLAVA_SCENES.text | {"num_key_value_heads": 2, "head_dim": 32},
    pinpoints=((96, 192), (192, 96), (192, 192), (288, 96), (96, 288)),
    stages=(
        Stage(
            "next_tiles",
            "pixels",
            ("all",),
            LoopConfig(400, 16, 2e-3, seed=6, log_every=20),
            WORLDS["large-scenes"],
            scales=(("connector", 0.5), ("newline", 1.0), ("llm", 0.5)),
        ),
        Stage(
            "next_all",
            "pixels",
            ("next_tiles",),
            LoopConfig(200, 16, 7e-4, seed=7, log_every=20),
            WORLDS["large-scenes"],
            scales=(("vision", 0.5), ("connector", 1.0), ("newline", 1.0), ("llm", 1.0)),
        ),
    ),
)

LLAVA_ONEVISION_SCENES = Recipe(
    name="llava-onevision-scenes",
    family="llava_onevision",
    world="scenes",
    # The last layer is read, so one less than CLIP's, of which the last but one is.
    vision=LLAVA_SCENES.vision | {"num_hidden_layers": 5, "hidden_act": "gelu_pytorch_tanh"},
    caption=LLAVA_SCENES.caption,
    # Two layers more than the LLM it starts from to tell pictures apart, and two to find an answer's letter.
    text=LLAVA_SCENES.text | {"num_hidden_layers": 8},
    pinpoints=((96, 96), (96, 192), (192, 96), (192, 192)),
    stages=(
        Stage(
            "siglip_masked",
            "vision",
            ("vision_full",),
            LoopConfig(450, 64, 2e-3, seed=8),
            _DENSE,
            n_tokens=64,
        ),
        Stage("siglip_full", "vision", ("siglip_masked",), LoopConfig(150, 64, 1e-3, seed=9), _DENSE),
        Stage(
            "sequence_symbols",
            "symbols",
            ("symbols_fine",),
            LoopConfig(1500, 32, 2e-3, seed=10),
            n_side=6,
            n_layers=6,
            forms=("images", "video", "image"),
        ),
        Stage(
            "sequence_drills",
            "symbols",
            ("sequence_symbols",),
            LoopConfig(1500, 16, 2e-3, seed=13),
            n_side=6,
            n_layers=6,
            forms=_MOSTLY_SEVERAL,
            n_drills=8,
        ),
        Stage(
            "sequence_letters",
            "symbols",
            ("sequence_drills",),
            LoopConfig(1000, 16, 2e-3, seed=14),
            n_side=6,
            n_layers=6,
            forms=_MOSTLY_SEVERAL,
            n_choices=9,
            n_drills=3,
        ),
        Stage(
            "sequence_words",
            "symbols",
            ("sequence_letters",),
            LoopConfig(500, 16, 2e-3, seed=15),
            n_side=6,
            forms=_MOSTLY_SEVERAL,
            n_choices=9,
            n_drills=3,
            word_layer=6,
        ),
        # Needs no letters yet, so it can be trained beside `sequence_words`.
        Stage(
            "onevision_align",
            "pixels",
            ("siglip_full", "sequence_letters"),
            LoopConfig(150, 16, 3e-3, seed=16, log_every=10),
            forms=("image", "video", "image", "images"),
            n_choices=0,
            n_drills=4,
            n_layers=6,
            scales=(("connector", 1.0), ("newline", 0.1)),
        ),
        Stage(
            "onevision_all",
            "pixels",
            ("onevision_align", "sequence_words"),
            LoopConfig(240, 16, 1.2e-3, seed=12, log_every=10),
            forms=("images", "video", "image"),
            n_choices=6,
            n_drills=4,
            word_layer=6,
            scales=(("vision", 0.5), ("connector", 1.0), ("newline", 1.0), ("llm", 0.7)),
        ),
        # Clips as long as those that are asked about later; the second and third of these stages go on like the first.
        *(
            Stage(
                name,
                "pixels",
                (start,),
                LoopConfig(n_steps, 16, 1e-3, seed=seed, log_every=10),
                forms=_MOSTLY_SEVERAL,
                n_choices=9,
                n_drills=2,
                frame_counts=(8, 12, 16),
                word_layer=6,
                scales=(("connector", 0.5), ("newline", 1.0), ("llm", 1.0)),
            )
            for name, start, n_steps, seed in (
                ("onevision_long", "onevision_all", 180, 17),
                ("onevision_long_2", "onevision_long", 110, 18),
                ("onevision_long_3", "onevision_long_2", 340, 19),
            )
        ),
    ),
)

RECIPES = {recipe.name: recipe for recipe in (LLAVA_SCENES, LLAVA_NEXT_SCENES, LLAVA_ONEVISION_SCENES)}

RecipeName = Literal[tuple(RECIPES)]
TrainingDevice = Literal["auto", "cpu", "cuda"]


def find_stage(name: str) -> tuple[Recipe, Stage]:
    """Return a stage of any recipe, and its recipe; a `ParameterError` lists them otherwise."""
    found = {stage.name: (recipe, stage) for recipe in RECIPES.values() for stage in recipe.stages}
    if name not in found:
        raise ParameterError("stage", name, ", ".join(found))
    return found[name]


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
    tokenizer = _tokenizer(recipe)
    packer = Packer(tokenizer, IMAGE_ID)
    before = {name: _load(name, folder, weights) for name in stage.starts_from}
    batches: Any
    if stage.kind == "vision":
        n_side = recipe.vision["image_size"] // recipe.vision["patch_size"]
        batches = VisionBatches(tokenizer, loop.seed, loop.batch_size, n_side, stage.scenes)
    elif stage.forms:
        symbolic = stage.kind == "symbols"
        batches = SequenceBatches(
            packer,
            loop.seed,
            loop.batch_size,
            stage.n_side,
            stage.forms,
            symbolic,
            stage.n_choices,
            stage.n_drills,
            frame_counts=stage.frame_counts,
        )
    else:
        processor = _processor(recipe, tokenizer).image_processor if recipe.pinpoints else None
        symbolic = stage.kind == "symbols"
        batches = LanguageBatches(
            packer,
            loop.seed,
            loop.batch_size,
            stage.n_side,
            stage.scenes,
            symbolic,
            image_processor=None if symbolic else processor,
        )
    trainer = _trainer(recipe, stage, tokenizer)
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


def _trainer(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
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
    trainer = PixelTrainer(mllm, packer, "vision" not in dict(stage.scales), stage.word_layer)
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


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    return build_tokenizer(all_texts(), video=recipe.family == "llava_onevision")


def _processor(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
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
    """Write a trained MLLM as a folder that `from_pretrained` opens: half-precision weights, tokenizer, processor."""
    tokenizer = _tokenizer(recipe)
    stage = recipe.stages[-1]
    trainer = _trainer(recipe, stage, tokenizer)
    trainer.load_state_dict(_load(stage.name, folder, WEIGHTS))
    mllm = trainer.llava
    mllm.config.rcb_world = recipe.world
    mllm.half().save_pretrained(destination)
    _processor(recipe, tokenizer).save_pretrained(destination)


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
    parser = argparse.ArgumentParser(
        prog="worlds train", description="Train an embedded model, stage by stage."
    )
    parser.add_argument("--recipe", default=LLAVA_SCENES.name, choices=sorted(RECIPES))
    parser.add_argument("--stages", nargs="+", help="stages to run, in order (default: all of the recipe)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/train"), help="checkpoints, weights and records"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    parser.add_argument("--export", type=Path, help="write the finished model to this folder")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = RECIPES[options.recipe]
    names = options.stages if options.stages is not None else [s.name for s in recipe.stages]
    run_stages(recipe, names, options.folder, scale=options.scale, device=options.device)
    if options.export:
        export(recipe, options.folder, options.export)


if __name__ == "__main__":
    main()
