"""Check Qwen2.5-VL: dynamic grids, positions on three axes, probing and pruning, on a small random model."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from messages import one_line
from tiny_qwen import REAL_IDS, REAL_TEXT, REAL_VISION, TINY_TEXT, TINY_VISION, build, tiny_qwen
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from benchmarks.checkpoints import picture_rows
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import preset_of
from rcblib.evaluate.grid import evaluate
from rcblib.mllm import adapter_for
from rcblib.probe.pictures import view_pictures
from rcblib.probe.run import probe
from rcblib.pruners import CodebookPruner, RandomPruner
from rcblib.records import ONE_WORD_QUESTION, ParameterError, Question, Sample, UnsupportedModelError
from rcblib.tensors.scoring import keep_indices, redundancy_scores

SIZES = [(100, 60), (40, 130), (90, 90)]  # width and height in pixels
GRIDS = [(2, 4), (5, 1), (3, 3)]  # tokens of 28 x 28 pixels, at most nine
PROMPTS = [
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What does this image show ?<|im_end|>assistant",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is <|vision_start|><|image_pad|><|vision_end|>"
    "on the left and the red bird on the right ?<|im_end|>assistant",
    "<|im_start|>user\nHow many cat are in a red apple ?<|im_end|>assistant",
]


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(*tiny_qwen())


@pytest.fixture(scope="module")
def images():
    return [tiny.random_images(1, size, seed=i)[0] for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def batch(adapter, images):
    return dict(adapter.processor(text=PROMPTS, images=images, return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def exact():
    """The tiny model in double precision, so that what is equal is equal to many digits."""
    model, processor = tiny_qwen()
    return adapter_for(model.double(), processor)


def generate(adapter, inputs, pruner=None, **settings):
    settings = {"max_new_tokens": 6, "do_sample": False} | settings
    if pruner is None:
        return adapter.model.generate(**inputs, **settings)
    with pruner(adapter.model):
        return adapter.model.generate(**inputs, **settings)


def positions_by_hand(adapter, inputs):
    """Return the positions that the model itself gives the whole prompts, ``(3, n_prompts, n_tokens)``."""
    return adapter.model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )[0]


def answer_by_hand(adapter, ids, positions, tokens, kept, n_new=6):
    """Decode greedily one prompt, without cache, mask or `generate`.

    `positions` ``(3, n)`` are those of its `ids` in full, or ``None`` to number what is left; `tokens` and `kept` are
    those of its images.
    """
    model = adapter.model
    survives = torch.ones(len(ids), dtype=torch.bool)
    places = (ids == adapter.image_token_id).nonzero().flatten()
    start = 0
    for own, chosen in zip(tokens, kept, strict=True):
        survives[places[start : start + len(own)]] = False
        survives[places[start + chosen]] = True
        start += len(own)
    embeds = model.get_input_embeddings()(ids)
    if start:
        embeds = embeds.index_copy(0, places, torch.cat(list(tokens)))
    rows = embeds[survives]
    columns = torch.arange(len(rows)).expand(3, -1) if positions is None else positions[:, survives]
    answer = []
    for _ in range(n_new):
        with torch.no_grad():
            hidden = model.model.language_model(
                inputs_embeds=rows[None],
                position_ids=columns[:, None],
                attention_mask=torch.ones(1, len(rows), dtype=torch.long),
                use_cache=False,
            ).last_hidden_state
            answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        rows = torch.cat([rows, model.get_input_embeddings().weight[answer[-1:]]]).detach()
        columns = torch.cat([columns, columns[:, -1:] + 1], dim=1)
    return answer


def answers_by_hand(adapter, inputs, kept, position_ids):
    with torch.no_grad():
        features = adapter.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        ).pooler_output
    positions, features, kept = positions_by_hand(adapter, inputs), iter(features), iter(kept)
    answers = []
    for i, n_images in enumerate((1, 2, 0)):
        mask = inputs["attention_mask"][i].bool()
        answers.append(
            answer_by_hand(
                adapter,
                inputs["input_ids"][i][mask],
                positions[:, i][:, mask] if position_ids == "kept" else None,
                list(itertools.islice(features, n_images)),
                list(itertools.islice(kept, n_images)),
            )
        )
    return torch.tensor(answers)


# Encoding


def test_a_token_stands_where_its_pixels_are(adapter):
    """Changing pixels under one token changes its own patches, and no grid order but raster fits."""
    (picture,) = tiny.random_images(1, (28 * 3, 28 * 2))
    inputs = adapter.processor.image_processor([picture], return_tensors="pt")
    changed = picture.copy()
    changed.paste((255, 0, 0), (28 * 2, 28, 28 * 3, 28 * 2))  # row 1, column 2
    other = adapter.processor.image_processor([changed], return_tensors="pt")
    differs = (inputs["pixel_values"] != other["pixel_values"]).any(-1).view(-1, 4).any(-1)
    assert adapter.encode_pixels(inputs)[0].views[0].grid == (2, 3)
    assert differs.tolist() == [False] * 5 + [True]


# First token


# Pruning


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"max_new_tokens": 1}], ids=str)
def test_retaining_everything_equals_the_unpruned_model(adapter, batch, settings):
    pruner = RandomPruner(
        retain_ratio=1.0, seed=0
    )  # this family's positions are kept where nothing else is said
    expected = generate(adapter, batch, **settings)
    assert torch.equal(generate(adapter, batch, pruner, **settings), expected)
    assert pruner.n_retained == pruner.n_tokens == [8, 5, 9]
    assert torch.equal(generate(adapter, batch, **settings), expected)


def test_retaining_everything_gives_the_same_logits(exact, images):
    """Tokens could be equal by chance; logits of every step are not."""
    inputs = dict(exact.processor(text=PROMPTS, images=images, return_tensors="pt", padding=True))
    settings = {"return_dict_in_generate": True, "output_logits": True}
    pruner = RandomPruner(retain_ratio=1.0, seed=0, position_ids="kept")
    pruned, plain = generate(exact, inputs, pruner, **settings), generate(exact, inputs, **settings)
    assert torch.equal(pruned.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(pruned.logits), torch.stack(plain.logits), rtol=0, atol=1e-5)
    pruner = RandomPruner(retain_ratio=1.0, seed=0, position_ids="renumbered")
    renumbered = generate(exact, inputs, pruner, **settings)
    assert (renumbered.logits[0][:2] - plain.logits[0][:2]).abs().amax(-1).min() > 1e-2


def test_a_codebook_keeps_what_is_unlike_its_prototypes(adapter, batch, images):
    """Without a rule of the release for the family, any is taken as it is."""
    tokens = [image.tokens for image in adapter.encode(images)]
    codebook = Codebook(tokens[0][::3].clone(), (), adapter.family)
    pruner = CodebookPruner(codebook, retain_ratio=0.5, position_ids="kept")
    found = generate(adapter, batch, pruner)
    for own, kept in zip(tokens, pruner.kept, strict=True):
        assert torch.equal(kept, keep_indices(redundancy_scores(own, codebook.prototypes), retain_ratio=0.5))
    n_prompt = batch["input_ids"].shape[1]
    assert torch.equal(found[:, n_prompt:], answers_by_hand(adapter, batch, pruner.kept, "kept"))


def test_answers_depend_on_where_in_the_grid_a_token_is(adapter, batch):
    """What is compared elsewhere would not be equal by chance."""
    expected = generate(adapter, batch)
    renumbered = RandomPruner(retain_ratio=1.0, seed=0, position_ids="renumbered")
    assert not torch.equal(generate(adapter, batch, renumbered)[:2], expected[:2])
    assert torch.equal(generate(adapter, batch, renumbered)[2], expected[2])


@pytest.mark.parametrize("retain_ratio", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("position_ids", ["kept", "renumbered"])
def test_pruned_generation_equals_prompts_made_by_hand(adapter, batch, retain_ratio, position_ids):
    pruner = RandomPruner(retain_ratio=retain_ratio, seed=3, position_ids=position_ids)
    found = generate(adapter, batch, pruner)
    n_prompt = batch["input_ids"].shape[1]
    assert torch.equal(found[:, :n_prompt], batch["input_ids"])
    assert torch.equal(found[:, n_prompt:], answers_by_hand(adapter, batch, pruner.kept, position_ids))
    assert pruner.n_retained == [round(n * retain_ratio) for n in pruner.n_tokens]


@pytest.mark.parametrize("position_ids", ["kept", "renumbered"])
def test_the_llm_gets_the_positions_that_the_policy_says(adapter, images, position_ids):
    """Two by four tokens after four of text, of which the second, fourth and seventh stay."""
    inputs = dict(adapter.processor(text=PROMPTS[:1], images=images[:1], return_tensors="pt"))
    n_text = inputs["input_ids"].shape[1] - 8
    before = int((inputs["input_ids"][0] == adapter.image_token_id).nonzero()[0])

    class Chosen(RandomPruner):
        def select(self, views, context=None):
            return torch.tensor([1, 3, 6])

    seen = []
    handle = adapter.model.model.language_model.register_forward_pre_hook(
        lambda _module, _arguments, named: seen.append(named["position_ids"][-3:, 0].tolist()),
        with_kwargs=True,
    )
    generate(adapter, inputs, Chosen(retain_ratio=0.5, seed=0, position_ids=position_ids), max_new_tokens=3)
    handle.remove()
    if position_ids == "renumbered":
        whole = list(range(n_text + 3))
        assert seen[0] == [whole] * 3
        last = n_text + 2
    else:
        text = [*range(before)], [*range(before + 4, n_text + 4)]
        assert seen[0] == [
            text[0] + [before + offset for offset in offsets] + text[1]
            for offsets in ([0, 0, 0], [0, 0, 1], [1, 3, 2])
        ]
        last = n_text + 3
    assert seen[1:] == [[[last + 1]] * 3, [[last + 2]] * 3]


@pytest.mark.parametrize("position_ids", [None, "kept", "renumbered"])
def test_an_evaluation_answers_as_generate_does(adapter, images, position_ids):
    texts = ["What does this image show ?", "Is there a red bird ?", "Describe the image"]
    samples = [Sample(i, lambda image=image: image, *image.size) for i, image in enumerate(images)]
    questions = [Question(i, "one_word", text, "cat") for i, text in enumerate(texts)]
    pruner = position_ids and RandomPruner(retain_ratio=0.5, seed=4, position_ids=position_ids)
    prompts = [adapter.prompt(text) for text in texts]
    inputs = dict(adapter.processor(text=prompts, images=images, return_tensors="pt", padding=True))
    output = generate(adapter, inputs, pruner)[:, inputs["input_ids"].shape[1] :]
    expected = adapter.processor.tokenizer.batch_decode(output, skip_special_tokens=True)
    frame = evaluate(adapter.model, adapter.processor, questions, samples, pruner, max_new_tokens=6)
    assert frame["prediction"].tolist() == [text.strip() for text in expected]
    assert frame["n_visual_tokens"].tolist() == [8, 5, 9]


# Probing


def test_a_photo_is_probed(adapter):
    (picture,) = tiny.random_images(1, (28 * 3, 28 * 3))
    table = probe(adapter.model, adapter.processor, picture, positions="all", batch_size=5)
    assert len(table) == 9
    assert "cls_similarity" not in table
    assert table.filter(regex="divergence$|influence").notna().all().all()
    assert (table["global_divergence"] > 0).all()
    again = probe(adapter.model, adapter.processor, picture, positions="grid", n_side=3, batch_size=1)
    assert again["position"].tolist() == table["position"].tolist()
    torch.testing.assert_close(
        torch.tensor(again["influence"].to_numpy()),
        torch.tensor(table["influence"].to_numpy()),
        rtol=1e-4,
        atol=1e-5,
    )
    prompt = adapter.prompt(ONE_WORD_QUESTION)
    inputs = adapter.processor(text=prompt, images=[picture], return_tensors="pt")
    with torch.no_grad():
        first = int(adapter.model(**inputs).logits[0, -1].argmax())
    assert not table["global_article"].any()
    assert set(table["global_top1_id"]) == {first}


# Loading and wrong inputs


def test_videos_are_refused(adapter, batch):
    video = {"input_ids": batch["input_ids"], "pixel_values_videos": batch["pixel_values"]}
    with pytest.raises(UnsupportedModelError, match="images only"):
        generate(adapter, video, RandomPruner(retain_ratio=0.5, seed=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "pixel_values: got 'NoneType'"),
        ({"pixel_values": torch.zeros(1, 3, 28, 28)}, "pixel_values: got (1, 3, 28, 28)"),
        ({"image_grid_thw": None}, "image_grid_thw: got None"),
        ({"image_grid_thw": torch.tensor([[1, 4, 4]])}, "image_grid_thw: got [[1, 4, 4]]"),
        ({"image_grid_thw": torch.tensor([[1, 3, 8]])}, "multiples of 2"),
        ({"image_grid_thw": torch.tensor([[2, 4, 8]])}, "(1, height, width)"),
    ],
    ids=str,
)
def test_patches_and_grids_must_fit(adapter, images, changes, message):
    inputs = dict(adapter.processor.image_processor(images[:1], return_tensors="pt")) | changes
    with pytest.raises(ParameterError) as error:
        adapter.encode_pixels(inputs)
    assert message in one_line(error)


def test_placeholders_must_match_the_images(adapter, batch):
    fewer = batch | {
        "image_grid_thw": batch["image_grid_thw"][:1],
        "pixel_values": batch["pixel_values"][: int(batch["image_grid_thw"][0].prod())],
    }
    with pytest.raises(ParameterError, match="22 image placeholders") as error:
        generate(adapter, fewer, RandomPruner(retain_ratio=0.5, seed=0))
    assert "8, one for each visual token" in one_line(error)


# Real settings


def test_the_full_size_config_gives_tokens_of_width_3584():
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(vision_config=REAL_VISION, text_config=REAL_TEXT)
        )
    adapter = adapter_for(model)
    assert (adapter.d_model, adapter.n_vocab, adapter.image_token_id) == (3584, 152064, 151655)
    assert adapter.replacement_token_id == 151643
    assert adapter.offers == frozenset() and not adapter.has_cls
    assert adapter.video_token_id is None
    merged = model.model.visual.merger(torch.empty(4 * 17 * 23, 1280, device="meta"))
    assert merged.shape == (17 * 23, 3584)


@pytest.mark.parametrize(
    ("size", "grid"), [((640, 480), (17, 23)), ((28, 28), (2, 2)), ((300, 1000), (36, 11))]
)
def test_real_settings_at_reduced_width_read_what_the_model_reads(size, grid):
    """A photo of 640 x 480 pixels becomes 644 x 476, 23 x 17 tokens of 28 pixels."""
    narrow = TINY_TEXT | {"vocab_size": 152064, "num_hidden_layers": 1}
    model, processor = build(TINY_VISION, narrow, REAL_IDS, max_pixels=28 * 28 * 1280)
    adapter = adapter_for(model, processor)
    assert adapter.replacement_token_id == 151643
    images = tiny.random_images(1, size)
    (image,) = adapter.encode(images)
    assert image.views[0].grid == grid
    inputs = dict(processor(text=adapter.prompt("What ?"), images=images, return_tensors="pt"))
    assert (inputs["input_ids"] == 151655).sum() == image.n_tokens == grid[0] * grid[1]
    pruner = RandomPruner(retain_ratio=1.0, seed=0, position_ids="kept")
    expected = generate(adapter, inputs, max_new_tokens=2)
    assert torch.equal(generate(adapter, inputs, pruner, max_new_tokens=2), expected)


def test_what_is_not_known_of_the_family_is_said_in_one_line(adapter):
    with pytest.raises(UnsupportedModelError, match="^model_type: got 'qwen2_5_vl'; supported here: "):
        picture_rows(adapter.model, 480, 640)
    with pytest.raises(
        ParameterError, match="^preset: got 'auto'; accepted: llava-1.5-7b, .* none was published"
    ):
        preset_of(adapter.family)


def test_what_the_encoder_sees_of_a_photo_is_shown_whole(adapter, images):
    """Its pixels are patches in a row, which are no picture."""
    for image in images:
        (picture,) = view_pictures(adapter.processor, image)
        np.testing.assert_allclose(picture, np.asarray(image, dtype=np.float32) / 255, atol=1e-6)
