"""Check pruning of tiles, several images and videos against the unpruned model and prompts assembled by hand."""

import itertools
import warnings

import pytest
import tiny
import torch
from families import IN_CHUNKS

from rcblib.codebook.codebook import Codebook
from rcblib.evaluate.grid import evaluate
from rcblib.mllm import adapter_for
from rcblib.pruners import ClsSimilarityPruner, CodebookPruner, RandomPruner, split_by_view
from rcblib.records import ParameterError, Question, Sample
from rcblib.tensors.scoring import keep_indices, redundancy_scores

SIZES = [(40, 31), (24, 24), (20, 90), (30, 100)]
NEXT_PROMPTS = [
    "user\n\n<image>\nWhat does this image show ? assistant",
    "user\n\n<image>\n<image>\nWhat does the image on the left show and the red bird on the right ? assistant",
    "user\n\nHow many cat are in a red apple ? assistant",
    "user\n\nDescribe <image> assistant",
]
ONEVISION_PROMPTS = [
    "user <video>\nWhat does this show ? assistant",
    "user <image>Is <image>the left <video>\nDescribe the red bird on the right ? assistant",
    "user \nHow many cat are in a red apple ? assistant",
    "user <image>\nDescribe assistant",
]


def pictures():
    return [tiny.random_images(1, size, seed=i)[0] for i, size in enumerate(SIZES)]


