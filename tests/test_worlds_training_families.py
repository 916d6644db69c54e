"""Train the other families: their inputs are those of inference, their weights start from the first model's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rcblib.data.choices import read_options
from rcblib.records import ParameterError, Question
from tests.test_worlds_training import TINY, Recorder, shrunken
from worlds.models import IMAGE_ID, build_tokenizer
from worlds.scenes.captions import captions
from worlds.scenes.generator import SceneConfig, generate_scene
from worlds.scenes.groups import generate_group, group_questions
from worlds.scenes.language import all_texts
from worlds.scenes.video import generate_video
from worlds.training.language import PixelTrainer, answer_loss
from worlds.training.packing import FORMS, IGNORED, LanguageBatches, Packer
from worlds.training.recipe import LLAVA_NEXT_SCENES, LLAVA_ONEVISION_SCENES, RECIPES, find_stage
from worlds.training.sequences import (
    SequenceBatches,
    drill_questions,
    open_question,
    practice_question,
    with_options,
)
from worlds.training.stages import processor_of, run_stages, tokenizer_of, trainer_of
from worlds.training.transfer import adopt, identity_layers

TINY_NEXT = shrunken(LLAVA_NEXT_SCENES)
TINY_NEXT = replace(TINY_NEXT, text=TINY_NEXT.text | {"num_key_value_heads": 1, "head_dim": 8})
TINY_ONEVISION = shrunken(LLAVA_ONEVISION_SCENES)


@pytest.fixture(scope="module")
def packer():
    return Packer(build_tokenizer(all_texts()), IMAGE_ID)


def lively(recipe):
    """Build a tiny model in float64 whose weights are large enough that every input matters."""
    stage = recipe.stages[-1]
    model = trainer_of(recipe, stage, tokenizer_of(recipe)).llava.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            std = 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            if parameter.ndim > 1 or parameter is model.model.image_newline:
                parameter.normal_(std=std, generator=generator)
    return model


def pictures(form):
    """Return the pictures of one item of each form, as uint8 arrays."""
    if form == "images":
        return [scene.pixels for scene in generate_group(0, 1, n_images=3).scenes]
    if form == "video":
        return [scene.pixels for scene in generate_video(0, 1, n_frames=4).frames]
    return [generate_scene(0, 1).pixels]


def assert_pipeline_agrees(model, processor, tokenizer, packer, batch, content, **given):
    """Compare the logits of training with those of the chat template, the processor and the model's own forward."""
    questions = [Question(0, "color", "What color is the star?", "red")]
    questions += [Question(0, "caption", "Provide a one-sentence caption for the image.", "a red star.")]
    head = Recorder(model.lm_head)
    with torch.no_grad():
        answer_loss(
            model.model.language_model,
            model.get_input_embeddings(),
            head,
            packer.prefix,
            PixelTrainer(model, packer, vision_frozen=True).visual(batch),
            packer.pack([questions]),
        )
    row = 0
    for question in questions:
        turn = {"role": "user", "content": [*content, {"type": "text", "text": question.text}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        text = [f"{prompt} {question.answer}{tokenizer.eos_token}"]
        inputs = processor(text=text, return_tensors="pt", **given)
        n_answer = len(tokenizer(question.answer, add_special_tokens=False).input_ids) + 1
        with torch.no_grad():
            expected = model(**inputs).logits[0, -1 - n_answer : -1]
        torch.testing.assert_close(head.logits[row : row + n_answer], expected, rtol=0, atol=1e-4)
        row += n_answer
    assert row == len(head.logits)


@pytest.mark.parametrize("size", [(96, 192), (192, 144), (192, 192)])
def test_tiles_in_training_are_those_of_the_exported_pipeline(packer, size):
    tokenizer = tokenizer_of(TINY_NEXT)
    processor = processor_of(TINY_NEXT, tokenizer)
    batches = LanguageBatches(
        packer, 3, 2, 6, SceneConfig(sizes=(size,)), False, image_processor=processor.image_processor
    )
    batch = batches[0]
    assert batch["image_sizes"].tolist() == [list(size)] * 2
    one = {key: batch[key][:1] for key in ("pixel_values", "image_sizes")}
    image = Image.fromarray(generate_scene(3, 0, config=batches.scenes).pixels)
    model = lively(TINY_NEXT)
    assert_pipeline_agrees(model, processor, tokenizer, packer, one, [{"type": "image"}], images=[image])


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_training_are_those_of_the_exported_pipeline(packer, form):
    tokenizer = tokenizer_of(TINY_ONEVISION)
    processor = processor_of(TINY_ONEVISION, tokenizer)
    arrays = pictures(form)
    batch = {
        "images": torch.from_numpy(np.array([arrays])),
        "form": torch.tensor(FORMS.index(form)),
    }
    images = [Image.fromarray(pixels) for pixels in arrays]
    if form == "video":
        given, content = {"videos": [images]}, [{"type": "video"}]
    else:
        given, content = {"images": [images]}, [{"type": "image"}] * len(images)
    assert_pipeline_agrees(lively(TINY_ONEVISION), processor, tokenizer, packer, batch, content, **given)


class TestSequenceBatches:
    def test_steps_take_their_forms_in_turn(self, packer):
        batches = SequenceBatches(packer, 0, 2, 6, ("images", "video", "image"), symbolic=False)
        for step, form in enumerate(("images", "video", "image", "images")):
            batch = batches[step]
            assert FORMS[int(batch["form"])] == form
            n_pictures = batch["images"].shape[1]
            assert n_pictures in {"image": (1,), "images": (2, 3, 4), "video": (4, 6, 8)}[form]
            assert batch["images"].shape == (2, n_pictures, 96, 96, 3)
            assert all(torch.equal(batch[key], again) for key, again in batches[step].items())

    def test_pixels_are_those_of_the_items_asked_about(self, packer):
        batch = SequenceBatches(packer, 5, 3, 6, ("images",), symbolic=False)[2]
        group = generate_group(5, 7, n_images=batch["images"].shape[1])
        assert np.array_equal(batch["images"][1].numpy(), np.array([scene.pixels for scene in group.scenes]))

    def test_symbols_of_pictures_are_divided_by_newlines(self, packer):
        stage = next(s for s in TINY_ONEVISION.stages if s.kind == "symbols")
        trainer = trainer_of(TINY_ONEVISION, stage, tokenizer_of(TINY_ONEVISION))
        trainer.noise = 0.0
        newline = trainer.newline.detach()
        for form, ends in (("images", 36), ("video", None)):
            batch = SequenceBatches(packer, 0, 2, 6, (form,), symbolic=True)[0]
            rows = trainer.visual(batch).detach()
            n_pictures = batch["category"].shape[1]
            where = (rows == newline).all(-1)[0].nonzero().flatten().tolist()
            expected = [37 * i + ends for i in range(n_pictures)] if ends else [36 * n_pictures]
            assert where == expected
            assert rows.shape[1] == 36 * n_pictures + len(expected)

    def test_drills_ask_what_each_image_shows(self):
        group = generate_group(3, 1, n_images=2)
        asked = {question.text: question.answer for question in drill_questions(1, group.scenes, "images")}
        for scene, name in zip(group.scenes, ("image one", "image two"), strict=True):
            assert asked[f"Describe {name}."] == captions(scene.objects, scene.background)[0]
            for item in scene.objects:
                assert asked[f"What color is the {item.category} in {name}?"] == item.color
        shown = [{item.category for item in scene.objects} for scene in group.scenes]
        for text, answer in asked.items():
            if text.startswith("Which image shows"):
                category = text.removesuffix("?").split()[-1]
                assert [category in inside for inside in shown] == [
                    answer == "image one",
                    answer == "image two",
                ]

    def test_drills_of_a_video_are_about_its_first_and_last_frame(self):
        video = generate_video(0, 2, n_frames=4)
        asked = {question.text: question.answer for question in drill_questions(2, video.frames, "video")}
        first, last = video.frames[0], video.frames[-1]
        assert asked["Describe the first frame."] == captions(first.objects, first.background)[0]
        assert asked["Describe the last frame."] == captions(last.objects, last.background)[0]
        assert not [text for text in asked if "image" in text or "Which" in text]

    def test_drills_come_besides_every_question_asked_openly(self, packer):
        batches = SequenceBatches(packer, 3, 2, 6, ("images",), symbolic=True, n_drills=2)
        pictures, asked = batches._item("images", 1, 2, np.random.default_rng(0))
        assert sum(question.task == "drill" for question in asked) == 2
        group = generate_group(3, 1, n_images=2)
        every = {open_question(q).text for q in group_questions(group, np.random.default_rng(0))}
        kinds = {text.split()[0] for text in every}
        assert kinds <= {q.text.split()[0] for q in asked if q.task == "multi_image" and "a. " not in q.text}

    def test_unknown_forms_are_refused(self, packer):
        with pytest.raises(ParameterError, match="forms"):
            SequenceBatches(packer, 0, 2, 6, ("panorama",), symbolic=True)

    def test_a_question_without_options_is_answered_with_their_words(self):
        text = "Which image shows a star? a. image two b. image one Answer with the letter."
        asked = open_question(Question(4, "multi_image", text, "b", "which_image"))
        assert asked == Question(4, "multi_image", "Which image shows a star?", "image one", "which_image")
        assert open_question(Question(4, "color", "What color is the star?", "red")) is None

    def test_a_plain_question_with_options_keeps_its_answer(self):
        rng = np.random.default_rng(0)
        plain = Question(4, "color", "What color is the star?", "red")
        letters = set()
        for _ in range(40):
            asked = with_options(plain, rng)
            options = read_options(asked.text)
            assert asked.text.startswith("What color is the star? a. ")
            assert options[asked.answer] == "red" and 2 <= len(options) <= 4
            letters.add(asked.answer)
        assert letters == set("abcd")
        assert with_options(Question(4, "yes_no", "Is there a star in the image?", "yes"), rng) is None

    def test_practice_names_one_of_its_options(self, packer):
        rng = np.random.default_rng(0)
        for _ in range(60):
            asked = practice_question(7, rng)
            named = asked.text.removeprefix("Which option is ").split("?")[0]
            assert read_options(asked.text)[asked.answer] == named
            assert packer.tokenizer.unk_token_id not in packer.tokenizer(asked.text).input_ids


class TestWords:
    @pytest.mark.parametrize(
        ("text", "letter", "word"),
        [
            ("Which image shows a star? a. image two b. image one Answer with the letter.", "b", "one"),
            ("Which color? a. red b. blue Answer with the letter.", "a", "red"),
            ("Which order? a. star, ring, cross b. star, cross, ring Answer with the letter.", "b", "cross"),
            ("What color is the star? a. red b. not shown Answer with the letter.", "b", "not"),
        ],
    )
    def test_the_question_mark_is_to_say_what_tells_the_right_option(self, packer, text, letter, word):
        packed = packer.pack([[Question(0, "multi_image", text, letter)]])
        (place,) = (packed["words"][0] != IGNORED).nonzero()[0].tolist()
        spell = packer.tokenizer.convert_ids_to_tokens
        assert spell(int(packed["ids"][0, place])) == "?"
        assert spell(int(packed["words"][0, place])) == word
        assert spell(packed["labels"][0][packed["labels"][0] != IGNORED].tolist())[0] == letter

    def test_questions_without_options_have_no_such_word(self, packer):
        packed = packer.pack([[Question(0, "color", "What color is the star?", "red")]])
        assert (packed["words"] == IGNORED).all()

    def test_words_are_read_behind_their_layer_and_join_the_loss(self, packer):
        model = lively(TINY_ONEVISION)
        llm, embed, head = model.model.language_model, model.get_input_embeddings(), model.lm_head
        text = "Which color? a. red b. blue Answer with the letter."
        batch = packer.pack([[Question(0, "multi_image", text, "a")]])
        visual = torch.randn(1, 5, embed.embedding_dim, dtype=torch.double)
        seen = []
        llm.layers[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            plain, _ = answer_loss(llm, embed, head, packer.prefix, visual, batch)
            both, numbers = answer_loss(llm, embed, head, packer.prefix, visual, batch, word_layer=1)
            place = len(packer.prefix) + 5 + int((batch["words"][0] != IGNORED).nonzero())
            said = head(llm.norm(seen[-1][:, place]))
        word = batch["words"][batch["words"] != IGNORED]
        n_answer = int((batch["labels"] != IGNORED).sum())
        expected = plain + torch.nn.functional.cross_entropy(said.float(), word) / n_answer
        torch.testing.assert_close(both, expected)
        assert numbers["word"] == float(said.argmax() == word)


@pytest.fixture(scope="module")
def llava_state():
    """Build the first model's parts, untrained."""
    torch.manual_seed(1)
    return trainer_of(TINY, TINY.stages[-1], tokenizer_of(TINY)).llava.model


class TestTransfer:
    def test_fewer_heads_are_means_of_groups_and_the_rest_is_copied(self, llava_state):
        stage = TINY_NEXT.stages[-1]
        model = trainer_of(TINY_NEXT, stage, tokenizer_of(TINY_NEXT)).llava.model.language_model
        state = llava_state.language_model.state_dict()
        report = adopt(model, state)
        assert not report["fresh"]
        assert len(report["converted"]) == 2 * TINY_NEXT.text["num_hidden_layers"]
        given, taken = (m["layers.0.self_attn.k_proj.weight"] for m in (state, model.state_dict()))
        assert taken.shape == (8, 16)
        torch.testing.assert_close(taken, (given[:8] + given[8:]) / 2)
        assert torch.equal(model.state_dict()["norm.weight"], state["norm.weight"])

    def test_a_siglip_encoder_takes_patches_positions_and_layers_of_clip(self, llava_state):
        siglip = trainer_of(TINY_ONEVISION, TINY_ONEVISION.stages[0], tokenizer_of(TINY_ONEVISION)).siglip
        state = llava_state.vision_tower.state_dict()
        report = adopt(siglip.vision_model, state)
        positions = siglip.vision_model.embeddings.position_embedding.weight
        assert torch.equal(positions, state["embeddings.position_embedding.weight"][1:])
        assert report["converted"] == ["embeddings.position_embedding.weight"]
        assert {name.split(".")[0] for name in report["fresh"]} == {"embeddings", "head"}

    def test_a_longer_vocabulary_keeps_its_further_rows(self, llava_state):
        stage = TINY_ONEVISION.stages[-1]
        model = trainer_of(TINY_ONEVISION, stage, tokenizer_of(TINY_ONEVISION)).llava.model.language_model
        last = model.embed_tokens.weight[-1].detach().clone()
        state = llava_state.language_model.state_dict()
        report = adopt(model, state)
        assert torch.equal(model.embed_tokens.weight[:-1], state["embed_tokens.weight"])
        assert torch.equal(model.embed_tokens.weight[-1], last)
        assert {name.rsplit(".", 1)[-1] for name in report["fresh"]} == {"bias"}

    def test_further_layers_pass_on_what_they_are_given(self):
        symbols = [stage for stage in TINY_ONEVISION.stages if stage.kind == "symbols"]
        few, more = (
            trainer_of(TINY_ONEVISION, stage, tokenizer_of(TINY_ONEVISION)) for stage in symbols[-2:]
        )
        assert (len(few.llm.model.layers), len(more.llm.model.layers)) == (1, 2)
        state = few.state_dict()
        more.load_state_dict(state | identity_layers(more.llm.model, state, "llm.model."))
        ids = torch.arange(10, 22)[None]
        with torch.no_grad():
            assert torch.equal(more.llm(ids).logits, few.llm(ids).logits)
        again = more.state_dict()
        assert not identity_layers(more.llm.model, again, "llm.model.")

    def test_the_newline_of_symbols_becomes_that_of_pixels(self, tmp_path):
        names = [stage.name for stage in TINY_ONEVISION.stages]
        run_stages(TINY, [stage.name for stage in TINY.stages], tmp_path, weights=tmp_path, device="cpu")
        run_stages(TINY_ONEVISION, names[: names.index("onevision_align")], tmp_path, tmp_path, device="cpu")
        still = replace(TINY_ONEVISION.stage("onevision_align"), scales=(("connector", 1.0),))
        recipe = replace(TINY_ONEVISION, stages=(still,))
        run_stages(recipe, ["onevision_align"], tmp_path, tmp_path, device="cpu")
        symbols, pixels = (
            load_file(tmp_path / f"{name}.safetensors") for name in ("sequence_letters", "onevision_align")
        )
        assert torch.equal(pixels["llava.model.image_newline"], symbols["newline"])
        taken = {key for key in symbols if key.startswith("llm.model.")}
        for key in taken:  # frozen
            assert torch.equal(pixels[key.replace("llm.model", "llava.model.language_model")], symbols[key])
        assert len(taken) > 10


def test_stage_names_are_unique_over_recipes():
    names = [stage.name for recipe in RECIPES.values() for stage in recipe.stages]
    assert len(set(names)) == len(names)
    for recipe in RECIPES.values():
        for stage in recipe.stages:
            assert find_stage(stage.name) == (recipe, stage)
            for earlier in stage.starts_from:
                find_stage(earlier)


@pytest.mark.parametrize("recipe", [TINY_NEXT, TINY_ONEVISION], ids=lambda recipe: recipe.family)
def test_every_stage_of_a_family_runs_from_the_first_models_weights(recipe, tmp_path):
    run_stages(TINY, [stage.name for stage in TINY.stages], tmp_path, weights=tmp_path, device="cpu")
    records = run_stages(recipe, [s.name for s in recipe.stages], tmp_path, weights=tmp_path, device="cpu")
    assert [record["stage"]["name"] for record in records] == [stage.name for stage in recipe.stages]
    assert all(np.isfinite(record["loss"]) for record in records)
