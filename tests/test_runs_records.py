"""Record tables, read them in place of live ones, and compare what is computed again."""

import numpy as np
import pandas as pd
import pytest
import tiny
from shard_tables import DESCRIPTION, MADE, facts_of, table_of

from rcblib.codebook.codebook import Codebook
from rcblib.evaluate.grid import evaluate_grid
from rcblib.evaluate.parts import evaluate_parts
from rcblib.mllm import adapter_for
from rcblib.probe import store
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset, shared_probe
from rcblib.pruners import CodebookPruner, RandomPruner
from rcblib.records import ParameterError, Question, Sample, SequenceSample
from rcblib.runs import records
from rcblib.runs.agreement import Tolerance, compare_with_record
from rcblib.runs.files import write_table
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import Record, read_record, table_facts, write_record
from rcblib.runs.shards import Shard


@pytest.fixture
def record(tmp_path):
    ids = [3, 7, 12, 20, 21]
    write_record(tmp_path / "small/probing.parquet", table_of(ids), facts_of(ids), ["is_article"])
    return read_record(tmp_path / "small/probing.parquet")


# Records


def test_a_record_reads_back_in_the_types_of_its_table(record):
    expected = table_of([3, 7, 12, 20, 21]).drop(columns="is_article")
    pd.testing.assert_frame_equal(record.table, expected)
    assert (record.table["ratio"] == 0.05).all()  # few values: exactly as they were


def test_long_columns_are_kept_in_single_precision(tmp_path):
    ids = list(range(400))
    write_record(tmp_path / "m/t.parquet", table_of(ids), facts_of(ids))
    found, expected = read_record(tmp_path / "m/t.parquet").table, table_of(ids)
    assert found["value"].dtype == "float64"
    assert 0 < (found["value"] - expected["value"]).abs().max() < 1e-7
    pd.testing.assert_frame_equal(found, expected, atol=1e-7)
    expected.to_parquet(tmp_path / "plain.parquet")
    sizes = [(tmp_path / name).stat().st_size for name in ("m/t.parquet", "plain.parquet")]
    assert sizes[0] < sizes[1] / 2


def test_the_origin_says_when_on_what_and_by_which_code(record):
    assert record.origin("today") == (
        "recorded: 2026-01-02, a processor, 0 min, commit c0ffee1, code today (that of today)"
    )
    assert "code today (not that of today: `make full` computes it anew)" in record.origin("tomorrow")
    of_settings = Record("", record.facts | {"description": {"code": "ab cd ef"}}, record.path)
    for code, words in (("ef ab", "(that of today)"), ("ab xy", "(not that of"), ("", "(not that of")):
        assert words in of_settings.origin(code)
    for seconds, words in ((90.0, "2 min"), (5400.0, "1.5 h")):
        assert f", {words}, commit" in Record("", {**record.facts, "seconds": seconds}, record.path).origin(
            "today"
        )


def test_machines_and_dates_of_all_shards_are_kept(tmp_path):
    later = MADE | {"date": "2026-01-03T00:00:00+00:00"}
    units = [{"seconds": 1.0, "provenance": made} for made in (later, MADE, MADE | {"gpu": "an accelerator"})]
    facts = table_facts(DESCRIPTION, [], {1: "x"}, units)
    assert facts["seconds"] == 3.0
    assert sorted(made["gpu"] for made in facts["provenance"]) == ["an accelerator", "none"]
    assert max(made["date"] for made in facts["provenance"]) == later["date"]
    write_record(tmp_path / "m/t.parquet", table_of([1]), facts)
    assert {"a processor", "an accelerator"} <= set(
        read_record(tmp_path / "m/t.parquet").origin("").split(", ")
    )


def test_files_that_do_not_match_their_record_are_refused(record):
    changed = record.table.assign(value=0.0)
    write_table(record.path, changed, {})
    with pytest.raises(
        ParameterError, match="small/probing: got 'a table of sha256 .*; accepted: .*, as recorded"
    ):
        read_record(record.path)
    record.path.with_suffix(".json").unlink()
    with pytest.raises(ParameterError, match="a table with its record"):
        read_record(record.path)


