"""A child's memory holds nothing of other requests: no program, input, value or text of an error.

The policy and every layer are off, so that a program can read all of its memory. Not exercised here: what the kernel
may tell a program about others (the time, its process id), and the supervisor's memory, which no child is forked from.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from executor.judge import Judge
from executor.literals import parse_literal
from executor.outcomes import Status
from executor.pool import SandboxPool, SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Validated

UNSAFE = ExecutorSettings(allow_unsafe=True, timeout_s=10)
_numbers = itertools.count(1)

SCAN = """
import ctypes, re
MARK = bytes([99 ^ 2, 120 ^ 2, 112 ^ 2]) + bytes([45]) + bytes(reversed(b"terces"))
class Part(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]
def f(x):
    libc = ctypes.CDLL(None, use_errno=True)
    found, scanned = set(), 0
    for line in open("/proc/self/maps").readlines():
        place, rights = line.split()[:2]
        start, end = (int(part, 16) for part in place.split("-"))
        if rights[0] != "r" or "[v" in line:
            continue
        for at in range(start, end, 1 << 20):
            size = min(end - at, (1 << 20) + 64)
            buffer = ctypes.create_string_buffer(size)
            mine, its = Part(ctypes.addressof(buffer), size), Part(at, size)
            import os
            got = libc.process_vm_readv(os.getpid(), ctypes.byref(mine), 1, ctypes.byref(its), 1, 0)
            if got > 0:
                scanned += got
                found |= set(re.findall(MARK + b"[0-9]{6}", buffer.raw[:got]))
    return scanned, sorted(word[-6:].decode() for word in found)
"""


def secret() -> str:
    """A word that the scan looks for, and that it holds no copy of."""
    return "azr-" + "secret" + f"{next(_numbers):06}"


@pytest.fixture
def pool() -> Iterator[SerialPool]:
    pool = SerialPool(UNSAFE, gate=False, layers=frozenset())
    asyncio.run(pool.start())
    yield pool
    asyncio.run(pool.close())


def scan(pool: SerialPool | SandboxPool, seed: int | None, given: str) -> list[str]:
    """The secrets that a program finds in its memory."""
    (outcome,) = asyncio.run(pool.execute(SCAN, [given], seed))
    assert outcome.status is Status.OK, outcome
    value = parse_literal(outcome.value)
    assert isinstance(value, tuple)
    scanned, found = value
    assert scanned > 1 << 22, "it has not read its memory"
    assert isinstance(found, list)
    return found


def test_the_scan_finds_what_is_there(pool: SerialPool) -> None:
    word = secret()
    assert scan(pool, 0, repr(word)) == [word[-6:]]


def test_nothing_of_an_earlier_request_is_in_memory(pool: SerialPool) -> None:
    programs = [
        f"def f(x): return '{secret()}'",
        f"def f(x): return 1 / 0 # {secret()}",
        f"def f(x) {secret()}",
        f"class {secret().replace('-', '_')}(Exception): pass\ndef f(x): raise KeyError('{secret()}')",
        f"def f(x): return print # {secret()}",
        f"def f(x): return '{secret()}' * 9000",
        f"import os\nKEEP = ['{secret()}'] * 1000\ndef f(x): os._exit(3)",
    ]
    for _ in range(3):
        for program in programs:
            asyncio.run(pool.execute(program, [repr(secret()), repr(secret() * 30)], 0))
        asyncio.run(pool.inspect(programs[0]))
        asyncio.run(pool.probe(programs[0], [repr(secret()), repr(secret())], 0))
    assert scan(pool, 0, "1") == []


def test_nothing_of_a_task_or_of_other_answers_is_in_memory(pool: SerialPool) -> None:
    judge = Judge(pool, UNSAFE)
    word = secret()
    program = f"def f(x): return ['{word}', x]"
    sound = asyncio.run(judge.validate(program, ("1", "2", "3", "4")))
    assert isinstance(sound, Validated)
    pairs = list(zip(sound.inputs, sound.outputs, strict=True))
    answers = [f"def f(x): return ['{word}', x] # {number}" for number in range(4)]
    assert all(verdict.correct for verdict in asyncio.run(judge.check_programs(pairs, answers)))
    asyncio.run(judge.check_inputs(program, sound.outputs[0], ["2", "3", repr(secret())]))
    for seed, server in enumerate(pool.pids):
        if server:
            assert scan(pool, seed, "1") == []
