"""Versions across restarts of the learner, held to a model that keeps every version's real history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.lineage import Lineage, label_of, split_label

LIVES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**16))
def test_a_label_is_a_version_and_a_life(version: int, life: int) -> None:
    assert split_label(label_of(version, life)) == (version, life)
    assert label_of(version, 0) == version


@given(LIVES)
def test_an_undone_version_counts_as_the_newest_that_both_have_in_common(lives: list[tuple[int, int]]) -> None:
    """Each life makes some versions, then ends; the next goes on from a checkpoint of any version that there is."""
    lineage = Lineage()
    history: list[tuple[int, int]] = [(0, 0)]
    """(version, life) of each version that the present policy descends from, by version."""
    of: dict[tuple[int, int], list[tuple[int, int]]] = {(0, 0): list(history)}
    for life, (made, back) in enumerate(lives):
        if life:
            history = history[: max(1, len(history) - back)]
            lineage.begin(life, len(history) - 1)
            lineage = Lineage.of_state(lineage.state())
        for _ in range(made):
            history = [*history, (len(history), life)]
            of[history[-1]] = history
    now = len(history) - 1
    for (version, life), ancestors in of.items():
        common = max(at for at, (mine, theirs) in enumerate(zip(history, ancestors, strict=False)) if mine == theirs)
        assert lineage.ancestor(version, life) == common <= now
