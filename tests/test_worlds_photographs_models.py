"""Put photographs models together from tiny parts, score them, and write their cards."""

import copy
import json
import re
import shutil

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rcblib.data.opening import open_images
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.mllm.loading import adapter_for, load_model
from rcblib.pruners import RandomPruner
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.provenance import project_root
from worlds.fewer_tokens import ALL
from worlds.held_out import GOALS
from worlds.photographs import assembly, card, parts, scores
from worlds.photographs.reading import lora_config
from worlds.photographs.words import Connector

SIDE = 6
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a word tokenizer that lacks the image token, which `build_processor` adds behind all words."""
    words = dict.fromkeys([*SPECIAL, "\n", "user", "assistant", "system", *tiny.WORDS])
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\n"), "removed", invert=True)
    backend.decoder = decoders.Fuse()
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[2], **names)


@pytest.fixture
def small_parts(tmp_path, monkeypatch):
    """Make `worlds.photographs.assembly` put together tiny parts; return the folder of what was trained."""
    torch.manual_seed(0)
    vocabulary = len(tokenizer())
    encoder = Dinov2Model(Dinov2Config(image_size=4 * SIDE, **tiny.TINY_DINOV2)).eval()
    text = LlamaConfig(**tiny.TINY_TEXT | {"vocab_size": vocabulary, "tie_word_embeddings": True})
    state = LlamaForCausalLM(text).state_dict()

    def language_model():
        llm = LlamaForCausalLM(copy.deepcopy(text)).eval()
        llm.load_state_dict(state)
        return llm

    models_folder = tmp_path / "data" / "models"
    trained = models_folder / "arm"
    trained.mkdir(parents=True)
    adapted = get_peft_model(language_model(), lora_config(2))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    adapted.save_pretrained(trained / "adapter")
    save_file(Connector(32, text.hidden_size).state_dict(), trained / "connector.safetensors")
    (trained / "assembly.json").write_text(json.dumps({"tiles": False, "stage": "dropped-0"}))
    (models_folder / "tiled").mkdir()
    (models_folder / "tiled" / "assembly.json").write_text(json.dumps({"tiles": True, "trained": "arm"}))
    side = assembly.PATCH_SIZE, assembly.IMAGE_SIZE
    assert side[1] // side[0] == 12
    for name, value in {
        "IMAGE_SIZE": 4 * SIDE,
        "PATCH_SIZE": 4,
        "PINPOINTS": ((24, 48), (48, 24), (48, 48)),
        "FILES": {},
        "language_model": language_model,
        "llm_tokenizer": tokenizer,
        "vision_encoder": lambda size: copy.deepcopy(encoder),
        "project_path": lambda place: tmp_path / place,
    }.items():
        monkeypatch.setattr(assembly, name, value)
    monkeypatch.setattr(assembly.pooch, "os_cache", lambda name: tmp_path / "cache")
    return models_folder


def check_tiles(adapter, processor, image, grids):
    """Rows are those that the processor leaves room for: each view's grid, and a newline behind each row of tiles."""
    encoded = adapter.encode([image])[0]
    assert [view.grid for view in encoded.views] == grids
    prompt = processor(images=[image], text=[processor.image_token], return_tensors="pt")
    n_places = int((prompt["input_ids"] == adapter.model.config.image_token_index).sum())
    assert encoded.n_rows == n_places == len(adapter.assemble(encoded))
    return encoded


def test_the_tiled_model_takes_what_another_has_trained(small_parts):
    plain, tiled = (load_model(assembly.assembled(name), "cpu", "float32") for name in ("arm", "tiled"))
    names = plain[0].state_dict().keys()
    differing = tiled[0].state_dict().keys() ^ names
    assert {name.rpartition(".")[2] for name in differing} == {"image_newline"}
    assert all(torch.equal(tiled[0].state_dict()[name], plain[0].state_dict()[name]) for name in names)
    assert not (small_parts / "tiled" / "connector.safetensors").exists()


def test_tiles_have_their_rows_and_the_whole_is_as_without(small_parts):
    adapters = {}
    for name in ("arm", "tiled"):
        model, processor = load_model(assembly.assembled(name), "cpu", "float32")
        adapters[name] = adapter_for(model, processor), processor
    picture = open_images("photographs", "validation", 1)[0].image
    (number,) = tokenizer()("\n").input_ids
    line_break = adapters["tiled"][0].model.get_input_embeddings().weight[number]
    whole = [(SIDE, SIDE)]
    for size, tiles in {
        (224, 224): [(SIDE, SIDE)] * 4,
        (200, 100): [(SIDE, SIDE)] * 2,
        (100, 200): [(SIDE, SIDE)] * 2,
        (300, 224): [(4, SIDE)] * 4,
    }.items():
        found = check_tiles(*adapters["tiled"], picture.resize(size), whole + tiles)
        first_row = adapters["tiled"][0].assemble(found).rows[SIDE**2 :]
        n_columns = 2 * SIDE if len(tiles) == 4 or size[0] > size[1] else SIDE
        newlines = (first_row == line_break).all(-1).nonzero()[:, 0]
        assert (newlines % (n_columns + 1) == n_columns).all() and len(newlines) == len(first_row) // (
            n_columns + 1
        )
    alone = adapters["arm"][0].encode([picture])[0].views[0].tokens
    tiled = adapters["tiled"][0].encode([picture])[0].views[0].tokens
    assert torch.allclose(alone, tiled, atol=1e-4)


