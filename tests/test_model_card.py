"""Write a model card that says what was trained and measured."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from test_worlds_held_out import SEQUENCE_NAMES
from test_worlds_training import NAMES, TINY, shrunken

from rcblib.mllm import load_model
from rcblib.records import ParameterError
from rcblib.runs.provenance import project_root
from worlds import model_card
from worlds.held_out import score_model
from worlds.model_card import history_table, main, stage_table, write_card
from worlds.training.recipe import (
    LLAVA_ONEVISION_SCENES,
    RECIPES,
)
from worlds.training.stages import export, run_stages, tokenizer_of, trainer_of
from worlds.weights import count_parameters, weight_files, weights_digest

TINY_ONEVISION = shrunken(LLAVA_ONEVISION_SCENES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the tiny recipe and export it as an embedded model of a project; return the project's folder."""
    root = tmp_path_factory.mktemp("project")
    run_stages(TINY, NAMES, root / "data" / "training", weights=root / "data" / "training", device="cpu")
    export(TINY, root / "data" / "training", root / "data" / "models" / TINY.name)
    return root


@pytest.fixture
def project(trained, monkeypatch):
    """Make the tiny model the embedded model of the project that is found."""
    monkeypatch.setenv("RCB_ROOT", str(trained))
    monkeypatch.setattr(model_card, "RECIPES", {TINY.name: TINY})
    return trained


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Export a tiny OneVision as it is before training, as the embedded model of a project; return the folder."""
    root = tmp_path_factory.mktemp("onevision")
    stage = TINY_ONEVISION.stages[-1]
    torch.manual_seed(0)
    trainer = trainer_of(TINY_ONEVISION, stage, tokenizer_of(TINY_ONEVISION))
    state = {name: weight.detach().clone() for name, weight in trainer.state_dict().items()}
    save_file(state, root / f"{stage.name}.safetensors")
    export(TINY_ONEVISION, root, root / "data" / "models" / TINY_ONEVISION.name)
    return root


def made_up(value: float, n: int = 100) -> dict:
    return {"value": value, "n": n, "interval": [value - 0.01, value + 0.01], "n_clusters": n, "level": 0.95}


def made_up_scores(**values: float) -> dict:
    true = {task: made_up(value) for task, value in values.items()}
    return {"n_images": 7, "seed": 3, "true": true, "shuffled": {task: made_up(0.1) for task in values}}


class TestCard:
    def test_says_what_was_trained_and_measured(self, trained, tmp_path):
        folder = trained / "data" / "models" / TINY.name
        for name in ("model.safetensors",):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        records = [json.loads((trained / "data" / "training" / f"{n}.json").read_text()) for n in NAMES]
        records[2]["note"] = "It rained."
        scores = {"weights_sha256": "0", "validation": made_up_scores(one_word=0.97, yes_no=0.93, digit=0.42)}
        write_card(tmp_path, TINY, records, scores)
        text = (tmp_path / "README.md").read_text()
        assert ModelCard(text).data.license == "apache-2.0"
        assert all(f"| {name} |" in text for name in NAMES)
        assert "6×6 = 36 visual tokens" in text
        assert "\n- `symbols_coarse`. It rained.\n" in text
        rows = {line.split(" | ")[0]: line for line in text.splitlines()}
        assert "| 0.970 [0.960, 0.980] | 100 | 0.100 [0.090, 0.110] | 0.90 (0.90) | yes |" in text
        assert rows["| is there ...? (yes/no)"].endswith("| 0.95 (0.90) | yes, for a CPU |")
        assert rows["| which digit is written"].endswith("| 0.85 (0.80) | no |")
        assert "**Test**: not scored with these weights." in text
        assert json.loads((tmp_path / "scores.json").read_text()) == scores

    def test_groups_and_videos_have_a_table_of_their_own(self, untrained, tmp_path):
        folder = untrained / "data" / "models" / TINY_ONEVISION.name
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        values = {"one_word": 0.83, "multi_image": 0.7, "multi_image/count": 0.6, "video": 0.85}
        found = made_up_scores(**values)
        blind = {
            name: {task: made_up(0.3) for task in values if task != "one_word"} for name in ("chance", "text")
        }
        write_card(tmp_path, TINY_ONEVISION, [], {"weights_sha256": "0", "test": found | {"blind": blind}})
        text = (tmp_path / "README.md").read_text()
        scenes, sequences = text.split(
            "**Test**, 7 groups and 7 videos of 16 frames, seed 3, multiple choice:"
        )
        assert "about a video" not in scenes.split("**Test**, 7 scenes, seed 3:")[1]
        rows = {line.split(" | ")[0]: line for line in sequences.splitlines()}
        assert rows["| question"].split(" | ")[3:6] == ["shuffled", "chance", "text only"]
        assert rows["| about several images"].endswith(
            "| 0.100 [0.090, 0.110] | 0.300 | 0.300 | 0.80 (0.65) | yes, for a CPU |"
        )
        assert rows["| about a video"].endswith("| 0.80 (0.60) | yes |")
        assert rows["| counting over images"].endswith("| 0.300 | 0.300 |  |  |")
        assert "`python -m worlds card --model llava-onevision-scenes --split <split>`" in text
        assert "videos=[frames]" in text and "Three baselines see no picture at all" in text

    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
    def test_cards_in_the_project_are_what_would_be_written(self, recipe, tmp_path):
        root = project_root()
        folder = root / "data" / "models" / recipe.name
        if not (folder / "scores.json").is_file():
            pytest.skip(f"{recipe.name} is not in this project")
        for name in filter(None, (recipe.name, recipe.arm_of)):
            shutil.copytree(folder.parent / name, tmp_path / name)
        copied = tmp_path / recipe.name
        (copied / "README.md").unlink()
        paths = [root / "data" / "training" / f"{stage.name}.json" for stage in recipe.stages]
        records = [json.loads(path.read_text()) for path in paths if path.is_file()]
        write_card(copied, recipe, records, json.loads((folder / "scores.json").read_text()))
        assert (copied / "README.md").read_text() == (folder / "README.md").read_text()

    def test_table_of_stages_comes_from_the_records(self, trained):
        records = [json.loads((trained / "data" / "training" / f"{n}.json").read_text()) for n in NAMES]
        table = stage_table([TINY.stage(name) for name in NAMES], records)
        assert table["stage"].tolist() == NAMES
        assert table["seed"].tolist() == [stage.loop.seed for stage in TINY.stages]
        assert (table["steps"] == 2).all() and (table["scenes"] == 6).all()
        learns = dict(zip(table["stage"], table["learns"], strict=True))
        assert learns["connector"] == "connector, LLM (rate × 0.25)"
        assert learns["all"] == "vision encoder (rate × 0.5), connector, LLM"
        assert learns["vision_masked"] == "image and caption encoders, 8 patches an image"

    def test_history_goes_on_from_stage_to_stage_of_a_kind(self):
        def record(name, kind, n_scenes, steps):
            loop = {"batch_size": 10}
            history = {"step": steps, "loss": [float(step) for step in steps], "color": [0.5] * len(steps)}
            stage = {"name": name, "kind": kind, "loop": loop}
            return {"stage": stage, "scenes": n_scenes, "history": history}

        records = [
            record("a", "vision", 40, [2, 4]),
            record("b", "symbols", 10, [1]),
            record("c", "vision", 20, [2]),
        ]
        table = history_table(records)
        losses = table[table["quantity"] == "loss"].set_index("stage")["scenes"]
        assert losses["a"].tolist() == [20, 40] and losses["b"] == 10 and losses["c"] == 60
        assert len(table) == 8 and set(table["kind"]) == {"vision encoder", "LLM on symbols"}
        assert history_table([{"stage": records[0]["stage"], "scenes": 40}]).empty
        records[0]["history"]["color"] = [None, 0.5]
        assert len(history_table(records)) == 7

    def test_parameters_are_counted_once(self, project):
        model, _ = load_model(TINY.name, device="cpu")
        sizes = count_parameters(weight_files(project / "data" / "models" / TINY.name))
        assert sum(sizes.values()) == sum(weight.numel() for weight in model.parameters())
        connector = model.model.multi_modal_projector
        assert sizes["connector"] == sum(weight.numel() for weight in connector.parameters())

    def test_refuses_a_folder_without_model(self, tmp_path):
        with pytest.raises(ParameterError, match="accepted: a folder with an exported model"):
            write_card(tmp_path, TINY, [], {})
        assert not list(tmp_path.iterdir())


class TestCommand:
    def test_scores_a_model(self, project):
        model, processor = load_model(TINY.name, device="cpu")
        scores = score_model(model, processor, "validation", 4, 0, progress=False)
        assert {"one_word", "color", "yes_no", "yes_no/adversarial", "caption"} <= set(scores)
        assert scores["caption"]["n"] == 4 and scores["yes_no"]["n"] == 3 * scores["yes_no/random"]["n"]
        assert scores == score_model(model, processor, "validation", 4, 0, batch_size=5, progress=False)

    def test_scores_both_ways_and_keeps_test_scores_from_a_second_look(self, project, capsys):
        folder = project / "data" / "models" / TINY.name
        main(["--split", "test", "--n-images", "3", "--device", "cpu"])
        main(["--split", "validation", "--n-images", "3", "--device", "cpu"])
        assert "wrote data/models/llava-scenes/README.md" in capsys.readouterr().out
        scores = json.loads((folder / "scores.json").read_text())
        assert set(scores) == {"weights_sha256", "validation", "test"}
        assert scores["weights_sha256"] == weights_digest(folder)
        assert set(scores["test"]["true"]) == set(scores["test"]["shuffled"]) >= {"one_word", "caption"}
        assert "**Test**, 3 scenes, seed 0:" in (folder / "README.md").read_text()
        with pytest.raises(ParameterError, match="split: got 'test'; accepted: a split not scored yet"):
            main(["--split", "test", "--n-images", "3"])

    def test_scores_with_fewer_tokens_stand_beside_the_others(self, project, capsys):
        folder = project / "data" / "models" / TINY.name
        main(["--fewer-tokens", "5", "--device", "cpu"])
        found = json.loads((folder / "scores.json").read_text())["fewer_tokens"]
        assert (found["n_images"], found["seed"]) == (5, 0)
        text = (folder / "README.md").read_text()
        assert "**With fewer visual tokens**, 5 validation scenes, seed 0" in text
        row = next(
            line for line in text.splitlines() if line.startswith("| the 20 % that objects cover most |")
        )
        assert row.count("|") == 10

    def test_scores_groups_and_videos_of_a_model_that_reads_them(self, untrained, monkeypatch):
        monkeypatch.setenv("RCB_ROOT", str(untrained))
        monkeypatch.setattr(model_card, "RECIPES", {TINY_ONEVISION.name: TINY_ONEVISION})
        main(["--model", TINY_ONEVISION.name, "--split", "validation", "--n-images", "12", "--device", "cpu"])
        folder = untrained / "data" / "models" / TINY_ONEVISION.name
        found = json.loads((folder / "scores.json").read_text())["validation"]
        assert set(found["true"]) == set(found["shuffled"]) > SEQUENCE_NAMES
        assert set(found["blind"]) == {"chance", "letter", "text"}
        assert "12 groups and 12 videos of 16 frames" in (folder / "README.md").read_text()

    def test_scores_of_other_weights_are_dropped(self, project, tmp_path, monkeypatch):
        root = tmp_path / "other"
        folder = root / "data" / "models" / TINY.name
        folder.mkdir(parents=True)
        model, processor = load_model(TINY.name, device="cpu")
        with torch.no_grad():
            model.model.multi_modal_projector.linear_1.bias.add_(1.0)
        model.save_pretrained(folder)
        stale = {"weights_sha256": "of other weights", "test": made_up_scores(one_word=1.0)}
        (folder / "scores.json").write_text(json.dumps(stale))
        monkeypatch.setenv("RCB_ROOT", str(root))
        main([])
        assert json.loads((folder / "scores.json").read_text()) == {"weights_sha256": weights_digest(folder)}
        text = (folder / "README.md").read_text()
        assert text.count("not scored with these weights") == 2
        assert "No record of its training is at hand." in text
