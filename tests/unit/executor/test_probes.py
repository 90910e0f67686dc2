"""The project's own attacks, each as a proposal would be run: what they try must not happen, and nobody else may
notice.

Attacks on the wall run with the policy off; the policy's own, with it on. Not exercised here: the attacks in random
order, many times, and what they leave behind (`tests/integration/test_executor_stress.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Validated
from tests.unit.executor.attacks import ATTACKS, MARK, Attack, attempt


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.slow
def test_attack(attack: Attack, wall_pool: SerialPool, serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    pool = serial_pool if attack.gate else wall_pool
    before = pool.stats.replaced
    complaint = asyncio.run(attempt(Judge(pool, settings), attack))
    assert not complaint
    assert pool.stats.replaced == before, "a fork server died"
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "."):
        assert not [name for name in os.listdir(folder) if MARK in name]


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    assert len(ATTACKS) >= 80
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


_LEAKS = {
    "a global": "n = 0\ndef f(x):\n global n\n n += 1\n return [x, n]",
    "a class": "class A: n = 0\ndef f(x):\n A.n += 1\n return [x, A.n]",
    "a default": "def f(x, seen=[]):\n seen.append(x)\n return seen",
    "a module": "import math\ndef f(x):\n math.seen = getattr(math, 'seen', 0) + 1\n return [x, math.seen]",
    "a type of a module": "import collections\ndef f(x):\n c = collections.OrderedDict\n try: c.seen = x\n"
    " except TypeError: return 'closed'\n return c.seen",
    "a type's attribute": "import fractions\ndef f(x):\n c = fractions.Fraction\n c.seen = getattr(c, 'seen', 0) + 1\n"
    " return [x, c.seen]",
    "a function's attribute": "import functools\ndef f(x):\n r = functools.wraps\n r.seen = getattr(r, 'seen', 0) + 1\n"
    " return [x, r.seen]",
    "a context": "import decimal\ndef f(x):\n c = decimal.getcontext()\n c.prec += 1\n return [x, c.prec]",
    "a registry": "import abc, numbers\ndef f(x):\n was = isinstance('', numbers.Number)\n"
    " numbers.Number.register(str)\n return [x, was]",
    "a cache": "import re\ndef f(x):\n p = re.compile('a(b)')\n return [x, p is re.compile('a(b)')]",
    "a class of data": "import dataclasses\ndef f(x):\n m = dataclasses.MISSING\n t = type(m)\n"
    " t.n = getattr(t, 'n', 0) + 1\n return [x, t.n]",
    "a mutable constant": "import string\ndef f(x):\n t = string.Template\n t.flags += 1\n return [x, int(t.flags)]",
    "an array that is not cleared": "import array\ndef f(x): return [x, sum(array.array('b', bytes(100)))]",
}  # fmt: skip


@pytest.mark.parametrize("name", _LEAKS)
def test_inputs_do_not_hear_of_each_other(name: str, judge: Judge) -> None:
    """Either every input gives what it gives alone, or the program is refused for not agreeing with itself.

    Never a task whose outputs depend on the order in which its inputs were asked.
    """
    program, inputs = _LEAKS[name], ("1", "2", "3")
    found = asyncio.run(judge.validate(program, inputs))
    alone = [asyncio.run(judge.determine(program, given)).value for given in inputs]
    if isinstance(found, Validated):
        assert list(found.outputs) == alone
    else:
        assert found.reason.value in {"nondeterministic", "unsafe", "error"}


@pytest.fixture(scope="module")
def servers(settings: ExecutorSettings) -> Iterator[SerialPool]:
    pool = SerialPool(settings.model_copy(update={"workers": 8}))
    asyncio.run(pool.start())
    yield pool
    asyncio.run(pool.close())


@pytest.mark.parametrize(
    "expression",
    [
        "id(type('A', (), {})) % 4096",
        "repr(lambda: 1)[-4:]",
        "id(10**20) % 4096",
        "id('x' * 600) % 4096",
        "id(2**3000) % 4096",
        "id([0] * 100_000) & 15",
        "repr(i for i in 'a')[-4:]",
        "hash([].append) % 256",
        "object.__repr__('x' * 600)[-4:]",
        "id([1, 2]) % 4096",
        "hash(object()) % 256",
        "id([]) % 4096",
        "repr([(lambda: 1) for _ in 'abc'][2])[-4:]",
        *(f"object.__repr__(bytes({size}))[-4:]" for size in range(15, 480, 16)),
    ],
)
def test_addresses_differ_between_sandboxes(expression: str, servers: SerialPool) -> None:
    """In their last digits too, which the kernel's randomisation leaves alone, for objects of each size that CPython's
    own allocator serves. Eight sandboxes: four would all have the same ones in one case of 256, by chance."""
    program = f"def f(x): return {expression}"
    runs = [asyncio.run(servers.execute(program, ["1"], worker)) for worker in range(8)]
    assert len({outcomes[0].value for outcomes in runs}) > 1
