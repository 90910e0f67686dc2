"""A program is not judged by how busy the machine is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from executor.sandbox import deadline as module
from executor.sandbox.deadline import MAX_STRETCH, Deadline

LIMIT_S = 0.1


@pytest.fixture
def child() -> Iterator[Callable[[], int]]:
    """`child()`: a process that computes without end."""
    started: list[int] = []

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            while True:
                pass
        started.append(pid)
        return pid

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def used_s(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)


def wait(deadline: Deadline) -> float:
    """Seconds until it is over."""
    started = time.monotonic()
    while (left_s := deadline.left_s()) > 0:
        time.sleep(left_s)
    return time.monotonic() - started


def test_one_that_runs_has_its_time(child: Callable[[], int]) -> None:
    pid = child()
    assert wait(Deadline(pid, LIMIT_S)) >= 0.9 * LIMIT_S
    assert used_s(pid) >= LIMIT_S


def test_the_limit_is_not_overshot_by_much(child: Callable[[], int]) -> None:
    """As CPU time: how late the wall clock says it is depends on who else runs."""
    pid = child()
    deadline = Deadline(pid, LIMIT_S)
    before = 0.0
    while (left_s := deadline.left_s()) > 0:
        before = used_s(pid)
        assert left_s <= LIMIT_S - before + 0.002
        time.sleep(left_s)
    assert before < LIMIT_S


def test_one_that_is_kept_from_running_has_the_same_time(child: Callable[[], int]) -> None:
    """It runs for a twentieth of the time, as beside many others."""
    pid = child()
    deadline = Deadline(pid, LIMIT_S)
    started = time.monotonic()
    while deadline.left_s() > 0:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
    assert used_s(pid) >= LIMIT_S or time.monotonic() - started >= MAX_STRETCH * LIMIT_S
    assert time.monotonic() - started > 2 * LIMIT_S


def test_one_that_stands_still_is_found(child: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.3)
    monkeypatch.setattr(module, "MAX_STRETCH", 100_000)  # so that nothing else ends it
    pid = child()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    assert wait(Deadline(pid, LIMIT_S)) >= 0.3


def test_one_that_gets_no_cpu_is_not_taken_for_idle(child: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that waits gets none either, and is late each time, until the machine has time again."""
    monkeypatch.setattr(module, "IDLE_S", 0.2)
    monkeypatch.setattr(module, "MAX_STRETCH", 100_000)
    pid = child()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    deadline = Deadline(pid, LIMIT_S)
    started = time.monotonic()
    while time.monotonic() - started < 5 * module.IDLE_S:
        assert (left_s := deadline.left_s()) > 0
        time.sleep(1.5 * left_s)
    wait(deadline)  # which ends


def test_nothing_lasts_longer_than_the_end(child: Callable[[], int]) -> None:
    pid = child()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    # A poll may end a fraction of a millisecond early.
    assert MAX_STRETCH * 0.01 - 0.002 <= wait(Deadline(pid, 0.01)) < module.IDLE_S


def test_one_that_has_ended_is_not_waited_for_without_end() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert wait(Deadline(pid, 0.01)) >= 0.009