def test_records_are_kept_small(tmp_path, monkeypatch):
    write_record(tmp_path / "m/a.parquet", table_of([1]), facts_of([1]))
    size = (tmp_path / "m/a.parquet").stat().st_size
    monkeypatch.setattr(records, "MAX_BYTES", int(1.5 * size))
    write_record(tmp_path / "m/a.parquet", table_of([1]), facts_of([1]))  # in its own place
    with pytest.raises(ParameterError, match="recorded tables: got '.* MB'; accepted: at most"):
        write_record(tmp_path / "m/b.parquet", table_of([2]), facts_of([2]))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["a.json", "a.parquet"]


@pytest.mark.parametrize("name", ["token", "image_id", "nothing"])
def test_only_columns_that_are_no_keys_are_dropped(tmp_path, name):
    with pytest.raises(ParameterError, match="columns of the table that are no keys"):
        write_record(tmp_path / "m/a.parquet", table_of([1]), facts_of([1]), [name])


# Agreement


def test_images_that_are_computed_again_agree_within_the_tolerance(record):
    found = table_of([7, 3]).sample(frac=1, random_state=0)
    found["value"] += 0.00005
    agreement = compare_with_record(record, found, facts_of([7, 3], code="tomorrow", model="another name"))
    assert (agreement.n_images, agreement.n_rows, agreement.disagreements) == (2, 6, ())
    assert agreement.largest == {"value": pytest.approx(0.00005), "ratio": 0.0}


@pytest.mark.parametrize(
    ("column", "new", "line"),
    [
        ("value", 9.0, "column value, image 7: recorded 0.951.*, found 9.0 (1 of 6 rows differ)"),
        ("rank", 3, "column rank, image 7: recorded 2, found 3 (1 of 6 rows differ)"),
        ("word", "other", "column word, image 7: recorded word 1, found other (1 of 6 rows differ)"),
        ("value", np.nan, "column value, image 7: recorded 0.951.*, found nan (1 of 6 rows differ)"),
        ("token", 5, "column token 1, image 7: recorded a row, found none (2 of 7 rows differ)"),
    ],
)
def test_what_differs_is_told_in_one_line(record, column, new, line):
    found = table_of([3, 7])
    found.loc[4, column] = new
    (problem,) = compare_with_record(record, found, facts_of([3, 7])).disagreements
    start, _, end = line.partition(".*")
    assert str(problem).startswith(f"small/probing: {start}") and str(problem).endswith(end)


def test_tolerances_are_a_column_s_own_and_a_share_of_rows_may_differ(record):
    found = table_of([3, 7])
    found["value"] += 0.01
    found.loc[0, ["rank", "word"]] = [1, "other"]

    def differing(**tolerance):
        problems = compare_with_record(record, found, facts_of([3, 7]), Tolerance(**tolerance)).disagreements
        return [problem.column for problem in problems]

    assert differing() == ["value", "word", "rank"]
    assert differing(absolute=0.02) == ["word", "rank"]
    assert differing(columns={"value": 0.02, "rank": 1.0}) == ["word"]
    assert differing(columns={"value": 0.02}, differing=0.2) == []
    assert differing(columns={"value": 0.02}, differing=0.1) == ["word", "rank"]
    with pytest.raises(ParameterError, match=r"tolerance of small/probing: got \['valu'\]"):
        differing(columns={"valu": 0.1})


def test_of_what_is_sampled_the_record_may_have_more_rows(record):
    found, facts = table_of([3, 7]), facts_of([3, 7]) | {"sampled": {"token": 1}}
    chosen = found["token"] == 1
    some = found.drop(index=found.index[chosen][0])
    assert compare_with_record(record, some, facts_of([3, 7])).disagreements[0].n_differing == 1
    agreement = compare_with_record(record, some, facts)
    assert (agreement.n_rows, agreement.disagreements) == (5, ())
    assert (
        len(compare_with_record(record, some.drop(index=found.index[~chosen][0]), facts).disagreements) == 1
    )
    with pytest.raises(ParameterError, match="no row whose token is 1"):
        compare_with_record(record, found[~chosen], facts)


