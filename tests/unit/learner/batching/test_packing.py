"""Packing: every response token once, with the context it has alone, within the budget, the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batching.balance import CostModel
from learner.batching.packing import (
    MicroBatch,
    Segment,
    TokenSequence,
    empty_micro_batch,
    idle_share,
    micro_batch_cost,
    pack,
    pack_rank,
    pack_ranks,
    split_ranks,
)


def sequence(prompt: list[int], response: list[int]) -> TokenSequence:
    return np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32)


@st.composite
def batches(draw: st.DrawFn) -> list[TokenSequence]:
    prompts = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4))
    responses = st.lists(st.integers(10, 99), min_size=1, max_size=6)
    return [
        sequence(draw(st.sampled_from(prompts)), response)
        for response in draw(st.lists(responses, min_size=1, max_size=12))
    ]


def contexts(micro: MicroBatch) -> dict[tuple[int, int], tuple[list[tuple[int, int]], int]]:
    """(sequence, place) -> ([(token, position) that its logits' row sees], target), read off the segments alone."""
    seen_by_row: dict[int, list[int]] = {}
    for segment in micro.segments:
        prompt = list(range(segment.start, segment.start + segment.prompt_len))
        for row in prompt:
            seen_by_row[row] = prompt[: row - segment.start + 1]
        row = prompt[-1] + 1
        for length in segment.response_lens:
            for place in range(length - 1):
                seen_by_row[row + place] = prompt + list(range(row, row + place + 1))
            row += length - 1
        assert row == segment.stop
    assert sorted(seen_by_row) == list(range(micro.num_tokens))
    found = {}
    for row, target, owner, place in zip(
        micro.logit_rows, micro.targets, micro.sequence_index, micro.token_index, strict=True
    ):
        seen = [(int(micro.input_ids[r]), int(micro.position_ids[r])) for r in seen_by_row[int(row)]]
        assert (int(owner), int(place)) not in found
        found[int(owner), int(place)] = (seen, int(target))
    return found


@given(batches(), st.integers(1, 40))
def test_every_response_token_sees_what_it_would_see_alone(batch: list[TokenSequence], budget: int) -> None:
    found = {}
    for micro in pack(batch, budget):
        found.update(contexts(micro))
    expected = {}
    for index, (prompt, response) in enumerate(batch):
        tokens = [int(token) for token in (*prompt, *response)]
        for place in range(len(response)):
            seen = tokens[: len(prompt) + place]
            expected[index, place] = (list(zip(seen, range(len(seen)), strict=True)), tokens[len(prompt) + place])
    assert found == expected


@given(batches(), st.integers(1, 40))
def test_only_a_single_sequence_may_exceed_the_budget(batch: list[TokenSequence], budget: int) -> None:
    micros = pack(batch, budget)
    for micro in micros:
        assert micro.num_tokens <= budget or len(set(micro.sequence_index)) == 1
        assert micro.num_targets == sum(sum(segment.response_lens) for segment in micro.segments)
    again = pack(batch, budget)
    for first, second in zip(micros, again, strict=True):
        assert first.segments == second.segments
        assert (first.input_ids == second.input_ids).all()
        assert (first.sequence_index == second.sequence_index).all()


def test_the_documented_layout() -> None:
    batch = [sequence([1, 2, 3, 4], [8, 9]), sequence([1, 2, 3, 4], [5, 6, 7])]
    (micro,) = pack(batch, 100)
    assert micro.segments == (Segment(0, 4, (3, 2)),)
    assert micro.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert micro.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert micro.logit_rows.tolist() == [3, 4, 5, 3, 6]
    assert micro.targets.tolist() == [5, 6, 7, 8, 9]
    assert micro.sequence_index.tolist() == [1, 1, 1, 0, 0]
    assert micro.token_index.tolist() == [0, 1, 2, 0, 1]
    assert all(array.dtype == np.int64 for array in (micro.input_ids, micro.logit_rows, micro.targets))


def test_a_prompt_is_stored_once_until_the_budget_splits_it() -> None:
    batch = [sequence([7] * 10, [1, 2, 3, 4]) for _ in range(6)]
    assert [micro.num_tokens for micro in pack(batch, 28)] == [10 + 6 * 3]
    # 10 + 3 responses of 3 rows fit 19, a fourth does not.
    assert [micro.num_tokens for micro in pack(batch, 19)] == [19, 19]
    assert [micro.num_tokens for micro in pack(batch, 5)] == [13] * 6


def test_groups_fill_micro_batches_first_fit() -> None:
    batch = [sequence([n], [0] * n) for n in (6, 5, 4, 3, 2)]
    assert sorted(micro.num_tokens for micro in pack(batch, 10)) == [10, 10]


COSTS = st.builds(CostModel, per_row=st.just(100), per_pair=st.integers(0, 30), per_target=st.integers(0, 100))


@given(batches(), st.integers(1, 5), st.integers(4, 40), COSTS)
def test_ranks_share_the_batch_evenly(batch: list[TokenSequence], num_ranks: int, budget: int, cost: CostModel) -> None:
    by_rank = pack_ranks(batch, budget, num_ranks, cost)
    assert len(by_rank) == num_ranks
    assert len({len(micros) for micros in by_rank}) == 1, "equally many micro-batches"
    everything = [micro for micros in by_rank for micro in micros]
    tokens = [pair for micro in everything for pair in zip(micro.sequence_index, micro.token_index, strict=True)]
    assert sorted(tokens) == [(i, j) for i, (_, response) in enumerate(batch) for j in range(len(response))]
    assert all(micro.num_tokens <= budget or len(set(micro.sequence_index)) == 1 for micro in everything)
    again = pack_ranks(batch, budget, num_ranks, cost)
    for micros, others in zip(by_rank, again, strict=True):
        assert [micro.segments for micro in micros] == [other.segments for other in others]
        assert [micro.sequence_index.tolist() for micro in micros] == [o.sequence_index.tolist() for o in others]


@given(batches(), st.integers(1, 5), st.integers(4, 40), COSTS)
def test_a_rank_packs_its_own_share_alone(
    batch: list[TokenSequence], num_ranks: int, budget: int, cost: CostModel
) -> None:
    by_rank = pack_ranks(batch, budget, num_ranks, cost)
    all_rows = sum(micro.num_tokens for micros in by_rank for micro in micros)
    for rank, expected in enumerate(by_rank):
        micros, num_rows = pack_rank(batch, budget, num_ranks, rank, cost)
        assert num_rows == all_rows
        for micro, other in zip(micros, expected, strict=True):
            assert micro.segments == other.segments
            for name in ("input_ids", "position_ids", "logit_rows", "targets", "sequence_index", "token_index"):
                assert np.array_equal(getattr(micro, name), getattr(other, name))


@given(batches(), st.integers(1, 5), COSTS)
def test_no_rank_waits_for_more_than_one_sequence(batch: list[TokenSequence], num_ranks: int, cost: CostModel) -> None:
    # A budget that cuts nothing, so that costs are those that the ranks were balanced by.
    by_rank = pack_ranks(batch, 10_000, num_ranks, cost)
    loads = [sum(micro_batch_cost(micro, cost) for micro in micros) for micros in by_rank]
    alone = max(cost.prompt(len(prompt)) + cost.response(len(prompt), len(response)) for prompt, response in batch)
    assert max(loads) - min(loads) <= max(alone, 0.02 * max(loads))
    assert idle_share(by_rank, cost) == pytest.approx(1 - sum(loads) / num_ranks / max(loads))


@given(batches())
def test_one_rank_computes_each_prompt_once(batch: list[TokenSequence]) -> None:
    (micros,) = pack_ranks(batch, 10_000, 1)
    prompts = {prompt.tobytes(): len(prompt) for prompt, _ in batch}
    rows = sum(prompts.values()) + sum(len(response) - 1 for _, response in batch)
    assert [micro.num_tokens for micro in micros] == [rows]


def test_the_cost_is_that_of_its_rows_and_pairs() -> None:
    cost = CostModel(per_row=1000, per_pair=10, per_target=1)
    (micro,) = pack([sequence([1, 2, 3], [4, 5, 6]), sequence([1, 2, 3], [7, 8])], 100, cost=cost)
    pairs = sum(int(position) + 1 for position in micro.position_ids)
    assert micro_batch_cost(micro, cost) == 1000 * micro.num_tokens + 10 * pairs + micro.num_targets


def long_responses() -> list[TokenSequence]:
    """As in the papers' long-response runs: prompts of 300 to 1,200 tokens, responses lognormal about 600."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(600), 0.8, 384).clip(1, 8000).astype(int)
    prompts = [rng.integers(0, 9, rng.integers(300, 1200)) for _ in range(64)]
    return [(prompts[i // 6], rng.integers(0, 9, length)) for i, length in enumerate(lengths)]


def test_long_responses_leave_no_rank_idle() -> None:
    batch, cost = long_responses(), CostModel(per_row=10_000, per_pair=4, per_target=3_500)
    for num_ranks in (1, 2, 4, 8):
        by_rank = pack_ranks(batch, 16_384, num_ranks, cost)
        assert idle_share(by_rank, cost) < 0.01
        rows = sum(micro.num_tokens for micros in by_rank for micro in micros)
        assert len(by_rank[0]) <= math.ceil(1.05 * rows / (num_ranks * 16_384)) + 1
        for micros in by_rank:
            costs = [micro_batch_cost(micro, cost) for micro in micros]
            assert max(costs) < 1.3 * sum(costs) / len(costs)


@given(
    seed=st.integers(0, 99),
    median=st.sampled_from([500, 2500, 5000]),
    group=st.sampled_from([1, 4, 8]),
    num_ranks=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=12)
def test_mixes_of_real_lengths_are_balanced_at_32k_rows(seed: int, median: int, group: int, num_ranks: int) -> None:
    """Prompts of 100 to 2,000 tokens, responses lognormal and cut at 8,192, three full micro-batches for each rank."""
    rng = np.random.default_rng(seed)
    cost = CostModel(per_row=10_000, per_pair=4, per_target=3_500)
    count = max(group, num_ranks * 3 * 32_768 // median // group * group)
    lengths = rng.lognormal(np.log(median), 0.8, count).clip(1, 8192).astype(int)
    prompts = [rng.integers(0, 9, rng.integers(100, 2000)) for _ in range(count // group)]
    batch = [(prompts[i // group], np.zeros(length, dtype=np.int32)) for i, length in enumerate(lengths)]
    by_rank = pack_ranks(batch, 32_768, num_ranks, cost)
    assert idle_share(by_rank, cost) < 0.05
    rows = [micro.num_tokens for micros in by_rank for micro in micros]
    assert max(rows) <= 32_768
    # Of all 3,000 cases above, the worst needs 1.3 more for each rank: four responses of one prompt stay together.
    assert len(rows) <= 1.3 * sum(rows) / 32_768 + 1.5 * num_ranks, "micro-batches are nearly full"


def test_a_group_is_split_where_ranks_would_wait_and_its_prompt_counts() -> None:
    lone = [sequence([1] * 10, [2] * 11) for _ in range(8)]
    shares = split_ranks(lone, 2)
    assert sorted(map(len, shares)) == [4, 4]
    # What a rank would wait is less than the prompt again.
    uneven = [sequence([1] * 100, [2] * 11)] * 2 + [sequence([3] * 60, [2] * 11)]
    assert sorted(split_ranks(uneven, 2)) == [[0, 1], [2]]


def test_ranks_are_balanced_by_tokens() -> None:
    batch = [sequence([n], [0] * n) for n in (7, 6, 5, 4)]
    loads = [sum(len(batch[index][1]) for index in share) for share in split_ranks(batch, 2)]
    assert loads == [11, 11]


def test_ranks_have_equally_many_micro_batches() -> None:
    batch = [sequence([1] * 20, [2] * 5)] + [sequence([n], [0]) for n in range(3)]
    packed = pack_ranks(batch, 16, 3)
    assert [len(micros) for micros in packed] == [1, 1, 1]
    packed = pack_ranks(batch[:1], 16, 3)
    assert [[micro.num_tokens for micro in micros] for micros in packed] == [[24], [0], [0]]
    assert empty_micro_batch().num_targets == 0
