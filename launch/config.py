"""The configuration: every setting, typed, from a recipe and dotted overrides.

Each package declares its tables in its `settings.py`. This file puts them together, checks them, and turns every
mistake into a message that names key, file and mend.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, overload

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from actors.buffer.settings import BufferSettings
from actors.kinds.registry import GROUP, names
from actors.settings import EngineSettings, SelfPlaySettings
from executor.settings import ExecutorSettings
from executor.settings_table import SettingsTable
from launch.addresses import AUTO_HOST, LOOPBACK
from launch.recipe import ConfigError, assign, find_recipe, parse_override, read_recipe
from launch.refused_settings import REFUSED, RENAMED
from launch.settings import (
    ActorsSettings,
    RaySettings,
    RehearsalSettings,
    RunBasics,
    RunSettings,
    SupervisionSettings,
)
from launch.slurm_settings import SlurmSettings
from learner.settings import BatchSettings, LearnerSettings, ModelSettings, StreamSettings, needs_keys
from learner.sft.settings import SftLearnerSettings, SftSettings
from learner.trajectory import Cell, Role


class Config(SettingsTable):
    """All tables of a run."""

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    selfplay: SelfPlaySettings = SelfPlaySettings()
    buffer: BufferSettings = BufferSettings()
    engine: EngineSettings = EngineSettings()
    executor: ExecutorSettings = ExecutorSettings()
    actors: ActorsSettings = ActorsSettings()
    learner: LearnerSettings = LearnerSettings()
    stream: StreamSettings = StreamSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    ray: RaySettings = RaySettings()
    slurm: SlurmSettings = SlurmSettings()
    rehearsal: RehearsalSettings = RehearsalSettings()

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        batch, selfplay = self.learner.batch, self.selfplay
        for table, kinds in (("kinds", batch.kinds), ("propose", batch.propose), ("solve", batch.solve)):
            for kind in kinds:
                if kind not in names():
                    near = difflib.get_close_matches(kind, names(), 1)
                    hint = f" Did you mean {near[0]}?" if near else ""
                    raise ValueError(
                        f"learner.batch.{table} names {kind!r:.60}, which is no registered kind of task.{hint} There "
                        f"are {', '.join(names())}; a package adds one as an entry point of the group {GROUP} "
                        "(docs/extending.md)"
                    )
        if not self.trained_cells:
            of = "proposal or solution" if selfplay.propose else "solution, as selfplay.propose is false"
            raise ValueError(f"learner.batch asks for nothing: give a kind at least one {of}")
        for role, quotas in (("propose", batch.propose), ("solve", batch.solve)):
            for kind, quota in quotas.items():
                if quota < 0:
                    raise ValueError(f"learner.batch.{role}.{kind} is {quota}: a quota is 0 (leaves it out) or more")
        longest = selfplay.max_prompt_tokens + max(selfplay.max_propose_tokens, selfplay.max_solve_tokens)
        if longest > self.engine.max_model_len:
            raise ValueError(
                f"selfplay allows sequences of {longest} tokens (max_prompt_tokens + the longer response limit), but "
                f"engine.max_model_len is {self.engine.max_model_len}: raise it, or lower the others"
            )
        if self.learner.loss.supervised and not selfplay.label_pairs:
            raise ValueError(
                "learner.loss.supervised learns from what the executor labels: set selfplay.label_pairs, for instance "
                "to 4"
            )
        proposed = any(batch.quota(Cell(kind, Role.PROPOSE)) for kind in batch.kinds)
        if self.learner.loss.supervised and not (proposed or selfplay.seed_tasks or selfplay.seed_tasks_target):
            raise ValueError(
                "learner.loss.supervised has nothing to learn from: labels are of proposed programs and of seed tasks. "
                "Set learner.batch.propose, selfplay.seed_tasks or selfplay.seed_tasks_target"
            )
        if self.learner.advantage.estimator == "group" and not _have_peers(batch, selfplay):
            raise ValueError(
                'learner.advantage.estimator = "group" compares trajectories with one prompt, and each would be alone: '
                "its advantage is 0. Ask for more solutions than proposals of a kind (learner.batch.solve, "
                "learner.batch.propose), or set selfplay.proposals_per_prompt above 1"
            )
        if self.learner.loss.supervised and selfplay.prompt_format == "r1":
            raise ValueError(
                'learner.loss.supervised needs selfplay.prompt_format = "completion": the executor knows a right '
                "answer, but no reasoning that leads to it"
            )
        if 0 < self.buffer.capacity < selfplay.seed_tasks_target:
            raise ValueError(
                f"seeding to selfplay.seed_tasks_target = {selfplay.seed_tasks_target} triplets could never end with "
                f"buffer.capacity = {self.buffer.capacity}: raise the capacity, or lower the target"
            )
        if self.run.mode == "serial" and (self.actors.num_actors > 1 or self.learner.parallel.world_size > 1):
            raise ValueError(
                "run.mode = serial has one actor and one learner rank: set actors.num_actors = 1 and learner.parallel "
                "to 1 x 1"
            )
        if self.run.mode == "serial" and self.engine.tensor_parallel > 1:
            raise ValueError(
                f"run.mode = serial has its engine in the same process, so one worker: engine.tensor_parallel is "
                f"{self.engine.tensor_parallel}, set it to 1"
            )
        if self.rehearsal.actors_per_process > 1 and self.run.mode != "rehearse":
            raise ValueError(
                f"rehearsal.actors_per_process = {self.rehearsal.actors_per_process} needs run.mode = rehearse: an "
                "engine with a model has a process to itself"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(os.path.expanduser(self.run.dir)) / self.run.name

    @property
    def trained_cells(self) -> list[Cell]:
        """The cells that a batch has trajectories of."""
        batch = self.learner.batch
        trains = {Role.SOLVE: True, Role.PROPOSE: self.selfplay.propose}
        return [cell for cell in batch.cells if trains[cell.role] and batch.quota(cell)]

    @property
    def stream_host(self) -> str:
        """The address that the learner listens on: `stream.host`, with `auto` resolved to loopback in a Ray of the
        run's own."""
        return LOOPBACK if self.stream.host == AUTO_HOST and self.ray.address is None else self.stream.host

    @property
    def encrypted(self) -> bool:
        """Whether the stream needs keys; see `stream.curve`."""
        return needs_keys(self.stream.curve, self.stream_host)