def test_only_rows_of_the_settings_that_were_asked_are_compared(record):
    every = table_of([3, 7])
    found, facts = every[every["token"] == 1], facts_of([3, 7]) | {"only": {"token": [1]}}
    agreement = compare_with_record(record, found, facts)
    assert (agreement.n_rows, agreement.disagreements) == (2, ())
    (problem,) = compare_with_record(record, found[1:], facts).disagreements  # of those none may be missing
    assert str(problem).endswith("column token 1, image 3: recorded a row, found none (1 of 2 rows differ)")
    (problem,) = compare_with_record(record, every, facts).disagreements  # nor another be there
    assert problem.n_differing == len(every) - 2
    assert compare_with_record(record, found.assign(rank=9), facts).disagreements[0].column == "rank"


def test_rows_without_a_setting_are_always_compared(tmp_path):
    table = pd.DataFrame({"image_id": 1, "setting": ["a", "b", None], "value": [1.0, 2.0, 3.0]})
    facts = table_facts(DESCRIPTION, ["setting"], {1: "x"}, [{"seconds": 1.0, "provenance": MADE}])
    write_record(tmp_path / "m/t.parquet", table, facts)
    recorded, asked = read_record(tmp_path / "m/t.parquet"), facts | {"only": {"setting": ["b"]}}
    assert compare_with_record(recorded, table[1:], asked).disagreements == ()
    assert compare_with_record(recorded, table[1:2], asked).disagreements[0].recorded == "a row"


def test_a_column_that_is_not_computed_any_more_disagrees(record):
    (problem,) = compare_with_record(record, table_of([3]).drop(columns="rank"), facts_of([3])).disagreements
    assert str(problem) == (
        "small/probing: column rank, image 3: recorded a column, found none (3 of 3 rows differ)"
    )


def test_images_and_models_that_were_not_recorded_are_named(record):
    with pytest.raises(ParameterError, match=r"other images of the ids .*4.*; accepted: the 5 images"):
        compare_with_record(record, table_of([3, 4]), facts_of([3, 4]))
    with pytest.raises(
        ParameterError, match="got {'model_fingerprint': 'ff'}; accepted: what was recorded, {'model_"
    ):
        compare_with_record(record, table_of([3]), facts_of([3], model_fingerprint="ff"))
    with pytest.raises(ParameterError, match="at least one image"):
        compare_with_record(record, table_of([]), facts_of([]))
    (problem,) = compare_with_record(record, table_of([3]), facts_of([3, 7])).disagreements
    assert str(problem).endswith("column token 0, image 7: recorded a row, found none (3 of 6 rows differ)")


# Probing and evaluating

CONFIG = ProbeConfig(positions="grid", n_side=2, batch_size=4)
N_IMAGES = 4


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def samples():
    pictures = tiny.random_images(N_IMAGES)
    return [Sample(10 + i, lambda p=p: p, *p.size, source="photos") for i, p in enumerate(pictures)]


@pytest.fixture(scope="module")
def probed(pair, samples, tmp_path_factory):
    """Return the record of a probing run in two shards, and the run itself."""
    folder = tmp_path_factory.mktemp("probed")
    paths = []
    for number in (2, 1):
        shard = Shard(number, 2)
        results = probe_dataset(*pair, samples, CONFIG, folder / "run", progress=False, shard=shard)
        paths.append(folder / f"{number}.parquet")
        write_table(paths[-1], results.table, results.facts)
    path = folder / "recorded/tiny/probing.parquet"
    write_record(path, *merge_tables(paths))
    return path, probe_dataset(*pair, samples, CONFIG, folder / "run", progress=False)


