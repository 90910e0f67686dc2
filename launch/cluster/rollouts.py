"""What the supervisor knows of the rollout actors: which lives there are, which are due, and how often each may still fail."""

from __future__ import annotations

from typing import Any

from launch.cluster.budget import FailureBudget
from launch.config import Config
from launch.run.folder import RunFolder


class Rollouts:
    """The rollout actors: as many as wanted, each in some incarnation of its life."""

    def __init__(self, config: Config, folder: RunFolder, resume: bool) -> None:
        self.wanted = config.actors.num_actors
        self.handles: dict[int, Any] = {}
        self.playing: dict[Any, int] = {}
        """Ray's reference to the run of an actor -> its index."""
        self.results: dict[str, dict[str, str]] = {}
        self.again: dict[int, float] = {}
        """Index -> when (monotonic seconds) to start it again."""
        self.seen: dict[int, float] = {}
        """Index -> when the learner last had it among its members, with its weights; or its start."""
        self.joined: set[int] = set()
        """Those in `handles` that the learner has had among its members."""
        self.leaving: set[int] = set()
        """Too many: to end when they hold nothing."""
        self.moving: set[int] = set()
        """Ended to start again at the learner's new endpoint."""
        self._budgets: dict[int, FailureBudget] = {}
        self._config = config.actors
        # A resumed run's actors are new lives: their numbers must not repeat those of the checkpoint's.
        logs = folder.logs.glob("rollout*.log") if resume else ()
        self._next = 1 + max((int(path.stem.rsplit(".", 1)[-1]) for path in logs), default=-1)
        self.incarnations: dict[int, int] = {}

    def next_incarnation(self, index: int) -> int:
        """Take the number of the life that begins."""
        self.incarnations[index] = self.incarnations.get(index, self._next - 1) + 1
        return self.incarnations[index]

    def budget(self, index: int) -> FailureBudget:
        """How often this actor may still fail."""
        return self._budgets.setdefault(index, FailureBudget(self._config.max_restarts, self._config.restart_window_s))

    @property
    def restarts(self) -> int:
        """Failures of all actors so far."""
        return sum(budget.total for budget in self._budgets.values())
