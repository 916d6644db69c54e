"""Drop visual tokens in training: what is kept, where it is read, and that it is what a pruner's LLM reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_worlds_training import TINY, Recorder, lively_llava, shrunken
from test_worlds_training_families import TINY_NEXT, TINY_ONEVISION

from rcblib.mllm import adapter_for, load_model
from rcblib.records import EncodedImage, ParameterError, VisualView
from worlds.models import IMAGE_ID, build_tokenizer
from worlds.scenes.language import all_texts
from worlds.training.dropping import (
    KINDS,
    Dropping,
    VisualBatch,
    keep_alike,
    keep_rare,
    keep_scattered,
    keep_window,
)
from worlds.training.language import PixelTrainer, answer_loss
from worlds.training.packing import LanguageBatches, Packer
from worlds.training.recipe import LLAVA_SCENES, RECIPES
from worlds.training.stages import _prepare, export, run_stages
from worlds.weights import SHARD, weight_files


def grids(*shapes: tuple[int, int], width: int = 4) -> tuple[VisualView, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(VisualView(torch.randn(h * w, width, generator=generator), (h, w)) for h, w in shapes)


@pytest.fixture(scope="module")
def packer():
    return Packer(build_tokenizer(all_texts()), IMAGE_ID)


class TestChoice:
    @pytest.mark.parametrize("kind", KINDS)
    def test_positions_ascend_and_number_the_tokens_of_all_views(self, kind):
        views = grids((6, 6), (3, 5))
        for seed in range(30):
            kept = KINDS[kind](views, np.random.default_rng(seed))
            assert (kept.diff() > 0).all() and (kept >= 0).all() and (kept < 51).all()

    def test_scattered_subsets_reach_from_one_token_to_all_but_favour_few(self):
        rng = np.random.default_rng(0)
        sizes = np.array([len(keep_scattered(grids((12, 12)), rng)) for _ in range(600)])
        assert sizes.min() == 1 and sizes.max() > 130
        assert 30 < np.median(sizes) < 42  # a quarter of 144

    def test_a_window_is_a_rectangle_or_what_surrounds_it(self):
        rng, inside = np.random.default_rng(0), 0
        for _ in range(60):
            mask = torch.zeros(48, dtype=torch.bool)
            mask[keep_window(grids((6, 8)), rng)] = True
            found = []
            for own in (mask, ~mask):
                own = own.view(6, 8)
                rows, columns = own.any(1).nonzero().flatten(), own.any(0).nonzero().flatten()
                found.append(bool(own.sum() == len(rows) * len(columns)) and bool(own.any()))
            assert any(found)
            inside += found[0]
        assert 15 < inside < 50

    def test_like_tokens_stay_or_go_together(self):
        generator = torch.Generator().manual_seed(1)
        kinds = torch.arange(36) % 2
        rows = 10.0 * torch.eye(4)[kinds] + 0.01 * torch.randn(36, 4, generator=generator)
        view = VisualView(rows, (6, 6))
        divided = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            kept = keep_alike((view,), rng)
            if int(np.random.default_rng(seed).integers(2, 17)) == 2:
                divided += 1
                assert len(set(kinds[kept].tolist())) in (0, 1) or len(kept) == 36
        assert divided

    def test_what_fills_a_grid_goes_more_often_than_what_is_rare(self):
        generator = torch.Generator().manual_seed(1)
        kinds = (torch.arange(36) < 30).long()
        rows = 10.0 * torch.eye(4)[kinds] + 0.01 * torch.randn(36, 4, generator=generator)
        view, common, rare = VisualView(rows, (6, 6)), 0, 0
        for seed in range(300):
            mask = torch.zeros(36, dtype=torch.bool)
            mask[keep_rare((view,), np.random.default_rng(seed))] = True
            common, rare = common + float(mask[:30].float().mean()), rare + float(mask[30:].float().mean())
        assert rare > 1.3 * common and common > 20

    def test_refuses_shares_that_are_none(self):
        with pytest.raises(ParameterError, match="shares of scattered, window, alike, rare"):
            Dropping({"masked": 0.5})
        with pytest.raises(ParameterError, match="add up to 1 at most"):
            Dropping({"scattered": 0.8, "window": 0.4})
        with pytest.raises(ParameterError, match="kept_positions: got 2; accepted: a share"):
            Dropping(kept_positions=2)


class TestDrawing:
    def test_at_least_one_token_of_every_image_stays(self, monkeypatch):
        monkeypatch.setitem(KINDS, "window", lambda views, rng: torch.tensor([], dtype=torch.long))
        images = [EncodedImage(grids((3, 3), width=16)) for _ in range(3)]
        adapter = adapter_for(lively_llava(len(build_tokenizer(all_texts()))))
        rows, offsets, n_positions = Dropping({"window": 1.0}, 0.0).draw(
            adapter, images, np.random.default_rng(0)
        )
        assert len(rows) == n_positions == 3 and offsets.tolist() == [0, 1, 2]

    def test_positions_are_kept_or_numbered_anew(self, monkeypatch):
        monkeypatch.setitem(KINDS, "window", lambda views, rng: torch.tensor([2, 7]))
        images = [EncodedImage(grids((3, 3), width=16)) for _ in range(2)]
        adapter = adapter_for(lively_llava(len(build_tokenizer(all_texts()))))
        for share, expected in ((1.0, ([2, 7, 11, 16], 18)), (0.0, ([0, 1, 2, 3], 4))):
            drawn = Dropping({"window": 1.0}, share).draw(adapter, images, np.random.default_rng(0))
            assert (drawn[1].tolist(), drawn[2]) == expected
            assert torch.equal(drawn[0], torch.cat([image.tokens[[2, 7]] for image in images]))

    def test_without_shares_all_rows_stay(self):
        image = EncodedImage(grids((3, 3), width=16))
        adapter = adapter_for(lively_llava(len(build_tokenizer(all_texts()))))
        rows, offsets, n_positions = Dropping({}).draw(adapter, [image], np.random.default_rng(0))
        assert torch.equal(rows, image.tokens) and offsets.tolist() == list(range(9)) and n_positions == 9


class TestLoss:
    def test_padded_rows_are_read_by_nobody(self, packer):
        """Each sequence of a padded batch is answered as it is alone, cut to its own rows."""
        model = lively_llava(len(packer.tokenizer))
        parts = model.model.language_model, model.get_input_embeddings()
        batch = LanguageBatches(packer, 7, 3, 6, TINY.stages[-1].scenes, symbolic=False)[0]
        generator = torch.Generator().manual_seed(0)
        lengths, n_positions = [2, 9, 5], [20, 9, 5]
        drawn = []
        for length, n in zip(lengths, n_positions, strict=True):
            rows = torch.randn(length, 16, generator=generator, dtype=torch.float64)
            drawn.append((rows, torch.randperm(n, generator=generator)[:length].sort().values, n))

        def logits(visual, rows):
            head = Recorder(model.lm_head)
            asked = {key: value[rows] for key, value in batch.items() if value.ndim == 2}
            with torch.no_grad():
                answer_loss(*parts, head, packer.prefix, visual, asked)
            return head.logits

        together = logits(VisualBatch.of(drawn), slice(None))
        alone = torch.cat([logits(VisualBatch.of([drawn[i]]), [i]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)

    def test_nothing_dropped_is_the_loss_of_all_tokens(self, packer):
        model = lively_llava(len(packer.tokenizer)).float()
        batch = LanguageBatches(packer, 7, 2, 6, TINY.stages[-1].scenes, symbolic=False)[0]
        with torch.no_grad():
            whole, _ = PixelTrainer(model, packer, True).loss(batch)
            none, _ = PixelTrainer(model, packer, True, dropping=Dropping({})).loss(batch)
            some, _ = PixelTrainer(model, packer, True, dropping=Dropping({"scattered": 1.0})).loss(batch)
        assert float(none) == pytest.approx(float(whole), abs=1e-5) and abs(float(some - whole)) > 1e-3


class TestArms:
    @pytest.mark.parametrize("tiny", [TINY, TINY_NEXT, TINY_ONEVISION], ids=lambda recipe: recipe.family)
    def test_an_arm_learns_in_its_llm_alone_and_is_exported_by_what_differs(
        self, tiny, tmp_path, monkeypatch
    ):
        arm = replace(
            shrunken(RECIPES[f"{tiny.name}-dropped"]),
            vision=tiny.vision,
            caption=tiny.caption,
            text=tiny.text,
        )
        stage = replace(arm.stages[0], scenes=tiny.stages[-1].scenes)
        assert arm.arm_of == tiny.name and stage.starts_from == (tiny.stages[-1].name,)
        assert (stage.kind, stage.word_layer) == (tiny.stages[-1].kind, tiny.stages[-1].word_layer)
        first = replace(tiny, stages=(replace(tiny.stages[-1], starts_from=()),))
        run_stages(first, [first.stages[0].name], tmp_path, weights=tmp_path, device="cpu", scale=0.5)
        export(first, tmp_path, tmp_path / "models" / tiny.name)
        arm = replace(arm, stages=(replace(stage, dropping=Dropping({"scattered": 0.5, "alike": 0.5})),))
        (record,) = run_stages(arm, [stage.name], tmp_path, weights=tmp_path, device="cpu")
        assert record["stage"]["dropping"]["shares"] == {"scattered": 0.5, "alike": 0.5}
        export(arm, tmp_path, tmp_path / "models" / arm.name)
        shipped, _ = load_model(tmp_path / "models" / tiny.name, device="cpu")
        dropped, _ = load_model(tmp_path / "models" / arm.name, device="cpu")
        files = weight_files(tmp_path / "models" / arm.name)
        assert [path.name for path in files] == ["model.safetensors", SHARD]
        changed = set()
        for (name, before), after in zip(shipped.named_parameters(), dropped.parameters(), strict=True):
            if not torch.equal(before, after):
                changed.add(name.split(".")[1])
        assert changed == {"language_model"}
        export(arm, tmp_path, tmp_path / "alone" / arm.name)  # no first arm beside it
        alone, _ = load_model(tmp_path / "alone" / arm.name, device="cpu")
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), dropped.parameters(), strict=True))

    def test_a_step_drops_the_same_tokens_again(self, tmp_path):
        arm = shrunken(RECIPES["llava-scenes-dropped"])
        first = replace(TINY, stages=(replace(TINY.stages[-1], starts_from=()),))
        run_stages(first, ["all"], tmp_path, weights=tmp_path, device="cpu", scale=0.5)
        stage = arm.stages[0]
        trainer, batches, _ = _prepare(arm, stage, stage.loop, tmp_path, tmp_path, torch.device("cpu"))
        visual = [trainer._some(batches[1]) for _ in range(2)]
        assert torch.equal(visual[0].rows, visual[1].rows) and torch.equal(
            visual[0].offsets, visual[1].offsets
        )
        assert not torch.equal(trainer._some(batches[0]).n_positions, visual[0].n_positions)

    def test_every_drawn_family_has_an_arm(self):
        arms = {recipe.arm_of: recipe for recipe in RECIPES.values() if recipe.arm_of}
        assert set(arms) == {name for name, recipe in RECIPES.items() if not recipe.arm_of}
        assert arms[LLAVA_SCENES.name].stages[0].scales == (("llm", 1.0),)
        assert {stage.loop.seed for recipe in arms.values() for stage in recipe.stages} == {
            20,
            21,
            22,
            23,
            24,
        }
