"""Runs of a build start as copies of one process, and behave as processes of their own would."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tools import warm_start

COMMAND = [sys.executable, "-I", warm_start.__file__]

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="copies are made on Linux only")


@pytest.fixture(scope="module")
def server():
    """Return the variables that lead to a process which has imported little."""
    asked, alive = warm_start.started(os.environ, imported=["matplotlib.pyplot", "ipykernel.kernelapp"])
    yield os.environ | asked
    os.close(alive)


@pytest.fixture
def module(tmp_path):
    """Return a function that writes a module and returns the command to run it."""

    def write(source, *arguments, measure=None):
        (tmp_path / "told.py").write_text(source, encoding="utf-8")
        return [*COMMAND, *(["--measure", str(measure)] if measure else []), "told", *arguments]

    return write


def run(command, environment, folder, **options):
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, **options
    )


TELLS = """
import json, os, sys
imported = "matplotlib.pyplot" in sys.modules
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["TOLD"], sys.stdin.read(), imported, __name__]))
print("to errors", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("warm", [True, False])
def test_a_run_has_the_caller_s_folder_variables_input_and_outputs(server, module, tmp_path, warm):
    environment = (server if warm else os.environ) | {"TOLD": "a variable"}
    answer = run(
        module(TELLS, "a", "b c", measure=tmp_path / "took/it.tsv"), environment, tmp_path, input="in"
    )
    assert answer.returncode == 3
    assert json.loads(answer.stdout) == [["a", "b c"], str(tmp_path), "a variable", "in", warm, "__main__"]
    assert answer.stderr == "to errors\n"
    took = pd.read_csv(tmp_path / "took/it.tsv", sep="\t")
    assert list(took) == ["s", "cpu_time", "max_rss"] and (took > 0).all(axis=None)


def test_no_code_of_this_repository_is_imported_beforehand(server, module, tmp_path):
    source = "import sys; print([n for n in sys.modules if n.split('.')[0] in ('rcblib', 'tools', 'worlds')])"
    assert run(module(source), server, tmp_path).stdout == "[]\n"
    assert not [name for name in warm_start.IMPORTED if name.split(".")[0] in ("rcblib", "tools", "worlds")]


def test_variables_that_libraries_have_read_start_a_process_of_its_own(server, module, tmp_path):
    source = "import sys; print('matplotlib.pyplot' in sys.modules)"
    assert run(module(source), server, tmp_path).stdout == "True\n"
    assert run(module(source), server | {"HF_HOME": str(tmp_path)}, tmp_path).stdout == "False\n"
    gone = server | {warm_start.SOCKET: str(tmp_path / "none")}
    assert run(module(source), gone, tmp_path).stdout == "False\n"


SLEEPS = """
import os, pathlib, sys, time
pathlib.Path("pid").write_text(str(os.getpid()))
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_run_ends_with_its_caller(server, module, tmp_path, number, code):
    caller = subprocess.Popen(module(SLEEPS), env=server, cwd=tmp_path, stderr=subprocess.DEVNULL)
    pid = int(wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
    caller.send_signal(number)
    assert caller.wait(10) == code
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_run_that_ends_together_with_its_caller_leaves_the_process_to_others(server, module, tmp_path):
    for _ in range(5):
        (tmp_path / "pid").unlink(missing_ok=True)
        caller = subprocess.Popen(module(SLEEPS), env=server, cwd=tmp_path, stderr=subprocess.DEVNULL)
        pid = int(wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
        os.kill(pid, signal.SIGKILL)
        caller.kill()
        caller.wait(10)
    source = "import sys; print('matplotlib.pyplot' in sys.modules)"
    assert run(module(source), server, tmp_path).stdout == "True\n"


def test_the_end_of_a_run_may_be_seen_before_that_of_its_caller():
    listening, caller, other = socket.socket(), *socket.socketpair()
    ends, alive = os.pipe()
    server = warm_start.Server(listening, ends, [])
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    ended = os.pidfd_open(pid)
    job = server.jobs[pid] = warm_start.Job(pid, str(pid), caller)
    for file in (ended, caller):
        server.selector.register(file, selectors.EVENT_READ)
    other.close()
    server.end(job, ended)
    server.forsake(job)
    assert not server.jobs and set(server.selector.get_map()) == {listening.fileno(), ends}
    server.close()
    os.close(ends)
    os.close(alive)


def wait_for(what, seconds=10):
    """Return what comes true within some time."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return value


def test_a_notebook_shows_its_figures_and_its_kernel_is_a_copy_too(server, tmp_path):
    code = nbformat.v4.new_code_cell
    cells = [
        code("n = 1", metadata={"tags": ["parameters"]}),
        code("import sys; early = 'matplotlib.pyplot' in sys.modules\nimport matplotlib.pyplot as plt"),
        code("plt.plot([0, n]);\nearly"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    command = [*COMMAND, "papermill", "in.ipynb", "out.ipynb", "--kernel", "python3", "-p", "n", "2"]
    answer = run(command, server, tmp_path)
    assert answer.returncode == 0, answer.stderr
    *_, last = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert [sorted(output["data"]) for output in last.outputs] == [
        ["text/plain"],
        ["image/png", "text/plain"],
    ]
    assert last.outputs[0]["data"]["text/plain"] == "True"


def test_the_process_ends_with_the_last_who_could_ask(tmp_path):
    asked, alive = warm_start.started(os.environ, imported=[])
    folder = Path(asked[warm_start.SOCKET]).parent
    assert (folder / "kernels/python3/kernel.json").is_file()
    os.close(alive)
    wait_for(lambda: not folder.exists())
