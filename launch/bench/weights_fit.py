"""What a weight update takes by its size: time = fixed + tensors x a + bytes / b, for each phase.

Fitted by least squares of relative errors, with coefficients that are not negative, to updates of made-up weights from
few large tensors to many small ones. The phases are what the sender and the receivers say of an update, and, where
engines were measured, an engine's. They overlap, so they do not add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from launch.bench.report import Report, TableOfFigures
from launch.bench.weights_transport import Transport
from launch.least_squares import Fit, fit_line_robustly
from learner.weights.manifest import manifest_of

SIZES = (
    (16, 4 << 10),
    (512, 4 << 10),
    (2048, 4 << 10),
    (32, 256 << 10),
    (256, 256 << 10),
    (16, 2 << 20),
    (64, 2 << 20),
    (2, 16 << 20),
    (10, 16 << 20),
)
"""(tensors, bytes of each) of the updates; from 8 MiB on a tensor travels as it lies, and is not copied."""
WHOLE = "update"
"""The phase that is the whole: from the manifest to the last tensor at every receiver."""
TRANSPORT = {
    WHOLE: WHOLE,
    "prepare_s": "sender: producing and copying",
    "transfer_s": "sender: waiting until bytes are sent",
    "receive_s": "receiver: waiting for bytes",
}
_SHORTEST_S = 1e-5
"""Shorter phases count as this long: below, a clock and a wake-up are all that is seen."""


@dataclass(frozen=True)
class Update:
    """Tensors and bytes of a model's weights."""

    tensors: int
    num_bytes: int


PREDICTED = {
    "7B": Update(28 * 12 + 3, 2 * 7_615_616_512),
    "235B": Update(94 * (9 + 3 * 128) + 3, 2 * 235_093_634_560),
}
"""Models whose update is predicted, in bfloat16, counted from their published `config.json`: Qwen2.5-7B (28 layers of
12 tensors) and Qwen3-235B-A22B (94 layers of 9 tensors and 128 experts of 3)."""


@dataclass(frozen=True)
class Observation:
    """One measured update: its size, and seconds by phase."""

    update: Update
    seconds: dict[str, float]


def observe(transport: Transport, runs: int, step: Callable[[str], None]) -> list[Observation]:
    """Measure updates of every size, in turns; the first of each does not count. `step` is called `runs` times."""
    observed = []
    for run in range(runs):
        step("updates by size")
        for sizes in (SIZES, SIZES[::-1]):
            for tensors, num_bytes in sizes:
                named = [(f"t{i}", torch.ones(num_bytes // 2, dtype=torch.bfloat16)) for i in range(tensors)]
                manifest = manifest_of(named)
                transport.tell(manifest)
                for counts in (run > 0, True):
                    began = time.perf_counter()
                    phases = transport.update(named, manifest)
                    seconds = {WHOLE: time.perf_counter() - began} | phases
                    if counts:
                        observed.append(Observation(Update(tensors, tensors * num_bytes), seconds))
    return observed


def fit_phase(observed: Sequence[Observation], phase: str) -> Fit:
    """Return seconds: fixed, for a thousand tensors, for a GB; `residual` is relative to the time. Single updates that
    were disturbed count little."""
    rows = [(max(one.seconds[phase], _SHORTEST_S), one.update) for one in observed]
    columns = [
        [1.0 / seconds for seconds, _ in rows],
        [update.tensors / 1e3 / seconds for seconds, update in rows],
        [update.num_bytes / 1e9 / seconds for seconds, update in rows],
    ]
    return fit_line_robustly(columns, [1.0] * len(rows))


def predict(fit: Fit, update: Update) -> float:
    """Return the seconds that the phase of an update takes by the fit."""
    fixed, thousand_tensors, gigabyte = fit.values
    return fixed + thousand_tensors * update.tensors / 1e3 + gigabyte * update.num_bytes / 1e9


def add_fit(report: Report, title: str, observed: Sequence[Observation], phases: dict[str, str]) -> None:
    """Add a table of both terms of each phase, with standard errors, and of what the predicted models take by them.
    `phases`: the phases of the observations, and how the table calls each."""
    rows: list[list[str | float]] = []
    for phase, name in phases.items():
        fit = fit_phase(observed, phase)
        figures: list[float] = []
        for value, error in zip(fit.values, fit.errors, strict=True):
            figures += [1e3 * value, 1e3 * error]
        predicted = [predict(fit, update) for update in PREDICTED.values()]
        rows.append([name, *figures, *predicted, 100 * fit.residual])
    # Milliseconds for a thousand tensors are microseconds for one.
    terms = ["fixed ms", "+-", "us/tensor", "+-", "ms/GB", "+-"]
    columns = ["", *terms, *(f"{name} s" for name in PREDICTED), "residual %"]
    report.tables.append(TableOfFigures(title, columns, rows))
