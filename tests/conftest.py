"""What holds for every test: few threads, hypothesis without deadlines, the longest files first; shared fixtures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import tests.examples  # noqa: F401  (registers the profiles)
from executor.signals import SIGNALS

if TYPE_CHECKING:
    from actors.buffer.task_buffer import TaskBuffer
    from actors.environment import Environment

settings.load_profile("fast")

# Before torch is imported. Test models are tiny: more threads cost more than they give, and threads that spin at a
# barrier take the core from the one that they wait for. What needs more sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """A command that a test calls leaves its process deaf to signals, as one that is about to exit; an engine in this
    process sets variables, such as one that turns torch.compile off. Neither may reach the next test."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    variables = dict(os.environ)
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    for name in os.environ.keys() - variables.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(variables)


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    """The environment of self-play with its rules as they are, on a sandbox that the tests of a file share."""
    from tests.unit.actors.scripted import judging

    with judging() as environment:
        yield environment


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskBuffer]:
    """A buffer with the zero triplet."""
    from tests.unit.actors.scripted import new_store

    store = new_store(tmp_path)
    yield store
    store.close()


LONGEST = ("integration", "slurm", "model", "weights", "commands", "executor", "stream")
"""Folders whose files take longest: whole runs, SLURM jobs, ranks of Megatron, dying processes, sandboxes, sockets."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: with several workers, each of which takes whole files, none is left for the end."""

    def place(path: Path) -> int:
        return LONGEST.index(path.parent.name) if path.parent.name in LONGEST else len(LONGEST)

    items.sort(key=lambda item: place(item.path))
