"""Properties of the codec over generated values and texts: exact round trips, lawful equality, Python as the oracle.

Values are of exact builtin types, nested, with NaN, infinities, signed zeros, surrogates, large integers, empty
containers, and keys and elements that are tuples and frozensets.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from executor import literals, values
from executor.codec import decode, encode, from_tagged
from executor.literals import parse_args, parse_literal
from executor.values import (
    CodecError,
    Equality,
    canonical,
    canonical_args,
    equal,
)

_TEXT = st.text(st.characters(codec=None, categories=None, exclude_categories=()), max_size=12)
_SURROGATES = st.text("\ud83d\ude00\U0001f600a", max_size=5)
_NANS = st.builds(float, st.just("nan"))  # each an object of its own
_PLAIN_TEXT = st.text("abz 01_-.,:#'\"\\[](){}\n\tTrueNoneé", max_size=8)
_INTEGERS = st.integers(-5, 5) | st.integers(-(10**40), 10**40) | st.sampled_from([2**13_999, -(2**13_999)])
_FLOATS = st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, 2.0, 1e300])
_ATOMS = (
    st.none() | st.booleans() | _INTEGERS | _FLOATS | _TEXT | _SURROGATES | _PLAIN_TEXT | _NANS | st.binary(max_size=8)
)


def _hashable(atoms: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        atoms, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=5
    )


def _values(atoms: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hashable = _hashable(atoms)
    return st.recursive(
        hashable,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(hashable, inner, max_size=4)
            | st.sets(hashable, max_size=4)
        ),
        max_leaves=12,
    )


_VALUES = _values(_ATOMS)
# Few atoms, so that two values are often equal, or nearly.
_CLOSE = _values(st.sampled_from([0, 1, True, False, 1.0, 0.0, -0.0, "1", b"1", None, math.nan]) | _NANS)


def _exact(value: Any) -> Any:
    """A stand-in that is `==` exactly for values that no program can tell apart: types, signs and the order of
    dicts."""
    kind = type(value)
    if kind is float:
        return (kind, "nan") if math.isnan(value) else (kind, value, math.copysign(1, value))
    if kind in (list, tuple):
        return (kind, [_exact(item) for item in value])
    if kind in (set, frozenset):
        return (kind, sorted((_exact(item) for item in value), key=repr))
    if kind is dict:
        return (kind, [(_exact(key), _exact(item)) for key, item in value.items()])
    return (kind, value)


def _has_nan(value: Any) -> bool:
    if type(value) is dict:
        return any(_has_nan(part) for pair in value.items() for part in pair)
    if type(value) in (list, tuple, set, frozenset):
        return any(_has_nan(item) for item in value)
    return isinstance(value, float) and math.isnan(value)


@given(_VALUES)
def test_round_trips_are_exact(value: Any) -> None:
    assert _exact(decode(encode(value))) == _exact(value)
    assert _exact(from_tagged(json.loads(encode(value)))) == _exact(value)
    assert _exact(parse_literal(canonical(value))) == _exact(value)
    assert encode(value).isascii()


@given(st.lists(_VALUES, min_size=1, max_size=4).map(tuple))
def test_round_trips_of_arguments_are_exact(args: tuple[Any, ...]) -> None:
    text = canonical_args(args)
    assert _exact(parse_args(text)) == _exact(args)
    assert canonical_args(parse_args(text)) == text


@given(_CLOSE, _CLOSE)
def test_one_canonical_text_means_one_value(one: Any, other: Any) -> None:
    """Sets are written in one order; whatever a program can tell apart is written differently."""
    assert (canonical(one) == canonical(other)) == (_exact(one) == _exact(other))
    if canonical(one) == canonical(other):
        assert equal(one, other)


@given(st.lists(_hashable(_ATOMS), max_size=6), st.randoms())
def test_a_sets_canonical_text_does_not_depend_on_how_it_was_made(items: list[Any], random: Any) -> None:
    items = list(set(items))  # of 1, True and 1.0 a set keeps the first
    text = canonical(set(items))
    random.shuffle(items)
    assert canonical(set(items)) == text


# Many of the values that are close to each other hold a NaN.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(_CLOSE, _CLOSE)
def test_python_equality_is_pythons(one: Any, other: Any) -> None:
    assume(not _has_nan(one) and not _has_nan(other))
    assert equal(one, other, Equality.PYTHON) == (one == other)
    if equal(one, other, Equality.TYPE_AWARE):
        assert one == other


@given(_VALUES)
def test_equality_is_reflexive(value: Any) -> None:
    again = decode(encode(value))
    for mode in Equality:
        assert equal(value, again, mode)


@given(st.lists(_CLOSE, min_size=3, max_size=3))
def test_equality_is_symmetric_and_transitive(three: list[Any]) -> None:
    one, two, three_ = three
    for mode in Equality:
        assert equal(one, two, mode) == equal(two, one, mode)
        if equal(one, two, mode) and equal(two, three_, mode):
            assert equal(one, three_, mode)


_FRAGMENTS = st.sampled_from([
    *"[](){},:+-'\"\\ #\n\t_.0123456789", "'a'", '"b"', "'''c'''", '"""d"""', "'''", '"""', "''", '""', "r'\\n'",
    "\\N{KEYCAP DIGIT ONE}", "'\ud800'", "'\x00'", "b'x'", "rb'\\'", "u'e'", "f''",
    "True", "False", "None", "true", "null", "NaN", "Infinity", "inf", "nan", "set()", "frozenset({1})", "0x1F", "0b1",
    "1e5", "1E-3", "1_0", "00", "01", ".5", "5.", "1j", "\\x41", "\\u00e9", "\\N{DASH}", "\\\n", ", ", ": ", "f(1)",
    "x", "'it\\'s'", '"it\'s"', "\r\n", "\x0c",
])  # fmt: skip
_TEXTS = st.lists(_FRAGMENTS, max_size=12).map("".join) | _VALUES.map(repr) | st.text(max_size=30)
_OURS = ("inf", "nan", "set(")
"""Forms that are literals here and names or calls for Python."""