def inputs_of(processor, prompts, images=None, videos=None):
    return dict(processor(text=prompts, images=images, videos=videos, return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def tiled():
    return adapter_for(*tiny.tiny_next())


@pytest.fixture(scope="module")
def onevision():
    return adapter_for(*tiny.tiny_onevision())


@pytest.fixture(scope="module")
def batches(tiled, onevision):
    """Inputs of `generate` by name: with their adapter, and images and videos in the order of the prompts."""
    images, frames = pictures(), [tiny.random_images(3, seed=8), tiny.random_images(3, seed=9)]
    flat = [*onevision.encode(images[:2]), *onevision.encode(images[2:3])]
    first, second = (onevision.encode_video(video) for video in frames)
    grouped = onevision.encode(images[:2], one_prompt=True)
    return {
        "next": (tiled, inputs_of(tiled.processor, NEXT_PROMPTS, images), tiled.encode(images, tiled.offers)),
        "onevision": (
            onevision,
            inputs_of(onevision.processor, ONEVISION_PROMPTS, images[:3], frames),
            [first, *flat[:2], second, flat[2]],
        ),
        "grouped": (
            onevision,
            inputs_of(onevision.processor, ONEVISION_PROMPTS, [[], images[:2], [], images[2:3]], frames),
            [first, *grouped, second, flat[2]],
        ),
    }


@pytest.fixture(scope="module")
def codebooks(tiled, onevision):
    """Prototypes that are visual tokens of another image, and a cosine that half of an image's tokens lie below."""
    made = {}
    for adapter in (tiled, onevision):
        (other,) = adapter.encode(tiny.random_images(1, seed=7))
        made[adapter.family] = Codebook(other.views[0].tokens[::5].clone(), (), adapter.family)
    return made


def kept_of(pruner, image):
    """Return what a pruner keeps of each view of an image, without a model."""
    return split_by_view(image.arranged(pruner.layout).views, pruner.reduce_image(image).positions)


def generate(adapter, inputs, pruner=None, **settings):
    settings = {"max_new_tokens": 5, "do_sample": False} | settings
    if pruner is None:
        return adapter.model.generate(**inputs, **settings)
    with pruner(adapter.model):
        return adapter.model.generate(**inputs, **settings)


def answer_by_hand(adapter, ids, mask, pieces, n_new=5):
    """Decode greedily one prompt, without cache, mask or `generate`.

    `pieces` has for each image and video of the prompt: rows, their positions in it, and its length unpruned.
    """
    model = adapter.model
    embedding, rows, positions, n_seen, pieces = model.get_input_embeddings(), [], [], 0, iter(pieces)
    placeholders = (adapter.image_token_id, adapter.video_token_id)
    counts = dict.fromkeys(placeholders, 0)
    for token in ids[mask.bool()].tolist():
        if token not in placeholders:
            rows.append(embedding.weight[token])
            positions.append(n_seen)
            n_seen += 1
            continue
        if counts[token] == 0:
            own, kept, length, counts[token] = next(pieces)
            rows += list(own)
            positions += [n_seen + int(position) for position in kept]
            n_seen += length
        counts[token] -= 1
    answer = []
    for _ in range(n_new):
        with torch.no_grad():
            hidden = model.model.language_model(
                inputs_embeds=torch.stack(rows)[None],
                position_ids=torch.tensor([positions]),
                attention_mask=torch.ones(1, len(rows), dtype=torch.long),
                use_cache=False,
            ).last_hidden_state
            answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        rows.append(embedding.weight[answer[-1]])
        positions.append(n_seen)
        n_seen += 1
    return answer


def expected_answers(adapter, inputs, images, pruner):
    """Return every prompt's answer from the rows that a pruner says it kept."""
    pieces = []
    for image, kept in zip(images, pruner.kept_by_view, strict=True):
        arranged = image.arranged(pruner.layout)
        full, tokens = adapter.assemble(arranged).rows, [view.tokens for view in arranged.views]
        marks = adapter.assemble(
            arranged, [torch.full_like(own, float("nan")) for own in tokens]
        ).rows.isnan()[:, 0]
        wanted = [own.clone() for own in tokens]
        for own, chosen in zip(wanted, kept, strict=True):
            dropped = torch.ones(len(own), dtype=torch.bool)
            dropped[chosen] = False
            own[dropped] = float("nan")
        stays = ~adapter.assemble(arranged, wanted).rows.isnan()[:, 0]
        assert int((stays & marks).sum()) == sum(map(len, kept))
        positions = stays.nonzero().flatten()
        if pruner.position_ids == "kept":
            pieces.append((full[stays], positions, len(full), image.n_rows))
        else:
            pieces.append((full[stays], range(len(positions)), len(positions), image.n_rows))
    answers, used = [], 0
    for ids, mask, prompt in zip(
        inputs["input_ids"], inputs["attention_mask"], prompts_of(adapter), strict=True
    ):
        n = prompt.count("<image>") + prompt.count("<video>")
        answers.append(answer_by_hand(adapter, ids, mask, pieces[used : used + n]))
        used += n
    assert used == len(pieces)
    return answers


def prompts_of(adapter):
    return NEXT_PROMPTS if adapter.family == "llava_next" else ONEVISION_PROMPTS


# Retaining everything


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True},
        pytest.param({"prefill_chunk_size": 50}, marks=IN_CHUNKS),
        {"max_length": 500, "max_new_tokens": None, "min_length": 499},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["next", "onevision", "grouped"])
def test_retaining_everything_equals_the_unpruned_model(batches, name, settings, position_ids):
    adapter, inputs, images = batches[name]
    if "max_length" in settings:
        n_prompt = inputs["input_ids"].shape[1]
        settings = settings | {"max_length": n_prompt + 3, "min_length": n_prompt + 2}
    pruner = RandomPruner(1.0, position_ids=position_ids)
    torch.manual_seed(5)
    expected = generate(adapter, inputs, **settings)
    torch.manual_seed(5)
    assert torch.equal(generate(adapter, inputs, pruner, **settings), expected)
    assert pruner.n_retained == pruner.n_tokens == [image.n_rows for image in images]
    assert [len(kept) for kept in pruner.kept] == [image.n_tokens for image in images]


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_answers_depend_on_every_image_and_video(batches, name):
    adapter, inputs, _ = batches[name]
    plain = generate(adapter, inputs, return_dict_in_generate=True, output_logits=True).logits[0]
    for key in ("pixel_values", "pixel_values_videos"):
        for i in range(len(inputs.get(key, []))):
            pixels = inputs[key].clone()
            pixels[i] = -pixels[i]
            changed = generate(
                adapter, inputs | {key: pixels}, return_dict_in_generate=True, output_logits=True
            ).logits[0]
            assert (changed - plain).abs().amax(-1).gt(1e-3).sum() == 1


