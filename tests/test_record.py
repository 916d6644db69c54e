"""Record stages through the workflow in a small project, and check what was recorded."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_project import COMMAND, LIST, make_full, make_project, snakemake

from rcblib.evaluate.ranks import view_ranks
from rcblib.runs.files import read_json, read_table, write_json, write_table
from rcblib.runs.records import MAX_BYTES, read_record
from tools import make_pages, record
from tools.notebook_list import Recorded, read_notebook_list

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path):
    pytest.importorskip("snakemake")
    return make_project(tmp_path)


def test_shipped_records_are_whole_and_each_is_a_stage_s():
    listed = read_notebook_list(REPOSITORY / "workflow/notebooks.yml")
    stages = {stage.record: stage for stage in listed.stages if stage.recorded}
    paths = list((REPOSITORY / "data/recorded").rglob("*.parquet"))
    assert {path.relative_to(REPOSITORY).as_posix() for path in paths} == set(stages)
    assert sum(path.stat().st_size for path in paths) <= MAX_BYTES
    for name, stage in stages.items():
        recorded = read_record(REPOSITORY / name)
        assert recorded.facts["stage"]["options"] == stage.options, (
            f"{name}: `make full` records what is asked for"
        )
        assert len(recorded.table) == recorded.facts["n_rows"]
        assert {"image_id", *recorded.facts["keys"]} <= set(recorded.table), name


def test_a_stage_of_every_method_depends_on_what_makes_them():
    listed = read_notebook_list(REPOSITORY / "workflow/notebooks.yml")
    stage = next(own for own in listed.stages if own.options.get("every_method"))
    plain = dataclasses.replace(stage, options=stage.options | {"every_method": False})
    for modules in (record.COMMANDS, record.NUMBERS):
        assert record.stage_code(stage, listed, modules) != record.stage_code(plain, listed, modules)


CHECKED = "results/large/probing.checked.json"


def test_a_stage_is_recorded_in_shards_and_checked_by_a_build(project):
    kept = project / "runs/full/probing-large/kept"
    kept.mkdir(parents=True)
    (kept / "stop").touch()
    status, told = make_full(project)
    assert status != 0 and "probing-large: to be recorded" in told and "[probing-large] stopped" in told
    assert not (project / "data/recorded").exists()
    (kept / "stop").unlink()
    status, told = make_full(project)
    assert status == 0, told
    assert told.count("] probed") == 3  # those of the shard that had been stopped
    assert "8 rows of 8 images in data/recorded/large/probing.parquet" in told
    recorded = read_record(project / "data/recorded/large/probing.parquet")
    assert recorded.table["value"].tolist() == [1.5 * i for i in range(8)]
    assert recorded.facts["seconds"] == 8.0
    assert recorded.facts["stage"]["options"] == {"model": "large", "scale": 1.5}
    assert list(recorded.facts["stage"]["inputs"]) == ["data/models/large/config.json"]

    status, told = make_full(project, "--dry-run", "--config", "models=large", "stages=")
    assert status == 0 and "probing-large: recorded already" in told and "probing_large" not in told

    status, told = snakemake(project, CHECKED)
    assert status == 0, told
    assert told.count("] probed") == 2 and "2 of 8 images computed again agree" in told
    assert "a processor, 0 min, commit unknown, code c0de (that of today)" in told
    checked = read_json(project / CHECKED)
    assert (checked["n_images"], checked["n_recorded"], checked["largest"]) == (2, 8, {"value": 0.0})


@pytest.fixture
def listed(tmp_path):
    """Write a list and a record of eight images; return the list, and how to write tables of some of them."""
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/notebooks.yml").write_text(yaml.safe_dump(LIST), encoding="utf-8")
    script = COMMAND.replace("MODEL", "'first'")

    def compute(name, *arguments):
        command = [
            sys.executable,
            "-c",
            script,
            "probe",
            "--folder",
            "kept",
            "--model",
            "large",
            "--table",
            name,
        ]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True)
        return str(tmp_path / name)

    return read_notebook_list(tmp_path / "workflow/notebooks.yml"), compute


def test_what_differs_from_the_record_stops_with_one_line(listed, tmp_path, capsys):
    found, compute = listed
    shards = [compute(f"{i}.parquet", "--scale", "1.5", "--shard", f"{i}/2") for i in (1, 2)]
    assert record.main(["write", "probing-large", *shards], tmp_path) == 0
    stage = found.find("probing-large")
    assert record.is_current(stage, found, tmp_path)
    assert not record.is_current(dataclasses.replace(stage, inputs=("workflow/*",)), found, tmp_path)
    assert not record.is_current(
        dataclasses.replace(stage, options={**stage.options, "scale": 2}), found, tmp_path
    )
    output = tmp_path / "checked.json"
    again = compute("again.parquet", "--scale", "1.50005", "--first", "2")
    assert record.main(["check", "probing-large", again, str(output)], tmp_path) == 0
    assert read_json(output)["largest"]["value"] == pytest.approx(0.00005)
    output.unlink()
    again = compute("again.parquet", "--scale", "1.6", "--first", "2")
    table, facts = read_table(again)
    write_table(again, table.assign(word="other"), facts)
    capsys.readouterr()
    assert record.main(["check", "probing-large", again, str(output)], tmp_path) == 1
    assert capsys.readouterr().err == (
        "the record does not agree with what was computed again: large/probing: "
        "column value, image 1: recorded 1.5, found 1.6 (1 of 2 rows differ); also word\n"
    )
    assert not output.exists()
    (tmp_path / "data/recorded/large/probing.json").write_text("{}", encoding="utf-8")
    assert record.main(["check", "probing-large", again, str(output)], tmp_path) == 2
    assert not record.is_current(stage, found, tmp_path)
    assert "record: large/probing: got 'a table of sha256" in capsys.readouterr().err


def test_which_settings_a_build_computes_again_follows_from_the_record(listed, tmp_path):
    stage = listed[0].find("probing-large")
    assert record.again(stage, tmp_path) == ["--first", "2"]
    stage = dataclasses.replace(stage, recorded=Recorded(first=3, settings=7))
    assert record.again(stage, tmp_path) == ["--first", "3"]  # nothing is recorded yet
    for sha256, turn in (("0f", "2/7"), ("07", "1/7"), ("ff" * 32, f"{int('ff' * 32, 16) % 7 + 1}/7")):
        write_json((tmp_path / stage.record).with_suffix(".json"), {"sha256": sha256})
        assert record.again(stage, tmp_path) == ["--first", "3", "--settings", turn]


def test_a_check_of_some_settings_says_how_many(listed, tmp_path, capsys):
    found, compute = listed
    shards = [compute(f"{i}.parquet", "--scale", "1.5", "--shard", f"{i}/2") for i in (1, 2)]
    tables = []
    for path in map(Path, shards):
        table, facts = read_table(path)
        facts["keys"] = ["setting", "token"]
        tables.append(pd.concat([table.assign(setting=name) for name in "abc"], ignore_index=True))
        write_table(path, tables[-1], facts)
    assert record.main(["write", "probing-large", *shards], tmp_path) == 0
    some, output = tmp_path / "some.parquet", tmp_path / CHECKED
    output.parent.mkdir(parents=True)
    of_settings = tables[0][tables[0]["setting"] != "b"]
    facts = read_table(shards[0])[1] | {"only": {"setting": ["a", "c"]}}
    write_table(some, of_settings, facts)
    capsys.readouterr()
    assert record.main(["check", "probing-large", str(some), str(output)], tmp_path) == 0
    assert capsys.readouterr().out.endswith("; 4 of 8 images computed again with 2 of 3 settings agree\n")
    assert read_json(output)["n_rows"] == len(of_settings)
    said = make_pages.origin_of(found.find("probing-large"), tmp_path)
    assert said.endswith("this build computed 4 again with 2 of 3 settings, which agree within 0.0001.")


def test_a_check_of_some_positions_compares_these_only_and_says_how_many(listed, tmp_path, capsys):
    found, compute = listed
    path = tmp_path / "workflow/notebooks.yml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["stages"][0]["models"]["large"]["recorded"]["positions"] = 3
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    tables = (
        compute("whole.parquet", "--scale", "1.5"),
        compute("some.parquet", "--scale", "1.5", "--first", "2"),
    )
    for path, positions in zip(tables, ("all", [1, 4]), strict=True):
        table, facts = read_table(path)
        numbers = range(5) if positions == "all" else positions
        table = pd.concat([table.assign(position=i, token=i, value=table["value"] + i) for i in numbers])
        facts |= {
            "keys": ["token"],
            "description": facts["description"] | {"config": {"positions": positions}},
        }
        write_table(path, table, facts)
    assert record.main(["write", "probing-large", tables[0]], tmp_path) == 0
    stage = read_notebook_list(tmp_path / "workflow/notebooks.yml").find("probing-large")
    first = int(read_json((tmp_path / stage.record).with_suffix(".json"))["sha256"], 16) % 3
    chosen = ",".join(map(str, range(first, 5, 3)))
    assert record.again(stage, tmp_path) == ["--first", "2", "--positions", chosen]
    output = tmp_path / CHECKED
    output.parent.mkdir(parents=True)
    capsys.readouterr()
    assert record.main(["check", "probing-large", tables[1], str(output)], tmp_path) == 0
    assert capsys.readouterr().out.endswith("; 2 of 8 images computed again at 2 of 5 positions agree\n")
    assert read_json(output)["n_rows"] == 4
    said = make_pages.origin_of(stage, tmp_path)
    assert said.endswith("this build computed 2 again at 2 of 5 positions, which agree within 0.0001.")
    table, facts = read_table(tables[1])
    write_table(tables[1], table.assign(value=table["value"] + (table["position"] == 4)), facts)
    assert record.main(["check", "probing-large", tables[1], str(output)], tmp_path) == 1
    assert "column value, image 0: recorded 4.0, found 5.0 (2 of 4 rows differ)" in capsys.readouterr().err


def test_a_check_of_some_positions_compares_ranks_among_these(listed, tmp_path, capsys):
    path = tmp_path / "workflow/notebooks.yml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = content["stages"][0]["models"]["large"]
    own["recorded"] |= {"positions": 3, "first": 1}
    own["ranks"] = True
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    _, facts = read_table(listed[1]("whole.parquet", "--scale", "1.5"))
    facts["keys"] = ["part", "view", "position"]

    def write(name, positions, values, falls, removed=0.5):
        """Write what is measured of two views of every image: scores of tokens, swaps of these, and a removal."""
        tokens = pd.DataFrame(
            {
                "part": "tokens",
                "view": view,
                "position": place,
                "token": place,
                "score_own": values[view][place],
            }
            for view in (0, 1)
            for place in positions
        )
        tokens = tokens.assign(score_own=view_ranks(tokens.assign(object_coverage=0.0))["score_own"])
        swapped = tokens[["view", "position"]].assign(
            part="swapped", fall=[falls[p] for p in tokens["position"]]
        )
        of_image = pd.concat([tokens, swapped, pd.DataFrame([{"part": "removed", "fall": removed}])])
        images = list(facts["samples"])[: 8 if len(positions) == 7 else 1]
        places = of_image["position"]  # the grids of other images are others
        parts = [of_image.assign(image_id=int(i), position=places + (i != images[0])) for i in images]
        table = pd.concat(parts, ignore_index=True)
        config = {"positions": "all" if len(positions) == 7 else positions}
        own = {"samples": {name: facts["samples"][name] for name in images}}
        write_table(
            tmp_path / name, table, facts | own | {"description": facts["description"] | {"config": config}}
        )
        return str(tmp_path / name)

    values = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]]
    falls = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert (
        record.main(["write", "probing-large", write("all.parquet", range(7), values, falls)], tmp_path) == 0
    )
    stage = read_notebook_list(path).find("probing-large")
    *_, chosen = record.again(stage, tmp_path)
    some = [int(number) for number in chosen.split(",")]
    assert some == list(range(some[0], 7, 3))  # rows of removals are about no token
    output = tmp_path / CHECKED
    output.parent.mkdir(parents=True)

    def check(*measured):
        capsys.readouterr()
        return record.main(
            ["check", "probing-large", write("some.parquet", some, *measured), str(output)], tmp_path
        )

    assert check(values, falls) == 0
    assert capsys.readouterr().out.endswith(
        f"1 of 8 images computed again at {len(some)} of 7 positions agree\n"
    )
    assert read_json(output)["n_rows"] == 4 * len(some) + 1
    turned = [values[0], [-value for value in values[1]]]
    for wrong in ((turned, falls), (values, [2 * fall for fall in falls]), (values, falls, 0.6)):
        assert check(*wrong) == 1
        assert f"column {'score_own' if wrong[0] is turned else 'fall'}," in capsys.readouterr().err


def test_recorded_stages_are_chosen_by_model_and_name(listed):
    found, _ = listed
    (stage,) = record.chosen_stages(found, [], [])
    assert (stage.run, stage.recorded) == ("probing-large", Recorded(shards=3, first=2))
    assert (stage.source, stage.result) == (stage.record, "results/large/probing.checked.json")
    assert found.find("a-large").parameters["probed"] == "data/recorded/large/probing.parquet"
    assert (
        found.find("a").parameters["probed"] == "results/probing"
    )  # the same stage, live on the default model
    assert found.find("a-large").settings["probed"] == stage.record  # in a command, and on Colab
    assert found.find("a").settings == {}
    assert record.chosen_stages(found, ["large"], ["probing"]) == [stage]
    with pytest.raises(ValueError, match=r"MODELS: got \['small'\]; accepted: \['large'\]"):
        record.chosen_stages(found, ["small"], [])
    with pytest.raises(ValueError, match=r"STAGES: got \['pruning'\]; accepted: \['probing'\]"):
        record.chosen_stages(found, [], ["pruning"])


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"recorded": {"shard": 3}}, r"s: recorded: unknown \['shard'\]; accepted: .*'shards'"),
        (
            {"recorded": True, "command": "evaluate"},
            "s is recorded; accepted: with the option images_per_part",
        ),
        ({"recorded": {"settings": 3}}, "s has settings; accepted: with the commands .*'explorer'"),
        (
            {"recorded": {"positions": 3}, "command": "explorer"},
            r"s has positions; accepted: with the commands \('probe', 'truth'\)",
        ),
    ],
)
def test_mistakes_of_recorded_stages_are_named(tmp_path, stage, message):
    path = tmp_path / "notebooks.yml"
    path.write_text(yaml.safe_dump({"stages": [{"name": "s", "command": "probe"} | stage]}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_notebook_list(path)


def test_pages_say_what_was_recorded_and_what_this_build_computed(listed, tmp_path):
    found, _ = listed
    checked = {"origin": "recorded: 2026-01-02, a processor", "n_recorded": 8, "n_images": 2}
    write_json(tmp_path / CHECKED, checked | {"tolerance": {"absolute": 0.0001, "differing": 0.0}})
    assert [make_pages.origin_of(found.find(run), tmp_path) for run in ("probing", "probing-large")] == [
        "Probing: computed by this build.",
        "Probing, recorded: 2026-01-02, a processor; of 8 images this build computed 2 again, which agree within "
        "0.0001.",
    ]


def test_a_page_made_before_any_build_says_no_more_than_that_it_reads_a_record(listed, tmp_path):
    stage = listed[0].find("probing-large")
    assert make_pages.origin_of(stage, tmp_path) == "Probing: recorded, not computed again here."
