"""Check that whatever a user of a command meets ends in one line, with a status that shells know."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
import torch

from rcblib import __main__ as cli
from rcblib.probe import store
from rcblib.probe.store import read_probe
from rcblib.runs import files
from rcblib.runs.command import OneLineParser, run_command

RCBLIB = [sys.executable, "-m", "rcblib"]
PRINTING = [
    *(sys.executable, "-c"),
    "from rcblib.runs.command import run_command\n"
    "raise SystemExit(run_command('name', lambda: print('x' * 100_000)))",
]
"""A command that prints more than a pipe holds."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return the options that name a model and three photos."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    for i, picture in enumerate(tiny.random_images(3)):
        picture.save(folder / "photos" / f"{i}.png")
    model = tiny.save_tiny_llava(folder / "model")
    return ["--model", str(model), "--images", str(folder / "photos"), "--positions", "3", "--no-attention"]


def raising(error):
    def act(*arguments, **options):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/results/a"),
            1,
            "/results/a: Permission denied",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/results/a"),
            1,
            "/results/a: Read-only file system",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (OSError("two\nlines"), 1, "two lines"),
        (MemoryError(), 1, "out of memory; a smaller --batch-size needs less"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory"),
            1,
            "out of memory; a smaller --batch-size needs less",
        ),
        (
            torch.OutOfMemoryError("CUDA\nout of memory"),
            1,
            "out of memory; a smaller --batch-size needs less",
        ),
    ],
)
def test_what_fails_around_a_command_is_one_line(error, status, line, tmp_path, capsys):
    assert run_command("name", raising(error)) == status
    assert capsys.readouterr().err == f"name: {line}\n"
    (tmp_path / "finished").touch()
    assert run_command("name", raising(error), tmp_path) == status
    kept = f"; what was finished is kept in {tmp_path}, and the same command goes on from there"
    assert capsys.readouterr().err == f"name: {line}{kept}\n"
    assert run_command("name", raising(error), tmp_path / "never made") == status
    assert capsys.readouterr().err == f"name: {line}\n"


def test_an_error_of_the_code_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        run_command("name", raising(RuntimeError("a bug")))


def test_a_command_may_return_a_status():
    assert [run_command("name", [status].pop) for status in (None, 0, 1)] == [0, 0, 1]


def test_a_full_disk_is_told_with_the_file_and_the_run_goes_on_later(inputs, tmp_path, monkeypatch, capsys):
    """The third image's table finds no space; two are kept, and no half of a file."""
    folder, written, write = tmp_path / "results", [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    assert cli.main(["probe", *inputs, "--folder", str(folder)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"rcblib probe: {folder}/")
    assert f": No space left on device; what was finished is kept in {folder}, and the same" in line
    assert not list(folder.rglob("*.tmp"))
    monkeypatch.undo()
    assert cli.main(["probe", *inputs, "--folder", str(folder)]) == 0
    assert cli.main(["probe", *inputs, "--folder", str(tmp_path / "other")]) == 0
    columns = [name for name in read_probe(folder).table if name != "seconds"]
    assert read_probe(folder).table[columns].equals(read_probe(tmp_path / "other").table[columns])


def test_ctrl_c_says_what_is_kept(inputs, tmp_path, monkeypatch, capsys):
    probed = []

    def stopping(*arguments):
        probed.append(arguments)
        if len(probed) == 3:
            raise KeyboardInterrupt
        return probe_input(*arguments)

    probe_input = store.probe_input
    monkeypatch.setattr(store, "probe_input", stopping)
    assert cli.main(["probe", *inputs, "--folder", str(tmp_path)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    kept = f"what was finished is kept in {tmp_path}, and the same command goes on from there"
    assert line == f"rcblib probe: interrupted; {kept}"
    monkeypatch.undo()
    assert cli.main(["probe", *inputs, "--folder", str(tmp_path)]) == 0
    assert len(read_probe(tmp_path).table) == 3


def test_a_signal_ends_a_process_as_ctrl_c_does(tmp_path):
    script = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "from rcblib.runs.command import run_command\n"
        "def work():\n    print('at work', flush=True)\n    time.sleep(60)\n"
        "raise SystemExit(run_command('name', work))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "at work\n"
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=30) == ("", "name: interrupted\n")
    assert run.returncode == 130


@pytest.mark.parametrize("command", [PRINTING, [*RCBLIB, "--help"], [*RCBLIB, "probe", "--help"]])
def test_a_reader_that_goes_away_is_no_error(command):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert run.stderr == ""
    assert run.returncode in (0, 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_finds_no_space_is_one_line():
    with open("/dev/full", "w") as full:
        run = subprocess.run(PRINTING, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "name: No space left on device\n")


@pytest.mark.parametrize("command", ["probe", "evaluate", "gates", "codebook"])
@pytest.mark.parametrize("place", ["a file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    command, place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    folder, reason = {
        "a file": (tmp_path / "file", "is a file; accepted: a folder"),
        "below a file": (tmp_path / "file" / "results", f"cannot be made, as {tmp_path}/file is a file"),
        "read-only": (tmp_path / "results", f"cannot be written, as {tmp_path} is read-only here"),
    }[place]
    if place == "read-only":  # as root, whom permissions do not stop, sees only a file system to be so
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--folder", str(folder)])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"rcblib {command}: argument --folder: '{folder}' {reason}\n"


def test_a_table_is_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["probe", "--table", str(tmp_path)])
    assert capsys.readouterr().err.endswith(f"argument --table: '{tmp_path}' is no file; accepted: a file\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--vershun"], "rcblib: the following arguments are required: <command>, one of probe, "),
        (["prob"], "rcblib: argument <command>: invalid choice: 'prob' ("),
        (
            ["probe", "--modle", "x"],
            "rcblib probe: the following arguments are required: --model, --images, --folder; unrecognized arguments: "
            "--modle; did you mean --model?\n",
        ),
        (["info", "--verbose"], "rcblib info: unrecognized arguments: --verbose\n"),
        (
            ["codebook", "--probed", "a", "--criterion=x", "--folder", "b", "-sead", "1"],
            "rcblib codebook: unrecognized arguments: -sead; did you mean --seed?\n",
        ),
        (["info", "more"], "rcblib: unrecognized arguments: more"),
    ],
)
def test_a_wrong_word_is_told_with_the_nearest_right_one(arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1
    if arguments == ["prob"]:
        assert told.endswith("; did you mean probe?\n")


def test_values_and_abbreviations_are_no_wrong_options():
    parser = OneLineParser(prog="name")
    parser.add_argument("--retain-ratio", type=float)
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args(["--retain", "-0.5", "--", "--strange"])
    assert (options.retain_ratio, options.rest) == (-0.5, ["--strange"])


def test_where_a_command_is_missing_all_are_named(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "rcblib: the following arguments are required: <command>, one of probe, codebook, scorer, evaluate, gates, "
        "truth, explorer, merge, models, info, upload, submit; --help says what they do\n"
    )