# Pruned generation, against prompts assembled by hand


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
@pytest.mark.parametrize("layout", ["packed", "flatten"])
@pytest.mark.parametrize(
    ("name", "scope"), [("next", "tile"), ("next", "image"), ("onevision", "tile"), ("grouped", "video")]
)
def test_pruned_generation_equals_prompts_made_by_hand(batches, name, scope, layout, position_ids):
    adapter, inputs, images = batches[name]
    pruner = RandomPruner(0.3, seed=3, scope=scope, layout=layout, position_ids=position_ids)
    output = generate(adapter, inputs, pruner)
    n_prompt = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :n_prompt], inputs["input_ids"])
    assert output[:, n_prompt:].tolist() == expected_answers(adapter, inputs, images, pruner)
    assert (output != generate(adapter, inputs)).any()


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
def test_flatten_may_retain_more_than_the_model_reads(batches, position_ids):
    """A photo of 24 x 24 pixels leaves half of its two tiles to padding: 36 + 6 x 7 rows become 108 + 1."""
    adapter, inputs, images = batches["next"]
    pruner = RandomPruner(1.0, layout="flatten", position_ids=position_ids)
    output = generate(adapter, inputs, pruner)
    assert (pruner.n_tokens[1], pruner.n_retained[1]) == (78, 109)
    n_prompt = inputs["input_ids"].shape[1]
    assert output[:, n_prompt:].tolist() == expected_answers(adapter, inputs, images, pruner)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_beams_of_a_batch_are_those_of_its_prompts(batches, onevision, codebooks, settings):
    """Images and videos that keep unequal numbers of tokens stay with their prompts."""
    _, inputs, _ = batches["onevision"]
    pruner = CodebookPruner(codebooks["llava_onevision"], "double_softmax", retain_ratio=0.4, scope="image")
    together = generate(onevision, inputs, pruner, **settings)
    frames = tiny.random_images(3, seed=9)
    alone = inputs_of(onevision.processor, ONEVISION_PROMPTS[1:2], pictures()[:2], [frames])
    n_each = settings.get("num_return_sequences", 1)
    answers = generate(onevision, alone, pruner, **settings)[:, alone["input_ids"].shape[1] :]
    assert torch.equal(together[n_each : 2 * n_each, inputs["input_ids"].shape[1] :], answers)


# Which tokens a budget is for


@pytest.mark.parametrize("layout", ["packed", "flatten"])
@pytest.mark.parametrize("budget", [{"retain_ratio": 0.4}, {"max_similarity": 0.2}], ids=str)
def test_tiles_are_pruned_one_by_one(batches, codebooks, layout, budget):
    adapter, inputs, images = batches["next"]
    codebook = codebooks["llava_next"]
    pruner = CodebookPruner(codebook, layout=layout, **budget)
    generate(adapter, inputs, pruner, max_new_tokens=1)
    for image, kept in zip(images, pruner.kept_by_view, strict=True):
        views = image.arranged(layout).views
        for view, chosen in zip(views, kept, strict=True):
            scores = redundancy_scores(view.tokens, codebook.prototypes)
            assert torch.equal(chosen, keep_indices(scores, **budget))
    n_newlines = [1] * 4 if layout == "flatten" else [10, 6, 18, 18]
    assert pruner.n_retained == [len(kept) + n for kept, n in zip(pruner.kept, n_newlines, strict=True)]
    assert pruner.n_tokens == [image.n_rows for image in images]


