"""CPU seconds of a rehearsal's processes between its first step and its end, by part."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from typing import Any

import psutil

from launch.cluster.ray_port import CallFailed
from launch.cluster.supervisor import Supervisor
from launch.rehearsal.packed_ray import process_of

EVERY_S = 5.0
"""Seconds between two samples."""
_RAY = ("raylet", "gcs_server")


class CpuSamples:
    """Asks the processes for their CPU seconds while the run goes on; `watch` is called by the run's driver."""

    def __init__(self) -> None:
        self._next = 0.0
        self._last: dict[str, dict[str, float]] = {}
        self._spent: dict[str, dict[str, float]] = {}
        self._began: float | None = None
        self._ended = 0.0

    def watch(self, supervisor: Supervisor) -> None:
        """Take a sample, where one is due."""
        now = time.monotonic()
        if now < self._next or not supervisor.status().last.get("step"):
            return
        self._next = now + EVERY_S
        processes: dict[str, Any] = {"learner": supervisor.processes("learner")[0]}
        processes["buffer"] = supervisor.processes("buffer")[0]
        hosts = {process_of(handle) for handle in supervisor.processes("actor").values()}
        processes |= {f"actors {number}": host for number, host in enumerate(sorted(hosts, key=str))}
        for name, process in processes.items():
            with contextlib.suppress(CallFailed, TimeoutError):  # it starts again
                self._note(f"{name} {process}", supervisor.ask(process, "cpu"))
        self._note("driver", {"process": time.process_time()})
        self._note("ray", {"process": _ray_cpu()})
        self._note("machine", {"process": _machine_cpu()})
        self._began = self._began or now
        self._ended = now

    @property
    def seconds(self) -> float:
        """Seconds that the samples span."""
        return self._ended - self._began if self._began is not None else 0.0

    def shares(self) -> dict[str, float]:
        """Share of one core, by part: `learner`, of it `learner/stream`, `learner/publishing` ..., `buffer`, `driver`,
        `ray`, `actors`, `receivers` (of the actors' weights), `machine` (all that runs on it). Empty where the run was
        too short for two samples."""
        if self.seconds <= 0:
            return {}
        found: dict[str, float] = defaultdict(float)
        for name, spent in self._spent.items():
            part = name.split()[0]
            for what, seconds in spent.items():
                if what == "process" or part == "learner" or what == "receivers":
                    key = part if what == "process" else what if part == "actors" else f"{part}/{what}"
                    found[key] += seconds / self.seconds
        return dict(found)

    def _note(self, name: str, numbers: dict[str, float]) -> None:
        """Add what a process has spent since its last sample. One that was started again counts from 0 anew."""
        last, spent = self._last.get(name, numbers), self._spent.setdefault(name, dict.fromkeys(numbers, 0.0))
        again = numbers["process"] < last["process"]
        for what, seconds in numbers.items():
            spent[what] = spent.get(what, 0.0) + seconds - (0.0 if again else last.get(what, 0.0))
        self._last[name] = numbers


def _ray_cpu() -> float:
    """CPU seconds of Ray's own servers that this process started."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() in _RAY or "dashboard" in " ".join(child.cmdline()[1:3]):
                times = child.cpu_times()
                total += times.user + times.system
    return total


def _machine_cpu() -> float:
    """CPU seconds of everything on this machine."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
