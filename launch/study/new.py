"""Makes a study: resolves the recipe, checks every arm, and writes the study file before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from actors.heldout.measurement import differing_settings, prompt_settings
from actors.heldout.tasks import load_tasks
from launch.arguments import whole
from launch.config import Config, load
from launch.inputs import check_inputs
from launch.models import KNOWN, prepare
from launch.recipe import parse_override
from launch.run.configuration import INPUTS, to_run_toml
from launch.study.definition import (
    Arm,
    Budget,
    Judgement,
    Study,
    StudyError,
    differences,
    interleaved,
    read_study,
    was_edited,
    write_study,
)
from launch.study.folder import StudyFolder, another, now
from launch.study.interval import MOST_SEEDS, measurement_variance, seeds_needed, t_quantile
from launch.whole_file import write_text

OWN = {
    "run.seed": "--seeds",
    "learner.steps": "--steps",
    "run.max_tokens": "--tokens",
    "run.max_minutes": "--minutes",
    "run.name": "--out",
    "run.dir": "--out",
}
"""Settings that a study gives its runs, and the option that says them."""
QUARTERS = 4
"""Where the recipe does not measure, there is a measurement after each quarter of the steps."""
EVERY = 10
"""Versions between measurements where the recipe has none and the budget is no number of steps."""
MEASURED = "selfplay.heldout_"
"""Beginning of the settings of measurements, which all arms have in common. Others shape the prompts of held-out tasks
(`prompt_settings`), and must not differ either."""
ACCURACY = 0.2
"""Accuracy for which the width of the interval is estimated before anything is measured."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    kind: Literal["staleness", "arms"]
    question: str
    recipe: str
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    varied: Mapping[str, str]
    """The settings that all arms set, with the option for each."""
    seeds: tuple[int, ...]
    budget: Budget | None
    """None: the recipe's steps."""
    margin: float
    alpha: float
    here: bool = True
    """Whether this machine makes the runs, and so needs the files that their settings name."""


def make(request: Request, folder: StudyFolder, say: Callable[[str], None]) -> Study:
    """The study of `folder`, written now if it has none. Raises StudyError, ConfigError, and errors of files that the
    settings name.

    A folder with another study, or one that has begun or was edited, is refused; otherwise its file is written anew.
    """
    study, recipe, notes = _define(request)
    former = read_study(folder.definition) if folder.definition.exists() else None
    changed = differences(former, study) if former else {}
    if former is None:
        _refuse_foreign(folder)
    elif changed:
        _refuse_other(folder, study, changed)
    else:
        study = folder.read()
    for note in notes:
        say(note)
    if former and not changed:
        return study
    if changed:
        say(f"no run has begun, so the study file is written anew: {'; '.join(changed.values())}")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, recipe)
        write_study(study, folder.definition)
    except OSError as error:
        raise StudyError(f"{folder.path} cannot be written: {error.strerror}. Name another folder: --out") from None
    say(f"written before the first run: {folder.definition}")
    return study


def _refuse_other(folder: StudyFolder, study: Study, changed: Mapping[str, str]) -> None:
    """Refuse a folder whose study has begun, was edited, or is another one."""
    differs = f"it differs in {'; '.join(changed.values())}"
    resume = folder.command_line("resume")
    if began := folder.read_began():
        raise StudyError(
            f"{folder.path} has a study whose first run began {began['time']}, and {differs}. What was written before "
            f"the first run holds: go on with it by {resume}. {another(study)}"
        )
    arms = {arm.name for arm in folder.read().arms}  # it refuses a recipe that was changed
    edited = was_edited(folder.definition)
    if edited or changed.keys() & {"study", "recipe"} or arms.isdisjoint(arm.name for arm in study.arms):
        what = "a study that was edited, or written by an older azr" if edited else "another study"
        raise StudyError(
            f"{folder.path} has {what}: {differs}. To keep it: {resume}. To have this one in its place, remove "
            f"{folder.definition} first, or take another folder: --out"
        )