def _have_peers(batch: BatchSettings, selfplay: SelfPlaySettings) -> bool:
    """Whether several trajectories of a batch have one prompt, other than by chance (see `OpenBatch.episode_size`)."""
    for kind in batch.kinds:
        proposals, solutions = (batch.quota(Cell(kind, role)) for role in (Role.PROPOSE, Role.SOLVE))
        if selfplay.propose and min(proposals, selfplay.proposals_per_prompt) > 1:
            return True
        if proposals < solutions and selfplay.solutions > 1:
            return True
    return False


class SftConfig(SettingsTable):
    """All tables of a fine-tuning run (`azr sft`)."""

    run: RunBasics = RunBasics()
    model: ModelSettings = ModelSettings()
    sft: SftSettings
    learner: SftLearnerSettings = SftLearnerSettings()
    ray: RaySettings = RaySettings()
    slurm: SlurmSettings = SlurmSettings()

    @model_validator(mode="after")
    def _fit_together(self) -> SftConfig:
        if self.sft.max_tokens > self.learner.micro_batch_tokens:
            raise ValueError(
                f"sft.max_tokens = {self.sft.max_tokens} allows examples that no micro-batch holds "
                f"(learner.micro_batch_tokens = {self.learner.micro_batch_tokens}): raise that, or lower sft.max_tokens"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(os.path.expanduser(self.run.dir)) / self.run.name


AnyConfig = TypeVar("AnyConfig", Config, SftConfig)


@overload
def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Config: ...
@overload
def load(recipe: str | Path, overrides: Sequence[str], root: type[AnyConfig]) -> AnyConfig: ...
def load(recipe: str | Path, overrides: Sequence[str] = (), root: Any = Config) -> Any:
    """Load a recipe (a path, or the name of one that ships) with overrides `table.key=value`. Raises ConfigError.

    `root`: `Config`, or `SftConfig` for a recipe of `azr sft`.
    """
    data, sources = read_recipe(find_recipe(recipe))
    if (root_of(data) is SftConfig) != (root is SftConfig):
        command, has = ("azr sft", "a") if root is Config else ("azr train", "no")
        raise ConfigError(f"{recipe} is a recipe of `{command}`: it has {has} table [sft]")
    return override(data, sources, overrides, root)


def override(
    data: dict[str, Any], sources: dict[str, str], overrides: Sequence[str], root: type[AnyConfig]
) -> AnyConfig:
    """Build a configuration from plain data with `overrides` on top; changes `data` and `sources`. Raises ConfigError.

    What a setting takes decides how its text is read: a text setting takes every text as it is (`run.name=2026`), a
    list of texts needs no quotes (`executor.require=[landlock]`), and `none` unsets an optional one
    (`run.max_minutes=none`).
    """
    for text in overrides:
        key, value = parse_override(text)
        assign(data, key, _typed(root, key, text.partition("=")[2].strip(), value))
        sources[key] = f"override {text!r}"
    return build(data, sources, root)


def _typed(root: type[BaseModel], key: str, text: str, value: Any) -> Any:
    """The value of an override for the setting `key`: `value`, its text read as TOML, unless the setting says
    otherwise."""
    annotation: Any = root
    for part in key.split("."):
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
        of_table = get_args(annotation)[1] if get_origin(annotation) is dict else None
        annotation = fields[part].annotation if part in fields else of_table
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if type(None) in options and text.lower() == "none":
        return None
    if get_origin(annotation) is tuple and isinstance(value, str):  # a shell takes the quotes off ["a", "b"]
        inner = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
        return [part.strip() for part in inner]
    return text if str in options and not isinstance(value, str) else value


def root_of(data: Mapping[str, Any]) -> type[Config] | type[SftConfig]:
    """Return the configuration class of a recipe's plain data: a table `[sft]` makes it one of fine-tuning."""
    return SftConfig if "sft" in data else Config


@overload
def build(data: dict[str, Any], sources: dict[str, str] | None = None) -> Config: ...
@overload
def build(data: dict[str, Any], sources: dict[str, str] | None, root: type[AnyConfig]) -> AnyConfig: ...
def build(data: dict[str, Any], sources: dict[str, str] | None = None, root: Any = Config) -> Any:
    """Build a checked configuration from plain data. `sources`: where each dotted key came from. Raises ConfigError."""
    try:
        return root.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, sources or {}, root) for item in error.errors())) from None


