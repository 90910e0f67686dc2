"""The resident memory of a process and its descendants."""

from __future__ import annotations

import subprocess
import sys

from learner.resident_memory import MemoryReading, resident_mib

_HELD_MIB = 200
_HOLDS = f"held = b'x' * ({_HELD_MIB} * 2**20); print('held', flush=True); input()"


def test_memory_of_a_child_counts_while_it_lives() -> None:
    before = resident_mib()
    child = subprocess.Popen([sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    during = resident_mib()
    child.communicate(b"\n")
    assert during - before > 0.9 * _HELD_MIB
    assert resident_mib() - before < 0.5 * _HELD_MIB


def test_a_reading_is_kept_until_it_is_due() -> None:
    now, values = [0.0], iter([10.0, 20.0])
    memory = MemoryReading(30.0, lambda: next(values), lambda: now[0])
    assert memory.mib() == 10.0
    now[0] = 29.9
    assert memory.mib() == 10.0
    now[0] = 30.0
    assert memory.mib() == 20.0
