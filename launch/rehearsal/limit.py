"""What set the pace of a rehearsal, in words: the learner's steps, the engines, the control plane, or this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = 1.05
"""Time of a step over that of its training up to which nothing but the training counts as the limit."""
FULL = 0.8
"""Share of its core from which on a process counts as a limit: requests to it queue up."""
CROWDED = 0.85
"""Share of the machine's cores from which on these count as the limit."""

_PROCESSES = {
    "learner": "the learner's process",
    "learner/sockets": "ZeroMQ's thread of the learner",
    "buffer": "the task buffer's process",
    "driver": "the driver",
}
"""Parts that have at most one core, however many the machine has."""


def limit_of(found: Mapping[str, Any]) -> str:
    """A sentence on the limit of the rehearsal that `describe_rehearsal` found."""
    shares, cores = found["cpu_share"], found["cores"]
    pace = f"a step takes {found['step_s']:.1f} s, of them training {found['train_s']:.1f} s"
    if found["step_s"] <= KEPT * found["train_s"]:
        return f"the training step: {pace}; control plane and actors keep up"
    full = {part: _own(shares, part) for part in _PROCESSES if _own(shares, part) >= FULL}
    if full:
        part = max(full, key=lambda name: full[name])
        return f"the control plane: {_PROCESSES[part]} takes {full[part]:.0%} of a core, as it would in the run; {pace}"
    simulated = shares.get("actors", 0.0) + shares.get("receivers", 0.0)
    if shares.get("machine", 0.0) >= CROWDED * cores:
        others = max(0.0, shares["machine"] - simulated - shares["control_plane"])
        if others > simulated:
            return f"other work on this machine, which takes {others:.1f} of {cores} cores; {pace}"
        return (
            f"this machine, not the control plane: the simulated actors take {simulated:.1f} of {cores} cores, which "
            f"in a run are on other machines; {pace}. Rehearse with fewer actors, or on more cores"
        )
    spent = {
        "the engines: the learner waits for batches": found["wait_for_batch_share"] * found["step_s"],
        f"the broadcast of the weights, whose {found['actors']} receivers share this machine": sum(
            found["publish_s"].values()
        ),
    }
    spent["what the learner does between steps, such as records and checkpoints"] = (
        found["step_s"] - found["train_s"] - sum(spent.values())
    )
    what = max(spent, key=lambda name: spent[name])
    return f"{what}, {spent[what]:.1f} s a step; {pace}"


def _own(shares: Mapping[str, float], part: str) -> float:
    """CPU of a part that can have one core only: of the learner, without the threads of libraries."""
    apart = ("learner/sockets", "learner/broadcast") if part == "learner" else ()
    return shares.get(part, 0.0) - sum(shares.get(name, 0.0) for name in apart)
