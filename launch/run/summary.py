"""The end of a run: what it learned, how fast, and whether every slot is accounted for."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from actors.heldout.intervals import Estimate
from actors.heldout.measurement import Measurement, MeasurementError, gain, not_recorded
from actors.kinds.registry import names
from executor.tasks import RejectionReason
from launch.config import Config
from launch.run.console import counted
from launch.run.folder import RunFolder
from launch.run.interrupts import NOTHING_TO_SAVE, SAVED
from launch.run.measurements import both_ends, lacks_last
from launch.standard_streams import lasting
from learner.ledger import CellCounts, conserved, verdict
from learner.trajectory import Cell

_LOG = logging.getLogger(__name__)

_WIDE = 1000
_BARS = "▁▂▃▄▅▆▇█"


def summarise(folder: RunFolder, ledger: Mapping[Cell, CellCounts], stopped: str = "", rehearsed: bool = False) -> int:
    """Print and log the closing summary; returns the run's exit code: 1 where the ledger is violated, or nothing was
    trained or saved. `rehearsed`: leave out what was learned, since outcomes were drawn."""
    # Where no terminal sets a width, lines stay whole.
    output = lasting(sys.stdout)
    terminal = Terminal(file=output, highlight=False, record=True, width=None if output.isatty() else _WIDE)
    rows = folder.read_metrics()
    if stopped:
        terminal.print(f"stopped: {stopped}", markup=False)
    if rows and not rehearsed:
        ends = both_ends(folder)
        terminal.print(headline(ends), markup=False)
        warned = warnings(rows)
        if line := diversity_line(rows, bool(warned)):
            terminal.print(line, markup=False)
        terminal.print(learning_table(rows, ends))
        for warning in warned:
            terminal.print(warning, markup=False)
    if rows:
        terminal.print(_speed(rows, rehearsed), markup=False)
    newest = sorted(folder.checkpoints.glob("step_*"))
    terminal.print(f"run folder    {folder.path}  (metrics.jsonl, tasks.sqlite, trajectories/, logs/)", markup=False)
    terminal.print(f"tensorboard   tensorboard --logdir {shlex.quote(str(folder.tensorboard))}", markup=False)
    if newest:
        loads = "  (hf/ loads in transformers and vLLM)" if (newest[-1] / "hf").is_dir() else ""
        terminal.print(f"checkpoint    {newest[-1]}{loads}", markup=False)
        more = "run.max_tokens=N" if stopped.startswith("run.max_tokens") else "learner.steps=N"
        terminal.print(f"go on         azr train --resume {shlex.quote(str(folder.path))} {more}", markup=False)
    terminal.print(verdict(ledger), markup=False)
    _LOG.info(terminal.export_text())
    return 0 if conserved(ledger) and (rows or newest) else 1


def exit_code(config: Config, folder: RunFolder, code: int, stopping: bool, step: int) -> int:
    """The exit code of a run that ended at `step`. `code`: what `summarise` says, or another failure; `stopping`: a
    signal or the time asked it to stop.

    Such a run was stopped early if steps are left, or the measurement of its last version, which a resume makes. A
    measurement that fails by itself leaves nothing to do: it might fail each time.
    """
    if not stopping or (step >= config.learner.steps and not lacks_last(config, folder, step)):
        return code
    if not any(folder.checkpoints.glob("step_*")):
        return NOTHING_TO_SAVE
    return code or SAVED


def learning_table(rows: Sequence[Mapping[str, Any]], heldout: tuple[Measurement, Measurement] | None = None) -> Table:
    """First, last and curve of each rate, with means of up to 3 steps at the ends; held-out measurements as they are.

    `heldout`: the measurements of the first and last version. Of a run that took over the first one, no row has it.

    A solve rate rises as well when the tasks become trivial. So beside it stand how much is solved of tasks that stay
    what they are (held-out), and how many proposals ignore their input or repeat what the buffer has.
    """
    table = Table(title=f"{counted(len(rows), 'step')} in {rows[-1]['time_s']:.0f} s")
    for heading in ("", "first", "last", "curve (one bar a step, 0 to 100%)"):
        table.add_column(heading)
    for label, prefix, window in _LINES:
        for name in (*names(), "mean"):
            values = [row.get(f"{prefix}/{name}") for row in rows]
            known = [value for value in values if value is not None]
            if known:
                size = min(window, max(1, len(known) // 2))  # no step is in both
                first, last = _average(known[:size]), _average(known[-size:])
                if prefix == "heldout" and heldout is not None:
                    ends = (one.rate(None if name == "mean" else name) for one in heldout)
                    first, last = (last if end is None else end.value for end in ends)
                table.add_row(f"{label}, {name}", f"{first:.0%}", f"{last:.0%}", sparkline(values))
    return table


_LINES = (
    ("valid proposals", "valid_rate", 3),
    ("solved", "solve_rate", 3),
    ("solved, own tasks", "solve_rate_fresh", 3),
    ("solved, held-out", "heldout", 1),
    ("ignore their input", "ignores_input", 3),
    ("known tasks", "duplicates", 3),
    ("distinct programs", "distinct_programs", 3),
    ("distinct answers", "distinct_answers", 3),
    ("copy the input", "copies", 3),
)
"""Label, metric, and how many values an end's mean is over."""


