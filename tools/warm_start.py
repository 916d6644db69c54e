"""Run modules in copies of one process that has imported the large libraries already.

    python -I tools/warm_start.py [--measure FILE] MODULE [ARGUMENT ...]

does what ``python -m MODULE ARGUMENT ...`` does. Notebooks and commands of a build spend seconds of a core each on
importing torch, transformers and matplotlib. :mod:`tools.run_workflow` starts one process that does so once and forks a
copy for whatever this command asks; the copy has the caller's folder, environment, input and outputs, answers its
signals, and dies with it. Only libraries are imported before, never code of this repository, so what runs is the code
as it stands. Where there is no such process, or its environment differs in what libraries read when imported, a
plain one starts.

FILE gets a table of one row: seconds, seconds of all cores, and the peak memory in MiB of the largest process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SOCKET = "RCB_WARM_START"
"""Environment variable with the path of the socket at which the process listens."""

JOB = "RCB_WARM_START_JOB"
"""Environment variable that processes of one job share, such as papermill and its kernel."""

IMPORTED = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "matplotlib_inline.config",
    "papermill.cli",
    "nbclient",
    "pandas",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "seaborn",
    "scipy.stats",
    "sklearn.metrics",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "pydantic",
    "safetensors.torch",
    "PIL.Image",
)
"""What most runs import. One that is missing is left to the run that wants it."""

READ_WHEN_IMPORTED = (
    "OMP_", "MKL_", "OPENBLAS_", "GOTO_", "KMP_", "MALLOC_", "PYTHON", "TORCH", "PYTORCH", "CUDA", "HF_",
    "TRANSFORMERS",
)  # fmt: skip
"""Beginnings of the environment variables that libraries read once: they must be those of the process that imported."""

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LONGEST = 1 << 20
"""Bytes read at once."""

Used = tuple[float, float]
"""Seconds of all cores, and the peak memory in MiB of the largest process."""


def read_once(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that cannot change after imports."""
    return {name: value for name, value in environment.items() if name.startswith(READ_WHEN_IMPORTED)}


@dataclass
class Job:
    """A copy at work for a caller; processes of one job, such as papermill and its kernel, share its name."""

    pid: int
    name: str
    caller: socket.socket


class Server:
    """The process that forks. It has one thread, so that no copy waits for a lock that another thread held.

    The libraries are imported when the first request comes, with that request's variables.

    Args:
        listening: socket at which requests come.
        alive: file that ends when nobody will ask any more.
        imported: names of the modules to import.
    """

    def __init__(self, listening: socket.socket, alive: int, imported: Sequence[str]) -> None:
        self.listening, self.alive, self.imported = listening, alive, imported
        self.jobs: dict[int, Job] = {}
        self.used: dict[str, Used] = {}
        self.variables: dict[str, str] | None = None
        self.selector = selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ, self.answer)
        self.selector.register(alive, selectors.EVENT_READ, self.close)

    def serve(self) -> Callable[[], None] | None:
        """Answer requests until nobody is left who could ask; in a copy, return what it runs."""
        while self.selector.get_map():
            for key, _ in self.selector.select():
                if work := key.data():
                    return work
        return None

    def close(self) -> None:
        """Take no more requests."""
        for file in (self.alive, self.listening):
            self.selector.unregister(file)
        self.listening.close()

    def answer(self) -> Callable[[], None] | None:
        """Fork for a request: the caller is told the copy's number, and its end when it has ended."""
        caller, _ = self.listening.accept()
        request, files = receive(caller)
        try:
            if request is None or not self.prepared(request["environment"]):
                caller.close()
                return None
            if (pid := os.fork()) == 0:
                for each in (self.listening, caller, *(job.caller for job in self.jobs.values())):
                    each.close()
                self.selector.close()
                os.close(self.alive)
                files, kept = [], files
                return lambda: become(request, kept)
        finally:
            for each in files:
                os.close(each)
        with contextlib.suppress(OSError):  # the copy does so too: whoever comes first
            os.setpgid(pid, pid)
        job = self.jobs[pid] = Job(pid, request["environment"].get(JOB, str(pid)), caller)
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda: self.end(job, ended))
        self.selector.register(caller, selectors.EVENT_READ, lambda: self.forsake(job))
        with contextlib.suppress(OSError):  # a caller that is gone already is seen by its connection
            tell(caller, pid=pid)
        return None

    def prepared(self, environment: Mapping[str, str]) -> bool:
        """Whether the libraries are imported with a caller's variables; the first one's are taken."""
        if self.variables is None:
            self.variables = read_once(environment)
            os.environ.update(environment)
            for name in self.imported:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            gc.freeze()
        return self.variables == read_once(environment)

    def forsake(self, job: Job) -> None:
        """End a job whose caller is gone, unless both ended at once and this one's end was seen first."""
        if job.pid in self.jobs:
            self.selector.unregister(job.caller)
            stop(job.pid)

    def end(self, job: Job, ended: int) -> None:
        """Tell the caller how its copy ended, and what the processes of its job have used."""
        self.selector.unregister(ended)
        os.close(ended)
        _, status, usage = os.wait4(job.pid, 0)
        seconds, memory = self.used.pop(job.name, (0.0, 0.0))
        used = (seconds + usage.ru_utime + usage.ru_stime, max(memory, usage.ru_maxrss / 1024))
        if job.name != str(job.pid):
            self.used[job.name] = used
        del self.jobs[job.pid]
        with contextlib.suppress(KeyError):
            self.selector.unregister(job.caller)
        with contextlib.suppress(OSError):
            tell(job.caller, code=os.waitstatus_to_exitcode(status), used=used)
        job.caller.close()


