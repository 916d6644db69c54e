"""Check that images in tiles, several images and videos are read as LLaVA-NeXT and OneVision read them."""

import json
import math

import pytest
import tiny
import torch
from families import FAMILIES
from transformers import (
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from benchmarks.checkpoints import CHECKPOINTS, empty_model
from rcblib.mllm import adapter_for, load_model
from rcblib.records import (
    NEWLINE,
    ONE_WORD_QUESTION,
    EncodedImage,
    ParameterError,
    UnsupportedModelError,
    VisualView,
)

QUESTION = "What does this image show ?"


@pytest.fixture(scope="module", params=["llava_next", "llava_next with DINOv2"])
def tiled(request):
    return adapter_for(*FAMILIES[request.param].build())


@pytest.fixture(scope="module")
def onevision():
    return adapter_for(*tiny.tiny_onevision())


def pixels_of(adapter, images):
    return adapter.processor.image_processor(images, return_tensors="pt")


def own_features(adapter, inputs):
    """Return the rows of every image from the model itself."""
    names = [name for name in ("pixel_values", "image_sizes", "batch_num_images") if name in inputs]
    with torch.no_grad():
        return adapter.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output


def numbered(image, value=float):
    """Return an image whose tokens are their own numbers, to follow them through the packing."""
    views, n_before = [], 0
    for view in image.views:
        tokens = torch.arange(n_before, n_before + view.n_tokens, dtype=torch.float32)[:, None]
        views.append(VisualView(tokens, view.grid, kind=view.kind))
        n_before += view.n_tokens
    return EncodedImage(tuple(views), image.packing)


# Tiles


# Width and height in pixels, and the grids: tiles are 6 x 6; of a photo that leaves padding less is read.
NEXT_CASES = {
    (48, 48): [(6, 6)] * 5,
    (40, 31): [(6, 6), (5, 6), (5, 6), (5, 6), (5, 6)],
    (24, 24): [(6, 6), (6, 3), (6, 3)],
    (20, 90): [(6, 6), (6, 4), (6, 4), (6, 4)],
    (72, 24): [(6, 6)] * 4,
}

# Tiles are 5 x 5; more than four of them are resampled to as many tokens as four have.
ONEVISION_CASES = {
    (22, 22): [(5, 5)] * 2,
    (40, 31): [(5, 5)] + [(4, 5)] * 4,
    (100, 30): [(5, 5)] + [(3, 5)] * 8,
    (66, 66): [(5, 5)] + [(3, 3), (3, 4), (3, 3), (4, 3), (4, 4), (4, 3), (3, 3), (3, 4), (3, 3)],
}


@pytest.mark.parametrize(
    ("family", "size"),
    [
        (family, size)
        for family, cases in (("llava_next", NEXT_CASES), ("llava_onevision", ONEVISION_CASES))
        for size in cases
    ],
    ids=str,
)
def test_tokens_are_those_of_the_model(family, size):
    adapter = adapter_for(*FAMILIES[family].build())
    images = tiny.random_images(1, size)
    (image,) = adapter.encode(images)
    (rows,) = own_features(adapter, pixels_of(adapter, images))
    assert torch.equal(adapter.assemble(image).rows, rows)
    assert adapter.n_placeholders(image) == image.n_rows == len(rows)
    expected = (NEXT_CASES if family == "llava_next" else ONEVISION_CASES)[size]
    assert [view.grid for view in image.views] == expected
    assert [view.kind for view in image.views] == ["image"] + ["tile"] * (len(expected) - 1)
    for view in image.views:
        assert view.n_tokens == math.prod(view.grid)
        assert not view.tokens.requires_grad
        assert view.signals == {}


def test_reading_order_goes_line_by_line_across_tiles(tiled):
    """A photo of 40 x 31 pixels: two by two tiles of five lines of six tokens each."""
    image = numbered(tiled.encode(tiny.random_images(1, (40, 31)))[0])
    read = image.packing.order.tolist()
    assert read[:36] == list(range(36))
    lines = torch.tensor(read[36:]).view(10, 13)
    assert lines[:, -1].tolist() == [NEWLINE] * 10
    assert lines[0, :-1].tolist() == [*range(36, 42), *range(66, 72)]
    assert lines[4, :-1].tolist() == [*range(60, 66), *range(90, 96)]
    assert lines[5, :-1].tolist() == [*range(96, 102), *range(126, 132)]
    assert sorted(lines[:, :-1].flatten().tolist()) == list(range(36, 156))
    newline = torch.full((1,), -7.0)
    packing = type(image.packing)(image.packing.order, newline)
    rows = tiled.assemble(EncodedImage(image.views, packing)).rows
    assert rows.flatten().tolist() == [-7.0 if number == NEWLINE else number for number in read]


@pytest.mark.parametrize("size", [(40, 31), (24, 24), (48, 48)])
def test_tokens_of_a_tile_are_those_of_the_tile_alone(tiled, size):
    """The tower and connector, run on each picture, give the whole tiles; views are what padding leaves of them."""
    images = tiny.random_images(1, size)
    (image,) = tiled.encode(images, ["cls_similarity"])
    pictures = pixels_of(tiled, images)["pixel_values"][0]
    whole = image.arranged("flatten")
    model = tiled.model.model
    with torch.no_grad():
        hidden = model.vision_tower(pictures, output_hidden_states=True).hidden_states[-2]
        expected = model.multi_modal_projector(hidden[:, 1:])
    similarity = torch.cosine_similarity(hidden[:, 1:], hidden[:, :1], dim=-1)
    assert len(whole.views) == len(pictures)
    for k, view in enumerate(whole.views):
        assert view.grid == (6, 6)
        torch.testing.assert_close(view.tokens, expected[k], rtol=0, atol=1e-5)
        torch.testing.assert_close(view.signals["cls_similarity"], similarity[k], rtol=0, atol=1e-6)
    for view, full in zip(image.views, whole.views, strict=True):
        found = (full.tokens[:, None] == view.tokens).all(-1).nonzero()[:, 0]
        assert len(found) == view.n_tokens
        assert torch.equal(full.signals["cls_similarity"][found], view.signals["cls_similarity"])
        rows, columns = found // 6, found % 6
        assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == view.grid


def test_images_of_unequal_numbers_of_tiles_go_through_the_encoder_at_once(tiled):
    images = [tiny.random_images(1, size)[0] for size in NEXT_CASES]
    calls = []
    handle = tiled.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    together = tiled.encode(images)
    handle.remove()
    assert len(calls) == 1
    for image, picture in zip(together, images, strict=True):
        (alone,) = tiled.encode([picture])
        torch.testing.assert_close(tiled.assemble(image).rows, tiled.assemble(alone).rows, rtol=0, atol=1e-5)
    assert len(tiled.model.model.multi_modal_projector._forward_hooks) == 0


def test_regions_say_where_on_the_photo_a_grid_lies(tiled, onevision):
    (image,) = tiled.encode(tiny.random_images(1, (48, 48)))
    assert [view.region for view in image.views] == [
        (0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1),
    ]  # fmt: skip
    # 40 x 31 becomes 48 x 38 with 5 pixels above and below; lines begin at 4 and end at 44.
    (image,) = tiled.encode(tiny.random_images(1, (40, 31)))
    assert image.views[1].region == (0, -1 / 38, 0.5, 19 / 38)
    assert image.views[4].region == (0.5, 19 / 38, 1, 39 / 38)
    # Twenty of a tile's 22 pixels are under tokens. Alone among others, a photo is padded to a square.
    (image, _) = onevision.encode(tiny.random_images(2, (40, 20)), one_prompt=True)
    assert image.views[0].region == pytest.approx((0, -10 / 20, 20 / 22, (40 * 20 / 22 - 10) / 20))
    (image,) = onevision.encode(tiny.random_images(1, (44, 22)))
    assert image.views[2].region == pytest.approx((0.5, 0, 0.5 + 20 / 44, 20 / 22))
    # Resampled from 15 to 10 tokens a side: three for the first tile, one and a half of its own each.
    (image,) = onevision.encode(tiny.random_images(1, (66, 66)))
    assert image.views[1].region == pytest.approx((0, 0, 4.5 * 4 / 66, 4.5 * 4 / 66))


def test_flatten_reads_whole_tiles_and_one_newline(tiled):
    (image,) = tiled.encode(tiny.random_images(1, (40, 31)))
    flat = image.arranged("flatten")
    assert [view.grid for view in flat.views] == [(6, 6)] * 5
    rows = tiled.assemble(flat).rows
    assert len(rows) == flat.n_rows == 5 * 36 + 1
    assert torch.equal(rows[:-1], torch.cat([view.tokens for view in flat.views]))
    assert torch.equal(rows[-1], tiled.model.model.image_newline)
    with pytest.raises(ParameterError, match=r"layout: got 'flat'; accepted: one of \('packed', 'flatten'\)"):
        image.arranged("flat")


def test_views_are_whole_where_nothing_is_cut_off(tiled):
    (square,) = tiled.encode(tiny.random_images(1, (48, 48)))
    assert square.whole is square.views
    assert square.to("cpu").whole is not None


def test_layouts_differ_for_tiles_only(onevision):
    for image in (
        *onevision.encode(tiny.random_images(2), one_prompt=True),
        onevision.encode_video(tiny.random_images(2)),
        adapter_for(*tiny.tiny_llava()).encode(tiny.random_images(1))[0],
    ):
        assert image.arranged("flatten") is image.arranged("packed") is image


def test_some_rows_are_gathered_with_every_newline(tiled):
    (image,) = tiled.encode(tiny.random_images(1, (40, 31)))
    kept = [torch.tensor([0, 35]), torch.tensor([29]), torch.tensor([]).long(), *[torch.tensor([3])] * 2]
    gathered = tiled.gather(image, kept)
    positions = gathered.numbers
    assert torch.equal(gathered.rows, tiled.assemble(image).rows[positions])
    assert (positions.diff() > 0).all()
    newlines = (image.packing.order == NEWLINE).nonzero().flatten().tolist()
    line = 36 + 13 * 4 + 5  # the last token of the first tile ends the fifth line's first half
    assert positions.tolist() == sorted([0, 35, line, 36 + 13 * 5 + 3, 36 + 13 * 5 + 9, *newlines])


# Several images, and videos


def test_several_images_of_a_prompt_are_one_grid_each(onevision):
    images = tiny.random_images(2, (40, 31)) + tiny.random_images(1, (20, 90))
    encoded = onevision.encode(images, one_prompt=True)
    inputs = onevision.processor.image_processor([images], return_tensors="pt")
    assert inputs["batch_num_images"].tolist() == [3]
    for image, rows in zip(encoded, own_features(onevision, inputs), strict=True):
        assert [view.grid for view in image.views] == [(5, 5)]
        assert torch.equal(onevision.assemble(image).rows, rows)
        assert len(rows) == 26
    (alone,) = onevision.encode(images[:1], one_prompt=True)
    assert len(alone.views) == 5


def test_one_prompt_makes_no_difference_to_other_families(tiled):
    for adapter in (tiled, adapter_for(*tiny.tiny_llava())):
        images = tiny.random_images(2)
        for ours, theirs in zip(adapter.encode(images), adapter.encode(images, one_prompt=True), strict=True):
            assert torch.equal(adapter.assemble(ours).rows, adapter.assemble(theirs).rows)


def test_frames_are_pooled_and_end_with_a_newline(onevision):
    frames = tiny.random_images(4, (60, 40))
    video = onevision.encode_video(frames)
    inputs = onevision.processor.video_processor([frames], return_tensors="pt")
    with torch.no_grad():
        rows = onevision.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
    assert video.is_video
    assert [(view.kind, view.grid) for view in video.views] == [("frame", (3, 3))] * 4
    assert torch.equal(onevision.assemble(video).rows, rows)
    assert len(rows) == 4 * 9 + 1
    with torch.no_grad():
        (second,) = onevision.encode_video(frames[1:2]).views
    torch.testing.assert_close(second.tokens, video.views[1].tokens, rtol=0, atol=1e-5)


def test_images_and_videos_of_a_batch_come_in_this_order(onevision):
    images, frames = tiny.random_images(1), tiny.random_images(2, seed=1)
    inputs = onevision.processor(
        text=["Is <video>", "Is <image>"], images=images, videos=[frames], return_tensors="pt", padding=True
    )
    image, video = onevision.encode_pixels(inputs)
    assert (image.is_video, video.is_video) == (False, True)
    assert torch.equal(onevision.assemble(image).rows, onevision.assemble(onevision.encode(images)[0]).rows)
    assert torch.equal(
        onevision.assemble(video).rows, onevision.assemble(onevision.encode_video(frames)).rows
    )


# First-token logits


# The word that replaces a token


def test_small_vocabularies_replace_by_their_padding(tiled, onevision):
    assert tiled.replacement_token_id == tiled.processor.tokenizer.pad_token_id
    assert onevision.replacement_token_id == 0
    model, _ = tiny.tiny_onevision()
    model.config.text_config.pad_token_id = 7
    adapter = adapter_for(model)
    assert adapter.replacement_token_id == 7
    assert torch.equal(adapter.replacement_embedding(), model.get_input_embeddings().weight[7])
    model.config.text_config.pad_token_id = None
    with pytest.raises(UnsupportedModelError, match="pad_token_id: got none"):
        adapter_for(model).replacement_token_id  # noqa: B018


# Wrong inputs


def test_wrong_inputs_end_in_one_line(tiled, onevision):
    inputs = dict(pixels_of(tiled, tiny.random_images(2, (40, 31))))
    for wrong, message in (
        ({"image_sizes": None}, "image_sizes: got None"),
        (
            {"image_sizes": inputs["image_sizes"][:1]},
            r"pixel_values: got \(2, 5, 3, 24, 24\); accepted: \(1 im",
        ),
        ({"pixel_values": inputs["pixel_values"][:, :2]}, "accepted: .*5 tiles or more"),
        ({"pixel_values": inputs["pixel_values"][0]}, "pixel_values: got .* a tensor of 5 dimensions"),
    ):
        with pytest.raises(ParameterError, match=message):
            tiled.encode_pixels(inputs | wrong)
    inputs = dict(pixels_of(onevision, tiny.random_images(2)))
    with pytest.raises(ParameterError, match=r"batch_num_images: got \[3\]; accepted: .* 2 images"):
        onevision.encode_pixels(inputs | {"batch_num_images": torch.tensor([3])})
    with pytest.raises(ParameterError, match="pixel_values: got None"):
        onevision.encode_pixels({})


def test_videos_without_frames_or_of_two_sizes_are_refused(onevision, tiled):
    with pytest.raises(ParameterError, match=r"frames: got \[\]; accepted: one or more PIL images"):
        onevision.encode_video([])
    mixed = tiny.random_images(1) + tiny.random_images(1, (50, 50))
    with pytest.raises(ParameterError, match=r"frames: got 'frames of sizes \[\(40, 31\), \(50, 50\)\]'"):
        onevision.encode_video(mixed)
    with pytest.raises(ParameterError, match=r"pixel_values_videos: got \(1, 0, 3, 22, 22\)"):
        onevision.encode_pixels({"pixel_values_videos": torch.empty(1, 0, 3, 22, 22)})
    with pytest.raises(UnsupportedModelError, match="'llava_next', takes images only"):
        tiled.encode_video(mixed)
    with pytest.raises(ParameterError, match="n_videos: got 1; accepted: 0"):
        tiled.prompt(QUESTION, n_videos=1)


def test_forms_of_onevision_that_are_not_covered_are_refused():
    model, _ = tiny.tiny_onevision()
    model.config.vision_aspect_ratio = "pad"
    with pytest.raises(UnsupportedModelError, match="vision_aspect_ratio: got 'pad'"):
        adapter_for(*[model, tiny.tiny_onevision()[1]]).encode(tiny.random_images(1))
    with torch.device("meta"):
        config = LlavaOnevisionConfig(
            vision_config=CLIPVisionConfig(**tiny.TINY_VISION),
            text_config=model.config.text_config,
            vision_feature_select_strategy="default",
        )
        other = LlavaOnevisionForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="got clip_vision_model"):
        adapter_for(other)


