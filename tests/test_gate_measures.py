"""Check what gates are measured by: pixels, tokens alone, and the whole run on a folder in COCO's format."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from test_evaluate_known import sample_with

from rcblib.__main__ import main
from rcblib.data.pixels import PIXEL_SIGNALS, pixel_signals
from rcblib.evaluate.gates import ANSWERS, TOKENS, conditions, part_of
from rcblib.evaluate.tokens import first_pieces, measure_tokens
from rcblib.mllm import adapter_for
from rcblib.reading.gate_results import GATES, gate_states, read_gates_file
from rcblib.reading.gates import judge_gates
from rcblib.reading.verdicts import collect, weigh_all
from rcblib.records import ParameterError, Sample
from rcblib.runs.agreement import compare_with_record
from rcblib.runs.files import read_table
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import read_record, write_record
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import generate_scene

GATES_FILE = Path(__file__).resolve().parents[1] / "data" / "gates.yml"
TEXTS = ("one_word", "yes_no", "count")


def test_pixels_tell_a_bright_square_from_grey():
    picture = np.full((12, 12, 3), 0.5)
    picture[4:8, 4:8] = [1.0, 0.0, 0.0]
    found = pixel_signals(picture, (3, 3))
    assert list(found) == list(PIXEL_SIGNALS)
    for name in ("pixel_median_distance", "pixel_saturation", "pixel_centre"):
        assert found[name].argmax() == 4
    assert found["pixel_median_distance"][4] == pytest.approx(np.sqrt(0.75))
    assert found["pixel_median_distance"][0] == 0
    assert found["pixel_saturation"][4] == 1
    assert found["pixel_contrast"] == pytest.approx(0, abs=1e-7)  # every patch is of one colour
    uneven = pixel_signals(picture[:11], (3, 3))  # patches share pixels
    assert uneven["pixel_contrast"][4] > 0
    with pytest.raises(ParameterError, match="picture"):
        pixel_signals(picture, (3, 13))


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


def test_a_name_begins_with_the_first_piece_of_any_of_its_words(pair):
    adapter = adapter_for(*pair)
    ids = adapter.processor.tokenizer.convert_tokens_to_ids
    assert first_pieces(adapter, "cat") == {ids("cat")}
    assert first_pieces(adapter, "red apple") == {ids("red"), ids("apple")}
    assert first_pieces(adapter, "zebra") == set()  # unknown to this tokenizer


def test_tokens_say_what_lies_beneath_and_are_kept(pair, tmp_path):
    samples = [sample_with(1, 7, 8), sample_with(2, 35)]
    frame = measure_tokens(*pair, samples, folder=tmp_path, progress=False)
    assert frame.groupby("image_id").size().to_dict() == {1: 36, 2: 36}
    covered = frame[frame["object_coverage"] > 0]
    assert covered["position"].tolist() == [7, 8, 35]
    assert {"top1_word", "entropy", "cls_similarity", *PIXEL_SIGNALS} <= set(frame)
    assert "influence" not in frame
    assert not frame["named"][frame["object_coverage"] == 0].any()
    shown = np.asarray(samples[0].image, dtype=float) / 255
    expected = pixel_signals(shown, (6, 6))["pixel_saturation"]
    np.testing.assert_allclose(frame["pixel_saturation"][:36], expected, atol=0.01)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens-*.parquet")}
    assert len(files) == 2
    again = measure_tokens(*pair, samples, folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(again, frame)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens-*.parquet")} == files
    with_influence = measure_tokens(*pair, samples[:1], influence=True, folder=tmp_path, progress=False)
    assert with_influence["influence"].notna().all()


def test_a_token_that_says_its_object_is_named(pair, tmp_path):
    adapter = adapter_for(*pair)
    sample = sample_with(3, *range(36))
    frame = measure_tokens(*pair, [sample], folder=tmp_path, progress=False)
    word = frame["top1_word"].value_counts().index[0]
    renamed = Sample(
        4, sample.load, 24, 24, objects=tuple(_named(item, word) for item in sample.objects), source="test"
    )
    named = measure_tokens(*pair, [renamed], folder=tmp_path, progress=False)
    assert adapter.processor.tokenizer.convert_tokens_to_ids(word) in first_pieces(adapter, word)
    assert named["named"].tolist() == (frame["top1_word"] == word).tolist()


def _named(item, category):
    return type(item)(category, item.box, item.rle, item.area)


def test_images_without_masks_are_an_error(pair, tmp_path):
    bare = Sample(1, lambda: tiny.random_images(1)[0], 40, 31, source="photos")
    with pytest.raises(ParameterError, match="samples: got 'image 1, without masks'"):
        measure_tokens(*pair, [bare], folder=tmp_path)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Write ten drawn scenes as any COCO folder has them."""
    folder = tmp_path_factory.mktemp("coco")
    export_coco([generate_scene(0, i, "validation") for i in range(10)], folder, "validation")
    return folder