@pytest.mark.parametrize("rule", ["max_cosine", "double_softmax", "single_softmax"])
def test_scopes_say_which_tokens_share_a_budget(batches, codebooks, rule):
    adapter, _, images = batches["onevision"]
    codebook = codebooks["llava_onevision"]
    video, image = images[:2]
    for whole, scope, sets in (
        (image, "tile", [[0], [1], [2], [3], [4]]),
        (image, "image", [[0, 1, 2, 3, 4]]),
        (image, "video", [[0, 1, 2, 3, 4]]),
        (video, "tile", [[0], [1], [2]]),
        (video, "image", [[0], [1], [2]]),
        (video, "video", [[0, 1, 2]]),
    ):
        kept = kept_of(CodebookPruner(codebook, rule, retain_ratio=0.4, scope=scope), whole)
        for members in sets:
            tokens = torch.cat([whole.views[i].tokens for i in members])
            scores = redundancy_scores(tokens, codebook.prototypes, rule)
            expected = keep_indices(scores, retain_ratio=0.4, rule=rule).tolist()
            starts = itertools.accumulate([0, *(whole.views[i].n_tokens for i in members[:-1])])
            found = [
                start + position
                for start, i in zip(starts, members, strict=True)
                for position in kept[i].tolist()
            ]
            assert found == expected


def test_random_tokens_of_frames_and_tiles(batches, onevision):
    """The release's baseline for images and videos: as many in each grid, others in each, in reading order."""
    _, inputs, images = batches["onevision"]
    pruner = RandomPruner(1 / 3, seed=4)
    generate(onevision, inputs, pruner, max_new_tokens=1)
    video, image = pruner.kept_by_view[:2]
    assert [len(kept) for kept in video] == [3, 3, 3]
    assert [len(kept) for kept in image] == [round(view.n_tokens / 3) for view in images[1].views]
    assert len({tuple(kept.tolist()) for kept in video}) > 1
    for kept in (*video, *image):
        assert (kept.diff() > 0).all()
    again = RandomPruner(1 / 3, seed=4)
    alone = kept_of(again, images[0])
    assert [kept.tolist() for kept in alone] == [kept.tolist() for kept in video]


@pytest.mark.parametrize("scope", ["tile", "image"])
def test_similarity_to_cls_is_that_of_each_grid(batches, scope):
    adapter, inputs, images = batches["next"]
    pruner = ClsSimilarityPruner(0.25, scope=scope)
    generate(adapter, inputs, pruner, max_new_tokens=1)
    for image, kept in zip(images, pruner.kept_by_view, strict=True):
        if scope == "image":
            similarity = torch.cat([view.signals["cls_similarity"] for view in image.views])
            order = similarity.argsort(descending=True)[: round(0.25 * image.n_tokens)]
            assert sum(map(len, kept)) == len(order)
            continue
        for view, chosen in zip(image.views, kept, strict=True):
            order = view.signals["cls_similarity"].argsort(descending=True)[: round(0.25 * view.n_tokens)]
            assert chosen.tolist() == sorted(order.tolist())


