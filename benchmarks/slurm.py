"""Run a sweep on a cluster of this machine alone, kill a worker and the workflow, resume, and compare with a plain run.

Needs root, and Debian's packages slurmd, slurmctld, slurm-client and munge. The daemons are this script's own, with a
configuration and state of their own, and are stopped at the end.

    python -m benchmarks.slurm --output slurm.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.digest import code_digest
from rcblib.runs.files import file_sha256, write_json
from rcblib.runs.options import results_file
from rcblib.runs.provenance import project_root, provenance
from rcblib.runs.records import read_record
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import generate_scene

NAME = "slurm-check"
CONFIGURED = Path("/etc/slurm/slurm.conf")
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

CONFIGURATION = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={node_port}
NodeName={host} NodeAddr=127.0.0.1 CPUs={n_cpus} RealMemory={memory} State=UNKNOWN
PartitionName=check Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def until(is_so: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something, and return it."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        if time.monotonic() > end:
            raise ParameterError(
                what, f"nothing within {seconds:g} s", "what a cluster of one node does within it"
            )
        time.sleep(0.2)
    return found


def said(*command: str) -> str:
    """Return what a command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def cluster(folder: Path, n_cpus: int) -> Iterator[None]:
    """Run a cluster of this machine alone, and stop its daemons, by their process ids, at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0],
        folder=folder,
        port=free_port(),
        node_port=free_port(),
        n_cpus=n_cpus,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10,
    )
    CONFIGURED.parent.mkdir(exist_ok=True)
    CONFIGURED.write_text(text, encoding="utf-8")  # where all look: jobs do not inherit SLURM_CONF
    started = []
    try:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True, capture_output=True)
            started.append(Path("/run/munge/munged.pid"))
        for name in ("slurmctld", "slurmd"):
            subprocess.run([name], check=True)
            started.append(folder / f"{name}.pid")
        until(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), 60, "node")
        yield
    finally:
        said("scancel", "--partition=check")
        for path in reversed(started):
            with contextlib.suppress(OSError, ValueError):
                os.kill(process := int(path.read_text()), signal.SIGTERM)
                until(lambda process=process: not Path(f"/proc/{process}").exists(), 30, "end of a daemon")
        CONFIGURED.unlink()


def write_sweep(folder: Path, n_images: int, n_shards: int) -> Path:
    """Write a small folder in COCO's format with a damaged image in its middle, and a sweep over it."""
    export_coco([generate_scene(0, i, "test") for i in range(n_images)], folder / "coco", "test")
    damaged = sorted((folder / "coco/images/test").iterdir())[n_images // 2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    content = {
        "name": NAME,
        "models": [{"name": "llava-scenes", "codebook": "llava-scenes"}],
        "images": [{"name": "coco", "images": f"coco:{folder / 'coco'}", "split": "test"}],
        "on_error": "skip",
        "probe": {"shards": n_shards, "positions": "grid"},
        "evaluate": {
            "shards": 2,
            "images_per_part": n_images // 4,
            "tasks": ["one_word"],
            "n_per_task": n_images // 2,
            "retain_ratio": [0.1],
        },
        "resources": {"mem_mb": 2000, "minutes": 10},
    }
    (folder / "sweep.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "sweep.yml"


@contextlib.contextmanager
def workflow(sweep: Path, n_jobs: int, log: Path) -> Iterator[subprocess.Popen]:
    """Start the workflow with the profile that comes along, which runs no longer than what is done meanwhile."""
    command = [sys.executable, "-m", "tools.run_workflow", "--snakefile", "workflow/shards.smk"]
    command += ["--profile", "workflow/profiles/slurm", "--jobs", str(n_jobs), "--retries", "0"]
    command += ["--slurm-init-seconds-before-status-checks", "5", "--slurm-status-command", "squeue"]
    command += ["--slurm-no-account"]
    command += ["--default-resources", "slurm_partition=check", "mem_mb=2000", "runtime=10"]
    command += ["--config", f"sweep={sweep}"]
    with log.open("ab") as file:
        run = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield run
    finally:
        run.kill()
        run.wait()


def workers(folder: str) -> list[int]:
    """Return the processes that probe a shard of the sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            found += [int(path.name)] if b"rcblib" in words and f"{folder}/probe".encode() in words else []
    return found


def measure(options: argparse.Namespace, scratch: Path, log: Path) -> dict[str, Any]:
    """Run the sweep interrupted and resumed on the cluster, and plainly beside it; return what happened."""
    sweep = write_sweep(scratch, options.images, options.shards)
    shutil.rmtree(f"runs/sweeps/{NAME}", ignore_errors=True)
    folder = Path(f"runs/sweeps/{NAME}/llava-scenes/coco/seed-0")
    shards = folder / "probe-shards"

    def finished() -> list[Path]:
        return sorted(shards.glob("*.parquet"))

    steps = []
    start = time.perf_counter()
    (scratch / "slurm").mkdir()
    with cluster(scratch / "slurm", options.cpus):
        version = re.sub(r"[^\d.]", "", said("sbatch", "--version"))
        with workflow(sweep, options.shards, log) as run:
            until(
                lambda: run.poll() is not None or len(finished()) >= 3 and workers(str(folder)), 300, "worker"
            )
            if run.poll() is not None:
                raise ParameterError("workflow", f"status {run.returncode}", f"a run that goes on; see {log}")
            victim = workers(str(folder))[0]
            os.kill(victim, signal.SIGKILL)
            steps.append(f"kill -9 of a worker with {len(finished())} of {options.shards} shards there")
            until(
                lambda: len(finished()) >= options.shards // 2 or run.poll() is not None,
                300,
                "half of the shards",
            )
        steps.append(
            f"kill -9 of the workflow with {len(finished())} shards there, its waiting jobs cancelled"
        )
        said("scancel", "--partition=check")
        until(lambda: not said("squeue", "--noheader").strip() and not workers(str(folder)), 60, "queue")
        before = {path.name: path.stat().st_mtime_ns for path in (folder / "probe").glob("*.parquet")}
        until_resumed = time.perf_counter() - start
        with workflow(sweep, options.shards, log) as run:
            status = run.wait(options.seconds)
        steps.append(f"started again, it ended with {status}")
        again = {path.name: path.stat().st_mtime_ns for path in (folder / "probe").glob("*.parquet")}
    n_redone = sum(again.get(name) != when for name, when in before.items())
    seconds = time.perf_counter() - start
    if status:
        raise ParameterError("workflow", f"status {status}", f"0; see {log}")
    alone = {}
    for work in ("probe", "evaluate"):
        record = read_record(folder / f"{work}.parquet")
        alone[work] = plainly(work, scratch / "coco", options.images, scratch)
        print(f"{work}: {record.facts['n_rows']} rows of {len(record.facts['samples'])} images", flush=True)
    same = {
        work: {
            "n_rows": len(read_record(folder / f"{work}.parquet").table),
            "n_images": len(read_record(folder / f"{work}.parquet").facts["samples"]),
            "left_out": read_record(folder / f"{work}.parquet").facts["skipped"],
            "same_bytes_as_one_plain_run": file_sha256(folder / f"{work}.parquet") == file_sha256(path),
        }
        for work, path in alone.items()
    }
    return {
        "slurm": version,
        "steps": steps,
        "n_images": options.images,
        "n_shards": options.shards,
        "n_finished_before_resuming": len(before),
        "n_computed_again": n_redone,
        "seconds": seconds,
        "seconds_until_resumed": until_resumed,
        "tables": same,
    }


def plainly(work: str, coco: Path, n_images: int, scratch: Path) -> Path:
    """Run the same without shards, cluster or workflow; return its merged table."""
    asked = ["--tasks", "one_word", "--n-per-task", n_images // 2, "--images-per-part", n_images // 4]
    pruned = ["--codebook", "llava-scenes", "--retain-ratio", "0.1"]
    own = ["--positions", "grid"] if work == "probe" else [*asked, *pruned]
    images = ["--images", f"coco:{coco}", "--split", "test", "--on-error", "skip"]
    whole, merged = scratch / f"{work}-whole.parquet", scratch / f"{work}.parquet"
    run = [work, "--model", "llava-scenes", *images, *own, "--folder", scratch / work, "--table", whole]
    for command in (run, ["merge", whole, "--table", merged]):
        subprocess.run([sys.executable, "-m", "rcblib", *map(str, command)], check=True, capture_output=True)
    return merged


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; status 2 where Slurm is not installed, or something is not as it should be."""
    parser = OneLineParser(prog="slurm", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="of the folder (default: 24)")
    parser.add_argument("--shards", type=int, default=20, help="that share them (default: 20)")
    parser.add_argument(
        "--cpus", type=int, default=os.cpu_count(), help="of the node (default: all there are)"
    )
    parser.add_argument("--seconds", type=int, default=900, help="limit of the resumed run (default: 900)")
    parser.add_argument("--output", type=results_file, help="JSON file of the result")
    options = parser.parse_args(arguments)

    def run() -> None:
        missing = [name for name in DAEMONS if not shutil.which(name)]
        if missing or os.geteuid() or CONFIGURED.exists():
            given = (
                f"no {', '.join(missing)}"
                if missing
                else "another user"
                if os.geteuid()
                else "a cluster's machine"
            )
            raise ParameterError(
                "slurm",
                given,
                "root, with slurmd, slurmctld, slurm-client and munge installed, and no slurm.conf",
            )
        os.chdir(project_root())
        log = Path("results/logs/slurm.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as scratch:
            Path(scratch).chmod(0o755)
            found = measure(options, Path(scratch), log)
        versions = {
            "snakemake": said(sys.executable, "-m", "snakemake", "--version").strip(),
            "code": code_digest("benchmarks.slurm", "rcblib.runs.merging", "rcblib.probe.store"),
        }
        for step in found["steps"]:
            print(step)
        for work, facts in found["tables"].items():
            print(work, facts)
        if options.output:
            write_json(options.output, found | versions | {"provenance": provenance()})
        if not all(facts["same_bytes_as_one_plain_run"] for facts in found["tables"].values()):
            raise ParameterError("tables", "other bytes", "those of one plain run")

    return run_command("slurm", run)


if __name__ == "__main__":
    sys.exit(main())
