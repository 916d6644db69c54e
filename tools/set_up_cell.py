import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

# Where the project is to be had from, and at which branch, tag or commit.
REPOSITORY = ""
REVISION = ""

if importlib.util.find_spec("rcblib") is None:  # on Colab, or in any other environment without the library
    PROJECT = (
        Path.cwd() / "redundancy-codebook"
    )  # each step may be repeated, so an interrupted one is made good
    GIT = ["git", "-C", str(PROJECT)]
    subprocess.run(["git", "init", "-q", str(PROJECT)], check=True)
    subprocess.run([*GIT, "fetch", "-q", "--depth", "1", REPOSITORY, REVISION], check=True)
    subprocess.run([*GIT, "checkout", "-q", "--force", "FETCH_HEAD"], check=True)
    # What the running kernel is made of (IPython, ipykernel) is no part of these extras, so it is not replaced.
    EXTRAS = "kernel,video,gpu" if "google.colab" in sys.modules else "kernel,video"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", f"{PROJECT}[{EXTRAS}]"], check=True)
    sys.path.insert(
        0, str(PROJECT)
    )  # a kernel that is running learns of new packages, but not of new folders
    importlib.invalidate_caches()
