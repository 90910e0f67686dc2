"""Packing: every response token once, with the context it has alone, within the budget, the same every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import MicroBatch, Segment, TokenSequence, empty_micro_batch, pack, pack_ranks, split_ranks


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


@given(batches(), st.integers(1, 4))
def test_ranks_share_the_batch_and_no_prompt_is_on_two(batch: list[TokenSequence], num_ranks: int) -> None:
    shares = split_ranks(batch, num_ranks)
    assert sorted(index for share in shares for index in share) == list(range(len(batch)))
    prompts = [{batch[index][0].tobytes() for index in share} for share in shares]
    assert sum(len(found) for found in prompts) == len(set().union(*prompts))


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