def test_a_tile_may_lose_all_but_an_image_keeps_one(batches, codebooks):
    adapter, _, images = batches["next"]
    codebook = codebooks["llava_next"]
    scores = [redundancy_scores(view.tokens, codebook.prototypes) for view in images[0].views]
    lowest = sorted(float(own.min()) for own in scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = (lowest[1] + lowest[2]) / 2
        kept = kept_of(CodebookPruner(codebook, max_similarity=cut), images[0])
    assert sorted(map(len, kept))[:3] == [0, 0, 0]
    with pytest.warns(UserWarning, match="keeps none of 156 visual tokens"):
        kept = kept_of(CodebookPruner(codebook, max_similarity=-1.0), images[0])
    assert sum(map(len, kept)) == 1
    (view,) = [i for i, chosen in enumerate(kept) if len(chosen)]
    assert float(scores[view][kept[view]]) == lowest[0]


@pytest.mark.parametrize("layout", ["packed", "flatten"])
@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
def test_an_evaluation_answers_as_generate_does(tiled, layout, position_ids):
    images = pictures()
    samples = [Sample(i, lambda image=image: image, *image.size) for i, image in enumerate(images)]
    questions = [Question(i, "one_word", "What is this ?", "cat") for i in range(len(images))]
    pruner = ClsSimilarityPruner(0.3, layout=layout, position_ids=position_ids)
    frame = evaluate(tiled.model, tiled.processor, questions, samples, pruner, max_new_tokens=4)
    prompt = tiled.prompt("What is this ?")
    for i, image in enumerate(images):
        output = generate(tiled, inputs_of(tiled.processor, [prompt], [image]), pruner, max_new_tokens=4)
        answer = tiled.processor.tokenizer.decode(output[0, -4:], skip_special_tokens=True)
        assert frame["prediction"][i] == answer.strip()
        assert (frame["n_visual_tokens"][i], frame["n_retained"][i]) == (
            pruner.n_tokens[0],
            pruner.n_retained[0],
        )


# Codebooks and their families


def test_a_rule_of_another_family_gets_one_line(batches, codebooks):
    adapter, inputs, _ = batches["onevision"]
    codebook = codebooks["llava_onevision"]
    with pytest.warns(
        UserWarning, match="rule: 'max_cosine' with family 'llava_onevision'.*'double_softmax'"
    ):
        generate(adapter, inputs, CodebookPruner(codebook, retain_ratio=0.5), max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CodebookPruner(codebook, "double_softmax", retain_ratio=0.5).check(adapter)
        CodebookPruner(codebooks["llava_next"], max_similarity=0.3).check(batches["next"][0])


# Wrong inputs


def test_placeholders_must_match_images_and_videos(batches):
    adapter, inputs, _ = batches["onevision"]
    ids = inputs["input_ids"].clone()
    ids[0, ids[0] == adapter.video_token_id] = 10
    with pytest.raises(ParameterError, match="input_ids: got '28 video placeholders'.*56.* of 2 videos"):
        generate(adapter, inputs | {"input_ids": ids}, RandomPruner(0.5))
    more = {name: torch.cat([inputs[name]] * 2) for name in ("pixel_values", "image_sizes")}
    more["batch_num_images"] = torch.ones(6, dtype=torch.long)
    with pytest.raises(ParameterError, match="image placeholders.* of 6 images"):
        generate(adapter, inputs | more, RandomPruner(0.5))
    with pytest.raises(ParameterError, match="generate: got 'vision_aspect_ratio'"):
        generate(adapter, inputs | {"vision_aspect_ratio": "anyres_max_1"}, RandomPruner(0.5))


# Real settings


@pytest.mark.parametrize("build", [tiny.reduced_next, tiny.reduced_onevision])
def test_real_settings_at_reduced_width_prune(build):
    adapter = adapter_for(*build())
    images = tiny.random_images(1, (640, 480)) + tiny.random_images(1, (300, 100))
    prompts = [adapter.prompt("What is this ?"), adapter.prompt("Is there a cat in this image ?")]
    videos = None
    if adapter.video_token_id is not None:
        prompts.append(adapter.prompt("How many ?", n_images=0, n_videos=1))
        videos = [tiny.random_images(4, (64, 48))]
    inputs = inputs_of(adapter.processor, prompts, images, videos)
    plain = generate(adapter, inputs, max_new_tokens=3)
    everything = RandomPruner(1.0)
    assert torch.equal(generate(adapter, inputs, everything, max_new_tokens=3), plain)
    pruner = RandomPruner(0.2)
    output = generate(adapter, inputs, pruner, max_new_tokens=3)
    assert torch.equal(output[:, :-3], inputs["input_ids"])
    if videos is None:
        # 576 x 0.2 = 115.2; each of four tiles of 18 x 24 keeps 86; 36 newlines stay.
        assert (everything.n_retained[0], pruner.n_retained[0]) == (2340, 115 + 4 * 86 + 36)
    else:
        # 729 x 0.2 = 145.8; each of four tiles of 20 x 27 keeps 108; 40 newlines; 39 of 196 in every frame.
        assert (everything.n_retained[0], pruner.n_retained[0]) == (2929, 146 + 4 * 108 + 40)
        assert (everything.n_retained[2], pruner.n_retained[2]) == (4 * 196 + 1, 4 * 39 + 1)
