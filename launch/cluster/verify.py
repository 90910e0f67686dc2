"""Compares the weights of every engine with the learner's, by digests, while the run goes on (`azr verify`).

The learner takes its digests between a publication and the next training step; an engine takes its own when it is
asked. Both name their version, and only equal versions are compared. An engine that is ahead is compared when the
learner's digests of its version come; an engine that is behind is asked again. So nothing in the run is held up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from launch.cluster.ray_port import CallFailed, Handle, RayPort, Reference
from learner.lineage import split_label


def differences(learned: Mapping[str, str], running: Mapping[str, str]) -> list[str]:
    """The names of the learner's tensors whose digest differs in the engine, or is missing there."""
    return [name for name, digest in learned.items() if running.get(name) != digest]


class WeightComparison:
    """One comparison of all actors with the learner. `poll` drives it and never waits. Belongs to one thread."""

    def __init__(
        self,
        port: RayPort,
        learner: Handle,
        actors: Mapping[str, Handle],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`learner`: rank 0; `actors`: those that have joined, by name. Actors that have not answered within
        `timeout_s` get an error as their result."""
        self._port = port
        self._clock = clock
        self.results: dict[str, dict[str, Any]] = {}
        """Actor -> `version`, `tensors` (how many were compared) and `different` (names); or `error`."""
        self._learner = learner
        self._actors = dict(actors)
        self._answers: dict[str, tuple[int, dict[str, str]]] = {}
        self._asked: dict[str, Reference] = {}
        self._learned: dict[int, dict[str, str]] = {}
        self._timeout_s = timeout_s
        self._deadline = clock() + timeout_s
        port.call(learner, "take_digests")
        self._asked_learner = port.call(learner, "digests")

    def poll(self) -> None:
        """Take the digests that have come, and ask for the missing ones."""
        if self.done:
            return
        if self._clock() > self._deadline:
            self._fail(f"no answer within {self._timeout_s:.0f} s from {self.waits_for()}")
            return
        if self._port.finished([self._asked_learner]):
            try:
                self._learned = self._port.result(self._asked_learner)
            except CallFailed:
                self._fail("the learner ended; it starts again from its last checkpoint: ask again then")
                return
            self._asked_learner = self._port.call(self._learner, "digests")
        for actor, handle in self._actors.items():
            if self._learned and actor not in self.results:
                self._follow(actor, handle)

    @property
    def done(self) -> bool:
        """Whether there is a result for every actor."""
        return self.results.keys() == self._actors.keys()

    def report(self) -> dict[str, Any]:
        """Its state so far, as plain data: `done`, `waits_for` and `results`."""
        return {"done": self.done, "waits_for": self.waits_for(), "results": self.results}

    def waits_for(self) -> str:
        """The processes that have not answered yet, in words."""
        if not self._learned:
            return "the learner's next publication"
        return ", ".join(sorted(self._actors.keys() - self.results.keys()))

    def _follow(self, actor: str, handle: Handle) -> None:
        if actor in self._asked and self._port.finished([self._asked[actor]]):
            try:
                self._answers[actor] = self._port.result(self._asked.pop(actor))
            except CallFailed as error:
                self.results[actor] = {"error": f"it gave no digests: {error}"}
                return
        version, running = self._answers.get(actor, (-1, {}))  # labels, which tell apart what a restart made anew
        if version in self._learned:
            learned = self._learned[version]
            different = differences(learned, running)
            self.results[actor] = {"version": split_label(version)[0], "tensors": len(learned), "different": different}
        elif version < max(self._learned) and actor not in self._asked:
            self._asked[actor] = self._port.call(handle, "checksums")

    def _fail(self, why: str) -> None:
        for actor in self._actors.keys() - self.results.keys():
            self.results[actor] = {"error": why}


def sentences(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], bool]:
    """A line for each actor, and whether all are equal; False if no actor was compared."""
    lines = []
    equal = bool(results)
    for actor, found in sorted(results.items()):
        different = found.get("different")
        equal &= different == []
        if different is None:
            lines.append(f"{actor} was not compared: {found['error']}")
        elif different:
            lines.append(
                f"{actor} DIFFERS from the learner in {len(different)} of {found['tensors']} tensors at version "
                f"{found['version']}: {', '.join(different[:3])}"
            )
        else:
            lines.append(f"{actor} equals the learner in all {found['tensors']} tensors at version {found['version']}")
    return lines or ["no rollout actor has joined: there is nothing to compare"], equal