@pytest.mark.parametrize(
    ("size", "n_lines"), [((1000, 4), 0), ((4, 1000), 6), ((5000, 30), 0), ((30, 5000), 6)]
)
def test_a_photo_so_long_that_no_token_lies_on_it_is_read_as_the_model_reads_it(tiled, size, n_lines):
    """Of tiles without a token newlines may be left; what the model makes of such photos is not refused."""
    images = tiny.random_images(1, size)
    (image,) = tiled.encode(images)
    (rows,) = own_features(tiled, pixels_of(tiled, images))
    assert torch.equal(tiled.assemble(image).rows, rows)
    assert image.n_rows - image.n_tokens == n_lines
    assert [view.grid for view in image.views][0] == (6, 6)
    gathered = tiled.gather(image, [torch.tensor([0, 7])])
    assert torch.equal(gathered.rows, rows[gathered.numbers]) and len(gathered) == 2 + n_lines


# Loading


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen2_5_vl"}))
@pytest.mark.parametrize("drop_file", [False, True], ids=["without its settings", "without its file"])
def test_a_processor_that_was_saved_without_what_it_needs_counts_as_the_model(family, drop_file, tmp_path):
    """Older snapshots of checkpoints have processors of this kind."""
    adapter = adapter_for(*FAMILIES[family].build())
    folder = tiny.save(tmp_path, adapter.model, adapter.processor)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text("utf-8")}))
    template.unlink()
    kind = {"llava": "CLIP", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[adapter.family]
    own = settings.pop("image_processor") | {"image_processor_type": f"{kind}ImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(own), encoding="utf-8")
    counting = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    counting += ("num_image_tokens", "vision_aspect_ratio")
    assert set(counting) & set(settings)
    settings = {name: value for name, value in settings.items() if name not in counting}
    path.write_text(json.dumps(settings), encoding="utf-8")
    if drop_file:
        path.unlink()
    model, processor = load_model(folder)
    images, prompt = tiny.random_images(1), adapter.prompt(QUESTION)
    found = processor(text=[prompt], images=images, return_tensors="pt")
    expected = adapter.processor(text=[prompt], images=images, return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    with torch.no_grad():
        ours, theirs = (m(**inputs).logits for m, inputs in ((model, found), (adapter.model, expected)))
    assert torch.equal(ours, theirs)


# Real settings

# Width and height in pixels: rows that the LLM reads, worked out by hand from the paper's rules. LLaVA-NeXT:
# 576 + lines x (tokens a line + newline). 640 x 480 fills 672 x 504 of 672 x 672: 36 lines of 48. 1000 x 300 fills
# 1008 x 302.4 of 1008 x 336: 21.6 lines become 22, as one line of padding goes off either side.
NEXT_ROWS = {(640, 480): 576 + 36 * 49, (336, 336): 576 + 24 * 25, (1000, 300): 576 + 22 * 73}

# 640 x 480 fills 768 x 576 of 768 x 768: of 40.5 lines of 54 tokens 40 are read. 1000 x 300 fills 1152 x 345.6 of
# 1152 x 384: of 24.3 lines 24, and one more as 27 - 24 is odd. 2304 x 2304 has 162 lines of 162, four times as many
# tokens as nine tiles: half of them each way.
ONEVISION_ROWS = {
    (384, 384): 729 + 27 * 28,
    (640, 480): 729 + 40 * 55,
    (1000, 300): 729 + 25 * 82,
    (2304, 2304): 729 + 81 * 82,
}


def test_the_full_size_next_gives_tokens_of_width_4096():
    model = empty_model(CHECKPOINTS[2])
    pixels = torch.empty(len(NEXT_ROWS), 5, 3, 336, 336, device="meta")
    adapter = adapter_for(model)
    sizes = torch.tensor([size[::-1] for size in NEXT_ROWS])
    images = adapter.encode_pixels({"pixel_values": pixels, "image_sizes": sizes})
    assert [adapter.assemble(image).rows.shape for image in images] == [(n, 4096) for n in NEXT_ROWS.values()]
    assert (adapter.d_model, adapter.n_vocab, adapter.replacement_token_id) == (4096, 128320, 128001)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(8.36e9, rel=0.01)


def test_the_full_size_onevision_gives_tokens_of_width_3584():
    model = empty_model(CHECKPOINTS[3])
    pixels = torch.empty(len(ONEVISION_ROWS), 37, 3, 384, 384, device="meta")
    frames = torch.empty(1, 16, 3, 384, 384, device="meta")
    adapter = adapter_for(model)
    sizes = torch.tensor([size[::-1] for size in ONEVISION_ROWS])
    *images, video = adapter.encode_pixels(
        {"pixel_values": pixels, "image_sizes": sizes, "pixel_values_videos": frames}
    )
    assert [adapter.assemble(image).rows.shape for image in images] == [
        (n, 3584) for n in ONEVISION_ROWS.values()
    ]
    assert adapter.assemble(video).rows.shape == (16 * 196 + 1, 3584)
    assert {view.grid for view in video.views} == {(14, 14)}
    together = adapter.encode_pixels(
        {"pixel_values": pixels[:2, :1], "image_sizes": sizes[:2], "batch_num_images": torch.tensor([2])}
    )
    assert [image.n_rows for image in together] == [730, 730]
    assert (adapter.d_model, adapter.n_vocab, adapter.replacement_token_id) == (3584, 152000, 151643)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(8.03e9, rel=0.01)


@pytest.mark.parametrize("build", [tiny.reduced_next, tiny.reduced_onevision])
def test_real_settings_at_reduced_width_read_what_the_model_reads(build):
    adapter = adapter_for(*build())
    images = tiny.random_images(1, (640, 480))
    prompt = adapter.prompt(ONE_WORD_QUESTION)
    inputs = adapter.processor(text=[prompt], images=images, return_tensors="pt")
    (image,) = adapter.encode(images, adapter.offers)
    rows = adapter.assemble(image)
    assert torch.equal(rows.rows, own_features(adapter, inputs)[0])
    assert int((inputs["input_ids"] == adapter.image_token_id).sum()) == len(rows)
    assert len(image.views) == 5
    with torch.no_grad():
        expected = adapter.model(**inputs, logits_to_keep=1).logits[:, -1]
    logits = adapter.first_token_logits(prompt, [rows, image.views[1].tokens[:9]])
    torch.testing.assert_close(logits[:1], expected, rtol=0, atol=1e-4)
    for view in image.views:
        assert view.signals.keys() == adapter.offers
        assert {len(signal) for signal in view.signals.values()} == {view.n_tokens}
    if adapter.has_cls:
        assert prompt.startswith("<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat does")
    else:
        assert prompt.startswith("<|im_start|>user <image>\nWhat does")
        video = adapter.encode_video(images * 2)
        assert [view.grid for view in video.views] == [(14, 14)] * 2
