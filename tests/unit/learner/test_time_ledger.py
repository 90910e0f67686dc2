"""The ledger of seconds closes, and what nobody measured shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.time_ledger import TimeLedger

PARTS = ("a", "b", "c")
Act = tuple[str | None, int, list["Act"]]


def acts() -> st.SearchStrategy[list[Act]]:
    """Blocks of a part (None: of no part), with seconds at their beginning and blocks within them."""
    part, seconds = st.sampled_from([*PARTS, None]), st.integers(0, 9)
    leaf = st.tuples(part, seconds, st.just([]))
    return st.lists(st.recursive(leaf, lambda inner: st.tuples(part, seconds, st.lists(inner, max_size=3))), max_size=6)


@given(acts())
def test_each_second_counts_once_and_the_rest_is_unaccounted(tree: list[Act]) -> None:
    now = 0.0
    spent = dict.fromkeys((*PARTS, "unaccounted"), 0.0)
    ledger = TimeLedger(PARTS, lambda: now)

    def play(blocks: list[Act], outer: str) -> None:
        nonlocal now
        for part, seconds, inner in blocks:
            if part is None:
                now += seconds
                spent[outer] += seconds
                play(inner, outer)
            else:
                with ledger.during(part):
                    now += seconds
                    spent[part] += seconds
                    play(inner, part)

    for _ in range(2):  # it begins anew
        before = now
        play(tree, "unaccounted")
        assert ledger.take() == spent | {"total": now - before}
        spent = dict.fromkeys(spent, 0.0)


def test_a_part_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError), TimeLedger(PARTS).during("d"):
        pass
