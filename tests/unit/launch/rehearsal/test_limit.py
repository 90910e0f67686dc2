"""The words on what set the pace of a rehearsal: whose time it was, on these figures."""

from __future__ import annotations

from typing import Any

import pytest

from launch.rehearsal.limit import limit_of

SHARES = {"learner": 0.15, "learner/sockets": 0.05, "buffer": 0.1, "driver": 0.02, "control_plane": 0.3}
IDLE = SHARES | {"actors": 0.3, "receivers": 0.1, "machine": 0.8}


def figures(step_s: float, shares: dict[str, float], wait: float = 0.0, publish_s: float = 0.0) -> dict[str, Any]:
    return {
        "actors": 1000,
        "cores": 2,
        "step_s": step_s,
        "train_s": 20.0,
        "wait_for_batch_share": wait,
        "publish_s": {"ready_s": publish_s / 2, "transfer_s": publish_s / 2},
        "cpu_share": shares,
    }


@pytest.mark.parametrize(
    ("found", "begins"),
    [
        (figures(20.6, IDLE | {"machine": 2.0}), "the training step"),
        (figures(30.0, IDLE | {"buffer": 0.95}), "the control plane: the task buffer's process takes 95%"),
        (figures(30.0, IDLE | {"learner": 0.9}), "the control plane: the learner's process takes 85%"),
        (
            figures(30.0, IDLE | {"actors": 1.2, "machine": 1.9}),
            "this machine, not the control plane: the simulated actors take 1.3 of 2 cores",
        ),
        (figures(30.0, IDLE | {"machine": 2.0}), "other work on this machine, which takes 1.3 of 2 cores"),
        (figures(30.0, IDLE, wait=0.3), "the engines: the learner waits for batches, 9.0 s a step"),
        (figures(30.0, IDLE, publish_s=8.0), "the broadcast of the weights, whose 1000 receivers share this machine"),
        (figures(30.0, IDLE), "what the learner does between steps"),
        (figures(30.0, {"control_plane": 0.0}, publish_s=8.0), "the broadcast of the weights"),
    ],
)
def test_the_limit_is_named_by_whose_time_it_was(found: dict[str, Any], begins: str) -> None:
    assert limit_of(found).startswith(begins)
