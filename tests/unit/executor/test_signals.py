"""Processes that are spared the signals that stop a run, and a pool among them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.signals import withheld

_WITHHELD = """
import os, signal, subprocess, sys, threading
from executor.signals import ignore_signals, withheld
masked = "import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
with withheld():
    child = subprocess.run([sys.executable, "-c", masked], capture_output=True, text=True)
print(child.stdout.strip(), len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
thread = threading.Thread(target=ignore_signals)
thread.start()
thread.join()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
    os.kill(os.getpid(), number)
print("lives")
"""


def test_children_can_be_spared_the_signals_and_a_process_ignores_them_from_any_thread() -> None:
    found = subprocess.run([sys.executable, "-c", _WITHHELD], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["4", "0", "lives"], found.stderr


def test_a_sandbox_closes_by_itself_where_the_signals_are_withheld() -> None:
    async def play() -> float:
        pool = SerialPool(ExecutorSettings())
        with withheld():
            await pool.start()
        (outcome,) = await pool.execute("def f(x): return x + 1", ["1"])
        assert outcome.value == "2"
        began = time.monotonic()
        await pool.close()
        return time.monotonic() - began

    keepers_s = 2 * 5.0  # two sandboxes, each killed only after so long
    assert asyncio.run(play()) < keepers_s
