"""Sandboxes that the tests of this folder share: starting one takes longer than most tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from executor.judge import Judge
from executor.outcomes import Outcome
from executor.pool import SerialPool
from executor.settings import ExecutorSettings

Run = Callable[..., list[Outcome]]


@pytest.fixture(scope="session")
def settings() -> ExecutorSettings:
    return ExecutorSettings(timeout_s=0.5, memory_mb=64)


@pytest.fixture(scope="session")
def serial_pool(settings: ExecutorSettings) -> Iterator[SerialPool]:
    pool = SerialPool(settings)
    asyncio.run(pool.start())
    yield pool
    asyncio.run(pool.close())


@pytest.fixture(scope="session")
def wall_pool(settings: ExecutorSettings) -> Iterator[SerialPool]:
    """Sandboxes without the policy: only the wall is left."""
    pool = SerialPool(settings, gate=False)
    asyncio.run(pool.start())
    yield pool
    asyncio.run(pool.close())


@pytest.fixture
def run(serial_pool: SerialPool) -> Run:
    """`run(program, *inputs)`: the outcomes, policy on."""
    return lambda program, *inputs: asyncio.run(serial_pool.execute(program, inputs))


@pytest.fixture
def judge(serial_pool: SerialPool, settings: ExecutorSettings) -> Judge:
    return Judge(serial_pool, settings)
