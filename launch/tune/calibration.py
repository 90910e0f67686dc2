"""The calibration file: every number that a simulation takes from measured runs, with its uncertainty and its source.

A figure's `error` is one standard error in the figure's unit: 0 where the number is a fact of the configuration. A
calibration is JSON of a few hundred kilobytes at most; lengths are kept as samples, not as fitted curves.

Seconds of computing are those at full speed: alone on the cores that the process may use. What sharing costs is in
`sharing` and in `launch/tune/machine.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from executor.settings_table import first_error
from executor.user_error import UserError
from launch.json_lines import to_json

DEVICES = Path(__file__).parent / "devices"
"""Calibrations that ship."""


ASSUMED = "assumed: no run tells"
"""Source of a figure that none of a calibration's runs decides."""


class CalibrationError(UserError):
    """A calibration that cannot be read or made; the message says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """One measured number."""

    value: float
    error: float = Field(ge=0)
    """One standard error, in the unit of the value."""
    unit: str
    source: str
    """Where the number comes from: runs, a probe, a published table."""


class Hardware(_Part):
    """What the figures were measured on."""

    name: str
    kind: Literal["cpu", "gpu"]
    cores: int = Field(ge=1)
    """Cores that all processes of a machine share. On GPUs each engine and learner rank has devices of its own."""


class EngineFigures(_Part):
    """Time of one engine step: `step_s + sequence_s x sequences + context_token_s x tokens of their context +
    prompt_token_s x prompt tokens computed`, where decoding takes `least_step_s` or more."""

    step_s: Figure
    sequence_s: Figure
    context_token_s: Figure
    prompt_token_s: Figure
    cached_share: Figure
    """Share of a prompt that the engine has in its prefix cache although it is new to it: a common beginning."""
    block_tokens: int = Field(ge=1)
    """Tokens of a block of the key/value cache. A prompt that the engine has seen is cached in whole blocks."""
    kv_tokens: Figure
    """Tokens that the key/value cache holds."""
    threads: int = Field(ge=1)
    """CPU threads, or devices, that the figures hold for."""
    least_step_s: Figure = Figure(value=0.0, error=0.0, unit="s/step", source="none")
    """The time of a step below which fewer sequences do not make it faster."""


class LearnerFigures(_Part):
    """Time of one training step on one rank: `step_s + row_s x packed rows + target_s x response tokens` of the fullest
    rank."""

    step_s: Figure
    row_s: Figure
    between_s: Figure
    """Seconds of a step outside of training, waiting and publishing: recording, deciding."""
    threads: int = Field(ge=1)
    """CPU threads, or devices, of the rank that the figures hold for."""
    parallel_share: Figure
    """Share of these times that more threads or ranks divide (Amdahl); the rest stays."""
    target_s: Figure = Figure(value=0.0, error=0.0, unit="s/response token", source="in row_s")
    """What a response token takes beyond its row: its logits and the loss."""


class WeightFigures(_Part):
    """Seconds of one publication of new weights."""

    ready_s: Figure
    """From the message until the engines receive, without the rest of their present step."""
    send_s: Figure
    """Gathering, copying and sending; the engines stand still."""
    load_s: Figure
    """After the last byte, until the slowest engine has loaded."""
    actor_s: Figure
    """What each further actor adds to `send_s`."""


class ExecutorFigures(_Part):
    """Seconds until a proposal is judged, those that could not be read included, and until the answers to a task are
    judged; waiting for a sandbox and for a core included."""

    validate_s: Figure
    verify_s: Figure


class SharingFigures(_Part):
    """What processes on one machine cost each other beyond the share of the cores, as factors on time."""

    engine_beside_learner: Figure
    """Time of an engine step while the learner computes on other cores, over that alone."""
    learner_beside_engine: Figure
    """Time of a training step while an engine computes on other cores, over that alone."""
    engine_beside_engine: Figure
    """Time of an engine step while another engine computes on other cores, over that alone."""


class StreamFigures(_Part):
    """The control plane."""

    message_s: Figure
    """Seconds that a message is under way."""
    trajectory_s: Figure
    """Seconds of the learner's socket thread for one trajectory."""
    beat_s: Figure = Figure(value=8e-5, error=2e-5, unit="s/heartbeat", source="docs/performance.md, rehearsals")
    """Seconds of that thread for one actor's heartbeat, which comes once a second."""
    buffer_s: Figure = Figure(value=2e-4, error=1e-4, unit="s/request", source="docs/performance.md, rehearsals")
    """Seconds of the task buffer's process for one request, where it is busy: an actor's go together then."""


