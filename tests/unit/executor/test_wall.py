"""The wall alone: hostile programs with the policy off. What they try must not happen, and the server must survive it.

Not exercised here: a kernel without seccomp (see `test_pool.py`, which takes seccomp away), and aarch64.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from executor.pool import Outcome, SerialPool, Status
from executor.values import parse_literal

_C = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"

# name: (program, what the server must find)
HOSTILE = {
    "socket": (_C + "def f(x): return libc.socket(2, 1, 0)", Status.UNSAFE),
    "exec a shell": ("import os\ndef f(x): os.execv('/bin/sh', ['sh', '-c', 'true'])", Status.UNSAFE),
    "fork": ("import os\ndef f(x): return os.fork()", Status.UNSAFE),
    "fork bomb": ("import os\ndef f(x):\n while True:\n  try: os.fork()\n  except OSError: pass", Status.UNSAFE),
    "thread": ("import _thread\ndef f(x): return _thread.start_new_thread(print, ())", Status.UNSAFE),
    "kill the server": ("import os\ndef f(x): os.kill(os.getppid(), 9)", Status.UNSAFE),
    "kill everyone": ("import os\ndef f(x): os.kill(-1, 0)", Status.UNSAFE),
    "ptrace the server": (_C + "def f(x): return libc.ptrace(16, os.getppid(), 0, 0)", Status.UNSAFE),
    "new namespace": (_C + "def f(x): return libc.unshare(0x10000000)", Status.UNSAFE),
    "memfd": (_C + "def f(x): return libc.memfd_create(b'a', 0)", Status.UNSAFE),
    "become another user": (_C + "def f(x): return libc.setuid(0)", Status.UNSAFE),
    "lift the limits": ("import resource\ndef f(x): resource.setrlimit(7, (99, 99))", Status.UNSAFE),
    "survive the server": (_C + "def f(x): return libc.prctl(1, 0, 0, 0, 0)", Status.UNSAFE),
    "32-bit system call range": (_C + "def f(x): return libc.syscall(0x40000000 + 39)", Status.UNSAFE),
    "read a file": ("def f(x): return open('/etc/passwd').read(1)", Status.ERROR),
    "read past Python": (_C + "def f(x):\n assert libc.open(b'/etc/passwd', 0) >= 0\n return 1", Status.ERROR),
    "list processes": ("import os\ndef f(x): return os.listdir('/proc')", Status.ERROR),
    "write a file": ("def f(x): return open('/tmp/azr-sandbox-test', 'w').write('x')", Status.ERROR),
    "forged frames": (
        (
            "import os\ndef f(x):\n for fd in range(3, 64):\n  try: os.write(fd, bytes(40))\n"
            "  except OSError: pass\n return 1"
        ),
        Status.CRASHED,
    ),
    "closed pipes": ("import os\ndef f(x):\n os.closerange(0, 256)\n return 1", Status.CRASHED),
    "silent exit": ("import os\ndef f(x): os._exit(0)", Status.CRASHED),
    "segmentation fault": ("import ctypes\ndef f(x): ctypes.string_at(0)", Status.CRASHED),
    "abort": ("import os\ndef f(x): os.abort()", Status.CRASHED),
    "deaf to signals": (
        (
            "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
            " except (OSError, ValueError): pass\n"
            "def f(x):\n while True: pass"
        ),
        Status.TIMEOUT,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name: str, wall_pool: SerialPool) -> None:
    program, expected = HOSTILE[name]
    server = wall_pool.pids[0]
    (outcome,) = asyncio.run(wall_pool.execute(program, ["1"], 0))
    assert outcome.status is expected
    (after,) = asyncio.run(wall_pool.execute("def f(x): return x", ["'still here'"], 0))
    assert after.value == "'still here'"
    assert wall_pool.pids[0] == server
    assert not os.path.exists("/tmp/azr-sandbox-test")


def test_a_lie_is_about_the_liars_own_value_only(wall_pool: SerialPool) -> None:
    """A program can find the nonce and forge its frame; what it says then is what it could have returned."""
    program = """
import os, struct, sys
def f(x):
    frame = sys._getframe()
    while frame:
        local = frame.f_locals
        if "nonce" in local and "writer" in local:
            os.write(local["writer"], struct.pack(">16sI", local["nonce"], 6) + b"V[[[[[")
            os._exit(0)
        frame = frame.f_back
"""
    (outcome,) = asyncio.run(wall_pool.execute(program, ["1"]))
    assert outcome.status is Status.CRASHED


def test_other_programs_are_out_of_reach(wall_pool: SerialPool) -> None:
    """The server has compiled and kept the program of a task; an answer must not find it there."""
    for _ in range(3):
        asyncio.run(wall_pool.execute("def f(x): return 'the solution'", ["1"]))
    program = """
import sys
def f(x):
    frame = sys._getframe()
    while "self" not in frame.f_locals:
        frame = frame.f_back
    return list(frame.f_locals["self"].programs)
"""
    (outcome,) = asyncio.run(wall_pool.execute(program, ["1"]))
    assert outcome == Outcome(Status.OK, "[]")


def test_the_environment_is_empty(wall_pool: SerialPool) -> None:
    (outcome,) = asyncio.run(wall_pool.execute("import os\ndef f(x): return dict(os.environ)", ["1"]))
    environment = parse_literal(outcome.value)
    assert isinstance(environment, dict)
    assert set(environment) <= {"PYTHONHASHSEED", "LC_CTYPE"}  # LC_CTYPE: Python's own, in the C locale
