"""Train tiny models by the recipe: every stage runs, resumes, exports; packed questions cost no exactness."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from rcblib.mllm import load_model
from rcblib.records import ONE_WORD_QUESTION, ParameterError, Question
from worlds.models import IMAGE_ID, build_clip, build_llm, build_mllm, build_processor, build_tokenizer
from worlds.scenes.generator import SceneConfig, generate_scene
from worlds.scenes.language import all_texts
from worlds.training.language import PixelTrainer, SymbolicTrainer, answer_loss
from worlds.training.loop import LoopConfig, make_optimizers, rate_at, run_stage
from worlds.training.muon import Muon, orthogonalize
from worlds.training.packing import IGNORED, LanguageBatches, Packer, block_mask, training_questions
from worlds.training.recipe import LLAVA_ONEVISION_SCENES, LLAVA_SCENES, Recipe
from worlds.training.stages import export, keep_weights, processor_of, run_stages, trainer_of
from worlds.training.vision import (
    BACKGROUND,
    ClipTrainer,
    VisionBatches,
    VisionLoss,
    patch_labels,
    patch_owners,
)

WIDTH = 16


def shrunken(recipe: Recipe) -> Recipe:
    """Keep the stages of a recipe in kind and order, on a model and steps small enough for a test."""
    small = {"hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": 2}
    stages = tuple(
        replace(
            stage,
            loop=replace(stage.loop, n_steps=2, batch_size=3, n_workers=0, log_every=1),
            n_tokens=stage.n_tokens and 8,
            n_side=6 if stage.kind == "symbols" else stage.n_side,
            n_layers=min(stage.n_layers, 1),
            word_layer=min(stage.word_layer, 1),
        )
        for stage in recipe.stages
    )
    return replace(
        recipe,
        vision=recipe.vision | small | {"num_hidden_layers": 2, "patch_size": 16},
        caption=recipe.caption | small | {"num_hidden_layers": 1},
        text=recipe.text | small | {"num_hidden_layers": 2, "num_key_value_heads": 2},
        stages=stages,
    )


TINY = shrunken(LLAVA_SCENES)
NAMES = [stage.name for stage in TINY.stages]
FIVE_STEPS = replace(
    TINY,
    stages=(replace(TINY.stages[2], loop=replace(TINY.stages[2].loop, n_steps=5, checkpoint_minutes=0)),),
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(all_texts())


@pytest.fixture(scope="module")
def packer(tokenizer):
    return Packer(tokenizer, IMAGE_ID)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run all stages of the tiny recipe; return its folder and records."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run_stages(TINY, NAMES, folder, weights=folder, device="cpu")


def lively_llava(n_vocab: int):
    """Build a tiny LLaVA in float64 whose weights are large enough that every input matters."""
    model = build_mllm("llava", n_vocab, TINY.vision, TINY.text).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def asked():
    """Return a scene and nine questions about it, with answers of one and of many tokens."""
    scene = generate_scene(0, 4)
    mix = {"one_word": 1, "caption": 1, "color": 2, "count": 1}
    return scene, training_questions(scene, np.random.default_rng(0), mix, 2)


class Recorder(nn.Module):
    """Stand for an output head and keep what it returned."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head, self.logits = head, None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.logits = self.head(hidden)
        return self.logits


