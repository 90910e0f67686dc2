"""What `azr tune RECIPE` gives: a table on the console, a JSON file, and the recommended recipe as TOML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.table import Table

from launch.config import load
from launch.json_lines import to_json
from launch.recipe import ConfigError, assign, parse_override
from launch.run.configuration import to_run_toml
from launch.tune.advice import (
    best_sides,
    explain_assumptions,
    explain_asynchrony,
    explain_choice,
    explain_difference,
    explain_limit,
    waits_of,
)
from launch.tune.calibration import Calibration, CalibrationError, Group
from launch.tune.closed_form import ClosedForm, estimate_closed
from launch.tune.scenario import Scenario
from launch.tune.search import Candidate, Gain, Search, Searcher, as_overrides, describe
from launch.tune.simulation import simulate


@dataclass(frozen=True)
class Findings:
    """A search with everything that is said about it."""

    recipe: str
    overrides: Sequence[str]
    """Settings on top of the recipe, `KEY=VALUE`."""
    calibration: Calibration
    search: Search
    gain: Gain | None
    """Of the chosen candidate over the recipe; None where they are the same."""
    asynchrony: Gain | None
    """Of the best asynchronous candidate over the best synchronous one; None where one kind was not simulated."""
    closed: ClosedForm
    difference: str

    @property
    def sentences(self) -> list[str]:
        """The reasons in words: limit, choice and what it rests on, asynchrony, closed form; empty ones have nothing to
        say."""
        return [
            explain_limit(waits_of(self.search.present)),
            "Recommended: " + explain_choice(self.search, self.gain),
            explain_assumptions(self.search.chosen.scenario, self.calibration),
            explain_asynchrony(self.search, self.asynchrony),
            f"Of the recipe as it is: {self.difference}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data: candidates, the Pareto front, the choice and the reasons."""
        pareto = {id(one) for one in self.search.pareto}
        return {
            "recipe": self.recipe,
            "calibration": self.calibration.name,
            "present": row_of(self.search.present),
            "chosen": row_of(self.search.chosen),
            "gain": _plain(self.gain),
            "asynchrony": _plain(self.asynchrony),
            "closed_form": {"step_s": self.closed.step_s, "age_mean": self.closed.age_mean},
            "candidates": [row_of(one) | {"pareto": id(one) in pareto} for one in self.search.candidates],
            "reasons": self.sentences,
        }

    def write_json(self, path: Path) -> None:
        """Write `to_json` to `path`. Raises CalibrationError."""
        _write(path, to_json(self.to_json(), indent=1) + "\n")

    def write_recipe(self, path: Path) -> None:
        """Write the recommended recipe. It has the former one as its base, or all settings where that cannot say them:
        a recipe adds to a table of its base, such as the quotas of a batch, and unsets nothing. Raises
        CalibrationError."""
        overrides = [*self.overrides, *as_overrides(self.search.chosen.changes)]
        name = [] if any(parse_override(text)[0] == "run.name" for text in overrides) else [f"run.name={path.stem}"]
        wanted = load(self.recipe, [*overrides, *name])
        base = Path(self.recipe)
        table: dict[str, Any] = {"base": str(base.absolute()) if base.is_file() else self.recipe}
        for key, value in map(parse_override, overrides):
            assign(table, key, value)
        reasons = "".join(f"# {line}\n" for line in _wrapped(self.sentences[1]))
        _write(path, f"{reasons}{tomli_w.dumps(table)}")
        try:
            says_it = load(path) == wanted
        except ConfigError:
            says_it = False
        if not says_it:
            _write(path, f"{reasons}{to_run_toml(wanted)}")

    def show(self, console: Console) -> None:
        """Print the Pareto table and the reasons."""
        hardware = self.calibration.hardware
        console.print(f"{self.recipe} on {hardware.name}, calibration {self.calibration.name!r}", markup=False)
        table = Table("settings", box=None, pad_edge=False, header_style="bold")
        for heading in ("steps/h", "trained/s", "age", "max", "h/Mtoken", "learner waits", "actors wait", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        shown = self.search.pareto
        for one in shown if self.search.present in shown else [*shown, self.search.present]:
            marks = " ".join(
                mark
                for mark, holds in (
                    ("recommended", one is self.search.chosen),
                    ("present", one is self.search.present or not one.changes),
                )
                if holds
            )
            table.add_row(
                describe(one.changes),
                f"{one.mean('steps_per_hour'):,.0f}",
                f"{one.throughput:,.0f}",
                f"{one.age:.2f}",
                f"{max(p.age_max for p in one.predictions)}",
                f"{one.cost:,.2f}",
                f"{one.mean('learner_waits'):.0%}",
                f"{one.mean('actors_wait'):.0%}",
                marks,
            )
        console.print(table)
        for sentence in self.sentences:
            if sentence:
                console.print(sentence, markup=False)


def _plain(gain: Gain | None) -> dict[str, float] | None:
    return {"mean": gain.mean, "deviation": gain.deviation} if gain else None


def row_of(one: Candidate) -> dict[str, Any]:
    """A candidate as plain data."""
    return {
        "changes": dict(one.changes),
        "steps_per_hour": one.mean("steps_per_hour"),
        "trained_per_s": one.throughput,
        "generated_per_s": one.mean("generated_per_s"),
        "age_mean": one.age,
        "age_max": max(prediction.age_max for prediction in one.predictions),
        "device_hours_per_mtoken": one.cost,
        "learner_waits": one.mean("learner_waits"),
        "actors_wait": one.mean("actors_wait"),
        "engine_busy": one.mean("engine_busy"),
        "preempted": one.mean("preempted"),
    }


def find(
    recipe: str,
    overrides: Sequence[str],
    scenario: Scenario,
    calibration: Calibration,
    searcher: Searcher,
    vary: tuple[str, ...],
) -> Findings:
    """Search around a recipe with `overrides`, which `scenario` is of, and find the reasons. Raises
    CalibrationError."""
    search = searcher.search(scenario, vary)
    gain = searcher.gain(search.chosen.scenario, scenario) if search.chosen.changes else None
    sides = best_sides(search)
    asynchrony = searcher.gain(sides[1].scenario, sides[0].scenario) if sides else None
    closed = estimate_closed(scenario, calibration)
    step_s = search.present.mean("step_s")
    even = simulate(scenario, with_mean_lengths(calibration)).step_s
    unshared = None if scenario.on_gpu else simulate(scenario, _unshared(calibration)).step_s
    difference = explain_difference(closed, step_s, even, unshared)
    return Findings(recipe, overrides, calibration, search, gain, asynchrony, closed, difference)


def with_mean_lengths(calibration: Calibration) -> Calibration:
    """The calibration with every response as long as its cell's mean: without stragglers."""
    workload: dict[str, tuple[Group, ...]] = {}
    for cell, groups in calibration.workload.items():
        lengths = [length for group in groups for length in group.responses]
        mean = max(1, round(sum(lengths) / len(lengths)))
        workload[cell] = tuple(
            group.model_copy(update={"responses": (mean,) * len(group.responses)}) for group in groups
        )
    return calibration.model_copy(update={"workload": workload})


def _unshared(calibration: Calibration) -> Calibration:
    for name in ("engine_beside_learner", "learner_beside_engine", "engine_beside_engine"):
        calibration = calibration.with_figure(f"sharing.{name}", 1.0)
    return calibration


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CalibrationError(f"{path} could not be written: {error.strerror}") from None
