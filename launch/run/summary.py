"""The end of a run: what it learned, how fast, and whether every slot is accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from actors.kinds.registry import names
from launch.run.folder import RunFolder
from learner.ledger import CellCounts, conserved, verdict
from learner.trajectory import Cell

_BARS = "▁▂▃▄▅▆▇█"
COLLAPSED = 0.5
"""Share of proposals from which on the summary warns."""


def summarise(folder: RunFolder, ledger: Mapping[Cell, CellCounts], stopped: str = "") -> int:
    """Print the closing summary; returns the run's exit code: 1 where the ledger is violated or nothing was trained."""
    terminal = Terminal(highlight=False, width=120)
    rows = folder.read_metrics()
    if stopped:
        terminal.print(f"stopped: {stopped}", markup=False)
    if rows:
        terminal.print(learning_table(rows))
        for warning in warnings(rows):
            terminal.print(warning, markup=False)
        terminal.print(_speed(rows), markup=False)
    newest = sorted(folder.checkpoints.glob("step_*"))
    terminal.print(f"run folder    {folder.path}  (metrics.jsonl, tasks.sqlite, trajectories/, logs/)", markup=False)
    terminal.print(f"tensorboard   tensorboard --logdir {folder.tensorboard}", markup=False)
    if newest:
        terminal.print(f"checkpoint    {newest[-1]}  (hf/ loads in transformers and vLLM)", markup=False)
        terminal.print(f"go on         azr train --resume {folder.path} learner.steps=N", markup=False)
    terminal.print(verdict(ledger), markup=False)
    return 0 if conserved(ledger) and rows else 1


def learning_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """First, last and curve of each rate, with 3-step means at the ends; held-out measurements as they are.

    A solve rate rises as well when the tasks become trivial. So beside it stand how much is solved of tasks that stay
    what they are (held-out), and how many proposals ignore their input or repeat what the buffer has.
    """
    table = Table(title=f"{len(rows)} steps in {rows[-1]['time_s']:.0f} s")
    for heading in ("", "first", "last", "curve (one bar a step, 0 to 100%)"):
        table.add_column(heading)
    for label, prefix, window in _LINES:
        for name in (*names(), "mean"):
            values = [row.get(f"{prefix}/{name}") for row in rows]
            known = [value for value in values if value is not None]
            if known:
                first, last = _average(known[:window]), _average(known[-window:])
                table.add_row(f"{label}, {name}", f"{first:.0%}", f"{last:.0%}", sparkline(values))
    return table


_LINES = (
    ("valid proposals", "valid_rate", 3),
    ("solved", "solve_rate", 3),
    ("solved, own tasks", "solve_rate_fresh", 3),
    ("solved, held-out", "heldout", 1),
    ("ignore their input", "ignores_input", 3),
    ("known already", "duplicates", 3),
)
"""Label, metric, and how many values an end's mean is over."""


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings below the table, of proposals that ended as constants or repetitions."""
    found = []
    for prefix, words in (("ignores_input", "ignore their input"), ("duplicates", "are in the buffer already")):
        for kind in names():
            known = [row[f"{prefix}/{kind}"] for row in rows if f"{prefix}/{kind}" in row][-3:]
            if known and _average(known) >= COLLAPSED:
                found.append(
                    f"collapse?     {_average(known):.0%} of the last {kind} proposals that ran {words}: their solve rate says "
                    "little. What holds against it: docs/selfplay.md"
                )
    return found


def sparkline(values: Sequence[float | None]) -> str:
    """One character a value in 0..1; a dot where there is none."""
    return "".join("·" if v is None else _BARS[min(len(_BARS) - 1, int(v * len(_BARS)))] for v in values)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    seconds = rows[-1]["time_s"]
    trained = sum(row["tokens_in_batch"] for row in rows)
    busy = sum(row["train_s"] for row in rows)
    mismatch = [row["logprob_mismatch"] for row in rows if "logprob_mismatch" in row]
    generated = sum(row.get("tokens_generated_step", 0) for row in rows)
    return (
        f"speed         generated {generated / seconds:.0f} tokens/s over the run; trained {trained / seconds:.0f} tokens/s over the run, "
        f"{trained / busy:.0f} tokens/s while training (prompts shared)\n"
        f"ages          mean {sum(r['age_mean'] for r in rows) / len(rows):.2f}, max {max(r['age_max'] for r in rows):.0f} versions\n"
        f"waits         learner for batches {sum(r['wait_for_batch_s'] for r in rows):.0f} s, actors for the policy "
        f"{sum(r.get('wait_for_policy_s', 0) for r in rows):.0f} s\n"
        f"engine = learner?  mean |difference| of log-probabilities at equal version: "
        + (
            f"{sum(mismatch) / len(mismatch):.4f} ({len(mismatch)} of {len(rows)} steps measured)"
            if mismatch
            else "not measured"
        )
    )
