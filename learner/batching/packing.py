"""Shared-prompt packing: turns a batch of sequences into micro-batches, each for one forward and backward pass.

Self-play samples many responses to one prompt, and most tokens are prompt tokens. Sequences with an identical prompt
therefore share it. A *segment* is the prompt once, followed by all its responses; each response attends to the prompt
and to itself, at the positions it would have alone. The results equal those of running every sequence by itself.

Layout of a segment with prompt p0..p3 and responses a0..a2 and b0..b1. The last token of a response predicts nothing
that is trained on, so it is no row of the input::

    row        0   1   2   3   4   5   6
    token      p0  p1  p2  p3  a0  a1  b0
    position   0   1   2   3   4   5   4
    predicts               a0  a1  a2  b1
                           b0

Shapes: T rows of a micro-batch, R response tokens of a micro-batch, P tokens of a prompt, N tokens of a response.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from learner.batching import balance
from learner.batching.balance import CostModel, PromptGroup

TokenSequence = tuple[np.ndarray, np.ndarray]
"""(prompt_ids [P], response_ids [N]): integers, at least one token each."""


class Segment(NamedTuple):
    """One prompt with its responses: rows `start` to `stop` (exclusive) of a micro-batch."""

    start: int
    prompt_len: int
    response_lens: tuple[int, ...]
    """Tokens of each response, longest first; a response of N tokens takes N - 1 rows."""

    @property
    def stop(self) -> int:
        """Row after the segment's last row."""
        return self.start + self.prompt_len + sum(self.response_lens) - len(self.response_lens)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Input of one forward and backward pass. All arrays are int64."""

    input_ids: np.ndarray
    """[T]: token ids."""
    position_ids: np.ndarray
    """[T]: position of each row in its own sequence."""
    segments: tuple[Segment, ...]
    logit_rows: np.ndarray
    """[R]: row whose logits predict the response token."""
    targets: np.ndarray
    """[R]: ids of the response tokens."""
    sequence_index: np.ndarray
    """[R]: index of the sequence that the response token belongs to."""
    token_index: np.ndarray
    """[R]: index of the token in that sequence's response."""

    @property
    def num_tokens(self) -> int:
        """T: number of rows that the model computes."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """R: number of response tokens."""
        return len(self.targets)


def pack(
    sequences: Sequence[TokenSequence],
    token_budget: int,
    members: Iterable[int] | None = None,
    cost: CostModel | None = None,
) -> list[MicroBatch]:
    """Pack `sequences` into the fewest micro-batches of at most `token_budget` rows, with even cost.

    A group larger than the budget is split and its prompt repeated; a single sequence larger than the budget is a
    micro-batch by itself. `members`: indices of the sequences to pack, by default all; `sequence_index` counts in
    `sequences` either way. `cost`: by default the rows. Deterministic.
    """
    chosen = range(len(sequences)) if members is None else members
    parts = _parts(sequences, chosen, token_budget, cost or CostModel())
    bins = balance.fill(parts, balance.fewest_bins(parts, token_budget), token_budget)
    return [_build(sequences, groups) for groups in bins if groups]


def pack_ranks(
    sequences: Sequence[TokenSequence], token_budget: int, num_ranks: int, cost: CostModel | None = None
) -> list[list[MicroBatch]]:
    """Pack `sequences` for `num_ranks` data-parallel ranks; returns the micro-batches of each rank.

    All ranks get the same number of micro-batches, if need be empty ones. Ranks, and the micro-batches of a rank, have
    even `cost` (by default the rows). See `pack` and `split_ranks`.
    """
    parts, count = _rank_parts(sequences, token_budget, num_ranks, cost or CostModel())
    return [_pack_rank(sequences, groups, count, token_budget) for groups in parts]


def pack_rank(
    sequences: Sequence[TokenSequence], token_budget: int, num_ranks: int, rank: int, cost: CostModel | None = None
) -> tuple[list[MicroBatch], int]:
    """Return the micro-batches of one `rank` as `pack_ranks` does, and the rows of all ranks together.

    Builds the arrays of that rank alone: with 64 ranks, all of them cost 64 times what a rank needs.
    """
    parts, count = _rank_parts(sequences, token_budget, num_ranks, cost or CostModel())
    num_rows = sum(group.rows for groups in parts for group in groups)
    return _pack_rank(sequences, parts[rank], count, token_budget), num_rows


def split_ranks(sequences: Sequence[TokenSequence], num_ranks: int, cost: CostModel | None = None) -> list[list[int]]:
    """Distribute `sequences` over data-parallel ranks with even cost; returns the indices of each rank, ascending.

    Sequences with the same prompt stay on one rank unless that leaves ranks idle: see `balance.share_out`.
    """
    groups = _group(sequences, range(len(sequences)), cost or CostModel())
    return [
        sorted(member for group in share for member in group.members) for share in balance.share_out(groups, num_ranks)
    ]


def micro_batch_cost(micro: MicroBatch, cost: CostModel) -> int:
    """Return the cost of computing `micro`, in the units of `cost`, without padding that attention may add."""
    return sum(
        cost.prompt(segment.prompt_len)
        + sum(cost.response(segment.prompt_len, length) for length in segment.response_lens)
        for segment in micro.segments
    )


def idle_share(by_rank: Sequence[Sequence[MicroBatch]], cost: CostModel) -> float:
    """Return the share of time, 0 to 1, that ranks wait for the slowest one: 1 - mean / max of their costs."""
    loads = [sum(micro_batch_cost(micro, cost) for micro in micros) for micros in by_rank]
    return 1.0 - sum(loads) / (len(loads) * max(loads))


def empty_micro_batch() -> MicroBatch:
    """Return a micro-batch without tokens, for ranks that have fewer than others."""
    none = np.zeros(0, dtype=np.int64)
    return MicroBatch(none, none, (), none, none, none, none)


def _group(sequences: Sequence[TokenSequence], members: Iterable[int], cost: CostModel) -> list[PromptGroup]:
    """Groups of identical prompts, in order of first appearance."""
    by_prompt: dict[bytes, list[int]] = {}
    for index in members:
        by_prompt.setdefault(np.asarray(sequences[index][0], dtype=np.int64).tobytes(), []).append(index)
    groups = []
    for indices in by_prompt.values():
        # Longest first: the attention pads responses of similar length together.
        ordered = sorted(indices, key=lambda index: (-len(sequences[index][1]), index))
        prompt_len = len(sequences[ordered[0]][0])
        lengths = [len(sequences[index][1]) for index in ordered]
        groups.append(
            PromptGroup(
                prompt=ordered[0],
                members=tuple(ordered),
                prompt_rows=prompt_len,
                response_rows=tuple(length - 1 for length in lengths),
                prompt_cost=cost.prompt(prompt_len),
                response_costs=tuple(cost.response(prompt_len, length) for length in lengths),
            )
        )
    return groups


def _parts(
    sequences: Sequence[TokenSequence], members: Iterable[int], token_budget: int, cost: CostModel
) -> list[PromptGroup]:
    """Groups of identical prompts, those beyond the budget cut into parts that fit it, each with the prompt again."""
    parts: list[PromptGroup] = []
    for group in _group(sequences, members, cost):
        places: list[int] = []
        room = token_budget - group.prompt_rows
        for place, rows in enumerate(group.response_rows):
            if places and rows > room:
                parts.append(group.part(places))
                places, room = [], token_budget - group.prompt_rows
            places.append(place)
            room -= rows
        parts.append(group.part(places))
    return parts


def _rank_parts(
    sequences: Sequence[TokenSequence], token_budget: int, num_ranks: int, cost: CostModel
) -> tuple[list[list[PromptGroup]], int]:
    """The groups of each data-parallel rank, and the number of micro-batches that all ranks get."""
    parts = [_parts(sequences, share, token_budget, cost) for share in split_ranks(sequences, num_ranks, cost)]
    return parts, max(balance.fewest_bins(groups, token_budget) for groups in parts)


def _pack_rank(
    sequences: Sequence[TokenSequence], groups: list[PromptGroup], count: int, token_budget: int
) -> list[MicroBatch]:
    bins = balance.fill(groups, count, token_budget)
    return [_build(sequences, chosen) if chosen else empty_micro_batch() for chosen in bins]


def _build(sequences: Sequence[TokenSequence], groups: Sequence[PromptGroup]) -> MicroBatch:
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
