"""Read sweeps, list what they run, and give each job on a machine a GPU of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rcblib.records import ParameterError
from rcblib.tensors.scoring import check_budget
from tools import on_gpu
from tools.notebook_list import read_notebook_list
from tools.sharded import of_sweep
from tools.sweep import notebooks_of, read_sweep, runs_of

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = REPOSITORY / "workflow/sweep.yml"


def changed(tmp_path, **changes):
    """Write the shipped sweep with other entries; return its path."""
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | changes
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_sweep_combines_every_model_with_all_images_and_seeds():
    sweep = read_sweep(SHIPPED)
    runs = runs_of(sweep)
    assert len(runs) == len({run.folder + run.command for run in runs}) == 2 * 2 * 2
    probe, evaluate = runs[:2]
    assert probe.table == "runs/sweeps/example/llava-scenes/scenes/seed-0/probe.parquet"
    assert probe.arguments[:3] == ["probe", "--folder", probe.table.removesuffix(".parquet")]
    assert " ".join(evaluate.arguments).endswith(
        "--seed 0 --on-error skip --batch-size 32 --images-per-part 1 --tasks one_word yes_no --n-per-task 8 "
        "--pruner random --retain-ratio 0.1 0.2 --max-similarity 0.4 --random-seeds 1 --max-new-tokens 32 "
        "--codebook llava-scenes --rule max_cosine"
    )
    assert {run.options["seed"] for run in runs} == {0, 1}
    executed = notebooks_of(sweep)
    assert [each.parameters["probed"] for each in executed] == [each.table for each in executed]
    assert {each.parameters["positions"] for each in executed} == {"grid"}
    assert len(executed) == 2  # of the first seed, one a model


def test_every_model_of_a_sweep_gets_the_budgets_that_its_rule_takes():
    asked = {
        run.options["model"]: run.options for run in runs_of(read_sweep(SHIPPED)) if run.command == "evaluate"
    }
    assert {options["rule"] for options in asked.values()} == {"max_cosine", "double_softmax"}
    for options in asked.values():
        assert ("max_similarity" in options) == (options["rule"] == "max_cosine")
        for name in {"max_similarity", "retain_ratio"} & set(options):
            for value in options[name]:
                check_budget(**{name: value}, rule=options["rule"])


def test_what_a_shard_takes_goes_to_snakemake(tmp_path):
    path = changed(tmp_path, resources={"threads": 2, "gpus": 1, "mem_mb": 9000, "minutes": 30})
    works, notebooks = of_sweep(path, read_notebook_list(REPOSITORY / "workflow/notebooks.yml"), REPOSITORY)
    expected = {"mem_mb": 9000, "runtime": 30, "gpu": 1}
    assert all((work.threads, work.resources) == (2, expected) for work in works)
    assert all(notebook.resources == expected for notebook in notebooks)
    assert works[0].rule == "probe_example_llava_scenes_scenes_seed_0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modles": []}, r"mine.yml: modles: got \[\]; accepted: Extra inputs are not permitted"),
        (
            {"probe": {"shards": 0}},
            "mine.yml: probe.shards: got 0; accepted: Input should be greater than or equal to 1",
        ),
        (
            {"probe": {"positions": "some"}},
            "mine.yml: probe.positions: got 'some'; accepted: Input should be 'all', 'grid'",
        ),
        ({"seeds": [1, 1]}, r"seeds \[1, 1\]; accepted: distinct seeds"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "accepted: distinct names"),
        ({"models": [{"name": "a"}]}, r"max_similarity, and no codebook of \['a'\]"),
        (
            {"models": [{"name": "a", "codebook": "a", "rule": "double_softmax"}]},
            r"max_similarity, and rules \['double_softmax'\] alone; accepted: a model with max_cosine",
        ),
        ({"probe": None}, "notebook token_centric without probe; accepted: with it"),
        (
            {"probe": None, "evaluate": None, "notebooks": []},
            "neither probe nor evaluate; accepted: one of them",
        ),
    ],
)
def test_mistakes_of_a_sweep_are_told_in_one_line(changes, message, tmp_path):
    with pytest.raises(ParameterError, match=message) as error:
        read_sweep(changed(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_sweep_that_is_no_file_or_no_yaml_is_told_in_one_line(tmp_path):
    (tmp_path / "mine.yml").write_text("a: [", encoding="utf-8")
    for path in (tmp_path / "none.yml", tmp_path / "mine.yml"):
        with pytest.raises(ParameterError, match="accepted: a YAML file") as error:
            read_sweep(path)
        assert "\n" not in str(error.value)


HOLDER = """
import sys, time
from pathlib import Path
from tools.on_gpu import hold_one
print(hold_one(["2", "5"], Path(sys.argv[1]), 0.05), flush=True)
sys.stdin.read()
"""


def test_every_job_has_a_gpu_of_its_own_until_it_ends_however_that_is(tmp_path):
    def start():
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    jobs = [start(), start()]
    assert sorted(job.stdout.readline() for job in jobs) == ["2\n", "5\n"]
    waiting = start()
    jobs[0].kill()
    jobs[0].wait()
    assert waiting.stdout.readline() in ("2\n", "5\n")
    for job in (jobs[1], waiting):
        job.communicate("")


def test_the_gpus_of_a_machine_are_those_that_are_visible(tmp_path):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert on_gpu.visible_gpus({}, tmp_path) == ["0", "1"]
    assert on_gpu.visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 7"}, tmp_path) == ["3", "7"]
    assert on_gpu.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
