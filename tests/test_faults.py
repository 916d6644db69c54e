"""Kill runs, fill the disk, turn the clock: what is there at the end is what an uninterrupted run leaves."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from forked import forked, started
from small_project import FULL, make_project

from rcblib.evaluate.parts import evaluate_parts
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.pruners import RandomPruner
from rcblib.records import Question, Sample
from rcblib.runs import provenance
from rcblib.runs.files import write_table
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import read_record, table_facts, write_record
from rcblib.runs.shards import Shard

QUESTION = "What does this image show ?"
CONFIG = ProbeConfig(question=QUESTION, positions="grid", n_side=2, batch_size=8, attention=False)
IDS = (3, 7, 9)


def samples():
    pictures = tiny.random_images(len(IDS), seed=3)
    return [
        Sample(i, lambda p=p: p, *p.size, file_name=f"{i}.png") for i, p in zip(IDS, pictures, strict=True)
    ]


def probing(folder):
    """Probe into a folder."""
    probe_dataset(*tiny_pair(), samples(), CONFIG, folder)


def answering(folder):
    """Answer questions in parts of one image."""
    questions = [Question(i, "one_word", text, "cat", str(k)) for k, text in enumerate((QUESTION, "Is there a cat ?"))
                 for i in IDS]  # fmt: skip
    pruners = {"all": None, "random": RandomPruner(0.3, seed=1)}
    evaluate_parts(*tiny_pair(), questions, samples(), pruners, 8, 2, folder=folder, images_per_part=1)


def recording(folder):
    """Write the tables of two shards, put them together, and record them."""
    paths = []
    made = {"date": "2026-01-02", "cpu": "a processor", "gpu": "none", "git_commit": None}
    for number in (1, 2):
        shard = Shard(number, 2)
        ids = shard.of_images(range(9))
        table = pd.DataFrame({"image_id": ids, "token": 0, "value": [i * 1.5 for i in ids], "word": "a word"})
        units = [{"seconds": 1.0, "provenance": made}] * len(ids)
        facts = table_facts({"code": "c0de"}, ["token"], {i: str(i) for i in ids}, units)
        facts |= shard.share(range(9), {})
        paths.append(folder / f"{number}-of-2.parquet")
        write_table(paths[-1], table, facts)
    write_record(folder / "recorded" / "model" / "probing.parquet", *merge_tables(paths))


WORKS = (probing, answering, recording)


@functools.lru_cache
def tiny_pair():
    return tiny.tiny_llava(7)


@pytest.fixture(scope="module", autouse=True)
def without_git():
    """No commit is looked up for every file that is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_git_state", lambda root: (None, None))
        torch.set_num_threads(1)
        tiny_pair()
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what each piece of work leaves when nothing happens, how often it touches files, and how long it takes."""
    found = {}
    for work in WORKS:
        folder = tmp_path_factory.mktemp(work.__name__) / "whole"
        n_touches = faults.n_touches(work, folder)
        start = time.perf_counter()
        assert forked(work, folder.with_name("timed")) == 0
        found[work] = faults.content(folder), n_touches, time.perf_counter() - start
        assert faults.differences(folder.with_name("timed"), found[work][0]) == ""
    return found


def points(generator, n, last):
    """Draw points at which a fault strikes, as many for each piece of work, each once as far as that goes."""
    drawn, n_each = [int(point) + 1 for point in generator.permutation(last)], -(-n // len(WORKS))
    return (drawn * -(-n_each // last))[:n_each]


def gone_on(work, folder, expected, are_left_overs_allowed=False):
    """Run the work again, undisturbed; say in a line what is wrong at the end, or nothing."""
    if code := forked(work, folder):
        return f"{work.__name__}: the next run ended with {code}"
    wrong = faults.differences(folder, expected, are_left_overs_allowed)
    return f"{work.__name__}: {wrong}" if wrong else ""


def test_a_worker_killed_at_any_file(whole, tmp_path, n_points, findings):
    generator, outcomes = np.random.default_rng(11), []
    for work, (expected, n_touches, _) in whole.items():
        for number, point in enumerate(points(generator, n_points, n_touches)):
            folder = tmp_path / f"{work.__name__}-{number}"
            code = forked(faults.striking, work, folder, faults.die, point)
            assert code == -signal.SIGKILL, f"{work.__name__} ended with {code} before touch {point}"
            outcomes.append(gone_on(work, folder, expected, are_left_overs_allowed=True))
    what = "kill -9 of probing, answering, recording as a file is opened or moved; the next run ends as one alone"
    findings.add("kill -9 of a worker at a file", what, outcomes)


def test_a_worker_killed_at_any_time(whole, tmp_path, n_points, findings):
    generator, outcomes = np.random.default_rng(12), []
    for work, (expected, _, seconds) in whole.items():
        folder = tmp_path / work.__name__
        n_each = -(-n_points // len(WORKS))
        for _ in range(n_each):  # one after the other on one folder, with what all of them left
            process = started(work, folder)
            process.join(seconds * float(generator.random()))
            process.kill()
            process.join()
        outcomes += [gone_on(work, folder, expected, are_left_overs_allowed=True)] * n_each
    what = "kill -9 after any time, again and again on one folder; the run that is left alone ends as one undisturbed"
    findings.add("kill -9 of a worker at any time", what, outcomes)


def test_a_full_disk(whole, tmp_path, n_points, findings):
    generator, outcomes = np.random.default_rng(13), []
    for work, (expected, n_touches, _) in whole.items():
        done = tmp_path / work.__name__
        assert forked(work, done) == 0
        largest = max(path.stat().st_size for path in done.rglob("*") if path.is_file())
        for number, point in enumerate(points(generator, n_points, n_touches)):
            folder = tmp_path / f"{work.__name__}-{number}"
            if number % 2:
                code = forked(faults.small_files, work, folder, int(generator.integers(largest)))
            else:
                code = forked(faults.striking, work, folder, faults.no_space, point, True)
            outcome = "" if code == 3 else f"{work.__name__}: the full disk ended in {code}"
            left = [path.name for path in folder.rglob("*.tmp")]
            outcome = outcome or (f"{work.__name__}: left {left}" if left and number % 2 else "")
            outcomes.append(outcome or gone_on(work, folder, expected, are_left_overs_allowed=True))
    what = "writing fails for want of room, at any file and any byte; the run stops, and the next one ends as one alone"
    findings.add("full disk", what, outcomes)


def test_a_read_only_folder(whole, tmp_path, findings):
    outcomes = []
    for work, (expected, _, _) in whole.items():
        for is_new in (True, False):
            folder = tmp_path / f"{work.__name__}-{is_new}"
            if not is_new:
                assert forked(work, folder) == 0
                next(folder.rglob("*.parquet")).unlink()
            before = faults.content(folder)
            code = forked(faults.striking, work, folder, faults.read_only, 1, True)
            outcome = "" if code == 3 else f"{work.__name__}: ended with {code}"
            outcome = outcome or faults.differences(folder, before)
            outcomes.append(outcome or gone_on(work, folder, expected))
    what = "a folder can only be read: the run stops and changes nothing, and once it can be written ends as one alone"
    findings.add("read-only folder", what, outcomes)


def test_two_runs_at_once_on_one_folder(whole, tmp_path, n_points, findings):
    generator, outcomes = np.random.default_rng(14), []
    for work, (expected, _, seconds) in whole.items():
        for number in range(-(-n_points // len(WORKS))):
            folder = tmp_path / f"{work.__name__}-{number}"
            both = []
            for _ in range(2):
                both.append(started(work, folder))
                time.sleep(seconds * float(generator.random()) / 2)
            for process in both:
                process.join()
            codes = [process.exitcode for process in both]
            outcome = f"{work.__name__}: ended with {codes}" if any(codes) else ""
            outcomes.append(outcome or f"{faults.differences(folder, expected)}")
    what = "two runs start at nearly the same time on one folder; both end well, with what one alone leaves"
    findings.add("two runs at once", what, outcomes)


def test_a_clock_that_jumps(whole, tmp_path, n_points, findings):
    outcomes = []
    for work, (expected, _, _) in whole.items():
        for number in range(-(-n_points // len(WORKS))):
            folder = tmp_path / f"{work.__name__}-{number}"
            code = forked(faults.jumping_clocks, work, folder, np.random.default_rng(number), number == 0)
            outcome = f"{work.__name__}: ended with {code}" if code else faults.differences(folder, expected)
            outcomes.append(outcome)
    what = "clocks show a time long before or after at every look, or always the same; the run ends as one undisturbed"
    findings.add("clock that jumps", what, outcomes)


# The workflow


def start(project):
    command = [sys.executable, "-m", "tools.run_workflow", "--cores", "2", *FULL]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, **quiet)


def workers_of(project):
    """Return the processes that compute a shard in a project."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"rcblib\0probe" in (path / "cmdline").read_bytes() and os.readlink(
                path / "cwd"
            ) == str(project)
        except OSError:
            continue
        found += [int(path.name)] if is_worker else []
    return found


