"""Describes the machine that a figure was taken on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from executor.cpus import allowed_cpus


def describe_machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, memory, kernel, and how busy it is."""
    processor = platform.processor() or platform.machine()
    memory_gib = None
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
        memory_gib = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (OSError, ValueError):
        pass  # a description, not a measurement
    return {
        "processor": processor,
        "architecture": platform.machine(),
        "cores": allowed_cpus(),
        "memory_gib": memory_gib,
        "system": f"{platform.system()} {platform.release()}",
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """Cores and processor of `describe_machine`, as part of a sentence."""
    return f"{machine['cores']} cores, {machine['processor']}"