def headline(ends: tuple[Measurement, Measurement] | None) -> str:
    """What the run has learned, by the held-out tasks alone: a change is claimed only where it is beyond its interval.

    `ends`: the measurements of its first and last version.
    """
    if ends is None:
        return (
            "held-out      not measured at both ends of the run (selfplay.heldout_every), so nothing is said about "
            "learning"
        )
    first, last = ends
    compared: list[tuple[str, str | None]] = [("mean", None), *((kind, kind) for kind in last.kinds)]
    try:
        changes = {name: gain(first, last, kind) for name, kind in compared}
    except MeasurementError as error:  # settings changed, or the set did, before the run was resumed
        return f"held-out      {error}, so nothing is said about learning"
    total = changes.pop("mean")
    if total is None:
        return "held-out      the first and the last measurement have no task in common, so nothing is said"
    kinds = ", ".join(f"{kind} {points(change)}" for kind, change in changes.items() if change is not None)
    unchecked = f"\n              {lacking}" if (lacking := not_recorded(first, last)) else ""
    before, after = first.rate(), last.rate()
    assert before is not None and after is not None  # there is a task
    return (
        f"held-out      {said(before)} correct at version {first.version}, {said(after)} at version {last.version}: "
        f"{points(total)}, {_VERDICT[(total.low > 0) - (total.high < 0)]}\n"
        f"              {kinds}; {counted(len(last.results), 'task')} x {counted(last.samples, 'sample')}, 95% "
        f"intervals, paired by task{unchecked}"
    )


_VERDICT = {1: "risen beyond its interval", 0: "no change beyond its interval", -1: "FALLEN beyond its interval"}


def said(rate: Estimate) -> str:
    """`7.1% (5.9 to 8.6)`."""
    return f"{rate.value:.1%} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def points(change: Estimate) -> str:
    """`+3.2 points (+1.1 to +5.3)`."""
    return f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


