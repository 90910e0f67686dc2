"""A program is not judged by how busy the machine is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from executor.deadline import MAX_STRETCH, Deadline

LIMIT_S = 0.1
# A deadline begins before the test's own clock does.
END_S = 0.9 * MAX_STRETCH * LIMIT_S


@pytest.fixture
def child() -> Iterator[Callable[[bool], int]]:
    """`child(works)`: a process that computes without end, or one that is kept from running."""
    started: list[int] = []

    def start(works: bool) -> int:
        pid = os.fork()
        if pid == 0:
            while True:
                pass
        started.append(pid)
        if not works:
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
        return pid

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait(deadline: Deadline) -> float:
    """Seconds until it is over."""
    started = time.monotonic()
    while (left_s := deadline.left_s()) > 0:
        time.sleep(left_s)
    return time.monotonic() - started


def test_one_that_is_kept_from_running_gets_more_time_and_not_for_ever(child: Callable[[bool], int]) -> None:
    assert wait(Deadline(child(False), LIMIT_S)) >= END_S


def test_one_that_runs_has_its_time_and_no_more(child: Callable[[bool], int]) -> None:
    pid = child(True)
    deadline = Deadline(pid, LIMIT_S)
    clock = (~pid << 3) | 2
    before = time.clock_gettime(clock)
    lasted = wait(deadline)
    # Where the machine is idle, it is the limit; where it is not, the child has had half of it at least, or four times as long.
    assert time.clock_gettime(clock) - before >= LIMIT_S / 2 or lasted >= END_S
    os.kill(pid, signal.SIGSTOP)
    deadline.restart(LIMIT_S)
    assert wait(deadline) >= END_S, "time that an earlier input used does not count"


def test_one_that_has_ended_is_over_in_time() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert wait(Deadline(pid, LIMIT_S)) >= 0.9 * LIMIT_S
