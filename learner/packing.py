"""Shared-prompt packing: how a batch of sequences becomes micro-batches of one forward and backward pass each.

Self-play samples many responses to one prompt, and the prompts are most of the tokens. So sequences with an identical
prompt share it: a *segment* is the prompt once, followed by all its responses, and each response attends to the prompt
and to itself, at the positions it would have alone. The numbers are those of running every sequence by itself.

Layout of a segment with prompt p0..p3 and responses a0..a2 and b0..b1 (the last token of a response predicts nothing
that is trained on, so it is no row of the input)::

    row        0   1   2   3   4   5   6
    token      p0  p1  p2  p3  a0  a1  b0
    position   0   1   2   3   4   5   4
    predicts               a0  a1  a2  b1
                           b0

Shapes: T rows of a micro-batch, R response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TokenSequence = tuple[np.ndarray, np.ndarray]
"""(prompt_ids [P], response_ids [N]), both of integers and with at least one token."""


class Segment(NamedTuple):
    """One prompt and its responses, in rows `start` to `stop` of a micro-batch."""

    start: int
    prompt_len: int
    response_lens: tuple[int, ...]
    """Tokens of each response, longest first; a response of n tokens takes n - 1 rows."""

    @property
    def stop(self) -> int:
        """The row after the segment's last."""
        return self.start + self.prompt_len + sum(self.response_lens) - len(self.response_lens)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What one forward and backward pass computes. All arrays int64."""

    input_ids: np.ndarray
    """[T]"""
    position_ids: np.ndarray
    """[T]"""
    segments: tuple[Segment, ...]
    logit_rows: np.ndarray
    """[R]: the row of T whose logits predict each response token."""
    targets: np.ndarray
    """[R]: the response tokens."""
    sequence_index: np.ndarray
    """[R]: the input sequence that each response token belongs to."""
    token_index: np.ndarray
    """[R]: its place in that sequence's response."""

    @property
    def num_tokens(self) -> int:
        """T: rows that the model computes."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """R: response tokens."""
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that share a prompt, as indices into the batch, longest response first."""

    members: tuple[int, ...]
    num_rows: int


def pack(
    sequences: Sequence[TokenSequence], token_budget: int, members: Iterable[int] | None = None
) -> list[MicroBatch]:
    """Pack `sequences` into micro-batches of at most `token_budget` rows.

    Groups larger than the budget are split, repeating the prompt; a single sequence larger than the budget has a
    micro-batch of its own. Deterministic: the same input gives the same micro-batches. `members` are the indices of
    the sequences to pack, all by default; `sequence_index` counts in `sequences` either way.
    """
    groups: list[_Group] = []
    for group in _group(sequences, range(len(sequences)) if members is None else members):
        groups.extend(_split(sequences, group, token_budget))
    bins: list[list[_Group]] = []
    free: list[int] = []
    # First-fit decreasing: within 22% of the fewest micro-batches, and simple to reason about.
    for group in sorted(groups, key=lambda group: (-group.num_rows, group.members)):
        for index, room in enumerate(free):
            if group.num_rows <= room:
                bins[index].append(group)
                free[index] -= group.num_rows
                break
        else:
            bins.append([group])
            free.append(token_budget - group.num_rows)
    return [_build(sequences, groups) for groups in bins]


def pack_ranks(sequences: Sequence[TokenSequence], token_budget: int, num_ranks: int) -> list[list[MicroBatch]]:
    """The micro-batches of each data-parallel rank, equally many on all: ranks that have fewer get empty ones."""
    packed = [pack(sequences, token_budget, members) for members in split_ranks(sequences, num_ranks)]
    most = max(len(micros) for micros in packed)
    return [micros + [empty_micro_batch()] * (most - len(micros)) for micros in packed]


def split_ranks(sequences: Sequence[TokenSequence], num_ranks: int) -> list[list[int]]:
    """Share `sequences` out over data-parallel ranks: lists of indices, ascending, balanced by rows to compute.

    Sequences with the same prompt stay on one rank. The largest group goes first, each to the rank with the least.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    groups = sorted(_group(sequences, range(len(sequences))), key=lambda group: (-group.num_rows, group.members))
    for group in groups:
        rank = loads.index(min(loads))
        shares[rank].extend(group.members)
        loads[rank] += group.num_rows
    return [sorted(share) for share in shares]


def empty_micro_batch() -> MicroBatch:
    """A micro-batch without tokens: what a rank computes while others still have work."""
    none = np.zeros(0, dtype=np.int64)
    return MicroBatch(none, none, (), none, none, none, none)


def _group(sequences: Sequence[TokenSequence], members: Iterable[int]) -> list[_Group]:
    """Groups of identical prompts, in order of first appearance."""
    by_prompt: dict[bytes, list[int]] = {}
    for index in members:
        by_prompt.setdefault(np.asarray(sequences[index][0], dtype=np.int64).tobytes(), []).append(index)
    # Longest first: the attention pads responses of similar length together.
    return [
        _sized(sequences, sorted(indices, key=lambda i: (-len(sequences[i][1]), i))) for indices in by_prompt.values()
    ]


def _sized(sequences: Sequence[TokenSequence], members: Sequence[int]) -> _Group:
    num_rows = len(sequences[members[0]][0]) + sum(len(sequences[i][1]) - 1 for i in members)
    return _Group(tuple(members), num_rows)


def _split(sequences: Sequence[TokenSequence], group: _Group, token_budget: int) -> list[_Group]:
    """Cut a group into parts that fit the budget, each with the prompt again."""
    if group.num_rows <= token_budget:
        return [group]
    prompt_len = len(sequences[group.members[0]][0])
    parts: list[list[int]] = []
    room = 0
    for index in group.members:
        rows = len(sequences[index][1]) - 1
        if not parts or rows > room:
            parts.append([])
            room = token_budget - prompt_len
        parts[-1].append(index)
        room -= rows
    return [_sized(sequences, part) for part in parts]


def _build(sequences: Sequence[TokenSequence], groups: Sequence[_Group]) -> MicroBatch:
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    rows: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    places: list[np.ndarray] = []
    row = 0
    for group in groups:
        prompt = sequences[group.members[0]][0]
        start, prompt_len = row, len(prompt)
        tokens.append(prompt)
        positions.append(np.arange(prompt_len))
        row += prompt_len
        for index in group.members:
            response = sequences[index][1]
            length = len(response)
            tokens.append(response[:-1])
            positions.append(np.arange(prompt_len, prompt_len + length - 1))
            rows.append(np.concatenate(([start + prompt_len - 1], np.arange(row, row + length - 1))))
            targets.append(response)
            owners.append(np.full(length, index))
            places.append(np.arange(length))
            row += length - 1
        segments.append(Segment(start, prompt_len, tuple(len(sequences[i][1]) for i in group.members)))
    return MicroBatch(
        input_ids=_join(tokens),
        position_ids=_join(positions),
        segments=tuple(segments),
        logit_rows=_join(rows),
        targets=_join(targets),
        sequence_index=_join(owners),
        token_index=_join(places),
    )


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    joined: np.ndarray = np.concatenate(parts).astype(np.int64)
    return joined
