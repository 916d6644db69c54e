"""Share a notebook's or a command's images among runs: put together they are, byte for byte, what one run leaves."""

import json
import re
import warnings
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import tiny
import torch
import warm
import yaml
from papermill.exceptions import PapermillExecutionError

from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook
from rcblib.runs.merging import merge_to
from rcblib.runs.records import read_record
from tools.sweep import main as sweep_main
from tools.sweep import notebooks_of, read_sweep, runs_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Save a random model, its codebook, and four photos, the second damaged; return parameters for papermill."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "photos").mkdir()
    for number, image in enumerate(tiny.random_images(4, size=(64, 48))):
        image.save(folder / "photos" / f"{number}.jpg")
    damaged = folder / "photos" / "1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    model, processor = tiny.tiny_llava()
    width = model.config.text_config.hidden_size
    prototypes = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    Codebook(prototypes, family="llava").save_pretrained(folder / "codebook")
    given = {"model": tiny.save(folder / "model", model, processor), "images": folder / "photos"}
    return {name: str(path) for name, path in given.items()} | {"n_images": 4, "on_error": "skip"}


def execute(name, folder, given, **changes):
    """Execute a notebook; return what it printed."""
    path = folder / "out.ipynb"
    warm.execute(REPOSITORY / "notebooks" / f"{name}.ipynb", path, {**given, **changes}, REPOSITORY)
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.parametrize(
    ("name", "reads", "settings"),
    [
        ("token_centric", "probed", {}),
        ("pruned_inference", "evaluated", {"max_new_tokens": 2, "images_per_part": 1, "n_checked": 1}),
    ],
)
def test_a_notebook_in_shards_leaves_what_it_leaves_alone(name, reads, settings, own, tmp_path):
    given = own | settings
    if name == "pruned_inference":
        given["codebook"] = str(Path(own["model"]).parent / "codebook")
    for n_shards in (1, 2):
        folder = tmp_path / f"of-{n_shards}"
        for shard in range(1, n_shards + 1):
            share = {"shard": shard, "n_shards": n_shards, "results_folder": str(folder)}
            said = execute(name, tmp_path, given, **share)
            assert f"shard       {shard}-of-{n_shards}: " in said and ", 1 left out in " in said
        assert not (folder / f"{name}.json").exists()  # it ended with the shard
        merge_to(tmp_path / f"{n_shards}.parquet", [folder / "shards" / name])
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    facts = read_record(tmp_path / "2.parquet").facts
    assert list(facts["samples"]) == ["0.jpg", "2.jpg", "3.jpg"]
    assert list(facts["skipped"]) == ["1.jpg"] and "1.jpg" in facts["skipped"]["1.jpg"]
    results = {"results_folder": str(tmp_path / "results"), reads: str(tmp_path / "2.parquet")}
    assert "ing: recorded: " in execute(name, tmp_path, given, **results)
    written = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert written["config"]["n_shards"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": 3, "n_shards": 2}, "shard: got 3; accepted: 1 to 2, n_shards"),
        ({"n_shards": 2}, "shard: got 0; accepted: 1 to 2, n_shards"),
        ({"shard": 1, "probed": "a.parquet"}, "probed: got 'a.parquet'; accepted: a folder or nothing"),
    ],
)
def test_a_wrong_shard_ends_in_one_line_before_any_work(changes, message, own, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(PapermillExecutionError, match=message):
        execute("context_centric", tmp_path, own, results_folder=str(folder), **changes)
    assert not folder.exists()


def test_a_command_in_shards_notes_what_it_left_out_and_merges(own, coco, tmp_path, capsys):
    lost = coco / "val2014" / "COCO_val2014_000000000005.jpg"
    lost.write_bytes(lost.read_bytes()[:300])
    given = [
        "probe",
        "--model",
        own["model"],
        "--images",
        f"coco:{coco}",
        "--split",
        "val2014",
        "--positions",
        "0,7",
    ]
    given += ["--on-error", "skip", "--folder", str(tmp_path / "kept")]
    paths = [str(tmp_path / "shards" / f"{number}.parquet") for number in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, path in enumerate(paths, 1):
            assert main([*given, "--shard", f"{number}/2", "--table", path]) == 0
        assert main([*given, "--table", str(tmp_path / "whole.parquet")]) == 0
    for name, tables in {"merged": paths, "alone": [str(tmp_path / "whole.parquet")]}.items():
        capsys.readouterr()
        assert main(["merge", *tables, "--table", str(tmp_path / f"{name}.parquet")]) == 0
        assert capsys.readouterr().out == "1 images, 1 left out\n"
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()
    assert list(read_record(tmp_path / "merged.parquet").facts["skipped"]) == ["5"]
    assert main(["merge", paths[0]]) == 2
    assert (
        "rcblib merge: shards: got 'no shard 2/2'; accepted: each of the 2 shards once"
        in capsys.readouterr().err
    )


def test_every_notebook_takes_shards_or_the_page_says_why_not():
    page = (REPOSITORY / "book/cluster.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [](notebooks/")]
    excused = {name for row in rows for name in re.findall(r"notebooks/(\w+)\.ipynb", row)}
    takes = set()
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        given = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        if re.search(r"^shard: .*^n_shards: ", given, re.DOTALL | re.MULTILINE):
            takes.add(path.stem)
    assert {"signals_against_truth", "token_centric", "pruned_inference"} <= takes
    assert takes.isdisjoint(excused)
    assert takes | excused == {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")}


def test_the_truth_in_shards_is_that_of_one_run(tmp_path):
    given = {"n_images": 2, "positions": "grid", "n_questions": 1, "rerender": False}
    for n_shards in (1, 2):
        for shard in range(1, n_shards + 1):
            share = {"shard": shard, "n_shards": n_shards, "results_folder": str(tmp_path / str(n_shards))}
            said = execute("signals_against_truth", tmp_path, given, **share)
            assert f"shard       {shard}-of-{n_shards}: " in said
        merge_to(
            tmp_path / f"{n_shards}.parquet", [tmp_path / str(n_shards) / "shards" / "signals_against_truth"]
        )
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    results = {"results_folder": str(tmp_path / "results"), "measured": str(tmp_path / "2.parquet")}
    assert "recorded: " in execute("signals_against_truth", tmp_path, given, **results)


def test_a_sweep_leaves_what_plain_runs_leave_and_lays_it_side_by_side(own, coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codebook = str(Path(own["model"]).parent / "codebook")
    content = {
        "name": "tiny",
        "models": [{"name": "own", "model": own["model"], "codebook": codebook}],
        "images": [{"name": "coco", "images": f"coco:{coco}", "split": "val2014", "n_images": 2}],
        "on_error": "skip",
        "probe": {"shards": 2, "positions": "all"},
        "evaluate": {
            "shards": 1,
            "images_per_part": 1,
            "n_per_task": 1,
            "pruner": ["random"],
            "retain_ratio": [0.5],
            "max_new_tokens": 2,
        },
        "notebooks": ["token_centric"],
    }
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    sweep = read_sweep(path)
    for run in runs_of(sweep):
        tables = [f"{run.folder}/{run.command}-shards/{shard}.parquet" for shard in range(1, run.shards + 1)]
        for shard, table in enumerate(tables, 1):
            assert main([*run.arguments, "--shard", f"{shard}/{run.shards}", "--table", table]) == 0
        assert main(["merge", *tables, "--table", run.table]) == 0
        plain = [word.replace("runs/sweeps", "plain") for word in run.arguments]
        assert main([*plain, "--table", f"plain/{run.command}.parquet"]) == 0
        alone = f"plain/merged/{run.command}.parquet"
        assert main(["merge", f"plain/{run.command}.parquet", "--table", alone]) == 0
        swept, once = read_record(run.table), read_record(alone)
        pd.testing.assert_frame_equal(swept.table, once.table, check_exact=True)
        when = ("seconds", "provenance", "sha256")  # of a file, what its metadata say of the two
        assert {k: v for k, v in swept.facts.items() if k not in when} == {
            k: v for k, v in once.facts.items() if k not in when
        }
    assert sweep_main(["summary", str(path)]) == 0
    rows = pd.read_csv("runs/sweeps/tiny/summary.tsv", sep="\t")
    assert rows["what"].tolist()[0] == "probing" and set(rows["what"][1:]) == {"evaluation"}
    assert rows["n_images"].iloc[0] == 2 and set(rows["n_left_out"]) == {0}
    assert {"random tokens", "codebook"} <= set(rows["method"].dropna())
    assert rows["score"][1:].between(0, 1).all()
    kept = rows.groupby("method")["retained"].mean()
    assert kept["all tokens"] == 1 and kept[["random tokens", "codebook"]].tolist() == [0.5, 0.5]
    (executed,) = notebooks_of(sweep)
    given = executed.parameters | {"probed": str(tmp_path / executed.table)}
    given |= {"results_folder": str(tmp_path / given["results_folder"])}
    assert "recorded: " in execute(executed.notebook, tmp_path, given)
    results = tmp_path / Path(executed.table).parent / "results/token_centric.json"
    assert json.loads(results.read_text(encoding="utf-8"))["results"]
