"""The comparison of weights, over a Ray that the test answers for."""

from __future__ import annotations

from typing import Any

import ray

from launch.cluster import verify
from tests.unit.launch.cluster.fake_ray import Clock, FakeRay

ONE, TWO = {"a": "1", "b": "1"}, {"a": "2", "b": "1"}


class Compared:
    """A learner and actors that answer when the test says so."""

    def __init__(self, actors: int) -> None:
        self.ray = FakeRay()
        self.clock = Clock()
        handles = {f"rollout{i}": f"rollout{i}" for i in range(actors)}
        self.verification = verify.WeightComparison(self.ray, "learner", handles, 60.0, self.clock)

    def answer(self, who: str, answer: Any) -> None:
        """Answer what `who` was asked last, and look at it."""
        self.ray.answer_latest(f"{who}.{'digests' if who == 'learner' else 'checksums'}", answer)
        self.verification.poll()

    def asks(self, *actors: int) -> int:
        return sum(self.ray.count(f"rollout{actor}", "checksums") for actor in actors)


def test_engines_are_compared_at_the_version_that_they_run() -> None:
    compared = Compared(3)
    compared.verification.poll()
    assert compared.asks(0, 1, 2) == 0, "there is nothing to compare with yet"
    compared.answer("learner", {4: ONE})
    assert compared.asks(0, 1, 2) == 3
    compared.answer("rollout0", (4, ONE))
    compared.answer("rollout1", (5, TWO))  # it has gone on: it waits for the learner's digests
    compared.answer("rollout2", (3, {}))  # asked too early: asked again
    assert not compared.verification.done
    assert (compared.asks(1), compared.asks(2)) == (1, 2)
    compared.answer("rollout2", (4, {"a": "1"}))
    compared.answer("learner", {4: ONE, 5: TWO})
    assert compared.verification.done
    lines, equal = verify.sentences(compared.verification.results)
    assert not equal
    assert lines == [
        "rollout0 equals the learner in all 2 tensors at version 4",
        "rollout1 equals the learner in all 2 tensors at version 5",
        "rollout2 DIFFERS from the learner in 1 of 2 tensors at version 4: b",
    ]


def test_who_does_not_answer_is_named() -> None:
    compared = Compared(3)
    compared.answer("learner", {4: ONE})
    compared.answer("rollout0", (4, ONE))
    compared.answer("rollout1", ray.exceptions.ActorDiedError())
    compared.clock.now += 61
    compared.verification.poll()
    lines, equal = verify.sentences(compared.verification.report()["results"])
    assert compared.verification.done and not equal
    assert "rollout1 was not compared: it gave no digests" in lines[1]
    assert lines[2] == "rollout2 was not compared: no answer within 60 s from rollout2"


def test_a_learner_that_ends_meanwhile_is_said() -> None:
    compared = Compared(1)
    compared.answer("learner", ray.exceptions.ActorDiedError())
    assert verify.sentences(compared.verification.results) == (
        ["rollout0 was not compared: the learner ended; it starts again from its last checkpoint: ask again then"],
        False,
    )


def test_nobody_to_compare_with_is_no_success() -> None:
    compared = Compared(0)
    assert compared.verification.done
    assert not verify.sentences(compared.verification.results)[1]