def executor_config(overrides: Sequence[tuple[str, str]], command: str) -> Config:
    """The defaults with settings of `[executor]` on top, for a command without a recipe. Raises ConfigError.

    `overrides`: each text with where it comes from, such as `--timeout 3`. `command`: as the user calls it.
    """
    table: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for text, source in overrides:
        key, value = parse_override(text)
        section, _, name = key.partition(".")
        if section != "executor" or not name or "." in name:
            raise ConfigError(f"{command} takes settings of [executor] only, and {key} is none of them")
        table[name] = value
        sources[key] = source
    return build({"executor": table}, sources)


def to_toml(config: SettingsTable) -> str:
    """Write the resolved configuration as TOML, which loads back to an equal one. Unset settings are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def schema(root: type[BaseModel] = Config) -> str:
    """Return the JSON schema of a recipe."""
    document = root.model_json_schema()
    document["properties"]["base"] = {
        "type": "string",
        "description": "Another recipe, which this one is put on top of.",
    }
    return json.dumps(document, indent=2, allow_nan=False)


def documented(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting as (dotted key, documentation)."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from documented(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def _explain(item: Any, sources: dict[str, str], root: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"] if part != "[key]")
    keys = dict(documented(root))
    source = _source(key, sources, keys)
    where = f" ({source})" if source else ""
    if item["type"] == "extra_forbidden":
        if key in RENAMED and root is Config:
            return f"{key} is now {RENAMED[key]}{where}: rename it there."
        if key in REFUSED:
            return f"{key} cannot be set{where}: {REFUSED[key]}"
        near = _nearest(key, list(keys))
        hint = f" Did you mean {near}?" if near else ""
        docs = "azr config docs" if root is Config else "azr config docs --sft"
        return f"unknown setting {key}{where}.{hint} `{docs}` lists all settings."
    if item["type"] == "model_type":
        first = next(name for name in keys if name.startswith(f"{key}."))
        return f"{key} is a table of settings{where}: set one of them, such as {first}."
    if item["type"] == "missing":
        return f"{key} must be set{where}: {keys.get(key, 'a table')}"
    by_table = key not in keys and item["type"] == "value_error"
    if not key or (by_table and f"{key}." in item["msg"]):  # the check of a table, which names its settings in full
        text = str(item["msg"]).removeprefix("Value error, ")
        named = {name: _source(name, sources, keys) for name in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", text)}
        told = "; ".join(f"{name}: {source}" for name, source in named.items() if source)
        return f"{text} ({told})" if told else text
    about, why = keys.get(key, "").split("\n"), item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_pattern_mismatch":  # the documentation says in words what the pattern says
        about, why = [" ".join(about)], "it has another form than is asked for"
    text = f"{key} = {item['input']!r} cannot be used{where}: {why}."
    return f"{text} ({about[0]})" if about[0] else text


def _source(key: str, sources: Mapping[str, str], settings: Collection[str]) -> str:
    """Where `key` was set: itself, a part of it, or the setting that it is a part of; empty for a default."""
    parts = key.split(".")
    inner = (name for name in sources if name.startswith(f"{key}."))
    wholes = (whole for end in range(len(parts) - 1, 0, -1) if (whole := ".".join(parts[:end])) in settings)
    return next((sources[name] for name in (key, *inner, *wholes) if name in sources), "")


def _nearest(key: str, keys: Sequence[str]) -> str | None:
    """The setting or table of `keys` that an unknown `key` probably means: spelled alike, or of the same name
    elsewhere."""
    tables = {known.rsplit(".", 1)[0] for known in keys}
    tables |= {table.split(".")[0] for table in tables}
    if found := difflib.get_close_matches(key, [*keys, *tables], 1, cutoff=0.5):
        return found[0]
    names: dict[str, str] = {}  # the last part of a key -> the first key with it
    for known in keys:
        names.setdefault(known.rsplit(".", 1)[-1], known)
    name = key.rsplit(".", 1)[-1]
    alike = [name] if name in names else difflib.get_close_matches(name, names, 1)
    return names[alike[0]] if alike else None