def test_a_recorded_probe_is_read_in_place_of_a_folder(pair, samples, probed, monkeypatch, capsys):
    path, live = probed
    monkeypatch.setattr(store, "probe_input", lambda *_: pytest.fail("probed again"))
    found = shared_probe(*pair, samples[::-1], CONFIG, path)
    expected = pd.concat(
        [live.table[live.table["image_id"] == s.image_id] for s in samples[::-1]], ignore_index=True
    )
    pd.testing.assert_frame_equal(found.table, expected)
    assert found.row_tokens().equal(live.row_tokens().reshape(N_IMAGES, 4, -1).flip(0).flatten(0, 1))
    assert "probing: recorded: " in capsys.readouterr().out
    few = shared_probe(*pair, samples[1:3], CONFIG, path)
    assert list(few.tokens) == few.table["image_id"].unique().tolist() == [11, 12]
    assert few.facts["seconds"] > 0


def test_a_recorded_probe_of_something_else_is_refused(pair, samples, probed):
    with pytest.raises(ParameterError, match="tiny/probing: got {'config': .*'n_side': 3"):
        shared_probe(*pair, samples, ProbeConfig(positions="grid", n_side=3), probed[0])
    with pytest.raises(ParameterError, match="tiny/probing: got {'model_fingerprint'"):
        shared_probe(*tiny.tiny_llava(1), samples, CONFIG, probed[0])
    other = Sample(10, samples[1].load, samples[1].width, samples[1].height, source="photos")
    with pytest.raises(ParameterError, match=r"other images of the ids \[10\]"):
        shared_probe(*pair, [other], CONFIG, probed[0])


def test_images_that_are_probed_again_agree_with_their_record(pair, samples, probed, tmp_path):
    again = probe_dataset(*pair, samples[:1], CONFIG, tmp_path, progress=False)
    agreement = compare_with_record(read_record(probed[0]), again.table, again.facts)
    assert (agreement.n_images, agreement.n_rows, agreement.disagreements) == (1, 4, ())


@pytest.fixture(scope="module")
def asked(samples):
    texts = {"one_word": "What does this image show ?", "yes_no": "Is there a cat in the image ?"}
    return [
        Question(sample.image_id, task, text, "no")
        for task, text in texts.items()
        for sample in samples[::-1]
    ]


@pytest.fixture(scope="module")
def pruners(pair, samples):
    tokens = adapter_for(*pair).encode([samples[0].image])[0].tokens
    book = Codebook(tokens[::5].clone(), tuple(range(8)), "llava")
    return {
        "all tokens": None,
        "random tokens": [RandomPruner(0.2, seed=0), RandomPruner(0.2, seed=1)],
        "codebook": CodebookPruner(book, retain_ratio=0.3),
    }


@pytest.fixture(scope="module")
def evaluated(pair, asked, samples, pruners, tmp_path_factory):
    """Return the record of an evaluation in parts of one image and three shards, and how to evaluate again."""
    folder = tmp_path_factory.mktemp("evaluated")

    def run(shard, name="run", images_per_part=1):
        return evaluate_parts(
            *pair,
            *(asked, samples, pruners, 4, 3),
            folder=folder / name,
            images_per_part=images_per_part,
            shard=shard,
            progress=False,
        )

    paths = [folder / f"{number}.parquet" for number in (1, 2, 3)]
    for number, path in enumerate(paths, 1):
        write_table(path, *run(Shard(number, 3)))
    path = folder / "recorded/tiny/pruning.parquet"
    write_record(path, *merge_tables(paths))
    return path, run


def test_answers_do_not_depend_on_parts_or_shards(evaluated, pair, asked, samples, pruners):
    whole = evaluate_grid(*pair, asked, samples, pruners, 4, 3, progress=False)
    for shard, size in ((None, None), (None, 1), (Shard(), 3)):
        found, facts = evaluated[1](shard, images_per_part=size)
        assert list(facts["samples"]) == [str(sample.image_id) for sample in samples]
        pd.testing.assert_frame_equal(found.drop(columns="setting"), whole, check_dtype=False)


