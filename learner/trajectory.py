"""The trajectory: one finished rollout, and its encoding for the wire.

A trajectory is one prompt, one response, the behaviour policy's log-probabilities, the policy versions that produced
its tokens, and its reward. On the wire it is a msgpack header followed by three raw little-endian arrays, each its own
ZeroMQ frame: no pickle, no copy of the arrays. Everything that arrives is checked before anyone uses it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgpack
import numpy as np

from learner.fields import (
    MAX_HEADER_BYTES,
    MAX_ITEMS,
    Refusal,
    WireError,
    number,
    number_map,
    text,
    unpack_header,
    whole,
)
from learner.lineage import VERSIONS_PER_LIFE, label_of, split_label

SCHEMA_VERSION = 2
"""Written into every header. Schema 1 also had the number of the message in it (`seq`), which is in the envelope alone
now."""
READABLE_SCHEMAS = frozenset({1, SCHEMA_VERSION})
"""Schemas of a checkpoint's queue that `loads` reads. Peers on the wire are of one run, so `decode` takes the present
one alone."""
MAX_TOKENS = 1 << 20

_INT32, _FLOAT32 = np.dtype("<i4"), np.dtype("<f4")


KIND_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
"""Names that a kind of task may have, in settings, metrics, files and on the wire."""


class Role(StrEnum):
    """The side of self-play that a rollout played."""

    PROPOSE = "propose"
    SOLVE = "solve"


class Cell(NamedTuple):
    """One cell of a batch: a kind of task and a role. Which cells a batch has, the configuration says
    (`BatchSettings.cells`)."""

    kind: str
    """A name of the form `KIND_NAME`."""
    role: Role

    @property
    def name(self) -> str:
        """`kind/role`, the form used in metrics, the ledger and on the wire."""
        return f"{self.kind}/{self.role}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The inverse of `name`; raises ValueError for what is no name of a cell, of whatever kind."""
        return _parse_cell(name)


@functools.lru_cache(maxsize=256)
def _parse_cell(name: str) -> Cell:
    kind, _, role = name.partition("/")
    if not KIND_NAME.fullmatch(kind) or role not in list(Role):
        raise ValueError(f"{name!r:.40} is not a valid cell")
    return Cell(kind, Role(role))


class Status(StrEnum):
    """The way in which generation of the response ended."""

    STOPPED = "stopped"
    """At an end-of-text token or a stop string."""
    TRUNCATED = "truncated"
    """At the response's token limit."""


