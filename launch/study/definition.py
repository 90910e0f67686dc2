"""The definition of a study, kept in `study.toml`: arms, seeds, budget, and the margin by which they are judged."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import tomli_w
from pydantic import AliasChoices, Field, ValidationError, model_validator

from executor.settings_table import SettingsTable
from executor.user_error import UserError
from launch.whole_file import write_text

_HEAD = """\
# A study, written before its first run. Until then arms, seeds, order, budget, margin and alpha may be changed here;
# from then on a change is refused, because a margin that is chosen after the results proves nothing. Other settings:
# give the command that wrote this file again. Go on: azr study resume FOLDER. The page: azr study report FOLDER.

"""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


PUT_BACK = "Put it back as it was, for example from version control"


class StudyError(UserError):
    """A study that cannot be made or gone on with; the message says what to do."""


class StudyRun(NamedTuple):
    """One run of a study: an arm with one of the seeds."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its name: of its run folder, of its result file and in the order of the runs."""
        return f"{self.arm}-s{self.seed}"


class Arm(SettingsTable):
    """One variant that is compared: settings on top of the study's recipe."""

    name: str = Field(pattern=_NAME, max_length=100)
    """Name of the arm."""
    overrides: tuple[str, ...] = ()
    """Settings as on the command line, `KEY=VALUE`."""
    baseline: str | None = Field(default=None, validation_alias=AliasChoices("baseline", "reference"))
    """Name of the arm that this one is compared with; unset: it is a baseline itself."""


class Budget(SettingsTable):
    """What every run gets: the same number of steps, which means of trajectories, of trained tokens, or the same
    time."""

    steps: int | None = Field(default=None, ge=1)
    """Steps of each run."""
    tokens: int | None = Field(default=None, ge=1)
    """Trained response tokens of each run; the step that reaches them is its last one."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes of training of each run."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if [self.steps, self.tokens, self.minutes].count(None) != 2:
            raise ValueError("the budget is either steps, tokens or minutes: set one of the three")
        return self

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return f"{self.tokens:,} trained tokens" if self.tokens is not None else f"{self.minutes:g} minutes of training"


class Judgement(SettingsTable):
    """How an arm is judged against its baseline. docs/staleness.md says how to read the verdict."""

    metric: Literal["heldout/mean"] = "heldout/mean"
    """The judged metric: the share of held-out tasks that is solved, mean over the kinds of tasks."""
    heldout_every: int = Field(ge=1)
    """Versions between measurements on the held-out tasks (`selfplay.heldout_every`), beside the first and the last."""
    margin: float = Field(gt=0, lt=1)
    """Non-inferiority margin: the loss of accuracy that is accepted, as a share (0.03: 3 points)."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Error probability of each one-sided test. The interval is two-sided and has confidence 1 - 2 alpha."""