def become(request: Mapping, files: Sequence[int]) -> None:
    """Be the process that was asked for; return when its module has ended."""
    os.setpgid(0, 0)
    for number in HANDED_ON:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update({JOB: str(os.getpid())} | request["environment"])
    if (
        "MPLBACKEND" in os.environ and "matplotlib" in sys.modules
    ):  # read when imported; the module hooks into the kernel
        sys.modules["matplotlib"].rcParams["backend"] = os.environ["MPLBACKEND"]
        sys.modules.pop("matplotlib_inline.backend_inline", None)
    sys.path[0] = os.getcwd()
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def receive(caller: socket.socket) -> tuple[dict | None, list[int]]:
    """Read a request with the caller's input, output and errors; None where the caller is gone."""
    data, files, _, _ = socket.recv_fds(caller, LONGEST, 3)
    while data and not data.endswith(b"\n"):
        more = caller.recv(LONGEST)
        if not more:
            return None, files
        data += more
    return (json.loads(data) if data else None), files


def tell(where: socket.socket, **what: object) -> None:
    """Send one line."""
    where.sendall(json.dumps(what).encode() + b"\n")


def stop(pid: int) -> None:
    """End a copy and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def started(environment: Mapping[str, str], imported: Iterable[str] = IMPORTED) -> tuple[dict[str, str], int]:
    """Start the process that forks, for those who hand on what this returns.

    Args:
        environment: its variables.
        imported: modules that it imports when the first caller asks.

    Returns:
        Environment variables for its callers: where it listens, and a kernel that asks it.
        A file of which the last copy to be closed ends it.
    """
    folder = tempfile.mkdtemp(prefix="rcb-warm-")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"{folder}/socket")
    listening.listen(64)
    ends, alive = os.pipe()
    command = [sys.executable, __file__, "--serve", str(listening.fileno()), str(ends), folder, *imported]
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=dict(environment), pass_fds=(listening.fileno(), ends)
    )
    os.close(ends)
    listening.close()
    kernel = {
        # It ends with its parent, which is the process that forks.
        "argv": [
            *(sys.executable, "-I", __file__, "ipykernel_launcher", "-f", "{connection_file}"),
            f"--IPKernelApp.parent_handle={server.pid}",
        ],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
        "env": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    }
    Path(folder, "kernels/python3").mkdir(parents=True)
    Path(folder, "kernels/python3/kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    paths = os.pathsep.join([folder, *filter(None, [environment.get("JUPYTER_PATH")])])
    return {SOCKET: f"{folder}/socket", "JUPYTER_PATH": paths}, alive


def serve(listening: int, alive: int, folder: str, imported: Sequence[str]) -> None:
    """Be the process that forks, and in each copy what was asked for."""
    for number in HANDED_ON:  # a key pressed in the terminal reaches the callers, who hand it on
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(listening, False)
    os.set_inheritable(alive, False)
    work = Server(socket.socket(fileno=listening), alive, imported).serve()
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        work()


def ask(module: str, arguments: Sequence[str]) -> tuple[int, Used] | None:
    """Have a copy run a module; return its exit code and what it used, None where there is no process to copy."""
    if SOCKET not in os.environ:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, contextlib.suppress(OSError):
        server.connect(os.environ[SOCKET])
        request = {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
        }
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(server, [data], [0, 1, 2])
        server.sendall(data[sent:])
        answers = server.makefile("rb")
        if not (first := answers.readline()):
            return None
        pid = json.loads(first)["pid"]
        hand_on(pid)
        if not (last := answers.readline()):
            stop(pid)
            return 1, (0.0, 0.0)
        answer = json.loads(last)
        return answer["code"], tuple(answer["used"])
    return None


def hand_on(pid: int) -> None:
    """Give a process the signals that this one gets."""

    def give(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in HANDED_ON:
        signal.signal(number, give)


def run_plainly(module: str, arguments: Sequence[str]) -> tuple[int, Used]:
    """Run a module in a new process; return its exit code and what it used."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    hand_on(process.pid)
    code = process.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, (usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main(arguments: Sequence[str]) -> int:
    """Run a module and return its exit code, as a shell would write it."""
    measured = None
    if arguments[:1] == ["--measure"]:
        measured, arguments = Path(arguments[1]), arguments[2:]
    module, *rest = arguments
    start = time.monotonic()
    code, (seconds, memory) = ask(module, rest) or run_plainly(module, rest)
    if measured:
        row = {"s": time.monotonic() - start, "cpu_time": seconds, "max_rss": memory}
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(
            "\t".join(row) + "\n" + "\t".join(f"{value:.2f}" for value in row.values()) + "\n",
            encoding="utf-8",
        )
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
    else:
        sys.exit(main(sys.argv[1:]))