def test_the_tiled_model_answers_with_all_tokens_and_fewer(small_parts):
    model, processor = load_model(assembly.assembled("tiled"), "cpu", "float32")
    samples = open_images("photographs", "validation", 2)[:]
    asked = questions_for(samples, ["caption"])
    answers = evaluate_grid(
        model,
        processor,
        asked,
        samples,
        {"all": None, "some": RandomPruner(0.2)},
        progress=False,
        max_new_tokens=3,
    )
    n_rows = 5 * SIDE**2 + 2 * SIDE
    assert answers["n_visual_tokens"].unique() == [n_rows]
    assert (answers.loc[answers["method"] == "some", "n_retained"] < 0.5 * n_rows).all()


# Scores


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Score a tiny random model as a folder of weights of its own; return the folder and a function that scores."""
    folder = tmp_path / "arm"
    folder.mkdir()
    (folder / "assembly.json").write_text(json.dumps({"tiles": False, "stage": "dropped-0"}))
    save_file({"weight": torch.zeros(2)}, folder / "connector.safetensors")
    monkeypatch.setattr(scores, "load_model", lambda *_: tiny.tiny_llava())
    monkeypatch.setattr(scores, "RANDOM", {"20 % at random": 0.2})
    monkeypatch.setattr(scores, "N_RANDOM_SEEDS", 2)

    def run(split="validation", **options):
        return scores.write_scores(folder, split, scale=0.01, results_folder=tmp_path / "kept", **options)

    return folder, run


def test_scores_of_a_split_keep_those_of_another(scored, capsys):
    folder, run = scored
    first = run()
    assert set(first["scores"]) == {
        ALL,
        "guessing",
        f"{ALL}, the same questions",
        "guessing, the same questions",
        scores.SHUFFLED,
        "20 % at random",
        *scores.ORACLE,
    }
    assert first["scores"][ALL]["one_word"]["n"] == 3 and first["scores"][ALL]["yes_no"]["n"] == 6
    assert first["scores"]["20 % at random"]["one_word"]["n"] == 1  # a question, not its two draws
    assert first["tasks"] == [] and "relative" not in first["scores"]["20 % at random"]
    test = run("test")
    written = json.loads((folder / "scores.json").read_text())
    assert written["validation"] == first and written["test"] == test
    with pytest.raises(ParameterError, match="split: got 'test'.*--again"):
        run("test")
    capsys.readouterr()
    assert run("test", again=True)["scores"] == test["scores"]
    assert "evaluating 1 of 1" in capsys.readouterr().out


def test_scores_of_other_weights_are_earlier_ones(scored):
    folder, run = scored
    old = run()
    save_file({"weight": torch.ones(2)}, folder / "connector.safetensors")
    found = scores.read_scores(folder)
    assert "validation" not in found
    (earlier,) = found["earlier"]
    assert earlier["scores"] == old["scores"][ALL] and earlier["split"] == "validation"
    run()
    assert json.loads((folder / "scores.json").read_text())["earlier"] == [earlier]


# Cards


def estimate(value: float, n: int = 100) -> dict:
    return {"value": value, "n": n, "interval": [value - 0.01, value + 0.01], "n_clusters": n, "level": 0.95}


def made_up_split(one_word: float) -> dict:
    tasks = {"one_word": one_word, "larger": 0.6}
    whole = {task: estimate(value) for task, value in tasks.items()}
    guessing = {task: estimate(0.1) for task in tasks}
    fewer = {**whole, "relative": estimate(0.9), "corrected": estimate(0.8)}
    return {
        "seed": 0,
        "n_questions": 200,
        "n_questions_fewer": 50,
        "dtype": "bfloat16",
        "provenance": {"date": "2026-01-02T03:04:05+00:00", "git_commit": None},
        "tasks": ["one_word"],
        "scores": {ALL: whole, "guessing": guessing, scores.SHUFFLED: guessing, "20 % at random": fewer},
    }


def made_up_log(**entries) -> dict:
    config = {"n_steps": 30, "batch_size": 8, "learning_rate": 0.001}
    return {"config": config, "seed": 0, "provenance": {"cpu": "a CPU", "n_threads": 1}} | entries


def test_a_card_says_what_was_trained_and_measured(small_parts):
    folder = small_parts / "arm"
    history = {"loss": [4.0, 3.0, 2.0, 1.5, 1.3, 1.2, 0.6, 0.5], "right": [0.5] * 8, "step": list(range(8))}
    logs = {
        "words-0": made_up_log(),
        "dropped-0": made_up_log(seconds=120.0, loss=0.5, device="cpu", autocast="bfloat16", history=history),
    }
    (folder / "training.json").write_text(json.dumps(logs))
    found = {"weights_sha256": scores.weights_digest(folder), "validation": made_up_split(0.75)}
    told = {"n_questions": 9, "dtype": "bfloat16", "date": "2026-01-01T00:00:00", "git_commit": None}
    found["earlier"] = [{"split": "validation", **told, "scores": made_up_split(0.5)["scores"][ALL]}]
    (folder / "scores.json").write_text(json.dumps(found))
    text = card.write_card(folder).read_text()
    assert ModelCard(text).data.license == "apache-2.0"
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert "| 2 | a CPU, 1 thread | bfloat16 | 0.50 |" in text
    one_word = rows[f"| {card.TASK_LABELS['one_word']}"]
    assert one_word.endswith("| 0.80 (0.70) | yes, for a CPU |") and "0.750 [0.740, 0.760]" in one_word
    assert rows[f"| {card.TASK_LABELS['larger']}"].endswith("| 0.75 (0.65) | no |")
    assert "0.900 [0.890, 0.910] | 0.800 [0.790, 0.810] |" in rows["| 20 % at random"]
    assert "still falling at its end" in text and "0.500 [0.490, 0.510]" in rows["| 2026-01-01 00:00"]
    assert "**Test**: not scored with these weights." in text
    curve = card.history_table(logs)
    assert curve["kind"].unique() == ["photographs, tokens dropped"] and curve["scenes"].max() == 7 * 8
    assert "One seed of the last stage is shipped." in text
    seeds = [line for line in text.splitlines() if re.match(r"\| \d \| 0\.\d{3} \[", line)]
    assert len(seeds) >= 3 and f"with each of {len(seeds)} seeds" in text
    tiled = card.write_card(small_parts / "tiled").read_text()
    assert "no training of its own" in tiled and "| `dropped-0` |" in tiled
    assert "**Validation**: not scored with these weights." in tiled


def test_cards_of_two_seeds_name_each_other(small_parts):
    folder, other = small_parts / "arm", small_parts / "arm-seed-1"
    (folder / "training.json").write_text(json.dumps({"all-0": made_up_log()}))
    shutil.copytree(folder, other)
    (other / "training.json").write_text(json.dumps({"all-1": made_up_log() | {"seed": 1}}))
    assert "`arm-seed-1` was trained with another" in card.write_card(folder).read_text()
    assert "It is `arm` with another seed" in card.write_card(other).read_text()


def test_a_folder_without_a_model_and_a_log_of_one_stage_are_named(small_parts, tmp_path):
    with pytest.raises(ParameterError, match="assembly.json"):
        card.write_card(tmp_path)
    (small_parts / "arm" / "training.json").write_text(json.dumps(made_up_log()))
    with pytest.raises(ParameterError, match="the log of one stage"):
        card.write_card(small_parts / "arm")


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (project_root() / "data" / "models").glob("*photographs*"))
)
def test_cards_in_the_project_are_what_would_be_written(name, tmp_path):
    models_folder = project_root() / "data" / "models"
    for path in models_folder.glob("*photographs*"):
        shutil.copytree(path, tmp_path / path.name)
    written = (tmp_path / name / "README.md").read_text()
    assert card.write_card(tmp_path / name).read_text() == written
    assert set(GOALS["photographs"]) <= set(card.TASK_LABELS)


# With the real parts


def test_the_tiled_model_of_real_parts_reads_its_pictures():
    try:
        for package in parts.FILES:
            parts.part(package)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    model, processor = load_model(assembly.llava_next_photographs(), "cpu", "bfloat16")
    samples = open_images("photographs", "validation", 8)[:]
    check_tiles(adapter_for(model, processor), processor, samples[0].image, [(12, 12)] * 5)
    asked = questions_for(samples, ["one_word"])[:1]
    a_fifth = {"a fifth": RandomPruner(0.2)}
    answers = evaluate_grid(model, processor, asked, samples, a_fifth, progress=False, max_new_tokens=2)
    assert answers["n_visual_tokens"].unique() == [5 * 144 + 24] and answers["prediction"].str.len().min() > 0