class TestSchedule:
    def test_rises_linearly_then_falls_along_a_cosine(self):
        config = LoopConfig(n_steps=100, batch_size=1, learning_rate=1.0, warmup=0.1)
        assert rate_at(0, config) == pytest.approx(0.1)
        assert rate_at(4, config) == pytest.approx(0.5)
        assert rate_at(9, config) == rate_at(10, config) == pytest.approx(1.0)
        assert rate_at(55, config) == pytest.approx(0.02 + 0.98 * 0.5)
        assert rate_at(100, config) == pytest.approx(0.02)
        rates = [rate_at(step, config) for step in range(10, 101)]
        assert rates == sorted(rates, reverse=True)

    def test_one_step_is_taken_at_the_peak(self):
        assert rate_at(0, LoopConfig(1, 1, 1.0)) == 1.0

    @pytest.mark.parametrize("name", ["n_steps", "batch_size", "learning_rate", "log_every"])
    def test_refuses_numbers_that_are_not_positive(self, name):
        settings = {"n_steps": 1, "batch_size": 1, "learning_rate": 1.0} | {name: 0}
        with pytest.raises(ParameterError, match=f"{name}: got 0; accepted: a positive number"):
            LoopConfig(**settings)

    def test_embeddings_heads_and_vectors_go_to_adam_at_its_own_rate(self):
        module = nn.ModuleDict(
            {
                "block": nn.Linear(4, 6),
                "embed": nn.Embedding(5, 4),
                "lm_head": nn.Linear(4, 5, bias=False),
                "frozen": nn.Linear(4, 4).requires_grad_(False),
            }
        )
        config = LoopConfig(1, 1, learning_rate=0.01, adam_scale=0.5)
        (muon, muon_peaks), (adam, adam_peaks) = make_optimizers([(module, 0.25)], config)
        held = {id(p) for group in muon.param_groups for p in group["params"]}
        others = {id(p) for group in adam.param_groups for p in group["params"]}
        assert held == {id(module["block"].weight)}
        assert others == {
            id(p) for p in (module["block"].bias, module["embed"].weight, module["lm_head"].weight)
        }
        assert muon_peaks == [pytest.approx(0.0025)] and adam_peaks == [pytest.approx(0.00125)]


class TestMuon:
    @pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 48)])
    def test_singular_values_come_near_one_and_vectors_stay(self, shape):
        matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for before, after in zip(matrices, orthogonalize(matrices), strict=True):
            u, _, vh = torch.linalg.svd(before, full_matrices=False)
            rotated = u.T @ after @ vh.T
            values = rotated.diagonal()
            # The quintic does not converge to 1: it keeps values within about 0.7 to 1.2 (Jordan et al. 2024).
            assert values.min() > 0.6 and values.max() < 1.25
            assert (rotated - torch.diag(values)).abs().max() < 1e-10

    def test_matrices_of_a_stack_do_not_touch_each_other(self):
        matrices = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        apart = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
        torch.testing.assert_close(orthogonalize(matrices), apart, rtol=0, atol=1e-12)

    def test_step_has_the_size_of_an_adam_step(self):
        weight = nn.Parameter(torch.zeros(64, 32))
        weight.grad = 1e-6 * torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
        Muon([weight], lr=0.01).step()
        assert float(weight.detach().pow(2).mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25)

    def test_parameters_without_gradient_stay(self):
        weight = nn.Parameter(torch.ones(3, 3))
        Muon([weight], lr=0.01).step()
        assert torch.equal(weight.detach(), torch.ones(3, 3))


class TestBatches:
    def test_a_step_draws_the_same_batch_again_and_another_step_another(self, packer):
        batches = LanguageBatches(packer, 7, 2, 6, SceneConfig(), symbolic=False)
        first, again, other = batches[3], batches[3], batches[4]
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["images"], other["images"])

    def test_batches_travel_to_spawned_workers(self, packer):
        batches = LanguageBatches(packer, 7, 2, 6, SceneConfig(), symbolic=False)
        first, copied = batches[0], pickle.loads(pickle.dumps(batches))[0]
        assert all(torch.equal(first[key], copied[key]) for key in first)

    def test_training_sees_training_scenes(self, tokenizer, packer):
        for batches in (
            LanguageBatches(packer, 7, 2, 6, SceneConfig(), symbolic=False),
            VisionBatches(tokenizer, 7, 2, 6, SceneConfig()),
        ):
            scene = generate_scene(7, 5 * 2 + 1, "train")
            assert np.array_equal(batches[5]["images"][1].numpy(), scene.pixels)

    def test_yes_and_no_are_asked_equally_often_and_answered_truly(self):
        rng = np.random.default_rng(0)
        for index in range(20):
            scene = generate_scene(1, index)
            asked = [q for q in training_questions(scene, rng, {"one_word": 1}, 2) if q.task == "yes_no"]
            assert sorted(q.answer for q in asked) == ["no", "no", "yes", "yes"]
            present = {item.category for item in scene.objects}
            for question in asked:
                named = question.text.removesuffix(" in the image?").split()[-1]
                assert (named in present) == (question.answer == "yes")

    def test_labels_follow_the_tokens_that_predict_them(self, tokenizer, packer):
        batch = packer.pack(
            [
                [Question(0, "count", "How many objects are there in the image?", "two")],
                [
                    Question(1, "position", "Where in the image is the star?", "top left"),
                    Question(1, "one_word", ONE_WORD_QUESTION, "star"),
                ],
            ]
        )
        wanted = batch["labels"] != IGNORED
        assert tokenizer.decode(batch["labels"][0][wanted[0]]) == "two </s>"
        assert tokenizer.decode(batch["labels"][1][wanted[1]]) == "top left </s> star </s>"
        places = wanted[1].nonzero().flatten()
        said = tokenizer.convert_ids_to_tokens(batch["ids"][1][places].tolist())
        assert said == [":", "top", "left", ":", "star"]
        # Padding belongs to no question; positions restart with each one.
        assert (batch["segment"][0] == 0).sum() > 0 and batch["segment"][1].unique().tolist() == [1, 2]
        starts = (batch["segment"][1].diff() == 1).nonzero().flatten() + 1
        assert batch["offset"][1][0] == 0 and batch["offset"][1][starts].tolist() == [0]

    def test_patch_owner_covers_most_of_the_patch(self):
        scene = generate_scene(3, 0)
        category, color, covered = patch_owners(scene, 12)
        labels, colors, _ = patch_labels(scene, 12)
        union = np.zeros((96, 96), bool)
        for item in scene.objects:
            union |= item.full_mask(96, 96)
        shares = union.reshape(12, 8, 12, 8).mean((1, 3)).ravel()
        assert (covered <= shares + 1e-6).all() and (covered[shares == 0] == 0).all() and covered.max() == 1
        assert (labels[covered >= 0.25] == category[covered >= 0.25]).all()
        assert (labels[covered <= 0.05] == BACKGROUND).all() and (colors[covered < 0.25] == IGNORED).all()
        assert (labels[(covered > 0.05) & (covered < 0.25)] == IGNORED).all()


