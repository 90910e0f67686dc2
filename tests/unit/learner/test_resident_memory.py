"""The resident memory of a process and its descendants."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from learner import resident_memory
from learner.resident_memory import MemoryReading, resident_mib

_HELD_MIB = 200
_HOLDS = f"held = b'x' * ({_HELD_MIB} * 2**20); print('held', flush=True); input()"
_GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_HOLDS!r}])"


def measured() -> float:
    found = resident_mib()
    assert found is not None
    return found


@pytest.mark.parametrize("program", [_HOLDS, _GRANDCHILD], ids=["child", "grandchild"])
def test_memory_of_what_a_thread_started_counts_while_it_lives(program: str) -> None:
    before = measured()
    held, seen = threading.Event(), threading.Event()

    def start() -> None:
        """Start the program, and stay: the children of a thread that ends become those of another."""
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        if child.stdout.readline() == b"held\n":
            held.set()
        seen.wait(60)
        child.communicate(b"\n")

    thread = threading.Thread(target=start)
    thread.start()
    assert held.wait(60)
    during = measured()
    seen.set()
    thread.join()
    assert during - before > 0.9 * _HELD_MIB
    assert measured() - before < 0.5 * _HELD_MIB


def test_a_thread_that_ends_during_the_look_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir
    monkeypatch.setattr(resident_memory.os, "listdir", lambda path: ["999999999", *listed(path)])
    with subprocess.Popen([sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert measured() > 0.9 * _HELD_MIB
        child.communicate(b"\n")


def test_without_proc_there_is_no_number_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> str:
        raise PermissionError(self)

    monkeypatch.setattr(resident_memory.Path, "read_text", refuse)
    assert resident_mib() is None
    assert MemoryReading("memory/actor_mib").numbers() == {}


def test_a_reading_is_kept_until_it_is_due() -> None:
    now, values = [0.0], iter([10.0, None, 20.0])
    memory = MemoryReading("memory/actor_mib", 30.0, lambda: next(values), lambda: now[0])
    assert memory.numbers() == {"memory/actor_mib": 10.0}
    now[0] = 29.9
    assert memory.numbers() == {"memory/actor_mib": 10.0}
    now[0] = 30.0
    assert memory.numbers() == {}
    now[0] = 60.0
    assert memory.numbers() == {"memory/actor_mib": 20.0}
