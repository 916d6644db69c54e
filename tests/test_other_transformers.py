"""Check how other releases of transformers are chosen and put in front of the environment."""

import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from rcblib.mllm.versions import CACHE, READS_IMAGES_IN_CHUNKS
from tools import other_transformers
from tools.other_transformers import CONTRACT, accepted, asked, unmet

REPOSITORY = Path(__file__).resolve().parents[1]
RANGE = Requirement("transformers>=5.20,<5.25")


def test_the_ends_of_a_range_are_asked_for():
    assert asked("oldest", RANGE) == "transformers==5.20"
    assert Requirement(asked("newest", RANGE)) == RANGE
    assert accepted().name == "transformers" and len(accepted().specifier) == 2


def test_what_the_environment_lacks_is_found():
    held = f"packaging>={Version('1')}"
    assert unmet([held, "packaging<1", "no-such-package>=2", 'other>=1; python_version < "3"']) == [
        "packaging<1",
        "no-such-package>=2",
    ]


def test_contract_tests_exist():
    assert {f"{name}.py" for name in CONTRACT} <= {path.name for path in (REPOSITORY / "tests").glob("*.py")}


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((1, 0), 1)])
def test_both_ends_are_tested_whatever_the_first_says(tmp_path, capsys, monkeypatch, codes, expected):
    calls = []

    def run(command, env, **settings):
        calls.append(env["PYTHONPATH"])
        return subprocess.CompletedProcess(command, codes[len(calls) - 1])

    monkeypatch.setattr(other_transformers, "install", lambda which, folder: f"of {which}")
    monkeypatch.setattr(subprocess, "run", run)
    assert other_transformers.main(["oldest", "newest", "--folder", str(tmp_path)]) == expected
    assert [path.split(":")[0] for path in calls] == [str(tmp_path / "oldest"), str(tmp_path / "newest")]
    assert capsys.readouterr().out.count("FAILED") == sum(codes)


def test_workflow_runs_every_python_and_both_ends():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["pythons"]["strategy"]["matrix"]["python"] == ["3.12", "3.13"]
    assert jobs["checks-and-book"]["steps"][1]["with"]["python-version"] == "3.11"
    assert jobs["transformers"]["steps"][-1]["run"] == "make versions"


def test_the_installed_release_is_known():
    import transformers

    release = Version(transformers.__version__)
    assert accepted().specifier.contains(release)
    assert (CACHE == "cache") is (release >= Version("5.24"))
    assert READS_IMAGES_IN_CHUNKS is (release >= Version("5.23"))