def test_a_finished_part_is_not_answered_again(evaluated, pair, monkeypatch):
    monkeypatch.setattr(pair[0], "generate", lambda **_: pytest.fail("answered again"))
    found, facts = evaluated[1](Shard(2, 3))
    assert found["image_id"].unique().tolist() == [11]
    assert facts["seconds"] > 0
    told = {method["method"]: method for method in facts["settings"].values()}
    assert (
        told["random tokens"]["seed"] in (0, 1) and len(told["codebook"]["codebook"]) == 64
    )  # a hash of its prototypes
    assert set(facts["settings"]) == set(found["setting"])


def test_a_recorded_evaluation_is_read_in_place_of_a_folder(
    evaluated, pair, asked, samples, pruners, monkeypatch, capsys
):
    whole = evaluate_grid(*pair, asked, samples, pruners, 4, 3, progress=False)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(pair[0], "generate", lambda **_: pytest.fail("answered again"))
        found = evaluate_grid(*pair, asked, samples, pruners, 4, 3, folder=evaluated[0])
    pd.testing.assert_frame_equal(found, whole, check_dtype=False)
    out = capsys.readouterr().out
    assert "evaluating: recorded: " in out and "(that of today)" in out and "computed here" not in out


def test_settings_that_were_not_recorded_are_computed_and_named(evaluated, pair, asked, samples, capsys):
    other = {"random tokens": [RandomPruner(0.2, seed=1), RandomPruner(0.2, seed=2)]}
    found = evaluate_grid(*pair, asked, samples, other, 4, 3, folder=evaluated[0], progress=False)
    live = evaluate_grid(*pair, asked, samples, other, 4, 3, progress=False)
    pd.testing.assert_frame_equal(found, live, check_dtype=False)
    out = capsys.readouterr().out
    assert out.count("computed here") == 1 and "(retain_ratio 0.2, seed 2) is not recorded" in out


def test_a_recorded_evaluation_of_something_else_is_refused(evaluated, pair, asked, samples, pruners):
    for wanted, arguments in (
        ("questions", (*pair, asked[1:], samples)),
        ("model_fingerprint", (*tiny.tiny_llava(1), asked, samples)),
        ("samples", (*pair, asked[1::4], samples[:3])),
    ):
        with pytest.raises(ParameterError, match=f"tiny/pruning: got {{.*'{wanted}': "):
            evaluate_grid(*arguments, pruners, 4, 3, folder=evaluated[0])


def test_parts_that_are_answered_again_agree_with_their_record(evaluated):
    found, facts = evaluated[1](Shard(first=2), "again")
    record = read_record(evaluated[0])
    agreement = compare_with_record(record, found, facts)
    assert (agreement.n_images, agreement.n_rows, agreement.disagreements) == (2, 2 * 2 * 4, ())
    found.loc[3, "prediction"] = "another"
    (problem,) = compare_with_record(record, found, facts).disagreements
    assert (problem.column, problem.found) == ("prediction", "another")


def test_tokens_of_tiles_and_videos_are_encoded_as_they_were_probed(tmp_path):
    model, processor = tiny.tiny_onevision()
    frames = tiny.random_images(2, size=(24, 24))
    photo = tiny.random_images(1, size=(48, 24))[0]
    inputs = [
        Sample(1, lambda: photo, *photo.size, source="photos"),
        SequenceSample(2, lambda: tuple(frames), "video", tuple(frame.size for frame in frames)),
    ]
    config = ProbeConfig(positions=(0, 3), batch_size=8, attention=False)
    live = probe_dataset(model, processor, inputs, config, tmp_path / "run", progress=False)
    write_table(tmp_path / "1.parquet", live.table, live.facts)
    write_record(tmp_path / "tiny/probing.parquet", *merge_tables([tmp_path / "1.parquet"]))
    found = shared_probe(model, processor, inputs, config, tmp_path / "tiny/probing.parquet")
    pd.testing.assert_frame_equal(found.table, live.table)
    for image_id, n_views in ((1, 7), (2, 2)):
        assert found.tokens[image_id].equal(live.tokens[image_id])
        assert found.table["view"][found.table["image_id"] == image_id].nunique() == n_views