class TestPacking:
    """What a question reads in a packed sequence is what it reads alone."""

    def test_mask_shows_the_image_and_the_question_itself(self):
        segment = torch.tensor([[1, 1, 2, 0]])
        expected = [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ]
        assert block_mask(segment, 2)[0].int().tolist() == expected

    def test_packed_logits_equal_those_of_each_question_alone(self, tokenizer, packer, asked):
        _, questions = asked
        llava = lively_llava(len(tokenizer))
        visual = torch.randn(1, 36, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        head = Recorder(llava.lm_head)

        def logits(group):
            with torch.no_grad():
                answer_loss(
                    llava.model.language_model,
                    llava.get_input_embeddings(),
                    head,
                    packer.prefix,
                    visual,
                    packer.pack([group]),
                )
            return head.logits

        packed = logits(questions)
        alone = torch.cat([logits([question]) for question in questions])
        # float64: what remains is the order of summation.
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-10)
        assert packed.std() > 0.1

    def test_padding_beside_a_longer_scene_changes_nothing(self, tokenizer, packer, asked):
        _, questions = asked
        llava = lively_llava(len(tokenizer))
        visual = torch.randn(2, 36, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        head = Recorder(llava.lm_head)
        parts = llava.model.language_model, llava.get_input_embeddings(), head, packer.prefix
        with torch.no_grad():
            answer_loss(*parts, visual[:1], packer.pack([questions[:1]]))
            alone = head.logits
            answer_loss(*parts, visual, packer.pack([questions[:1], questions]))
        torch.testing.assert_close(head.logits[: len(alone)], alone, rtol=0, atol=1e-10)

    def test_training_reads_what_the_exported_pipeline_feeds(self, tokenizer, packer, asked):
        """Chat template, processor and pixels of inference give the logits that training saw."""
        scene, questions = asked
        llava = lively_llava(len(tokenizer))
        processor = build_processor("llava", tokenizer, 96, 16)
        trainer = PixelTrainer(llava, packer, vision_frozen=True)
        head = Recorder(llava.lm_head)
        with torch.no_grad():
            visual = trainer.visual({"images": torch.from_numpy(scene.pixels)[None]})
            answer_loss(
                llava.model.language_model,
                llava.get_input_embeddings(),
                head,
                packer.prefix,
                visual,
                packer.pack([questions]),
            )
        row = 0
        for question in questions:
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
            prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
            inputs = processor(
                images=[Image.fromarray(scene.pixels)],
                text=[f"{prompt} {question.answer}{tokenizer.eos_token}"],
                return_tensors="pt",
            )
            n_answer = len(tokenizer(question.answer, add_special_tokens=False).input_ids) + 1
            with torch.no_grad():
                expected = llava(**inputs).logits[0, -1 - n_answer : -1]
            # Pixels are normalised in float32, in another order of operations: 1e-6 apart before the encoder.
            torch.testing.assert_close(head.logits[row : row + n_answer], expected, rtol=0, atol=1e-4)
            row += n_answer
        assert row == len(head.logits)

    def test_symbols_are_words_where_objects_are_and_filler_elsewhere(self, tokenizer, packer):
        trainer = SymbolicTrainer(build_llm("llava", len(tokenizer), TINY.text), packer, noise=0.0)
        batch = {
            "category": torch.tensor([[3, 3, 3]]),
            "color": torch.tensor([[1, 1, 1]]),
            "covered": torch.tensor([[0.0, 0.25, 0.8]]),
            "noise_seed": torch.tensor(0),
        }
        rows = trainer.visual(batch)[0].detach()
        embed = trainer.llm.get_input_embeddings().weight.detach()
        word = (
            embed[tokenizer.convert_tokens_to_ids("star")] + embed[tokenizer.convert_tokens_to_ids("orange")]
        )
        filler = trainer.filler.detach()
        torch.testing.assert_close(rows, torch.stack([filler, (word + filler) / 2, word]))


class TestVision:
    @pytest.mark.parametrize("family", ["llava", "llava_onevision"])
    def test_masked_encoding_of_every_patch_is_the_plain_encoding(self, tokenizer, family):
        """With all patches chosen, the masked path equals the encoder's own hidden state and pooled output."""
        recipe = TINY if family == "llava" else shrunken(LLAVA_ONEVISION_SCENES)
        trainer = trainer_of(recipe, recipe.stages[0], tokenizer).eval()
        pair = trainer.clip if family == "llava" else trainer.siglip
        images = torch.randint(256, (2, 96, 96, 3), generator=torch.Generator().manual_seed(0)).byte()
        pixels = processor_of(recipe, tokenizer).image_processor(list(images.numpy()), return_tensors="pt")
        pixels = pixels["pixel_values"][:, 0] if family == "llava_onevision" else pixels["pixel_values"]
        with torch.no_grad():
            whole, patches = trainer.encode(images, torch.arange(36).expand(2, -1))
            plain = pair.vision_model(pixels, output_hidden_states=True)
        read = plain.hidden_states[-2][:, 1:] if family == "llava" else plain.hidden_states[-1]
        torch.testing.assert_close(patches, read, rtol=0, atol=1e-4)
        torch.testing.assert_close(whole, plain.pooler_output, rtol=0, atol=1e-4)

    def test_a_sigmoid_loss_of_one_pair_is_that_of_its_similarity(self, tokenizer):
        """SigLIP's loss by hand for two pairs: the mean over images of the sum of -log sigmoid(+-(t x.y + b))."""
        recipe = shrunken(LLAVA_ONEVISION_SCENES)
        trainer = trainer_of(recipe, recipe.stages[0], tokenizer).eval()
        batch = VisionBatches(tokenizer, 0, 2, 6, SceneConfig())[0]
        with torch.no_grad():
            whole, _ = trainer.encode(batch["images"], None)
            loss, similarity = trainer.contrast(whole, batch)
            text = trainer.siglip.get_text_features(
                input_ids=batch["caption"][:1, : int(batch["caption_mask"][0].sum())]
            ).pooler_output
        cosine = torch.nn.functional.cosine_similarity(whole, text)
        torch.testing.assert_close(similarity[:, 0], 10 * cosine - 10, rtol=0, atol=1e-4)
        by_hand = -sum(
            math.log(1 / (1 + math.exp(-(1 if i == j else -1) * float(similarity[i, j]))))
            for i in range(2)
            for j in range(2)
        )
        assert float(loss) == pytest.approx(by_hand / 2, rel=1e-5)

    def test_masking_prefers_patches_of_objects(self, trained, tokenizer):
        folder, _ = trained
        clip_trainer = vision_trainer(folder)
        batch = VisionBatches(tokenizer, 0, 4, 6, SceneConfig(n_objects=(1.0,), dominant_share=0.0))[0]
        clip_trainer.weights = replace(clip_trainer.weights, n_tokens=16)
        seen = {}
        encode = clip_trainer.encode
        clip_trainer.encode = lambda pixels, chosen: seen.setdefault("out", (chosen, encode(pixels, chosen)))[
            1
        ]
        clip_trainer.loss(batch)
        chosen = seen["out"][0]
        assert chosen.shape == (4, 16) and (chosen.diff(dim=1) > 0).all()
        for row, covered in zip(chosen, batch["covered"], strict=True):
            objects = set((covered > 0.05).nonzero().flatten().tolist())
            assert 0 < len(objects) <= 16 and objects <= set(row.tolist())


def vision_trainer(folder: Path) -> ClipTrainer:
    """Load the tiny vision stage."""
    clip = build_clip(len(build_tokenizer(all_texts())), TINY.vision, TINY.caption, WIDTH)
    trainer = ClipTrainer(clip, VisionLoss())
    trainer.load_state_dict(load_file(folder / "vision_full.safetensors"))
    return trainer.eval()


class TestRecipe:
    def test_all_six_stages_run_and_leave_weights_and_records(self, trained):
        folder, records = trained
        assert NAMES == ["vision_masked", "vision_full", "symbols_coarse", "symbols_fine", "connector", "all"]
        for name, record in zip(NAMES, records, strict=True):
            state = load_file(folder / f"{name}.safetensors")
            assert all(torch.isfinite(value).all() for value in state.values())
            written = json.loads((folder / f"{name}.json").read_text())
            assert written["stage"]["name"] == name
            assert (record["steps"], record["scenes"]) == (2, 6)
            assert record["loss"] > 0 and record["seconds"] > 0 and record["device"] == "cpu"
            assert written["provenance"]["torch"]

    def test_stages_hand_their_weights_on(self, trained):
        folder, _ = trained
        vision, symbols, connector, last = (
            load_file(folder / f"{name}.safetensors")
            for name in ("vision_full", "symbols_fine", "connector", "all")
        )
        # The connector stage freezes the vision encoder: what it holds is what the vision stage made.
        key = "encoder.layers.0.mlp.fc1.weight"
        assert torch.equal(vision[f"clip.vision_model.{key}"], connector[f"llava.model.vision_tower.{key}"])
        assert not torch.equal(
            connector[f"llava.model.vision_tower.{key}"], last[f"llava.model.vision_tower.{key}"]
        )
        # The LLM goes on learning there, from the symbolic stage's weights: two small steps away.
        key = "layers.0.mlp.up_proj.weight"
        moved = (connector[f"llava.model.language_model.{key}"] - symbols[f"llm.model.{key}"]).abs().max()
        assert 0 < moved < 0.01

    def test_a_finished_stage_is_not_trained_again(self, trained):
        folder, records = trained
        before = load_file(folder / "symbols_coarse.safetensors")
        (record,) = run_stages(TINY, ["symbols_coarse"], folder, weights=folder, device="cpu")
        after = load_file(folder / "symbols_coarse.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert all(record[key] == records[2][key] for key in ("steps", "loss", "history"))

    def test_scale_shortens_every_stage(self, tmp_path):
        longer = replace(
            TINY, stages=(replace(TINY.stages[2], loop=replace(TINY.stages[2].loop, n_steps=8)),)
        )
        (record,) = run_stages(longer, ["symbols_coarse"], tmp_path, scale=0.25, device="cpu")
        assert record["steps"] == record["stage"]["loop"]["n_steps"] == 2
        assert record["history"]["step"] == [1, 2]

    def test_refuses_before_any_work(self, tmp_path):
        folder = tmp_path / "none"
        for names, scale, message in (
            (["visio"], 1.0, "stage: got 'visio'; accepted: vision_masked, "),
            (["symbols_coarse"], 0, "scale: got 0; accepted: a positive number"),
            (["symbols_fine"], 1.0, "symbols_coarse.safetensors is neither in"),
        ):
            with pytest.raises(ParameterError, match=message):
                run_stages(TINY, names, folder, weights=folder, scale=scale, device="cpu")
        assert not folder.exists()

    def test_kept_weights_serve_later_stages_in_half_precision(self, trained, tmp_path):
        folder, _ = trained
        keep_weights(folder, ["symbols_coarse"], tmp_path / "kept")
        state = load_file(tmp_path / "kept" / "symbols_coarse.safetensors")
        assert {value.dtype for value in state.values()} == {torch.float16}
        assert json.loads((tmp_path / "kept" / "symbols_coarse.json").read_text())["steps"] == 2
        (record,) = run_stages(
            TINY, ["symbols_fine"], tmp_path / "new", weights=tmp_path / "kept", device="cpu"
        )
        assert record["steps"] == 2

    def test_the_shipped_recipe_fits_its_scenes(self):
        for stage in LLAVA_SCENES.stages:
            assert stage.scenes.sizes == ((LLAVA_SCENES.vision["image_size"],) * 2,)
            assert LLAVA_SCENES.vision["image_size"] % LLAVA_SCENES.vision["patch_size"] == 0
            assert set(stage.starts_from) <= {other.name for other in LLAVA_SCENES.stages}
        grid = LLAVA_SCENES.vision["image_size"] // LLAVA_SCENES.vision["patch_size"]
        assert grid**2 >= 144


def run_and_die(folder: Path) -> None:
    """Train until the batch of step 3 is drawn, then die as a process that is killed does."""
    draw = LanguageBatches.__getitem__

    def draw_or_die(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, step)

    LanguageBatches.__getitem__ = draw_or_die
    run_stages(FIVE_STEPS, ["symbols_coarse"], folder, device="cpu")


class TestResume:
    def test_a_killed_run_ends_in_the_weights_of_an_uninterrupted_one(self, tmp_path, capsys):
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        assert forked(run_and_die, killed) == -signal.SIGKILL
        assert (killed / "symbols_coarse.checkpoint.pt").is_file()
        assert not (killed / "symbols_coarse.safetensors").exists()
        (resumed,) = run_stages(FIVE_STEPS, ["symbols_coarse"], killed, device="cpu")
        assert "symbols_coarse: resumes at step 3 of 5" in capsys.readouterr().out
        (straight,) = run_stages(FIVE_STEPS, ["symbols_coarse"], whole, device="cpu")
        first, second = (load_file(folder / "symbols_coarse.safetensors") for folder in (killed, whole))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert resumed["history"] == straight["history"]
        assert straight["history"]["step"] == [1, 2, 3, 4, 5]
        assert resumed["loss"] == straight["loss"] == straight["history"]["loss"][-1]

    def test_a_half_written_checkpoint_is_left_alone(self, tmp_path):
        """What an earlier run was writing when it was killed never takes the checkpoint's place."""
        (tmp_path / "toy.checkpoint.partial").write_bytes(b"half")
        module = nn.Linear(2, 2)
        batches = [{"x": torch.ones(3, 2)}] * 2
        config = LoopConfig(2, 3, 0.01, n_workers=0)
        record = run_stage(
            "toy", module, batches, lambda b: (module(b["x"]).pow(2).mean(), {}), config, tmp_path
        )
        assert record["steps"] == 2 and (tmp_path / "toy.checkpoint.pt").is_file()


OPENED = """
import json, sys
sys.modules["rcblib"] = None
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32)
processor = AutoProcessor.from_pretrained(sys.argv[1])
question = {"type": "text", "text": "How many objects are there in the image?"}
turn = {"role": "user", "content": [{"type": "image"}, question]}
prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
inputs = processor(images=[Image.new("RGB", (96, 96), (90, 60, 30))], text=[prompt], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=3, do_sample=False, min_new_tokens=3)
print(json.dumps({
    "class": type(model).__name__,
    "n_image_tokens": int((inputs["input_ids"] == model.config.image_token_id).sum()),
    "n_new": output.shape[1] - inputs["input_ids"].shape[1],
    "world": model.config.rcb_world,
    "tied": model.get_input_embeddings().weight.data_ptr() == model.lm_head.weight.data_ptr(),
}))
"""


class TestExport:
    def test_the_exported_folder_opens_without_this_library(self, trained, tmp_path):
        folder, _ = trained
        export(TINY, folder, tmp_path / "model")
        weights = load_file(tmp_path / "model" / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
        run = subprocess.run(
            [sys.executable, "-c", OPENED, str(tmp_path / "model")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            | {"HF_HUB_OFFLINE": "1"},
        )
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout.splitlines()[-1]) == {
            "class": "LlavaForConditionalGeneration",
            "n_image_tokens": 36,
            "n_new": 3,
            "world": "scenes",
            "tied": True,
        }

    def test_exported_weights_are_those_of_the_last_stage(self, trained, tmp_path):
        folder, _ = trained
        export(TINY, folder, tmp_path / "model")
        model, _ = load_model(tmp_path / "model", device="cpu")
        last = load_file(folder / "all.safetensors")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, last[f"llava.{name}"].half().float(), rtol=0, atol=0)