def turn_clock(project, generator):
    """Give some files a time long before or after, as if the clock had been wrong when they were written."""
    paths = sorted(path for folder in ("data", "runs", "results") for path in (project / folder).rglob("*.*"))
    for path in generator.choice(paths, size=min(2, len(paths)), replace=False):
        moment = time.time() + float(generator.choice([-1e8, -1e4, 1e4, 1e8]))
        os.utime(path, (moment, moment))


def test_the_workflow_killed_again_and_again(tmp_path, n_points, findings):
    """Kill a worker, then the workflow; at the end two runs start at once, and one record is there."""
    pytest.importorskip("snakemake")
    project, generator = make_project(tmp_path / "project"), np.random.default_rng(15)
    n_workers = 0
    for _ in range(n_points):
        run, waits = start(project), 3 * generator.random(2)
        until = time.monotonic() + 120
        while run.poll() is None and not (workers := workers_of(project)) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(waits[0] / 5)
        if workers := workers_of(project):
            n_workers += 1
            os.kill(workers[0], signal.SIGKILL)
        time.sleep(waits[1])
        run.kill()
        run.wait()
        turn_clock(project, generator)
    os.utime(project / "data/models/large/config.json", (time.time() + 1e8,) * 2)
    last = [start(project), start(project)]
    told = [run.communicate()[0] for run in last]
    outcome = outcome_of(project, tmp_path / "alone" / "model" / "probing.parquet")
    if any(run.returncode for run in last):
        outcome = (
            f"the last runs ended with {[run.returncode for run in last]}: {told[0][-300:]} {told[1][-300:]}"
        )
    elif not any("waiting for another run" in text for text in told):
        outcome = "two runs were at work at once"
    what = "make full: kill -9 of {} at any time, its files with times long past or to come; started again it ends"
    findings.add("kill -9 of the workflow", what.format("the whole workflow"), [outcome] * n_points)
    findings.add("kill -9 of a job of the workflow", what.format("one of its jobs"), [outcome] * n_workers)
    what = "make full is started twice on one folder; the second waits for the first, and both end well"
    findings.add("two workflows at once", what, [outcome])


def outcome_of(project, alone):
    """Say in a line what is wrong with what a project has recorded, or nothing."""
    path = project / "data/recorded/large/probing.parquet"
    table = read_record(path).table
    if table["image_id"].tolist() != list(range(8)) or table["value"].tolist() != [1.5 * i for i in range(8)]:
        return "a row is lost, doubled or another"
    write_record(alone, *merge_tables(sorted((project / "runs/full/probing-large").glob("*.parquet"))))
    return "" if path.read_bytes() == alone.read_bytes() else "other bytes"