def _refuse_foreign(folder: StudyFolder) -> None:
    """Refuse a folder that has other files than those of a study."""
    if not folder.path.is_dir():
        return
    with folder.usable():
        own = (folder.recipe, folder.notes)  # left where the definition was removed, or its writing was cut off
        found = sorted(path.name for path in folder.path.iterdir() if path not in own and not path.name.startswith("."))
    if found:
        raise StudyError(
            f"{folder.path} holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}, and no study: name a new "
            f"or an empty folder, --out FOLDER. If it was a study, put its {folder.definition.name} back"
        )


def _define(request: Request) -> tuple[Study, str, list[str]]:
    """The study, the text of its recipe, and what is to be said of it."""
    if not 0 < request.margin < 1:
        raise StudyError(f"--margin {request.margin:g}: a share between 0 and 1, such as 0.03 for 3 points")
    if not 0 < request.alpha < 0.5:
        raise StudyError(f"--alpha {request.alpha:g}: a probability between 0 and 0.5, such as 0.05")
    for text in request.overrides:
        key = parse_override(text)[0]
        if option := {**OWN, **request.varied}.get(key):
            raise StudyError(f"{key} is the study's to set: leave {text} out, and use {option}")
    base = load(request.recipe, request.overrides)
    budget = request.budget or Budget(steps=base.learner.steps)
    notes = []
    limits = {"minutes": base.run.max_minutes, "tokens": base.run.max_tokens}
    for name, limit in limits.items():
        if limit is not None and getattr(budget, name) is None:
            text = f"{limit:d}" if isinstance(limit, int) else f"{limit:g}"
            notes.append(
                f"each run takes {budget}, without the recipe's own run.max_{name} = {text}, so that all train "
                f"equally; to take that instead: --{name} {text}"
            )
    named = any(parse_override(text)[0] == "selfplay.heldout_every" for text in request.overrides)
    every = _heldout_every(base, budget, named)
    config = load(request.recipe, [*request.overrides, f"selfplay.heldout_every={every}"])
    text = to_run_toml(config)
    try:
        study = Study(
            study=request.kind,
            question=request.question,
            written=now(),
            recipe=request.recipe,
            overrides=request.overrides,
            recipe_sha256=hashlib.sha256(text.encode()).hexdigest(),
            seeds=request.seeds,
            order=interleaved(tuple(arm.name for arm in request.arms), request.seeds),
            budget=budget,
            judgement=Judgement(heldout_every=every, margin=request.margin, alpha=request.alpha),
            arms=request.arms,
        )
    except ValidationError as error:
        raise StudyError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    _check_arms(study, request.recipe, request.overrides, here=request.here)
    return study, text, notes


def check_edited(folder: StudyFolder, study: Study, here: bool = True) -> None:
    """Refuse a study file that was edited, before its first run, to what its runs would not do. `here`: see `Request`.
    Raises StudyError, ConfigError, and errors of files that the settings name."""
    said = [text for text in study.overrides if parse_override(text)[0] not in INPUTS]  # paths may be relative
    said.append(f"selfplay.heldout_every={study.judgement.heldout_every}")
    if load(folder.recipe, said) != load(folder.recipe):
        raise StudyError(
            f"{folder.definition} names settings that its runs would not have: they take those of "
            f"{folder.recipe.name}, which the command made of recipe, overrides and judgement.heldout_every. To change "
            "one of these, put it back and give the command again, or take another folder: --out"
        )
    _check_arms(study, str(folder.recipe), here=here)


def _check_arms(study: Study, recipe: str, overrides: Sequence[str] = (), *, here: bool) -> None:
    """Refuse now, not after hours, what an arm asks for and cannot have. `here`: see `Request`. Raises StudyError,
    ConfigError, and errors of files that the settings name."""
    for arm in study.arms:
        for key in (parse_override(text)[0] for text in arm.overrides):
            if option := OWN.get(key):
                raise StudyError(f"the arm {arm.name} sets {key}, which is the same in all arms: use {option}")
            if key.startswith(MEASURED):
                raise StudyError(f"the arm {arm.name} sets {key}, but all arms are measured alike: give it for all")
    settings: dict[tuple[int, str], str] = {}
    prompts: dict[str, Mapping[str, Any]] = {}
    for run in study.runs():
        config = load(recipe, [*overrides, *study.overrides_of(run)])
        if here and run.seed == study.seeds[0]:
            check_inputs(config)
            if config.run.mode != "rehearse" and config.model.path not in KNOWN:
                prepare(config.model.path)  # of a folder, it builds nothing
        prompts[run.arm] = prompt_settings(config.selfplay, config.selfplay.heldout_tasks)
        first = next(iter(prompts))
        for name, (one, other) in differing_settings(prompts[first], prompts[run.arm]).items():
            raise StudyError(
                f"the arms {first} and {run.arm} would ask held-out tasks with selfplay.{name} = {one} and {other}, so "
                f"their accuracies could not be compared: give all arms one value (selfplay.{name}=VALUE on the "
                "command line), and set it in none"
            )
        resolved = to_run_toml(config)
        if (other := settings.setdefault((run.seed, resolved), run.arm)) != run.arm:
            raise StudyError(
                f"the arms {other} and {run.arm} have the same settings on {study.recipe}: leave one of them out"
            )


