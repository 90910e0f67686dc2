"""The section of `azr doctor` about the machine: Python, kernel, processors, user."""

from __future__ import annotations

import getpass
import os
import platform
import sys

from executor.cpus import allowed_cpus
from launch.config import Config
from launch.doctor.report import Check, CheckState, Section


def machine(config: Config) -> Section:
    """Facts about the machine; no check can fail."""
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpus": f"{allowed_cpus()} of {os.cpu_count()} may be used",
        "user": _user(),
    }
    return Section("machine", tuple(Check(name, CheckState.INFO, text) for name, text in facts.items()))


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry, as in many containers
        name = "no name"
    return f"{os.getuid()} ({name})"