LEAST = 16
"""Least number of proposals or answers that a warning rests on."""
_LIMITS = (
    # metric, cell, warn from, warn up to, words
    ("ignores_input", "propose", 0.5, 1.0, "of the last {count} {kind} proposals ignore their input"),
    ("duplicates", "propose", 0.5, 1.0, "of the last {count} {kind} proposals are known tasks"),
    ("distinct_programs", "propose", 0.0, 0.5, "of the last {count} {kind} proposals are different programs"),
    ("distinct_answers", "solve", 0.0, 0.1, "of the last {count} {kind} answers are different ones"),
    ("copies", "solve", 0.3, 1.0, "of the last {count} {kind} answers repeat their input"),
)
_SHARES = (
    ("ignores_input", "propose", "proposals ignore their input"),
    ("duplicates", "propose", "proposals are known tasks"),
    ("copies", "solve", "answers repeat their input"),
)
"""Metric, role and words of the shares in the line on diversity."""
_ENTROPY_LEFT = 1 / 3
"""Share of the first steps' entropy below which the summary warns."""


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings below the table: of proposals or answers that ended as constants, copies or repetitions."""
    found = []
    for metric, role, low, high, words in _LIMITS:
        for kind in names():
            share, count = _recent(rows, f"{metric}/{kind}", kind, role)
            if share is not None and low <= share <= high:
                found.append(f"{share:.0%} {words.format(count=count, kind=kind)}")
    entropy = _known(rows, "entropy")
    if len(entropy) > 5 and _average(entropy[-3:]) < _ENTROPY_LEFT * _average(entropy[:3]):
        found.append(f"the policy's entropy fell from {_average(entropy[:3]):.2f} to {_average(entropy[-3:]):.2f} nats")
    return [f"collapse?     {one}. What holds against it: docs/selfplay.md" for one in found]


def diversity_line(rows: Sequence[Mapping[str, Any]], warned: bool) -> str:
    """The line on how diverse the run ended: of each share over the last steps the kind where it is largest, and the
    entropy of the first and the last three steps; empty where too little is known. `warned`: whether `warnings` follow.
    """
    said = []
    for metric, role, words in _SHARES:
        recent = {kind: _recent(rows, f"{metric}/{kind}", kind, role)[0] for kind in names()}
        known = {kind: share for kind, share in recent.items() if share is not None}
        if known:
            worst = max(known, key=lambda kind: known[kind])
            said.append(f"{worst}, {known[worst]:.0%} of {words}")
    entropy = _known(rows, "entropy")
    if not said or not entropy:
        return ""
    change = f"entropy {_average(entropy[:3]):.2f} nats at the start, {_average(entropy[-3:]):.2f} at the end"
    verdict = "warnings below" if warned else "no warning"
    return f"diversity     {verdict}; worst kinds: {'; '.join(said)}; {change}"


def _recent(rows: Sequence[Mapping[str, Any]], metric: str, kind: str, role: str) -> tuple[float | None, int]:
    """(mean of a share over the last steps, number of trajectories that it is over): the last three steps that have it,
    or more, until there are `LEAST`; None where all have fewer."""
    total, count, steps = 0.0, 0, 0
    for row in reversed(rows):
        share = row.get(metric)
        number = int(row.get(f"trajectories/{kind}/{role}", 0))
        if role == "propose":  # the shares are of those that were judged: valid ones, and those refused for just this
            judged = [f"valid_rate/{kind}", f"outcome/{kind}/propose/duplicate"]
            if metric.startswith("ignores_input/"):
                judged.append(f"outcome/{kind}/propose/{RejectionReason.IGNORES_INPUT}")
            number = round(number * sum(row.get(name) or 0.0 for name in judged))
        if share is None or not number:
            continue
        total, count, steps = total + share * number, count + number, steps + 1
        if steps >= 3 and count >= LEAST:
            break
    return (total / count if count >= LEAST else None), count


def sparkline(values: Sequence[float | None]) -> str:
    """One character a value in 0..1; a dot where there is none."""
    return "".join("·" if v is None else _BARS[min(len(_BARS) - 1, int(v * len(_BARS)))] for v in values)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _speed(rows: Sequence[Mapping[str, Any]], rehearsed: bool) -> str:
    """The closing lines on speed, ages, waits and the mismatch.

    Seconds, and what actors counted, are those of the whole run (`totals.json`); the rest is of the steps that remain.
    """
    last = rows[-1]
    seconds = last["time_s"]
    trained = _total(rows, "tokens_in_batch")
    busy = _total(rows, "train_s")
    waited = _total(rows, "wait_for_batch_s")
    waited_share = waited / (_total(rows, "step_s") or seconds)
    ages = _known(rows, "age_mean")
    lines = [
        f"speed         generated {last.get('tokens_generated', 0) / seconds:.0f} tokens/s over the run; trained "
        f"{trained / seconds:.0f} tokens/s over the run, {trained / busy:.0f} tokens/s while training (shared prompts "
        "count each time)",
        f"ages          mean {_average(ages):.2f}, max {max(_known(rows, 'age_max')):.0f} versions",
        f"waits         learner for batches: {waited:.0f} s, {waited_share:.0%} of its time{_actors_waited(last)}",
    ]
    if rehearsed:
        return "\n".join(lines)
    mismatch = _known(rows, "logprob_mismatch")
    of_steps = f"({len(mismatch)} of {len(rows)} steps measured)"
    words = f"{_average(mismatch):.4f} {of_steps}" if mismatch else "not measured"
    lines.append(f"engine = learner?  mean |difference| of log-probabilities at equal version: {words}")
    return "\n".join(lines)


def _actors_waited(last: Mapping[str, Any]) -> str:
    waited, connected = last.get("wait_for_policy_actor_s"), last.get("connected_actor_s")
    if waited is None or not connected:
        return ""  # serial mode: the only actor waits for nobody
    return f"; actors for grants: {waited:.0f} of {connected:.0f} actor-seconds, {waited / connected:.0%} of their time"


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The values of a metric, in the rows that have one; `null` is one that was not finite."""
    return [row[name] for row in rows if row.get(name) is not None]


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(_known(rows, name))
