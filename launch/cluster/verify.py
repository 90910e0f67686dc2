"""Do the engines run what the learner has? Asked while a run goes on (`azr verify`), answered by digests of every tensor.

The learner takes its digests between a publication and the next training step, an engine takes its own when it is asked. Both
say which version they are of, and only equal versions are compared: an engine that has gone on meanwhile waits for the
learner's digests of what it runs, and one that was asked too early is asked again. So nothing in the run has to stand still.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray


def differences(learned: Mapping[str, str], running: Mapping[str, str]) -> list[str]:
    """The names of the learner's tensors whose digest is another one in the engine, or missing there."""
    return [name for name, digest in learned.items() if running.get(name) != digest]


class Verification:
    """One comparison of all actors with the learner. Never blocks: `poll` it. Belongs to one thread."""

    def __init__(self, learner: Any, actors: Mapping[str, Any], timeout_s: float) -> None:
        """`learner`: Ray's handle of rank 0; `actors`: name -> Ray's handle, of those that have joined. After `timeout_s`
        whoever has not answered is named."""
        self.results: dict[str, dict[str, Any]] = {}
        """Actor -> `version`, `tensors` (how many were compared) and `different` (names); or `error`."""
        self._learner = learner
        self._actors = dict(actors)
        self._answers: dict[str, tuple[int, dict[str, str]]] = {}
        self._asked: dict[str, Any] = {}
        self._learned: dict[int, dict[str, str]] = {}
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        learner.take_digests.remote()
        self._asked_learner: Any = learner.digests.remote()

    def poll(self) -> None:
        """Take what has come, and ask for what is missing."""
        if self.done:
            return
        if time.monotonic() > self._deadline:
            self._fail(f"no answer within {self._timeout_s:.0f} s from {self.waits_for()}")
            return
        if _ready(self._asked_learner):
            try:
                self._learned = ray.get(self._asked_learner)
            except ray.exceptions.RayError:
                self._fail("the learner ended; it starts again from its last checkpoint: ask again then")
                return
            self._asked_learner = self._learner.digests.remote()
        for actor, handle in self._actors.items():
            if self._learned and actor not in self.results:
                self._follow(actor, handle)

    @property
    def done(self) -> bool:
        """Whether there is a result for every actor."""
        return self.results.keys() == self._actors.keys()

    def report(self) -> dict[str, Any]:
        """As far as it has come: `done`, `waits_for` and `results`; plain data."""
        return {"done": self.done, "waits_for": self.waits_for(), "results": self.results}

    def waits_for(self) -> str:
        """Who has not answered yet."""
        if not self._learned:
            return "the learner's next publication"
        return ", ".join(sorted(self._actors.keys() - self.results.keys()))

    def _follow(self, actor: str, handle: Any) -> None:
        if actor in self._asked and _ready(self._asked[actor]):
            try:
                self._answers[actor] = ray.get(self._asked.pop(actor))
            except ray.exceptions.RayError as error:
                self.results[actor] = {"error": f"it gave no digests: {str(error).strip().splitlines()[-1]}"}
                return
        version, running = self._answers.get(actor, (-1, {}))
        if version in self._learned:
            learned = self._learned[version]
            different = differences(learned, running)
            self.results[actor] = {"version": version, "tensors": len(learned), "different": different}
        elif version < max(self._learned) and actor not in self._asked:
            self._asked[actor] = handle.checksums.remote()

    def _fail(self, why: str) -> None:
        for actor in self._actors.keys() - self.results.keys():
            self.results[actor] = {"error": why}


def sentences(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], bool]:
    """A line for each actor, and whether all are equal. Nobody compared is no success."""
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


def _ready(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])
