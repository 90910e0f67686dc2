"""The closing table of a rehearsal: what an operator asks of a launch before it costs anything."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from rich.console import Console as Terminal
from rich.table import Table

from launch.config import Config
from launch.rehearsal.kills import Kill
from launch.rehearsal.limit import limit_of
from launch.run.folder import RunFolder

CONTROL_PLANE = ("learner", "buffer", "driver", "ray")
"""Parts of `CpuSamples.shares` that a real run has as well, apart from its work with a model."""
_PHASES = ("weights/connect_s", "weights/ready_s", "weights/prepare_s", "weights/transfer_s", "weights/wait_loaded_s")


def describe_rehearsal(
    config: Config, folder: RunFolder, shares: Mapping[str, float], kills: Sequence[Kill]
) -> dict[str, Any]:
    """The figures of a finished rehearsal, as plain data. `shares`: of one core, by part (`CpuSamples.shares`)."""
    rows, events = folder.read_metrics(), folder.read_events()
    began = next((e["time"] for e in reversed(events) if e["event"] in ("run_started", "run_resumed")), 0.0)
    joined: dict[str, float] = {}
    for event in events:
        if event["event"] == "actor_joined" and event["time"] >= began:
            joined.setdefault(event["actor"], event["time"] - began)
    times = sorted(joined.values())
    steady = rows[1:] or rows
    if not steady:
        return {"actors": config.actors.num_actors, "time_scale": config.rehearsal.time_scale, "steps": 0}
    seconds = sum(row["step_s"] for row in steady) or 1.0
    found = {
        "actors": config.actors.num_actors,
        "time_scale": config.rehearsal.time_scale,
        "cores": psutil.cpu_count() or 1,
        "steps": len(rows),
        "connected": len(times),
        "connected_s": {"first": times[0], "half": times[len(times) // 2], "last": times[-1]} if times else {},
        "trajectories_per_s": sum(row["batch_size"] for row in steady) / seconds,
        "trained_tokens_per_s": sum(row["tokens_in_batch"] for row in steady) / seconds,
        "step_s": statistics.median(row["step_s"] for row in steady),
        "step_s_max": max(row["step_s"] for row in steady),
        "train_s": statistics.median(row["train_s"] for row in steady),
        "wait_for_batch_share": sum(row["wait_for_batch_s"] for row in steady) / seconds,
        "age_mean": statistics.fmean(row["age_mean"] for row in steady),
        "age_max": max(row["age_max"] for row in steady),
        "publish_s": {
            name.partition("/")[2]: statistics.median(row.get(name, 0.0) for row in steady) for name in _PHASES
        },
        "publish_s_max": max(sum(row.get(name, 0.0) for name in _PHASES) for row in steady),
        "cpu_share": dict(shares) | {"control_plane": sum(shares.get(part, 0.0) for part in CONTROL_PLANE)},
        "kills": [kill.describe() for kill in kills],
        "stream_lost": rows[-1].get("stream/lost", 0.0),
        "ledger_dropped": rows[-1].get("ledger/dropped", 0.0),
    }
    return found | {"limit": limit_of(found)}


def print_rehearsal(found: Mapping[str, Any]) -> None:
    """Print the figures of `describe_rehearsal` as a table."""
    scale = found["time_scale"]
    title = f"rehearsal: {found['actors']} actors, {found['steps']} steps"
    table = Table(title=title + (f", {scale:g} times as fast as the run" if scale != 1 else ""), show_header=False)
    for question, answer in _lines(found):
        table.add_row(question, answer)
    Terminal(highlight=False).print(table)


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found["steps"]:
        return [("steps", "none was taken: see the messages above")]
    when = found["connected_s"]
    connected = f"{found['connected']} of {found['actors']}"
    if when:
        connected += f", half after {when['half']:.1f} s, the last after {when['last']:.1f} s (since the start)"
    publish = ", ".join(f"{name.removesuffix('_s')} {seconds:.2f} s" for name, seconds in found["publish_s"].items())
    share = found["cpu_share"]
    lines = [
        ("did all actors connect?", connected),
        ("was the learner fed?", f"it waited for batches {found['wait_for_batch_share']:.1%} of its time"),
        (
            "how fast?",
            f"{found['step_s']:.2f} s a step (longest {found['step_s_max']:.2f} s, training {found['train_s']:.2f} s), "
            f"{found['trajectories_per_s']:.1f} trajectories/s",
        ),
        ("how old?", f"age mean {found['age_mean']:.2f}, max {found['age_max']:.0f} versions"),
        ("a publish (median)", publish),
        ("the longest publish", f"{found['publish_s_max']:.2f} s"),
    ]
    if "learner" in share:
        learner = ", ".join(
            f"{name} {share.get(f'learner/{name}', 0.0):.1%}"
            for name in ("stream", "sockets", "broadcast", "publishing", "recording", "saving")
            if f"learner/{name}" in share
        )
        lines += [
            ("CPU of the control plane", f"{share['control_plane']:.1%} of one core"),
            ("  learner", f"{share['learner']:.1%}: {learner}"),
            ("  task buffer", f"{share.get('buffer', 0.0):.1%}"),
            ("  driver, Ray", f"{share.get('driver', 0.0):.1%}, {share.get('ray', 0.0):.1%}"),
            (
                "CPU of simulated actors",
                f"{share.get('actors', 0.0):.1%}, and {share.get('receivers', 0.0):.1%} to receive weights (on other "
                "machines in a run)",
            ),
            ("CPU of this machine", f"{share.get('machine', 0.0):.1%} of {found['cores']} cores of 100%"),
        ]
    lines.append(("what set the pace?", found["limit"]))
    lines += [("kill", text) for text in found["kills"]]
    lines.append(("lost and dropped", f"{found['stream_lost']:.0f} actors, {found['ledger_dropped']:.0f} slots"))
    return lines
