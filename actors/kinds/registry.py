"""The registered kinds of tasks: those that installed packages name as entry points of the group `azr.kinds`.

    [project.entry-points."azr.kinds"]
    differ = "mypackage.differ:Differ"

The name is the kind's own (`TaskKind.name`), the object its class. azr registers deduction, abduction and induction in
the same way. Every process of a run loads the kinds by itself, so a package with a kind has to be installed on every
node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from actors.kinds.kind import TaskKind
from executor.tasks import Task
from executor.user_error import UserError
from learner.trajectory import KIND_NAME

GROUP = "azr.kinds"
_registered: dict[str, TaskKind] = {}


class KindError(UserError):
    """A kind of task that is not registered, or cannot be; the message says what to do."""


def kinds() -> tuple[TaskKind, ...]:
    """All kinds, in the order of `TaskKind.position`. Raises KindError where there are none, or for an entry point that
    cannot be used."""
    if not _registered:
        for point in entry_points(group=GROUP):
            _add(_load(point))
    if not _registered:
        raise KindError(
            f"no kind of task is registered: azr is not installed here, or its installation is older than its code and "
            f"has no entry points of the group {GROUP}. Install it again (`make setup`, or `pip install -e .` in its "
            "folder)"
        )
    return tuple(sorted(_registered.values(), key=lambda kind: (kind.position, kind.name)))


def names() -> tuple[str, ...]:
    """The names of all kinds, in the same order."""
    return tuple(kind.name for kind in kinds())


def kind_of(name: str) -> TaskKind:
    """The kind called `name`; raises KindError, which lists the registered kinds."""
    everything = kinds()
    if name not in _registered:
        raise KindError(
            f"{name[:40]!r} is no registered kind of task; there are {', '.join(kind.name for kind in everything)}. "
            f"A package registers one as an entry point of the group {GROUP} (docs/extending.md)"
        )
    return _registered[name]


def forms_of(task: Task) -> list[Task]:
    """The tasks that a triplet gives, one of each kind that starts from triplets; `task` itself where it is none."""
    if kind_of(task.kind).from_triplet(task) is None:
        return [task]
    return [form for kind in kinds() if (form := kind.from_triplet(task)) is not None]


@contextmanager
def registered(kind: TaskKind) -> Iterator[None]:
    """Register `kind` in this process while the block runs, for tests of a kind whose package is not installed."""
    kinds()
    _add(kind)
    try:
        yield
    finally:
        del _registered[kind.name]


def _load(point: EntryPoint) -> TaskKind:
    try:
        kind = point.load()()
    except Exception as error:
        raise KindError(
            f"the kind of task {point.name!r} ({GROUP}: {point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(kind, TaskKind) or kind.name != point.name:
        raise KindError(f"{point.value} ({GROUP}) is not the class of a TaskKind called {point.name!r}")
    return kind


def _add(kind: TaskKind) -> None:
    if not KIND_NAME.fullmatch(kind.name):
        raise KindError(
            f"{kind.name[:80]!r} cannot name a kind of task: a lower-case letter, then at most 39 letters, digits, "
            "_ or -"
        )
    if kind.name in _registered:
        raise KindError(f"two kinds of task are called {kind.name!r}: uninstall one of their packages, or rename one")
    _registered[kind.name] = kind
