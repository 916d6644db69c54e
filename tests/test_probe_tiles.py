"""Check probing of tiles, several photos and videos against rows put together by hand, and runs over such samples."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from pycocotools.mask import encode

from rcblib.data.opening import world_note
from rcblib.data.samples import load_pictures, sample_identity
from rcblib.data.video import VideoFile
from rcblib.mllm import ADAPTERS, adapter_for
from rcblib.probe.config import ProbeConfig, codebook_positions
from rcblib.probe.pictures import view_coverage, view_pictures
from rcblib.probe.run import probe
from rcblib.probe.store import probe_dataset, read_probe
from rcblib.reading.signals import lower_half
from rcblib.records import (
    ONE_WORD_QUESTION,
    ImageError,
    ParameterError,
    Sample,
    SceneObject,
    SequenceSample,
    UnsupportedModelError,
)
from rcblib.runs.files import read_table
from rcblib.tensors.divergence import divergence, entropy, top1_probability
from rcblib.tensors.geometry import paper_ranks, window

TILED_SEED, ONEVISION_SEED = 2, 1
"""Of tiny models whose answers depend much on single windows; the second answers with an article to whole photos."""

LEVELS = ("single", "region", "region_ablated", "global", "global_ablated")


@pytest.fixture(scope="module", params=["CLIP", "DINOv2"])
def tiled(request):
    pair = tiny.tiny_next(TILED_SEED)
    return pair if request.param == "CLIP" else tiny.with_dinov2(pair, 24)


@pytest.fixture(scope="module")
def onevision():
    return tiny.tiny_onevision(ONEVISION_SEED)


@pytest.fixture(scope="module")
def photo():
    return tiny.random_images(1, (40, 31))[0]


@pytest.fixture(scope="module")
def tiled_table(tiled, photo):
    return probe(*tiled, photo)


def sequence_of(n, kind="images", size=(40, 31), seed=0, **changes):
    """Return a sample of several pictures of noise."""
    pictures = tuple(tiny.random_images(n, size, seed))
    settings = dict(image_id=seed, load=lambda: pictures, kind=kind, sizes=(size,) * n, source=f"{kind}/test")
    return SequenceSample(**settings | changes)


def own_rows(pair, **pictures):
    """Return the rows that the LLM reads of every picture, from the model itself."""
    model, processor = pair
    with torch.no_grad():
        if "frames" in pictures:
            inputs = processor.video_processor([pictures["frames"]], return_tensors="pt")
            return list(model.get_video_features(inputs["pixel_values_videos"]).pooler_output)
        nested = pictures["images"] if len(pictures["images"]) == 1 else [pictures["images"]]
        inputs = processor.image_processor(nested, return_tensors="pt")
        names = [name for name in ("pixel_values", "image_sizes", "batch_num_images") if name in inputs]
        return list(model.get_image_features(**{name: inputs[name] for name in names}).pooler_output)


def own_run(pair, rows, placeholder="image"):
    """Run the model once on a prompt's embeddings with rows in place of each placeholder, again after an article."""
    model, processor = pair
    places = [{"type": placeholder}] * len(rows)
    messages = [{"role": "user", "content": [*places, {"type": "text", "text": ONE_WORD_QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor.tokenizer(prompt)["input_ids"]
    words, left = model.get_input_embeddings(), iter(rows)
    ends = (model.config.image_token_id, getattr(model.config, "video_token_id", None))
    pieces = [next(left) if i in ends else words(torch.tensor([i])) for i in ids]
    for is_second in (False, True):
        with torch.no_grad():
            logits = model(inputs_embeds=torch.cat(pieces)[None]).logits[0, -1]
        top = logits.argmax().reshape(1)
        if is_second or processor.tokenizer.decode(top).strip().lower() not in ("a", "an", "the"):
            return logits, is_second
        pieces.append(words(top))


def check_row(pair, row, rows, number, places, grid, placeholder="image"):
    """Compare a row of a table with runs on rows put together by hand.

    `places` are the rows of the view's tokens among those of picture `number`, in raster order.
    """
    replacement = adapter_for(*pair).replacement_embedding()
    cells = window(row["position"], *grid)
    tokens = rows[number][places]
    target_out, window_out = tokens.clone(), [each.clone() for each in rows]
    target_out[row["position"]] = replacement
    window_out[number][[places[cell] for cell in cells]] = replacement
    inputs = (
        [tokens[row["position"]][None]], [tokens[cells]], [target_out[cells]], rows, window_out,
    )  # fmt: skip
    runs = dict(zip(LEVELS, (own_run(pair, each, placeholder) for each in inputs), strict=True))
    for level, (logits, article) in runs.items():
        assert row[f"{level}_article"] == article
        if "ablated" in level:
            continue
        prefix = "" if level == "single" else f"{level}_"
        probability, token_id = top1_probability(logits)
        assert row[f"{prefix}top1_id"] == int(token_id)
        assert row[f"{prefix}top1_probability"] == pytest.approx(float(probability), abs=1e-5)
        assert row[f"{prefix}entropy"] == pytest.approx(float(entropy(logits)), abs=2e-5)
    for level in ("region", "global"):
        expected = float(divergence(runs[level][0], runs[f"{level}_ablated"][0]))
        assert row[f"{level}_divergence"] == pytest.approx(expected, abs=1e-5)


# Tiles


def test_signals_of_a_tile_equal_runs_on_rows_put_together_by_hand(tiled, photo, tiled_table):
    """A photo of 40 x 31 pixels: 36 rows of the reduced photo, then ten lines of 6 + 6 tokens and a newline."""
    rows = own_rows(tiled, images=[photo])
    assert len(rows[0]) == 36 + 10 * 13
    by_view = tiled_table.set_index(["view", "position"])
    check_row(tiled, by_view.reset_index().iloc[14], rows, 0, list(range(36)), (6, 6))
    for view, (line, column) in ((2, (0, 6)), (3, (5, 0))):
        places = [36 + 13 * (line + r) + column + c for r in range(5) for c in range(6)]
        for position in (0, 14, 29):
            row = by_view.loc[(view, position)].copy()
            row["position"] = position
            check_row(tiled, row, rows, 0, places, (5, 6))


def test_the_table_names_every_grid(tiled_table):
    sizes = tiled_table.groupby("view").size()
    assert sizes.tolist() == [36, 30, 30, 30, 30]
    assert tiled_table["token"].tolist() == list(range(156))
    assert tiled_table.groupby("view")["kind"].first().tolist() == ["image"] + ["tile"] * 4
    assert "picture" not in tiled_table
    assert (tiled_table["row"] * 6 + tiled_table["column"] == tiled_table["position"]).all()
    for _, rows in tiled_table.groupby("view"):
        assert sorted(rows["cls_rank"]) == list(range(1, len(rows) + 1))
        assert rows.sort_values("cls_rank")["cls_similarity"].is_monotonic_decreasing
    signals = [name for name in tiled_table.select_dtypes("number") if name != "object_coverage"]
    assert np.isfinite(tiled_table[signals].to_numpy()).all()


@pytest.mark.parametrize("batch_size", [1, 5])
def test_results_do_not_depend_on_the_batch_size(tiled, photo, tiled_table, batch_size):
    again = probe(*tiled, photo, positions=[0, 16, 29], batch_size=batch_size)
    expected = tiled_table[tiled_table["position"].isin([0, 16, 29])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_read_at_the_row_of_each_token(tiled, photo, tiled_table):
    adapter = adapter_for(*tiled)
    rows = own_rows(tiled, images=[photo])
    attention = adapter.text_to_image_attention(adapter.prompt(ONE_WORD_QUESTION), rows)
    at = [*range(36)]
    for line, column in ((0, 0), (0, 6), (5, 0), (5, 6)):
        at += [36 + 13 * (line + r) + column + c for r in range(5) for c in range(6)]
    for name in ("last", "question"):
        for layer in range(2):
            found = tiled_table[f"attention_{name}_layer_{layer}"]
            np.testing.assert_allclose(found, attention[name][layer][at].numpy(), atol=1e-6)


def test_some_views_give_the_rows_of_all(tiled, photo, tiled_table):
    few = probe(*tiled, photo, positions=[3, 20], views=[4, 0])
    expected = tiled_table[tiled_table["view"].isin([0, 4]) & tiled_table["position"].isin([3, 20])]
    pd.testing.assert_frame_equal(few, expected.reset_index(drop=True), rtol=1e-4, atol=1e-5)
    base = probe(*tiled, photo, positions="grid", n_side=2, views="base", attention=False)
    assert base[["view", "kind"]].drop_duplicates().to_numpy().tolist() == [[0, "image"]]
    assert base["position"].tolist() == [7, 10, 25, 28]


def test_the_paper_s_ranks_are_taken_in_every_view(tiled, photo):
    table = probe(*tiled, photo, positions="paper_ranks", attention=False)
    for _, rows in table.groupby("view"):
        n_tokens = 36 if rows["kind"].iloc[0] == "image" else 30
        assert sorted(rows["cls_rank"]) == [rank + 1 for rank in paper_ranks(n_tokens)]
    assert codebook_positions(adapter_for(*tiled)) == "paper_ranks"


def test_thin_views_are_left_out_with_one_line(tiled):
    """A photo of 12 x 90 pixels: three tiles of which six lines of two tokens are read."""
    thin = tiny.random_images(1, (12, 90))[0]
    with pytest.warns(UserWarning, match="3 of 4 views") as caught:
        table = probe(*tiled, thin, positions=[0, 9], attention=False)
    assert [str(warning.message) for warning in caught] == [
        "image 0: 3 of 4 views are not probed, with grids of 6 x 2 tokens instead of at least 3 x 3 tokens"
    ]
    assert table["view"].tolist() == [0, 0]
    with pytest.raises(ParameterError, match="image: got 'image 0, grids of 6 x 2 tokens'; accepted: a grid"):
        probe(*tiled, thin, views=[1, 2])
    with pytest.warns(UserWarning, match=r"4 of 5 views are not probed, with grids of 5 x 6 .* 6 x 6 tokens"):
        table = probe(*tiled, tiny.random_images(1, (40, 31))[0], positions="grid", n_side=6)
    assert len(table) == 36


# Without [CLS]


def test_one_photo_without_cls_in_resampled_tiles(onevision):
    """Nine tiles of 5 x 5 become ten lines of ten tokens; the fifth tile is 4 x 4 of them, from line and column 3."""
    picture = tiny.random_images(1, (66, 66))[0]
    rows = own_rows(onevision, images=[picture])
    assert len(rows[0]) == 25 + 10 * 11
    table = probe(*onevision, picture, views=[0, 5], positions=[0, 6, 15])
    assert table["kind"].tolist() == ["image"] * 3 + ["tile"] * 3
    assert not [name for name in table if name.startswith("cls_")]
    check_row(onevision, table.iloc[1], rows, 0, list(range(25)), (5, 5))
    places = [25 + 11 * (3 + r) + 3 + c for r in range(4) for c in range(4)]
    for i in (3, 4, 5):
        check_row(onevision, table.iloc[i], rows, 0, places, (4, 4))
    assert table["global_article"].all()


def test_no_input_of_an_encoder_without_cls_has_signals_of_it(onevision, photo, tmp_path):
    """They are absent, not filled with NaN, in every table and in what is read back."""
    inputs = [photo, tiny.random_images(2, (40, 31)), sequence_of(3, "video", seed=1)]
    for given in inputs:
        table = probe(*onevision, given, positions=[0, 8])
        assert "attention_last_layer_0" in table
        assert not [name for name in table if "cls" in name]
    samples = [sequence_of(2, seed=0), sequence_of(3, "video", seed=1)]
    results = probe_dataset(*onevision, samples, ProbeConfig(positions=(0,)), tmp_path, progress=False)
    assert not [name for name in results.table if "cls" in name]
    known = results.table.drop(columns=["object_coverage", "object_category"])  # these have no masks
    assert not known.isna().all().any()
    with pytest.raises(ParameterError, match="cls_similarity"):
        lower_half(results.table, "cls_similarity")


def test_without_cls_there_are_positions_but_no_ranks(onevision, photo, monkeypatch, tmp_path):
    positions = codebook_positions(adapter_for(*onevision))
    assert positions == "paper_positions"
    table = probe(*onevision, photo, positions=positions, attention=False)
    assert table[table["view"] == 1]["position"].tolist() == paper_ranks(20)
    monkeypatch.setattr(ADAPTERS["llava_onevision"], "encode_pixels", None)
    message = "positions: got 'paper_ranks'; accepted: all, grid or paper_positions, as .* no \\[CLS\\]"
    with pytest.raises(ParameterError, match=message):
        probe(*onevision, photo, positions="paper_ranks")
    with pytest.raises(ParameterError, match=message):
        probe_dataset(*onevision, [sequence_of(2)], ProbeConfig(positions="paper_ranks"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Several photos


def test_several_photos_of_a_prompt(onevision):
    pictures = tiny.random_images(3, (40, 31))
    rows = own_rows(onevision, images=pictures)
    assert [len(each) for each in rows] == [26] * 3
    table = probe(*onevision, pictures)
    assert table["picture"].tolist() == table["view"].tolist() == sorted([0, 1, 2] * 25)
    assert (table["kind"] == "image").all()
    assert table["token"].tolist() == list(range(75))
    for i in (0, 37, 60):
        check_row(onevision, table.iloc[i], rows, i // 25, list(range(25)), (5, 5))
    adapter = adapter_for(*onevision)
    attention = adapter.text_to_image_attention(adapter.prompt(ONE_WORD_QUESTION, 3), rows)["last"][1]
    at = [26 * number + position for number in range(3) for position in range(25)]
    np.testing.assert_allclose(table["attention_last_layer_1"], attention[at].numpy(), atol=1e-6)
    again = probe(*onevision, pictures, positions=[12], batch_size=2)
    expected = table[table["position"] == 12].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, rtol=1e-4, atol=1e-5)


def test_views_of_several_photos_are_counted_through(tiled):
    pictures = tiny.random_images(1, (40, 31)) + tiny.random_images(1, (24, 24), seed=1)
    rows = own_rows(tiled, images=pictures)
    table = probe(*tiled, pictures, positions=[7], attention=False)
    assert table["view"].tolist() == list(range(8))
    assert table["picture"].tolist() == [0] * 5 + [1] * 3
    assert table["token"].tolist() == [7, 43, 73, 103, 133, 163, 199, 217]
    # The second photo's second tile: columns 3 to 5 of six lines of 3 + 3 tokens and a newline.
    places = [36 + 7 * r + 3 + c for r in range(6) for c in range(3)]
    check_row(tiled, table.iloc[7], rows, 1, places, (6, 3))
    base = probe(*tiled, pictures, positions=[7], views="base", attention=False)
    assert base["view"].tolist() == [0, 5]


def test_plain_photos_together_have_pictures_too(photo):
    pair = tiny.tiny_llava()
    pictures = [photo, tiny.random_images(2)[1]]
    table = probe(*pair, pictures, positions=[0, 21], attention=False)
    assert table["picture"].tolist() == [0, 0, 1, 1]
    rows = [image.tokens for image in adapter_for(*pair).encode(pictures)]
    check_row(pair, table.iloc[3], rows, 1, list(range(36)), (6, 6))


def test_samples_files_and_lists_give_the_same_table(onevision, tmp_path):
    sample = sequence_of(2, seed=5)
    table = probe(*onevision, sample, positions=[0], attention=False)
    assert (table["image_id"] == 5).all()
    for i, picture in enumerate(sample.images):
        picture.save(tmp_path / f"{i}.png")
    files = [tmp_path / "0.png", str(tmp_path / "1.png")]
    pd.testing.assert_frame_equal(
        probe(*onevision, files, positions=[0], attention=False, sample=sample), table
    )
    single = Sample(5, lambda: sample.images[0], 40, 31)
    alone = probe(*onevision, single, positions=[0], attention=False)
    pd.testing.assert_frame_equal(
        alone, probe(*onevision, files[0], positions=[0], attention=False, sample=single)
    )
    assert "picture" not in alone


# Videos


def test_a_video_file_is_probed_as_its_frames(onevision, tiled, tmp_path):
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for frame in tiny.random_images(3, (32, 24)):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    settings = {"positions": [0, 4], "views": (0, 2)}
    table = probe(*onevision, tmp_path / "clip.mp4", **settings)
    assert table[["picture", "position"]].to_numpy().tolist() == [[0, 0], [0, 4], [2, 0], [2, 4]]
    pd.testing.assert_frame_equal(table, probe(*onevision, VideoFile(tmp_path / "clip.mp4")[0], **settings))
    with pytest.raises(UnsupportedModelError, match="'llava_next', takes images only"):
        probe(*tiled, tmp_path / "clip.mp4")
    with pytest.raises(ParameterError, match="^sample: "):
        probe(*onevision, tmp_path / "clip.mp4", sample=sequence_of(3, "video"))


def test_a_window_of_a_video_lies_inside_one_frame(onevision):
    """Frames of 5 x 5 tokens are pooled to 3 x 3, so a window is a whole frame."""
    video = sequence_of(4, "video", (60, 40))
    rows = own_rows(onevision, frames=list(video.images))
    assert len(rows[0]) == 4 * 9 + 1
    table = probe(*onevision, video)
    assert table["picture"].tolist() == table["view"].tolist() == sorted([0, 1, 2, 3] * 9)
    assert (table["kind"] == "frame").all()
    for i in (0, 22, 35):
        places = [9 * (i // 9) + cell for cell in range(9)]
        check_row(onevision, table.iloc[i], rows, 0, places, (3, 3), placeholder="video")
    few = probe(*onevision, video, positions=[4], views=(1, 3), batch_size=3)
    expected = table[table["picture"].isin([1, 3]) & (table["position"] == 4)].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, expected, rtol=1e-4, atol=1e-5)


def test_videos_need_a_family_that_takes_them(tiled, tmp_path):
    video = sequence_of(2, "video")
    with pytest.raises(UnsupportedModelError, match="'llava_next', takes images only"):
        probe(*tiled, video)
    with pytest.raises(ParameterError, match="n_videos: got 1; accepted: 0, as the family 'llava_next'"):
        probe_dataset(*tiled, [sequence_of(2, seed=1), video], ProbeConfig(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Objects


def thing(size, box, category="cat"):
    """Return an object of a rectangle ``(x, y, width, height)`` in a picture ``(width, height)``."""
    mask = np.zeros((size[1], size[0]), np.uint8, order="F")
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 1
    return SceneObject(category, box, encode(mask), float(mask.sum()))


def test_coverage_of_tiles_follows_their_place_on_the_photo(tiled):
    """Of 48 x 48 pixels a token of the reduced photo sees 8 x 8, one of a tile 4 x 4."""
    picture = tiny.random_images(1, (48, 48))[0]
    sample = Sample(7, lambda: picture, 48, 48, objects=(thing((48, 48), (20, 0, 8, 8)),))
    table = probe(*tiled, picture, positions=[0, 1, 2, 3, 5], sample=sample, attention=False)
    covered = table.groupby("view")["object_coverage"].apply(list).tolist()
    assert covered == [[0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    assert table["object_category"].notna().sum() == 4


def test_patches_of_padding_are_uncovered(tiled, photo):
    """Of 40 x 31 pixels the first line of tokens sees one of its four lines of pixels beyond the photo."""
    sample = Sample(7, lambda: photo, 40, 31, objects=(thing((40, 31), (0, 0, 40, 31)),))
    (image,) = adapter_for(*tiled).encode([photo])
    upper, lower = (view_coverage(tiled[1], sample, image.views[i]).share.reshape(5, 6) for i in (1, 3))
    np.testing.assert_allclose(upper[0], 0.75, atol=1e-6)
    np.testing.assert_allclose(upper[1:], 1, atol=1e-6)
    np.testing.assert_allclose(lower[-1], 0.75, atol=1e-6)
    unknown = dataclasses.replace(sample, objects=None)
    assert view_coverage(tiled[1], unknown, image.views[1]) is None


def test_objects_are_those_of_each_picture(onevision):
    """What moves covers another token of every frame: 27 x 27 pixels, of which 22/20 x 27 / 3 are under a token."""
    size = (27, 27)
    objects = tuple((thing(size, (10 * i, 0, 7, 7)),) for i in range(2))
    video = sequence_of(2, "video", size, objects=objects)
    table = probe(*onevision, video, attention=False)
    covered = table["object_coverage"].to_numpy().reshape(2, 9)
    side = 27 * 20 / 22 / 3
    np.testing.assert_allclose(covered[0, :2], [49 / side**2, 0], atol=1e-6)
    np.testing.assert_allclose(covered[1, :2], [0, 7 * (2 * side - 10) / side**2], atol=1e-6)
    group = dataclasses.replace(video, kind="images", objects=(objects[0], ()))
    table = probe(*onevision, group, positions=[0], attention=False)
    assert (table["object_coverage"] > 0).tolist() == [True, False]
    views = adapter_for(*onevision).encode(list(video.images), one_prompt=True)[1].views
    assert view_coverage(onevision[1], group, views[0], picture=1).share.sum() == 0
    with pytest.raises(ParameterError, match="picture: got 2"):
        view_coverage(onevision[1], group, views[0], picture=2)


# Real settings


@pytest.mark.parametrize(("build", "n_base"), [(tiny.reduced_next, 576), (tiny.reduced_onevision, 729)])
def test_families_with_their_real_settings_are_probed(build, n_base):
    picture = tiny.random_images(1, (500, 375))[0]
    table = probe(*build(), picture, positions=(0, 300), views=(0, 1), batch_size=2)
    assert table["token"].tolist() == [0, 300, n_base, n_base + 300]
    assert table["kind"].tolist() == ["image"] * 2 + ["tile"] * 2
    assert np.isfinite(table[["top1_probability", "entropy", "influence", "attention_last_layer_0"]]).all(
        None
    )


# Pictures


def test_pictures_of_views_show_what_their_tokens_come_from(tiled, onevision):
    """A photo whose halves differ, in tiles of which the upper ones begin above the photo."""
    pixels = np.zeros((31, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    photo = Image.fromarray(pixels)
    (image,) = adapter_for(*tiled).encode([photo])
    shown = view_pictures(tiled[1], photo, image.views)
    assert [picture.shape for picture in shown] == [(31, 40, 3)] + [(16, 20, 3)] * 4
    assert [round(float(picture[3:-3].mean()), 2) for picture in shown] == [0.5, 0, 1, 0, 1]
    assert shown[2][0].max() == 0  # black where the photo has no pixels
    assert [picture.shape for picture in view_pictures(tiled[1], photo)] == [(24, 24, 3)] * 5
    (frame,) = adapter_for(*onevision).encode_video([photo]).views
    (picture,) = view_pictures(onevision[1], photo, [frame])
    assert picture.shape == (28, 36, 3)


def test_views_without_a_region_are_shown_as_the_encoder_gets_them(photo):
    pair = tiny.tiny_llava()
    views = adapter_for(*pair).encode([photo])[0].views
    np.testing.assert_array_equal(view_pictures(pair[1], photo, views)[0], view_pictures(pair[1], photo)[0])
    with pytest.raises(ParameterError, match="views: got '2 views'; accepted: 1"):
        view_pictures(pair[1], photo, views * 2)


# Datasets

CONFIG = ProbeConfig(positions=(0, 4), attention=False)


def mixed_samples():
    picture = tiny.random_images(1, seed=9)[0]
    return [
        sequence_of(2, seed=11),
        sequence_of(3, "video", seed=12),
        Sample(13, lambda: picture, *picture.size),
    ]


@pytest.fixture(scope="module")
def finished(onevision, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, probe_dataset(*onevision, mixed_samples(), CONFIG, folder, progress=False)


def test_groups_videos_and_photos_are_one_finished_sample_each(onevision, finished):
    folder, results = finished
    assert {path.name for path in folder.glob("0*")} == {
        f"{i:012d}.{suffix}" for i in (11, 12, 13) for suffix in ("parquet", "safetensors")
    }
    assert [len(results.tokens[i]) for i in (11, 12, 13)] == [50, 27, 25 + 4 * 20]
    for sample in mixed_samples():
        own = results.table[results.table["image_id"] == sample.image_id].reset_index(drop=True)
        alone = probe(*onevision, sample, positions=(0, 4), attention=False)
        pd.testing.assert_frame_equal(own[alone.columns], alone, check_dtype=False)
    adapter = adapter_for(*onevision)
    expected = [
        adapter.prompt(ONE_WORD_QUESTION, 2),
        adapter.prompt(ONE_WORD_QUESTION, 0, 1),
        adapter.prompt(ONE_WORD_QUESTION),
    ]
    found = [read_table(folder / f"{i:012d}.parquet")[1] for i in (11, 12, 13)]
    assert [metadata["prompt"] for metadata in found] == expected
    assert [metadata["sample"].get("kind") for metadata in found] == ["images", "video", None]
    pd.testing.assert_frame_equal(read_probe(folder).table, results.table)
    assert results.row_tokens().shape == (len(results.table), 40)


def test_a_run_goes_on_after_the_samples_that_are_finished(onevision, finished, tmp_path, monkeypatch):
    folder, whole = finished
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000000000012.safetensors").unlink()
    encoded, original = [], ADAPTERS["llava_onevision"].encode_pixels
    monkeypatch.setattr(
        ADAPTERS["llava_onevision"],
        "encode_pixels",
        lambda self, *a, **k: encoded.append(1) or original(self, *a, **k),
    )
    again = probe_dataset(*onevision, mixed_samples(), CONFIG, tmp_path, progress=False)
    assert len(encoded) == 1
    pd.testing.assert_frame_equal(again.table, whole.table, rtol=1e-5, atol=1e-6)


def test_other_views_are_another_config(onevision, finished, tmp_path):
    folder, _ = finished
    base = dataclasses.replace(CONFIG, views="base")
    photos = mixed_samples()[2:]
    with pytest.raises(ParameterError, match="config: got {'views': 'base'}"):
        probe_dataset(*onevision, photos, base, folder)
    probe_dataset(*onevision, photos, base, tmp_path, progress=False)
    with pytest.raises(ParameterError, match="config: got {'views': None}.*'views': 'base'"):
        probe_dataset(*onevision, photos, CONFIG, tmp_path)


def test_samples_are_told_apart_by_all_of_their_pictures():
    group = sequence_of(2, objects=((thing((40, 31), (0, 0, 9, 9)),), ()))
    pictures = group.images
    others = [
        dataclasses.replace(group, load=lambda: pictures[::-1]),
        dataclasses.replace(group, objects=group.objects[::-1]),
        dataclasses.replace(group, objects=None),
        dataclasses.replace(group, kind="video"),
    ]
    assert sample_identity(group) == sample_identity(dataclasses.replace(group))
    for other in others:
        assert sample_identity(other) != sample_identity(group)


def test_the_embedded_world_has_groups_and_videos_too():
    model, _ = tiny.tiny_llava()
    model.config.rcb_world = "scenes"
    assert (
        world_note(model, [sequence_of(2, source="groups/test"), sequence_of(2, source="videos/test")]) == ""
    )
    assert "says about photos shows" in world_note(model, [sequence_of(2, source="photos")])


# Wrong inputs


def test_wrong_inputs_end_in_one_line(tiled, onevision, photo):
    group = sequence_of(2)
    cases = [
        (lambda: probe(*tiled, photo, views=[5]), "views: got 5; accepted: an integer from 0 to 4"),
        (lambda: probe(*tiled, photo, views="tiles"), "views: got 'tiles'; accepted: all, base, or"),
        (lambda: probe(*tiled, photo, views=[]), "views: got ()"),
        (lambda: probe(*tiled, photo, views=[1, 1]), "views: got (1, 1)"),
        (
            lambda: probe(*tiled, photo, positions=[30]),
            "positions: got 30; accepted: an integer from 0 to 29",
        ),
        (
            lambda: probe(*onevision, sequence_of(2, "video"), views="base"),
            "views: got 'base'; accepted: all, or fr",
        ),
        (lambda: probe(*tiled, []), "image: got an empty list"),
        (lambda: probe(*tiled, [photo, None]), "image: got NoneType"),
        (lambda: probe(*tiled, [photo], sample=group), "sample: got 'pictures of 40 x 31, 40 x 31'"),
        (lambda: probe(*tiled, group, sample=sequence_of(2)), "sample: got 0; accepted: none"),
    ]
    for call, message in cases:
        with warnings.catch_warnings(), pytest.raises((ParameterError, ImageError)) as error:
            warnings.simplefilter("error")
            call()
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_pictures_that_cannot_be_read_are_named():
    def fail():
        raise OSError("truncated")

    with pytest.raises(ImageError, match=r"images: 'torn' cannot be read \(OSError: truncated\)"):
        load_pictures(sequence_of(2, load=fail, file_name="torn"))
    with pytest.raises(ImageError, match="images: 'image 4' has 1; accepted: 2, as it says"):
        load_pictures(sequence_of(2, image_id=4, load=lambda: tiny.random_images(1)))
