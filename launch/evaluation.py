"""Measures a model, or a run's newest checkpoint, on the held-out tasks, outside of a run: `azr eval`.

It is the measurement of a run (`actors/heldout/measure.py`), with one engine that does nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from actors.heldout.intervals import Estimate
from actors.heldout.measure import Heldout
from actors.heldout.measurement import (
    Measurement,
    MeasurementError,
    differing_settings,
    gain,
    prompt_settings,
    read_measurement,
)
from actors.heldout.tasks import load_tasks
from actors.seed_file import sandboxes
from launch.config import Config, load, root_of
from launch.lone_engine import private_folder
from launch.model_check import check_model
from launch.models import prepare
from launch.recipe import read_recipe
from launch.run.configuration import load_run
from launch.run.console import counted
from launch.run.interrupts import Interrupts, listening
from launch.run.summary import points, said
from learner.disk import matches

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Something to measure: a model with the settings of its run or of a recipe, or a measurement that is there."""

    name: str
    """As the user wrote it."""
    config: Config | None = None
    """Has the model as `model.path`; None for a measurement."""
    version: int = 0
    measurement: Measurement | None = None


def target_of(text: str, recipe: str, overrides: Sequence[str]) -> Target:
    """The target that `text` names: a measurement's file, a run's folder, one of its checkpoints, or a model.

    `recipe`: whose settings a model without a run has. `overrides`: settings on top. Raises UserError.
    """
    path = Path(os.path.expanduser(text))
    if path.suffix == ".json":
        return Target(text, measurement=read_measurement(path))
    checkpoint = path if re.fullmatch(r"step_[0-9]+", path.name) else _newest_checkpoint(path)
    if checkpoint is None and os.sep in text and not path.exists():
        raise MeasurementError(
            f"there is no {path}: name a run's folder (`ls runs` shows them), a checkpoint, a model, or a measurement"
        )
    if checkpoint is None:
        return Target(text, load(recipe, [*overrides, f"model.path={text}"]))
    if not checkpoint.is_dir():
        raise MeasurementError(f"there is no checkpoint {checkpoint}; {_what_is_in(checkpoint.parent)}")
    model, run = checkpoint / "hf", checkpoint.absolute().parents[1]
    if not model.is_dir():
        raise MeasurementError(
            f"{checkpoint} has no model to load (hf/), because its run was stopped in a hurry: name an earlier "
            f"checkpoint in {checkpoint.parent}"
        )
    version = int(checkpoint.name.removeprefix("step_"))
    changes = [*overrides, f"model.path={model}"]
    of_self_play = (run / "config.toml").is_file() and root_of(read_recipe(run / "config.toml")[0]) is Config
    return Target(text, load_run(run, changes, Config)[0] if of_self_play else load(recipe, changes), version)


def _what_is_in(folder: Path) -> str:
    names = [path.name for path in matches(folder, r"step_[0-9]+")] if folder.is_dir() else []
    return f"{folder} has {', '.join(names) or 'none'}"


def _newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of the run in folder `run`; None where it is no run's folder."""
    if not (run / "config.toml").is_file():
        return None
    found = matches(run / "checkpoints", r"step_[0-9]+")
    if not found:
        raise MeasurementError(f"{run} has no checkpoint to measure yet")
    return found[-1]


def check_comparable(targets: Sequence[Target]) -> None:
    """Raises MeasurementError where `gain` would refuse to compare the settings of the targets' measurements, which
    take minutes to make."""
    temperatures = [one.measurement.temperature for one in targets if one.measurement is not None]
    temperatures += [one.config.selfplay.heldout_temperature for one in targets if one.config is not None]
    if len(set(temperatures)) > 1:
        raise MeasurementError(
            f"the targets would be compared at different temperatures, {temperatures[0]:g} and {temperatures[1]:g}: "
            "give --temperature, and measure anew what is a file"
        )
    for name, (first, second) in differing_settings(*map(_prompt_settings, (targets[0], targets[-1]))).items():
        raise MeasurementError(
            f"the targets would be compared with selfplay.{name} = {first} and {second}: give a model its run's "
            "settings (--recipe RUN/config.toml), or both the same value (--set), and measure anew what is a file"
        )


