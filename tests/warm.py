"""Start fresh processes from one that has imported already what takes seconds, so that each of them need not.

Nothing of the library is imported ahead: every process imports it itself.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from functools import cache
from unittest import mock

# Not pyplot, nor what imports it: figures are set up for a notebook when it is imported in the notebook's kernel.
IMPORTED_AHEAD = (
    "torch",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava_onevision.modeling_llava_onevision",
    "transformers.models.auto.processing_auto",
    "transformers.generation",
    "ipykernel.kernelapp",
    "matplotlib.figure",
    "pandas",
    "pycocotools.coco",
    "scipy.stats",
    "sklearn.metrics",
)

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
}
"""Variables that packages read while they are imported."""


@cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_AHEAD))
    with mock.patch.dict(os.environ, SETTINGS):
        context.Process(target=int).start()  # the server starts with the first process
    return context


def start(function, *arguments, folder, **environment):
    """Start a function of a module in a folder, in a session of its own; return its `multiprocessing.Process`."""
    wanted = {**os.environ, **SETTINGS, **environment}
    process = _context().Process(target=_run, args=(function, arguments, str(folder), wanted))
    process.start()
    while process.is_alive() and os.getpgid(process.pid) != process.pid:
        time.sleep(0.01)
    return process


def _run(function, arguments, folder, environment):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(folder)
    function(*arguments)


class Kernel:
    """Stand for the `subprocess.Popen` of a kernel; `jupyter_client` is to call it in place of `launch_kernel`."""

    stdin = stdout = stderr = None

    def __init__(self, command, *, env=None, cwd=None, **others):
        options = command[command.index("ipykernel_launcher") + 1 :]
        self._process = start(_serve, options, folder=cwd or os.getcwd(), **(env or {}))
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, signum):
        os.kill(self.pid, signum)


def _serve(options):
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher", *options]
    IPKernelApp.launch_instance()


def run_script(script, printed):
    """Run a script and write what it prints, and how it fails, to a file."""
    with open(printed, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except BaseException:
            traceback.print_exc(file=file)
            raise


def kernels():
    """Start the kernels of the code below from the process that has imported much."""
    return mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", Kernel)


def execute(notebook, output, parameters, folder):
    """Execute a notebook by papermill in a folder, its kernel from `kernels`."""
    import papermill

    with kernels():
        papermill.execute_notebook(notebook, output, parameters, cwd=folder, progress_bar=False)