class Group(_Part):
    """The responses to one prompt, as one batch had them."""

    version: int = Field(ge=0)
    """The version that trained on them."""
    prompt: int = Field(ge=1)
    """Tokens of the prompt."""
    responses: tuple[int, ...] = Field(min_length=1)
    """Tokens of each response."""
    valid: tuple[bool, ...] = ()
    """Of proposals: which were valid, response by response."""
    known: tuple[bool, ...] = ()
    """Of proposals: which were valid and in the buffer already; empty: none."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        for verdicts in (self.valid, self.known):
            if verdicts and len(verdicts) != len(self.responses):
                raise ValueError(f"{len(verdicts)} verdicts for {len(self.responses)} responses")
        return self


class Calibration(_Part):
    """All figures of one machine, model and workload."""

    format: Literal[1] = 1
    name: str
    hardware: Hardware
    engine: EngineFigures
    learner: LearnerFigures
    weights: WeightFigures
    executor: ExecutorFigures
    sharing: SharingFigures
    stream: StreamFigures
    workload: dict[str, tuple[Group, ...]]
    """By cell (`deduction/propose`): measured groups of responses, joint in prompt and response length."""
    solve_rate: dict[str, Figure] = {}
    """By kind: share of solutions that were correct."""
    model_bytes: int = Field(ge=1)
    """Bytes of the weights of one publication."""

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        for cell, groups in self.workload.items():
            kind, _, role = cell.partition("/")
            if not kind or role not in ("propose", "solve"):
                raise ValueError(f"workload names {cell!r}; a cell is KIND/propose or KIND/solve")
            if role == "propose" and any(not group.valid for group in groups):
                raise ValueError(f"workload of {cell} has proposals without verdicts (`valid`)")
        return self

    def figures(self) -> dict[str, Figure]:
        """Every figure by its dotted name."""
        found: dict[str, Figure] = {}
        for part in ("engine", "learner", "weights", "executor", "sharing", "stream"):
            for name, value in getattr(self, part):
                if isinstance(value, Figure):
                    found[f"{part}.{name}"] = value
        return found | {f"solve_rate.{kind}": figure for kind, figure in self.solve_rate.items()}

    def with_figure(self, name: str, value: float) -> Calibration:
        """A copy with another value of the figure `name` (`engine.step_s`): what if?"""
        part, _, key = name.partition(".")
        table = getattr(self, part)
        figure = getattr(table, key).model_copy(update={"value": value})
        return self.model_copy(update={part: table.model_copy(update={key: figure})})


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file, or one that ships under that name. Raises CalibrationError."""
    shipped = DEVICES / f"{path}.json"
    path = shipped if path.name == str(path) and not path.exists() and shipped.is_file() else path
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CalibrationError(
            f"the calibration {path} cannot be read ({error.strerror}). `azr tune calibrate RUN... --out {path}` makes "
            "one from the folders of runs"
        ) from None
    except ValidationError as error:
        where, why = first_error(error)
        raise CalibrationError(
            f"{path} is no calibration of format 1: {where}: {why}. Make it anew with `azr tune calibrate`"
        ) from None


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file. Raises CalibrationError."""
    try:
        tables = calibration.model_dump(mode="json", exclude_defaults=True)
        cells = ",\n  ".join(
            f"{json.dumps(cell, allow_nan=False)}: {to_json(groups)}" for cell, groups in tables.pop("workload").items()
        )
        rest = "".join(f" {json.dumps(name, allow_nan=False)}: {to_json(table)},\n" for name, table in tables.items())
        path.write_text(f'{{\n{rest} "workload": {{\n  {cells}\n }}\n}}\n')
    except OSError as error:
        raise CalibrationError(f"the calibration could not be written to {path}: {error.strerror}") from None