class VersionSpan(NamedTuple):
    """Response tokens `start:end` were sampled from policy version `version`, made by the learner's life `life`."""

    version: int
    start: int
    end: int
    life: int = 0

    @classmethod
    def of_label(cls, label: int, start: int, end: int) -> VersionSpan:
        """The span of a version that is named by its label (`learner/lineage.py`)."""
        version, life = split_label(label)
        return cls(version, start, end, life)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One finished rollout. Shapes: P prompt tokens, R response tokens."""

    run_id: str
    actor_id: str
    incarnation: int
    slot: int
    """The granted slot that this rollout fills."""
    episode_id: str
    cell: Cell
    prompt_ids: np.ndarray
    """int32 [P]"""
    response_ids: np.ndarray
    """int32 [R]"""
    logprobs: np.ndarray
    """float32 [R]: log-probability of each response token under the policy that sampled it."""
    versions: tuple[VersionSpan, ...]
    reward: float
    reward_parts: dict[str, float] = field(default_factory=dict)
    status: Status = Status.STOPPED
    outcome: str = ""
    """Name of the enum member that says what the environment found (a rejection or a verdict)."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: `queue_s`, `generate_s`, `execute_s`."""

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that produced a token."""
        return min(span.version for span in self.versions)

    @property
    def newest_version(self) -> int:
        """The newest policy version that produced a token."""
        return max(span.version for span in self.versions)

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)


def check(trajectory: Trajectory) -> None:
    """Raise `WireError` unless lengths agree, numbers are finite and version spans cover the response exactly."""
    num_response = len(trajectory.response_ids)
    if num_response == 0 or len(trajectory.prompt_ids) == 0:
        raise WireError(Refusal.LENGTH, "prompt and response need at least one token each")
    if trajectory.num_tokens > MAX_TOKENS:
        raise WireError(Refusal.TOO_LARGE, f"{trajectory.num_tokens} tokens, at most {MAX_TOKENS}")
    if len(trajectory.logprobs) != num_response:
        raise WireError(Refusal.LENGTH, f"{len(trajectory.logprobs)} logprobs for {num_response} response tokens")
    # Extremes need no arrays in between, and NaN is an extreme: half the time of `isfinite(x).all()` and `(x >
    # y).any()`.
    highest = np.maximum.reduce(trajectory.logprobs)
    if not (math.isfinite(highest) and math.isfinite(np.minimum.reduce(trajectory.logprobs))):
        raise WireError(Refusal.NOT_FINITE, "a logprob is NaN or infinite")
    if highest > 1e-3:
        raise WireError(Refusal.FIELD, "a logprob is above zero")
    values = [trajectory.reward, *trajectory.reward_parts.values(), *trajectory.timings.values()]
    if not all(map(math.isfinite, values)):
        raise WireError(Refusal.NOT_FINITE, "a reward or timing is NaN or infinite")
    if np.minimum.reduce(trajectory.prompt_ids) < 0 or np.minimum.reduce(trajectory.response_ids) < 0:
        raise WireError(Refusal.FIELD, "a token id is negative")
    if len(trajectory.versions) > MAX_ITEMS:
        raise WireError(Refusal.TOO_LARGE, f"{len(trajectory.versions)} version spans, at most {MAX_ITEMS}")
    expected = 0
    for span in trajectory.versions:
        if span.start != expected or span.end <= span.start or not _is_version(span):
            raise WireError(Refusal.VERSIONS, f"span {tuple(span)} where one starting at {expected} was due")
        expected = span.end
    if expected != num_response:
        raise WireError(Refusal.VERSIONS, f"spans cover {expected} of {num_response} tokens")


def _is_version(span: VersionSpan) -> bool:
    return 0 <= span.version < VERSIONS_PER_LIFE and span.life >= 0


def encode(trajectory: Trajectory) -> list[bytes | memoryview]:
    """Return the four frames of a trajectory: header, prompt_ids, response_ids, logprobs."""
    header = msgpack.packb(
        {
            "schema": SCHEMA_VERSION,
            "run_id": trajectory.run_id,
            "actor_id": trajectory.actor_id,
            "incarnation": trajectory.incarnation,
            "slot": trajectory.slot,
            "episode_id": trajectory.episode_id,
            "cell": trajectory.cell.name,
            "lengths": [len(trajectory.prompt_ids), len(trajectory.response_ids)],
            "versions": [[label_of(span.version, span.life), span.start, span.end] for span in trajectory.versions],
            "reward": trajectory.reward,
            "reward_parts": trajectory.reward_parts,
            "status": trajectory.status.value,
            "outcome": trajectory.outcome,
            "timings": trajectory.timings,
        }
    )
    return [
        header,
        np.ascontiguousarray(trajectory.prompt_ids, dtype=_INT32).data.cast("B"),
        np.ascontiguousarray(trajectory.response_ids, dtype=_INT32).data.cast("B"),
        np.ascontiguousarray(trajectory.logprobs, dtype=_FLOAT32).data.cast("B"),
    ]


def decode(frames: Sequence[bytes | memoryview], schemas: Collection[int] = frozenset({SCHEMA_VERSION})) -> Trajectory:
    """Return the trajectory in four frames; the inverse of `encode`. Raises `WireError` for anything else.

    `schemas`: the versions of the header that are accepted.
    """
    if len(frames) != 4:
        raise WireError(Refusal.FRAMES, f"{len(frames)} frames, not 4")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise WireError(Refusal.TOO_LARGE, f"header of {len(frames[0])} bytes")
    sizes = [len(frame) for frame in frames[1:]]
    if max(sizes) > 4 * MAX_TOKENS:
        raise WireError(Refusal.TOO_LARGE, f"an array frame of more than {4 * MAX_TOKENS} bytes")
    header = unpack_header(frames[0])
    if (schema := header.get("schema")) not in list(schemas):
        raise WireError(
            Refusal.SCHEMA,
            f"schema {schema!r:.40}, while this azr reads {sorted(schemas)}: go on with the azr that wrote it",
        )
    try:
        num_prompt, num_response = map(whole, header["lengths"])
        if sizes != [4 * num_prompt, 4 * num_response, 4 * num_response]:
            raise WireError(Refusal.LENGTH, f"{sizes} bytes where {num_prompt} and {num_response} items were announced")
        trajectory = Trajectory(
            run_id=text(header["run_id"]),
            actor_id=text(header["actor_id"]),
            incarnation=whole(header["incarnation"]),
            slot=whole(header["slot"]),
            episode_id=text(header["episode_id"]),
            cell=Cell.parse(text(header["cell"])),
            prompt_ids=np.frombuffer(frames[1], _INT32),
            response_ids=np.frombuffer(frames[2], _INT32),
            logprobs=np.frombuffer(frames[3], _FLOAT32),
            versions=tuple([VersionSpan.of_label(*map(whole, span)) for span in header["versions"]]),
            reward=number(header["reward"]),
            reward_parts=number_map(header["reward_parts"]),
            status=Status(header["status"]),
            outcome=text(header["outcome"]),
            timings=number_map(header["timings"]),
        )
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(Refusal.FIELD, f"{type(error).__name__}: {error}") from error
    check(trajectory)
    return trajectory


def dumps(trajectories: Sequence[Trajectory]) -> bytes:
    """Return trajectories as one msgpack array of their frames, for checkpoints and for other learner ranks."""
    packed: bytes = msgpack.packb([[bytes(frame) for frame in encode(trajectory)] for trajectory in trajectories])
    return packed


def loads(data: bytes) -> list[Trajectory]:
    """The inverse of `dumps`, also of an older azr's (`READABLE_SCHEMAS`); raises `WireError`."""
    try:
        items = msgpack.unpackb(data, max_bin_len=len(data), max_ext_len=0)
    except Exception as error:  # as in `unpack_header`
        raise WireError(Refusal.HEADER, type(error).__name__) from error
    if not isinstance(items, list) or not all(
        isinstance(frames, list) and all(isinstance(frame, bytes) for frame in frames) for frames in items
    ):
        raise WireError(Refusal.HEADER, "not a list of lists of frames")
    return [decode(frames, READABLE_SCHEMAS) for frames in items]
