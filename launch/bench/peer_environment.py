"""The environment of `azr bench peer`: TRL and what it needs, in a folder of its own, made once.

The folder is a virtual environment of this Python with the packages of `peer-requirements.txt`, torch at the version
and the build that azr runs on. It is made with pip as it is configured, and is complete once a file in it has the
digest of these requirements.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from executor.user_error import UserError
from launch.models import cache
from launch.versions import version_of

REQUIREMENTS = Path(__file__).parent / "peer-requirements.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GIB = 5.0
"""Free space that making it takes: 2.3 GiB installed, and as much while packages are unpacked."""
INSTALL_TIMEOUT_S = 1800.0
_COMPLETE = "azr-peer"


class PeerEnvironmentError(UserError):
    """An environment that is not there and cannot be made; the message says what to do."""

    exit_code = 1


def default_folder() -> Path:
    """Where the environment is without `--env`: in the cache (`$AZR_CACHE`, or `~/.cache/azr`)."""
    return cache().parent / "peer-trl"


def requirements_digest(torch: str) -> str:
    """A name of the requirements, with the version of torch."""
    return hashlib.sha256(f"torch=={torch}\n{REQUIREMENTS.read_text()}".encode()).hexdigest()[:16]


def interpreter(folder: Path) -> Path:
    """Its Python."""
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    """Whether it is there, with the present requirements."""
    try:
        found = (folder / _COMPLETE).read_text().strip()
    except OSError:
        return False
    return found == requirements_digest(_torch()) and interpreter(folder).exists()


def prepare(folder: Path, say: Callable[[str], None]) -> Path:
    """The environment's Python; makes the environment where it is not complete. Raises PeerEnvironmentError."""
    if is_complete(folder):
        return interpreter(folder)
    if folder.exists() and not (folder / "pyvenv.cfg").exists() and any(folder.iterdir()):
        raise PeerEnvironmentError(f"{folder} is no virtual environment and not empty. Name another folder with --env")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PeerEnvironmentError(
            f"{folder} cannot be made: {error.strerror}. Name another folder with --env"
        ) from None
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < NEEDED_GIB:
        raise PeerEnvironmentError(
            f"{folder}: TRL's environment needs {NEEDED_GIB:.0f} GiB, and {free_gib:.1f} are free. Free some space, or "
            "name a folder on another disk with --env"
        )
    torch = _torch()
    say(f"making TRL's environment in {folder} (once, some minutes)")
    _run(folder, [sys.executable, "-m", "venv", "--clear", str(folder)], "the virtual environment")
    pip = [str(interpreter(folder)), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    wheel = f"torch=={torch}"
    # As in launch/setup_cpu.sh: PyTorch's own index has the CPU build; a network that refuses it costs seconds.
    try:
        _run(folder, [*pip, "--retries", "0", "--timeout", "10", "--index-url", TORCH_CPU_INDEX, wheel], wheel)
    except PeerEnvironmentError:
        _run(folder, [*pip, f"{wheel}+cpu"], f"{wheel}+cpu")
    _run(folder, [*pip, "-r", str(REQUIREMENTS)], "TRL and what it needs")
    _run(
        folder,
        [str(interpreter(folder)), "-I", "-c", "import torch, trl; from trl import GRPOTrainer"],
        "a first import",
    )
    (folder / _COMPLETE).write_text(requirements_digest(torch) + "\n")
    return interpreter(folder)


def _torch() -> str:
    """The version of torch that azr runs on, without its build."""
    return (version_of("torch") or "").partition("+")[0]


def _run(folder: Path, command: Sequence[str], what: str) -> None:
    """Run a command of the installation. Raises PeerEnvironmentError with the end of what it printed."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, env=outside
        )
    except subprocess.TimeoutExpired:
        raise PeerEnvironmentError(
            f"{folder}: {what} took more than {INSTALL_TIMEOUT_S / 60:.0f} minutes. Call again: what is there is kept "
            "in pip's cache"
        ) from None
    if done.returncode:
        last = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        raise PeerEnvironmentError(explain(folder, what, last))


def explain(folder: Path, what: str, printed: str) -> str:
    """The message of an installation that failed in `what`, with the end of what pip printed."""
    lower = printed.lower()
    if "no space left" in lower:
        advice = "The disk is full: free some space, or name a folder on another disk with --env"
    elif "no matching distribution" in lower or "connection" in lower or "name resolution" in lower:
        advice = (
            "pip reaches no package index that has it. Without a network: on a machine that has one, "
            f"`pip download --no-deps -d WHEELS -r {REQUIREMENTS}` and torch's CPU wheel; bring the folder here, and "
            "call again with PIP_FIND_LINKS=WHEELS PIP_NO_INDEX=1"
        )
    else:
        advice = f"Remove {folder} and call again; if it fails again, the lines above say why"
    return f"TRL's environment could not be made ({what}):\n{printed}\n{advice}"