def _prompt_settings(target: Target) -> Mapping[str, Any]:
    """`Measurement.prompt_settings` of a target, before it is measured."""
    if target.measurement is not None:
        return target.measurement.prompt_settings
    assert target.config is not None
    settings = target.config.selfplay
    return prompt_settings(settings, len(load_tasks(settings.heldout_tasks)))


def measure(targets: Sequence[Target], say: Say) -> list[Measurement]:
    """Solve the held-out tasks with each target that is no measurement yet, with an engine and sandboxes of its own.

    A signal meanwhile ends this process and the engine's at once. Raises UserError, EngineAborted, InfrastructureError.
    """
    if all(one.measurement for one in targets):
        return [one.measurement for one in targets if one.measurement]
    with listening(to_exit=True) as interrupts:
        for target in targets:  # all of them before the first is measured, which takes minutes
            if target.config is not None:
                check_model(target.config, prepare(target.config.model.path, say))
        return [one.measurement or _measure_model(one, say, interrupts) for one in targets]


def _measure_model(target: Target, say: Say, interrupts: Interrupts) -> Measurement:
    assert target.config is not None
    model = prepare(target.config.model.path)
    with private_folder(interrupts):
        measurement = asyncio.run(_measure(target.config, model, target.version, say))
    return replace(measurement, version=target.version, newest=target.version)


async def _measure(config: Config, model: Path, version: int, say: Say) -> Measurement:
    from actors.engine.async_engine import AsyncEngine

    engine = AsyncEngine(model, config.engine, seed=config.run.seed)
    try:
        async with sandboxes(config.executor, config.selfplay.rules) as environment:
            say(f"starting the engine with {model}")
            await engine.start()
            heldout = Heldout(engine, environment, config.selfplay, config.engine.max_num_seqs)
            say(f"solving the held-out tasks, {counted(config.selfplay.heldout_samples, 'time')} each")
            return await heldout.run(version)
    finally:
        await engine.close()


def table_of(measurements: Sequence[tuple[str, Measurement]]) -> Table:
    """Rates by kind and difficulty, a column for each measurement, and with two of them their difference."""
    table = Table(title="held-out tasks: correct solutions, with 95% intervals")
    table.add_column("")
    for name, _ in measurements:
        table.add_column(name)
    if len(measurements) == 2:
        table.add_column("difference, paired by task")
    first = measurements[0][1]
    rows: list[tuple[str, str | None, int | None]] = [("mean", None, None)]
    rows += [(kind, kind, None) for kind in first.kinds]
    rows += [(f"difficulty {number}", None, number) for number in first.difficulties]
    for label, kind, difficulty in rows:
        cells = [_cell(one.rate(kind, difficulty)) for _, one in measurements]
        if len(measurements) == 2 and difficulty is None:
            change = gain(first, measurements[1][1], kind)
            cells.append(points(change) if change else "")
        table.add_row(label, *cells)
    numbers = [one.numbers() for _, one in measurements]
    for label, name in (
        ("deduction answers that copy the input", "heldout/deduction_copies"),
        *((f"different answers, {kind}", f"heldout/{kind}_distinct_answers") for kind in first.kinds),
    ):
        table.add_row(label, *(f"{found[name]:.1%}" if name in found else "" for found in numbers))
    return table


def _cell(rate: Estimate | None) -> str:
    return said(rate) if rate is not None else ""


def footer(measurement: Measurement) -> str:
    """The tasks, samples and time of a measurement on one line."""
    skipped = f", {len(measurement.skipped)} skipped: too long" if measurement.skipped else ""
    return (
        f"set {measurement.set} ({measurement.digest}), {counted(len(measurement.results), 'task')} x "
        f"{counted(measurement.samples, 'sample')} at temperature {measurement.temperature:g}{skipped}; "
        f"{measurement.tokens} tokens in {measurement.seconds:.0f} s"
    )
