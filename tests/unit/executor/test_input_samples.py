"""Sampled inputs: of the given types, readable, all different, and the same again for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.input_samples import MAX_INPUT_BYTES, sample_inputs
from executor.literals import parse_args

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    LEAVES,
    lambda of: st.lists(of) | st.tuples(of, of) | st.dictionaries(KEYS, of) | st.sets(KEYS) | st.frozensets(KEYS),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=2), st.integers(0, 20))
def test_samples_are_other_inputs_of_the_same_types(args: list[object], seed: int) -> None:
    found = sample_inputs(args, 5, random.Random(seed))
    assert found == sample_inputs(args, 5, random.Random(seed))
    assert len(found) == len(set(found)) <= 5
    for text in found:
        assert len(text) <= MAX_INPUT_BYTES
        values = parse_args(text)
        assert [type(value) for value in values] == [type(value) for value in args]
        assert values != tuple(args)


@pytest.mark.parametrize("args", [(5,), ("tea",), ([1, 2, 3],), (3, "a b"), ({"a": 1},), ((1, "x"),), (-2.5,)])
def test_ordinary_inputs_have_as_many_samples_as_are_wanted_and_stay_ordinary(args: tuple[object, ...]) -> None:
    found = sample_inputs(args, 6, random.Random(1))
    assert len(found) == 6
    assert all(len(text) < 80 for text in found)


def test_what_has_no_other_value_or_is_too_long_has_none() -> None:
    assert sample_inputs((None,), 4, random.Random(0)) == []
    assert sample_inputs(("a" * MAX_INPUT_BYTES,), 4, random.Random(0)) == []