class Study(SettingsTable):
    """A whole study."""

    study: Literal["staleness", "arms"]
    """Kind of the study."""
    question: str
    """The question that it is to answer."""
    written: str
    """When this file was written, UTC."""
    recipe: str
    """The recipe, as it was named."""
    overrides: tuple[str, ...] = ()
    """Settings on top of it in all arms. `recipe.toml` beside this file has all of them resolved, and is what runs."""
    recipe_sha256: str
    """Digest of that file."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds (`run.seed`); every arm has a run with each."""
    order: tuple[str, ...]
    """Names of all runs, in the order in which they are made."""
    budget: Budget
    judgement: Judgement
    arms: tuple[Arm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [arm.name for arm in self.arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"arms have names of their own, and {', '.join(sorted(twice))} is there twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} has a seed twice: its runs would share a folder")
        baselines = {arm.name for arm in self.arms if arm.baseline is None}
        for arm in self.arms:
            if arm.baseline is not None and arm.baseline not in baselines:
                raise ValueError(
                    f"the arm {arm.name} has the baseline {arm.baseline}, which is no arm without one: "
                    f"there are {', '.join(sorted(baselines)) or 'none'}"
                )
        wanted = {run.name for run in self.runs()}
        if len(wanted) < len(self.arms) * len(self.seeds):
            raise ValueError("two runs have one name (arm-sSEED): rename an arm")
        if set(self.order) != wanted or len(self.order) != len(wanted):
            missing, more = sorted(wanted - set(self.order)), sorted(set(self.order) - wanted)
            raise ValueError(
                "order has to name every run once" + (f"; missing: {', '.join(missing[:3])}" if missing else "")
                + (f"; not there: {', '.join(more[:3])}" if more else "")
            )  # fmt: skip
        return self

    def runs(self) -> Iterator[StudyRun]:
        """All runs, by arm and seed."""
        return (StudyRun(arm.name, seed) for arm in self.arms for seed in self.seeds)

    def runs_in_order(self) -> list[StudyRun]:
        """All runs, in the order in which they are made."""
        by_name = {run.name: run for run in self.runs()}
        return [by_name[name] for name in self.order]

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def overrides_of(self, run: StudyRun) -> list[str]:
        """The settings of a run on top of the study's `recipe.toml`, apart from its folder."""
        budget = self.budget
        limits = {
            "learner.steps": budget.steps or NO_LIMIT,
            "run.max_tokens": budget.tokens or "none",
            "run.max_minutes": budget.minutes or "none",
        }
        of_budget = [f"{key}={value}" for key, value in limits.items()]
        return [*self.arm(run.arm).overrides, f"run.seed={run.seed}", *of_budget]


NO_LIMIT = 10**6
"""Steps of a run that ends by its time or its tokens."""


def interleaved(arms: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[str, ...]:
    """An order of runs in which a machine that slows down, or warms up, favours no arm.

    Every arm is run once for each seed before the next seed comes, and every other round is run backwards: a drift
    that is linear in time cancels for each arm over two rounds.
    """
    rounds = (arms if number % 2 == 0 else arms[::-1] for number in range(len(seeds)))
    return tuple(StudyRun(arm, seed).name for seed, turn in zip(seeds, rounds, strict=True) for arm in turn)


def write_study(study: Study, path: Path) -> None:
    """Write a study file, in one piece."""
    text = _HEAD + tomli_w.dumps(study.model_dump(mode="json", exclude_none=True), multiline_strings=False)
    write_text(path, text + _last_line(text))


def was_edited(path: Path) -> bool:
    """Whether a study file, which can be read, is no longer as `write_study` wrote it."""
    text = path.read_text()
    before = text[: text.rfind("\n", 0, -1) + 1]
    return text != before + _last_line(before)


def _last_line(text: str) -> str:
    return f"# As it was written, the lines above had this digest: {hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def read_study(path: Path) -> Study:
    """Read a study file. Raises StudyError, which names what is wrong in it."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(
            f"{path.parent} holds no study: it has no {path.name}. Begin one: azr study staleness RECIPE, or "
            "azr study arms RECIPE ARMS"
        ) from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}. {PUT_BACK}") from None
    except ValueError as error:
        raise StudyError(f"{path} is not valid TOML: {error}. {PUT_BACK}") from None
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise StudyError("\n".join(f"{path}: {explain(item)}" for item in error.errors())) from None


def differences(former: Study, study: Study) -> dict[str, str]:
    """What two studies differ in, apart from the time of writing: field -> a line `key: former -> new` for each item
    of it that differs."""
    before, after = _comparable(former), _comparable(study)
    lines = {key: "; ".join(_compare(key, before[key], after[key])) for key in before if key != "written"}
    return {key: line for key, line in lines.items() if line}


def _comparable(study: Study) -> dict[str, Any]:
    """A study as tables, with overrides by their keys and arms by their names: neither is a matter of order."""
    arms = {arm.name: {"baseline": arm.baseline, "overrides": _by_key(arm.overrides)} for arm in study.arms}
    return study.model_dump(mode="json") | {"overrides": _by_key(study.overrides), "arms": arms}


def _by_key(overrides: tuple[str, ...]) -> dict[str, str]:
    """The last value that is given for each setting."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _compare(key: str, former: Any, new: Any) -> list[str]:
    if former == new:
        return []
    if isinstance(former, dict) and isinstance(new, dict):
        names = {**former, **new}
        return [line for name in names for line in _compare(f"{key}.{name}", former.get(name), new.get(name))]
    if isinstance(former, list) and isinstance(new, list):
        gone, more = ([item for item in one if item not in other] for one, other in ((former, new), (new, former)))
        if not gone and not more:
            return [f"{key}: another order"]
        return [f"{key}: {word} {_short(items)}" for word, items in (("without", gone), ("with", more)) if items]
    return [f"{key}: {_short(former)} -> {_short(new)}"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "given"
    text = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def explain(item: Any) -> str:
    """One error of a file of a study, of those that pydantic lists: the place, such as `arms[0].name`, and why."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).removeprefix(".")
    why = str(item["msg"]).removeprefix("Value error, ")
    if not key:
        return why
    match item["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is no key of this file"
        case "value_error":
            return f"{key}: {why}"
        case _:
            return f"{key} = {item['input']!r:.80} cannot be used: {why}"