@given(_TEXTS)
def test_random_text_raises_nothing_but_codec_errors(text: str) -> None:
    for read in (parse_literal, parse_args, decode):
        with contextlib.suppress(CodecError):
            read(text)


@given(_TEXTS)
def test_python_reads_the_same_value(text: str) -> None:
    """Of what is accepted here, `ast.literal_eval` makes the same; and of what it accepts, little is refused here."""
    try:
        ours = parse_args(text)
    except CodecError:
        return
    assume(not any(form in text for form in _OURS))
    theirs = ast.literal_eval(f"[{text}\n]")  # newlines are free between arguments
    assert _exact(list(ours)) == _exact(theirs)


@given(_VALUES.map(repr))
def test_what_repr_writes_is_read_as_python_does(text: str) -> None:
    assume(not any(form in text for form in _OURS))
    assert _exact(parse_literal(text)) == _exact(ast.literal_eval(text))


@given(_TEXTS)
def test_the_short_way_of_reading_agrees_with_the_long_one(text: str) -> None:
    """Most texts are read by the JSON parser; whatever it accepts, the reader of literals reads alike."""
    simple = literals._read_simple(text, values.MAX_BYTES)
    if simple is not None:
        items, _ = literals._Reader(text, values.MAX_BYTES).read_top()
        assert _exact(simple) == _exact(items)


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("[1, -2, 'a b'], {'k': 1.5}, True, None", True),
        ('"it", ["x"]', True),
        ("[" * 63 + "]" * 63, True),
        ("[" * 64 + "]" * 64, False),
        ("true", False),
        ("null", False),
        ("NaN", False),
        ("-Infinity", False),
        ("'a' 'b'", False),
        ("'a\\n'", False),
        ('"it\'s"', False),
        ("1], [2", False),
        ("{1: 2}", False),
        ("1,", False),
        ("", False),
    ],
)
def test_which_texts_are_read_the_short_way(text: str, simple: bool) -> None:
    assert (literals._read_simple(text, values.MAX_BYTES) is not None) is simple


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3) | st.floats(), st.lists))
def test_forged_nodes_raise_nothing_but_codec_errors(node: Any) -> None:
    try:
        value = decode(json.dumps(node))
    except CodecError:
        return
    assert _exact(decode(encode(value))) == _exact(value)
