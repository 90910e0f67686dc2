"""The ordered set that the buffer draws from, against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.buffer import ordered_ids
from actors.buffer.ordered_ids import OrderedIds
from tests.examples import examples


@examples(200)
@given(
    start=st.lists(st.integers(0, 200), unique=True).map(sorted),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.floats(0, 1, exclude_max=True)), max_size=120),
    block=st.integers(1, 5),
)
def test_it_is_a_sorted_list(start: list[int], steps: list[tuple[bool, int, float]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered_ids, "BLOCK", block)
        ids, model = OrderedIds(start), list(start)
        newest = max(start, default=0)
        for append, gap, where in steps:
            if append:
                newest += gap
                ids.append(newest)
                model.append(newest)
            elif model:
                ids.remove(model.pop(int(where * len(model))))
            assert len(ids) == len(model)
            assert [ids[rank] for rank in range(len(ids))] == model


def test_ids_only_grow() -> None:
    ids = OrderedIds([3, 5])
    with pytest.raises(ValueError, match="not above"):
        ids.append(5)
    ids.remove(5)
    with pytest.raises(ValueError, match="not above"):
        ids.append(4)
    with pytest.raises(ValueError, match="ascending"):
        OrderedIds([2, 2])


@pytest.mark.parametrize("absent", [1, 4, 9])
def test_what_is_not_in_cannot_leave(absent: int) -> None:
    ids = OrderedIds([3, 5])
    with pytest.raises(KeyError):
        ids.remove(absent)
    assert len(ids) == 2


@pytest.mark.parametrize("rank", [-1, 2])
def test_there_is_no_rank_beyond_the_size(rank: int) -> None:
    with pytest.raises(IndexError):
        OrderedIds([3, 5])[rank]