def test_gates_run_on_a_coco_folder_through_the_command(coco_folder, tmp_path, capsys):
    saved = tiny.save_tiny_llava(tmp_path / "model")
    arguments = ["gates", "--model", str(saved), "--images", f"coco:{coco_folder}", "--split", "validation"]
    arguments += ["--tasks", *TEXTS, "--n-token-images", "2", "--max-new-tokens", "2", "--influence"]
    arguments += ["--folder", str(tmp_path / "gates"), "--table", str(tmp_path / "gates.parquet")]
    assert main(arguments) == 0
    table, _ = read_table(tmp_path / "gates.parquet")
    answers, tokens = part_of(table, ANSWERS), part_of(table, TOKENS)
    assert set(answers["method"]) == set(conditions([0.2]))
    assert answers.groupby("method")["retain_ratio"].nunique()["oracle by masks"] == 2
    assert set(answers["task"]) == set(TEXTS)
    assert answers[["score", "guess"]].notna().all().all()
    assert len(tokens) == 2 * 36
    written = sorted((tmp_path / "gates").glob("*.parquet"))
    assert main(arguments) == 0
    assert sorted((tmp_path / "gates").glob("*.parquet")) == written
    assert "background swapped" in capsys.readouterr().out

    limits, _, _ = read_gates_file(GATES_FILE)
    results, tasks = judge_gates(table, limits, {0.2: 0.9, 0.1: 0.9}, codebook={}, other=table)
    assert tasks == []  # random weights answer nothing
    states = gate_states(results, 0.2)
    assert list(states) == list(GATES)
    assert states["G1"][0] == states["G7"][0] == "failed"
    assert states["G2"][0] == "not measured"
    assert states["G3"] == ("not measured", "no task passes G1")
    assert states["G6"] == (
        "not measured",
        "the codebook does not say how many images its clusters draw from",
    )


def test_two_training_seeds_are_compared_end_to_end(coco_folder, tmp_path, monkeypatch):
    """The further seed is asked just enough for the tokens of those images of which the influence is known."""
    arguments = ["--images", f"coco:{coco_folder}", "--split", "validation", "--max-new-tokens", "2"]
    arguments += ["--tasks", "count", "--retain-ratio", "0.2"]
    tables = {}
    asked = {"tiny": (3, ["--influence", "2"]), "tiny-seed-1": (2, ["--influence"])}
    for seed, (name, (n_images, influence)) in enumerate(asked.items()):
        saved = tiny.save_tiny_llava(tmp_path / name, seed)
        place = tmp_path / "results" / name
        given = ["gates", "--model", str(saved), *arguments, *influence, "--n-token-images", str(n_images)]
        given += ["--n-images", str(n_images), "--folder", str(place / "gates")]
        assert main([*given, "--table", str(place / "gates.parquet")]) == 0
        tokens = part_of(read_table(place / "gates.parquet")[0], TOKENS)
        assert len(tokens) == n_images * 36 and tokens["influence"].notna().sum() == 2 * 36
        tables[name] = tokens.set_index(["image_id", "position"])

    first, second = tables.values()
    criterion = {"tau_p": first["top1_probability"].median(), "tau_jsd": first["influence"].median()}
    monkeypatch.setattr("rcblib.reading.verdicts._codebook_metadata", lambda model: {"criterion": criterion})
    limits, _, _ = read_gates_file(GATES_FILE)
    found = collect(tmp_path / "results", tmp_path / "nowhere", [])
    models = weigh_all(found, [], limits, {"tiny": ["tiny-seed-0", "tiny-seed-1"]})
    assert list(models) == ["tiny"]
    (overlap,) = (each for each in models["tiny"].gates if each.what == "overlap of two seeds")

    def says_little(rows):
        unsure = rows["top1_probability"].astype(float) < criterion["tau_p"]
        return set(rows.index[unsure & (rows["influence"].astype(float) < criterion["tau_jsd"])])

    little, other = says_little(first.loc[second.index]), says_little(second)
    assert 0 < len(little | other) < len(second)
    assert overlap.value == pytest.approx(len(little & other) / len(little | other))
    assert overlap.verdict == ("passed" if overlap.value >= limits.least_overlap else "failed")


def test_gates_run_in_shards_and_are_recorded(coco_folder, tmp_path):
    saved = tiny.save_tiny_llava(tmp_path / "model")
    arguments = ["gates", "--model", str(saved), "--images", f"coco:{coco_folder}", "--split", "validation"]
    arguments += ["--tasks", "one_word", "--n-token-images", "4", "--max-new-tokens", "2"]
    arguments += ["--images-per-part", "3", "--retain-ratio", "0.2", "--influence", "2"]

    def measured(name, *more):
        table = tmp_path / f"{name}.parquet"
        assert main([*arguments, *more, "--folder", str(tmp_path / name), "--table", str(table)]) == 0
        return table

    write_record(tmp_path / "tiny/whole.parquet", *merge_tables([measured("whole")]))
    shards = [measured(f"shard {i}", "--shard", f"{i}/2") for i in (1, 2)]
    write_record(tmp_path / "tiny/gates.parquet", *merge_tables(shards))
    record = read_record(tmp_path / "tiny/gates.parquet")
    assert record.path.read_bytes() == (tmp_path / "tiny/whole.parquet").read_bytes()
    tokens = part_of(record.table, TOKENS)
    assert (len(tokens), tokens["influence"].notna().sum()) == (4 * 36, 2 * 36)
    agreement = compare_with_record(record, *read_table(measured("again", "--first", "2")))
    assert agreement.disagreements == ()
    n_rows = 2 * 9 + 2 * len(
        conditions([0.2])
    )  # of two of the three images of a part, and some of their tokens
    assert (agreement.n_images, agreement.n_rows) == (2, n_rows)
