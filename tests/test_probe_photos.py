"""Probing one's own photos: as they are seen, whoever opens them; folders that grow; files that are damaged."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tiny
from families import FAMILIES
from messages import refused
from picture_files import cut, save_picture
from PIL import Image

from rcblib.__main__ import main
from rcblib.data.photos import PhotoFolder, PhotoGroup
from rcblib.data.samples import fitting, usable
from rcblib.evaluate.grid import evaluate
from rcblib.mllm import adapter_for
from rcblib.mllm.loading import ADAPTERS
from rcblib.probe.config import ProbeConfig
from rcblib.probe.run import probe
from rcblib.probe.store import probe_dataset, read_probe, shared_probe
from rcblib.records import (
    ImageError,
    ParameterError,
    Question,
    Sample,
    SequenceSample,
    UnsupportedModelError,
)
from rcblib.runs.agreement import compare_with_record
from rcblib.runs.files import write_table
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import read_record, write_record
from rcblib.runs.shards import Shard

CONFIG = ProbeConfig(positions=(0, 7), attention=False)


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture
def photos(tmp_path):
    """Return a folder of three photos."""
    for seed, name in enumerate(("b.png", "d.jpg", "f.png")):
        save_picture(tmp_path / "photos" / name, (48, 36), seed)
    return tmp_path / "photos"


@pytest.fixture
def encoded(monkeypatch):
    """Return a list that grows by one for each input that is encoded."""
    calls, original = [], ADAPTERS["llava"].encode_pixels
    monkeypatch.setattr(
        ADAPTERS["llava"], "encode_pixels", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
    )
    return calls


# Orientation


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save_picture(path, (60, 40), exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_a_photo_gives_the_same_rows_however_it_is_given(pair, tmp_path, orientation):
    path = turned(tmp_path / "phone.png", orientation)
    expected = probe(*pair, path, positions="all", attention=False)
    with Image.open(path) as image:
        exif, pixels = image.getexif(), image.convert("RGB")
    assert exif[0x0112] == orientation
    lazily = Sample(0, lambda: Image.open(path), *((40, 60) if orientation > 4 else (60, 40)))
    (folder,) = PhotoFolder(tmp_path)
    for given in (Image.open(path), pixels, str(path), lazily, dataclasses.replace(folder, image_id=0)):
        found = probe(*pair, given, positions="all", attention=False)
        pd.testing.assert_frame_equal(found, expected)
    several = [
        probe(*pair, given, attention=False) for given in ([path, path], [Image.open(path), Image.open(path)])
    ]
    pd.testing.assert_frame_equal(*several)
    adapter = adapter_for(*pair)
    by_object, by_sample = adapter.encode([Image.open(path)])[0], adapter.encode([folder.image])[0]
    assert (by_object.tokens == by_sample.tokens).all()


def test_every_way_to_hand_over_a_sample_refuses_one_of_another_size(pair, photos, tmp_path):
    path = turned(tmp_path / "phone.png", 6)
    sideways = Sample(1, lambda: Image.open(path), 60, 40, file_name="phone.png")
    message = "'phone.png' is 40 x 60 px, its record says 60 x 40; accepted: annotations of the photo as it is upright$"
    group = SequenceSample(
        1, lambda: (Image.open(path),) * 2, "images", ((60, 40),) * 2, file_name="phone.png"
    )
    for sample in (sideways, group):
        with pytest.raises(ImageError, match=message):
            probe(*pair, sample, attention=False)
        with pytest.raises(ImageError, match=message):
            probe_dataset(*pair, [*PhotoFolder(photos)][:0] + [sample], CONFIG, tmp_path / "out")
        with pytest.raises(ImageError, match=message):
            evaluate(*pair, [Question(1, "one_word", "What ?", "cat")], [sample])
    assert not (tmp_path / "out").exists()


# Folders that grow


def test_one_more_photo_is_the_only_one_computed(pair, photos, tmp_path, encoded, capsys):
    folder = tmp_path / "out"
    probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder, progress=False)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    encoded.clear()
    save_picture(photos / "a.png", (48, 36), 9)
    grown = probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder)
    assert len(encoded) == 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert grown.table["image_id"].unique().tolist() == ["a.png", "b.png", "d.jpg", "f.png"]
    assert "3 of 4 images are there already" in capsys.readouterr().out
    (photos / "b.png").unlink()
    fewer = probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder)
    assert len(encoded) == 1
    assert fewer.table["image_id"].unique().tolist() == ["a.png", "d.jpg", "f.png"]
    alone = probe(*pair, photos / "d.jpg", positions=(0, 7), attention=False)
    own = fewer.table[fewer.table["image_id"] == "d.jpg"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        own.drop(columns="image_id"), alone.drop(columns="image_id"), check_dtype=False
    )
    assert fewer.row_tokens().shape == (6, fewer.tokens["a.png"].shape[1])
    assert len(read_probe(folder).tokens) == 4


def test_a_renamed_or_changed_photo_is_computed_anew(pair, photos, tmp_path, encoded, capsys):
    folder = tmp_path / "out"
    probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder, progress=False)
    encoded.clear()
    (photos / "b.png").rename(photos / "c.png")
    probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder, progress=False)
    assert len(encoded) == 1
    save_picture(photos / "c.png", (48, 36), 11)
    changed = probe_dataset(*pair, PhotoFolder(photos), CONFIG, folder, progress=False)
    assert len(encoded) == 2
    assert capsys.readouterr().out == "probing: 1 of 3 images have changed since: again\n"
    alone = probe(*pair, photos / "c.png", positions=(0, 7), attention=False)
    np.testing.assert_allclose(changed.table["entropy"][:2], alone["entropy"], rtol=1e-5)
    # The folder may have another name, not other photos under the same names.
    photos.rename(tmp_path / "renamed")
    probe_dataset(*pair, PhotoFolder(tmp_path / "renamed"), CONFIG, folder, progress=False)
    assert len(encoded) == 2 + 1  # the comparison above
    save_picture(tmp_path / "others" / "d.jpg", (48, 36), 12)
    with pytest.raises(ParameterError, match="the image that the folder has under this id"):
        probe_dataset(*pair, PhotoFolder(tmp_path / "others"), CONFIG, folder, progress=False)


def test_a_group_that_grows_is_another_input(pair, photos, tmp_path, encoded):
    for n in (3, 4):
        results = probe_dataset(*pair, PhotoGroup(photos), CONFIG, tmp_path / "out", progress=False)
        assert results.table["picture"].nunique() == n
        save_picture(photos / "a.png", (48, 36), 9)
    assert len(encoded) == 2


def test_notebooks_share_one_folder_of_results_however_the_photos_grow(pair, photos, tmp_path, encoded):
    shared_probe(*pair, PhotoFolder(photos), CONFIG, tmp_path / "results", progress=False)
    save_picture(photos / "a.png", (48, 36), 9)
    shared_probe(*pair, PhotoFolder(photos), CONFIG, tmp_path / "results", progress=False)
    assert len(encoded) == 4
    save_picture(tmp_path / "others" / "b.png", (48, 36), 12)
    shared_probe(*pair, PhotoFolder(tmp_path / "others"), CONFIG, tmp_path / "results", progress=False)
    assert len(list((tmp_path / "results" / "probe").iterdir())) == 2


def test_ids_are_of_one_kind(pair, photos, tmp_path):
    numbered = Sample(3, lambda: Image.new("RGB", (9, 9)), 9, 9)
    with pytest.raises(ParameterError, match="image ids of which some are numbers, some text"):
        probe_dataset(*pair, [*PhotoFolder(photos), numbered], CONFIG, tmp_path / "out")


# Damage


def test_what_are_no_samples_is_refused_in_one_line(pair, photos, tmp_path):
    samples = PhotoFolder(photos)
    wrong = {str(photos): "str", photos: type(photos).__name__, samples[0]: "one sample"}
    for given, name in [*wrong.items(), ([str(photos)], "str"), ([samples[0].image], "Image")]:
        with refused(f"^samples: got '{name}'; accepted: an iterable of samples"):
            probe_dataset(*pair, given, ProbeConfig(), tmp_path / "out")
    with refused("^config: got 'dict'; accepted: a ProbeConfig"):
        probe_dataset(*pair, samples, {"positions": "all"}, tmp_path / "out")


def test_damaged_photos_are_skipped_where_that_is_asked_for_and_kept_on_record(pair, photos, tmp_path):
    lost = [
        Sample(name, lambda path=photos / name: Image.open(path), 48, 36, file_name=name)
        for name in ("b.png", "d.jpg", "f.png")
    ]
    for name in ("b.png", "f.png"):
        cut(photos / name)
    with pytest.raises(ImageError, match=r"images: 2 of 3 cannot be used: 'b.png' .*; 'f.png' .*"):
        probe_dataset(*pair, lost, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="left out: images: 2 of 3 cannot be used: 'b.png'"):
        results = probe_dataset(*pair, lost, CONFIG, tmp_path / "out", progress=False, on_error="skip")
    assert results.table["image_id"].unique().tolist() == ["d.jpg"]
    assert list(results.skipped) == ["b.png", "f.png"] == list(read_probe(tmp_path / "out").skipped)
    save_picture(photos / "b.png", (48, 36))
    with pytest.warns(UserWarning, match="left out: image: 'f.png'"):
        again = probe_dataset(*pair, lost, CONFIG, tmp_path / "out", progress=False, on_error="skip")
    assert again.table["image_id"].unique().tolist() == ["b.png", "d.jpg"]
    assert list(read_probe(tmp_path / "out").skipped) == ["f.png"]
    with pytest.raises(ParameterError, match="on_error: got 'ignore'; accepted: stop, skip"):
        probe_dataset(*pair, lost, CONFIG, tmp_path / "out", on_error="ignore")
    (photos / "d.jpg").write_bytes(b"")
    cut(photos / "b.png")
    with pytest.raises(ImageError, match="images: 3 of 3 cannot be used"):
        probe_dataset(*pair, lost, CONFIG, tmp_path / "out", on_error="skip")


def test_results_do_not_go_into_the_folder_of_the_photos(pair, photos, tmp_path, capsys):
    with pytest.raises(
        ParameterError, match="folder: got .*which holds the images.*accepted: another folder"
    ):
        probe_dataset(*pair, PhotoFolder(photos), CONFIG, f"{photos}/../{photos.name}")
    for name in (str(photos), f"group:{photos}", f"video:{photos}"):
        options = ["--model", "none", "--folder", str(photos)]
        assert main(["probe", *options, "--images", name]) == 2
        assert "which holds the images" in capsys.readouterr().err
    assert not [path for path in photos.iterdir() if path.suffix not in (".png", ".jpg")]
    with pytest.warns(UserWarning, match="passed over: 1"):
        (photos / "results").mkdir()
        probe_dataset(*pair, PhotoFolder(photos), CONFIG, photos / "results", progress=False)


def test_a_picture_that_moves_is_a_video_alone_and_its_first_moment_in_a_folder(pair, photos):
    first, second = tiny.random_images(2)
    first.save(photos / "a.gif", save_all=True, append_images=[second])
    first.save(photos / "a.webp", lossless=True)
    for name in photos / "a.gif", str(photos / "a.gif"):
        with pytest.raises(
            UnsupportedModelError, match="video: the model's family, 'llava', takes images only"
        ):
            probe(*pair, name)
    with pytest.warns(UserWarning, match="images: 1 of 5 move, first 'a.gif'; the first moment is read"):
        samples = PhotoFolder(photos)
    assert probe(*pair, samples[0], positions=[3])["entropy"].notna().all()
    assert probe(*pair, photos / "a.webp", positions=[3])["entropy"].notna().all()


def test_the_command_line_stops_or_skips(pair, photos, tmp_path, capsys):
    model = str(tiny.save(tmp_path / "model", *pair))
    capsys.readouterr()
    for name in ("b.png", "f.png"):
        cut(photos / name)
    command = ["probe", "--model", model, "--images", str(photos), "--folder", str(tmp_path / "out")]
    command += ["--positions", "3", "--no-attention"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'b.png'" in error and "'f.png'" in error
    assert main([*command, "--on-error", "skip"]) == 0
    told = capsys.readouterr()
    assert "1 positions of 1 images" in told.out
    assert told.err.count("warning:") == 1 and "left out: images: 2 of 3" in told.err
    noted = [json.loads(path.read_text()) for path in (tmp_path / "out" / "skipped").iterdir()]
    assert {entry["image_id"] for entry in noted} == {"b.png", "f.png"}
    assert all("truncated" in entry["reason"] for entry in noted)


# Shapes


@pytest.mark.parametrize("family", [name for name in FAMILIES if "qwen" in name])
def test_photos_that_the_processor_or_probing_cannot_take_are_named_before_any_work(family, photos, tmp_path):
    pair = FAMILIES[family].build()
    for name in ("b.png", "d.jpg", "f.png"):
        save_picture(photos / name, (96, 90))
    for name, size in {"dot.png": (1, 1), "high.png": (4, 804), "long.png": (804, 4)}.items():
        save_picture(photos / name, size)
    samples, adapter = PhotoFolder(photos), adapter_for(*pair)
    limit = "accepted by its processor: .*200.*"
    dot = "'dot.png' is 1 x 1 px; accepted: photos that make at least 3 x 3 tokens, not 2 x 2"
    named = (
        f"3 of 6 cannot be used: {dot}; 'high.png' is 4 x 804 px; {limit}'long.png' is 804 x 4 px; {limit}"
    )
    with pytest.raises(ImageError, match=named):
        probe_dataset(*pair, samples, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="left out: images: 3 of 6"):
        results = probe_dataset(*pair, samples, CONFIG, tmp_path / "out", progress=False, on_error="skip")
    assert list(results.tokens) == ["b.png", "d.jpg", "f.png"]
    with pytest.raises(ImageError, match=f"image: got one of 804 x 4 px; {limit}"):
        probe(*pair, photos / "long.png")
    with pytest.warns(UserWarning, match="left out: images: 2 of 6"):
        kept, skipped = usable(samples, adapter.size_limit)
    assert list(skipped) == ["high.png", "long.png"]
    with pytest.warns(UserWarning, match="left out: images: 2 of 6"):
        left, unfit = fitting(samples, adapter.size_limit)
    assert unfit == skipped and [own.image_id for own in left] == [own.image_id for own in kept]
    for sample in kept:
        assert adapter.grid_of(*sample.image.size) == adapter.encode([sample.image])[0].views[0].grid


def test_a_photo_that_the_processor_would_blow_up_is_refused(pair):
    adapter = adapter_for(*pair)
    assert adapter.size_limit(20_000, 20) == ""  # 24,000 x 24 px for this model
    assert "accepted: sides of at most" in adapter.size_limit(20_000_000, 20)
    with pytest.raises(
        ImageError, match=r"image: got one of 10000000 x 1 px; accepted: sides of at most 310689 to 1"
    ):
        probe(*pair, Image.new("L", (10_000_000, 1)))


# Records


def test_shards_of_photos_are_merged_recorded_and_read_in_place_of_probing(pair, photos, tmp_path, capsys):
    samples = list(PhotoFolder(photos))
    shards = []
    for number in (2, 1):
        shard = Shard(number, 2)
        results = probe_dataset(*pair, samples, CONFIG, tmp_path / "out", progress=False, shard=shard)
        shards.append(tmp_path / f"{number}.parquet")
        write_table(shards[-1], results.table, results.facts)
    table, facts = merge_tables(shards)
    assert table["image_id"].unique().tolist() == list(facts["samples"]) == ["b.png", "d.jpg", "f.png"]
    write_record(tmp_path / "model" / "probing.parquet", table, facts)
    record = read_record(tmp_path / "model" / "probing.parquet")
    assert compare_with_record(record, results.table, results.facts).disagreements == ()
    recorded = shared_probe(*pair, samples, CONFIG, tmp_path / "model" / "probing.parquet")
    pd.testing.assert_frame_equal(recorded.table, table, rtol=1e-6)
    assert recorded.row_tokens().shape == (6, results.tokens["b.png"].shape[1])
