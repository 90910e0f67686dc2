"""The wall alone, with the policy off: what a program can learn, and lie about. What it can do is in `test_probes.py`.

Not exercised here: a kernel without seccomp (see `test_pool.py`, which takes seccomp away), and aarch64.
"""

from __future__ import annotations

import asyncio

from executor.literals import parse_literal
from executor.outcomes import Status
from executor.pool import SerialPool


def test_a_lie_is_about_the_liars_own_value_only(wall_pool: SerialPool) -> None:
    """A program can find the nonce and forge its frame; what it says then is what it could have returned."""
    program = """
import os, struct, sys
def f(x):
    frame = sys._getframe()
    while frame:
        local = frame.f_locals
        if "nonce" in local and "output" in local:
            os.write(local["output"], struct.pack(">16sI", local["nonce"], 6) + b"V[[[[[")
            os._exit(0)
        frame = frame.f_back
"""
    (outcome,) = asyncio.run(wall_pool.execute(program, ["1"]))
    assert outcome.status is Status.CRASHED


def test_the_environment_is_empty(wall_pool: SerialPool) -> None:
    (outcome,) = asyncio.run(wall_pool.execute("import os\ndef f(x): return dict(os.environ)", ["1"]))
    environment = parse_literal(outcome.value)
    assert isinstance(environment, dict)
    assert set(environment) <= {"PYTHONHASHSEED", "LC_CTYPE"}  # LC_CTYPE: Python's own, in the C locale