def _heldout_every(config: Config, budget: Budget, named: bool) -> int:
    """Versions between measurements, beside those of the first and the last version: the recipe's, if it measures.

    `named`: the command line says it. Raises StudyError.
    """
    own = config.selfplay.heldout_every
    if named and not own:
        raise StudyError("selfplay.heldout_every=0 leaves nothing to judge by: leave it out, or set 1 or more")
    if config.selfplay.heldout_wait_s == 0:
        raise StudyError(
            "selfplay.heldout_wait_s = 0 leaves out the measurement of the last version, which is judged: set the "
            "seconds that a run may wait for it"
        )
    return own or (EVERY if budget.steps is None else max(1, budget.steps // QUARTERS))


def expectation(folder: StudyFolder, study: Study) -> str:
    """The sentence about what the study's seeds and held-out tasks can tell, before anything is measured."""
    config = load(folder.recipe)
    if config.run.mode == "rehearse":
        return "run.mode = rehearse has no model, so held-out accuracy is not measured: there will be no verdict."
    samples = config.selfplay.heldout_samples
    kinds = Counter(entry.task.kind for entry in load_tasks(config.selfplay.heldout_tasks))
    solutions = [samples * number for number in kinds.values()]
    spread = measurement_variance([(round(ACCURACY * number), number) for number in solutions])
    judgement, seeds = study.judgement, len(study.seeds)
    noise = (
        f"{kinds.total()} held-out tasks x {samples}: measuring alone gives a run's accuracy a standard deviation of "
        f"up to {100 * math.sqrt(spread):.1f} points (at {ACCURACY:.0%}); what runs differ in comes on top"
    )
    if len(study.arms) < 2:
        return f"{noise}. One arm is compared with the initial model alone, so there will be no verdict."
    needed = seeds_needed(spread, judgement.margin, judgement.alpha)
    enough = f"about {needed} seeds" if needed else f"more than {MOST_SEEDS} seeds"
    margin = f"a margin of {100 * judgement.margin:g} points"
    find = f"to find an equal arm non-inferior by {margin} in four of five studies"
    if seeds < 2:
        return f"{noise}. One seed has no interval, so there will be no verdict; {find} takes {enough}."
    half = t_quantile(1 - judgement.alpha, 2 * seeds - 2) * math.sqrt(2 * spread / seeds)
    width = f"with {seeds} seeds the interval is about +-{100 * half:.1f} points"
    if needed and seeds >= needed:
        return f"{noise}; {width}, enough {find}."
    return f"{noise}; {width}. {find[0].upper()}{find[1:]} takes {enough}."


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from 0 on, separated by commas. Raises StudyError."""
    try:
        return tuple(whole(0)(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise StudyError(
            f"{option} {text}: whole numbers from 0 on, separated by commas, such as {option} 0,1,2"
        ) from None


def default_folder(kind: str, recipe: str) -> Path:
    """`runs/study-KIND-RECIPE` in the working directory."""
    return Path("runs") / f"study-{kind}-{stem_of(Path(recipe))}"


def stem_of(path: Path) -> str:
    """The name of a file without its suffix; that of its folder for the `arms.toml` or `recipe.toml` of a study."""
    return path.absolute().parent.name if path.name in ("arms.toml", "recipe.toml") else path.stem


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Names separated by commas, each once. Raises StudyError."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise StudyError(f"{option} {text}: names separated by commas, each once, such as {option} clip,tis")
    return found
