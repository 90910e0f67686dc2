"""The CPU seconds of a rehearsal's processes."""

from __future__ import annotations

from typing import Any

import pytest

from launch.rehearsal import cpu_samples
from launch.rehearsal.cpu_samples import CpuSamples


class Supervisor:
    """Names processes, and answers for each with the next of its samples."""

    def __init__(self, **samples: list[dict[str, float]]) -> None:
        self._samples = {name: iter(numbers) for name, numbers in samples.items()}

    def status(self) -> Any:
        return type("Status", (), {"last": {"step": 1}})

    def processes(self, role: str) -> dict[int, str]:
        return {} if role == "actor" else {0: role}

    def ask(self, process: str, question: str) -> dict[str, float]:
        assert question == "cpu"
        return next(self._samples[process])


def test_a_process_that_was_started_again_keeps_what_it_had_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 120.0, 130.0])
    monkeypatch.setattr(cpu_samples.time, "monotonic", lambda: next(clock))
    samples = CpuSamples()
    supervisor = Supervisor(
        learner=[{"process": 10.0 + n, "stream": 1.0 + n / 2} for n in range(4)],
        buffer=[{"process": seconds} for seconds in (50.0, 53.0, 2.0, 5.0)],
    )
    for _ in range(4):
        samples.watch(supervisor)  # type: ignore[arg-type]
    shares = samples.shares()
    assert shares["learner"] == pytest.approx(3 / 30)
    assert shares["learner/stream"] == pytest.approx(1.5 / 30)
    assert shares["buffer"] == pytest.approx((3 + 2 + 3) / 30), "3 s before, 2 s from its new start on, 3 s after"
