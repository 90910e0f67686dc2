"""The literal codec: what it reads, what it writes, and what it refuses. Its laws are in
`test_values_properties.py`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

import pytest

from executor import values
from executor.codec import decode, encode
from executor.literals import parse_args, parse_literal
from executor.values import (
    BudgetError,
    CodecError,
    LiteralError,
    UnserialisableError,
    canonical,
    canonical_args,
    equal,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000),
        ("0xFF", 255),
        ("- - 5", 5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("'a' \"b\"", "ab"),
        (r"'\x41\u00e9\N{BULLET}\101\q'", "Aé•A\\q"),
        (r"r'\n'", "\\n"),
        (r"b'\x00\xff\u'", b"\x00\xff\\u"),
        ("'''a\nb'''", "a\nb"),
        ("[\n  1,  # one\n  2,\n]", [1, 2]),
        ("1, 2", (1, 2)),
        ("(1)", 1),
        ("(1,)", (1,)),
        ("()", ()),
        ("{}", {}),
        ("{1: 2, 1: 3,}", {1: 3}),
        ("set()", set()),
        ("frozenset({1})", frozenset({1})),
        ("[inf, -inf, float('inf'), float('-Infinity')]", [math.inf, -math.inf, math.inf, -math.inf]),
        ("[nan, float('nan')]", [math.nan, math.nan]),
    ],
)
def test_literals(text: str, value: object) -> None:
    assert equal(parse_literal(text), value)


@pytest.mark.parametrize(
    "text",
    [
        "", "  # only a comment", "f(1)", "__import__('os')", "x", "1 + 2", "2 ** 9", "*[1]", "f'{1}'", "f''", "1; 2",
        "1 2", "[1 2]", "[1", "1]", "{1: 2, 3}", "{1, 2: 3}", "{[1]}", "{[]: 1}", "'a", "'a\nb'", "'a' b'b'", "b'é'",
        "007", "1__0", "0x", "1a", "'\\x4'", "'\\N{NO SUCH NAME}'", "'\\U00110000'", "-'a'", "-True", "-[1]",
        "lambda: 1",
        "[x for x in ()]", "True and False", "float('1')", "float()", "set(1)", "set(('inf'))",
        "float('')", "float(b'inf')", "range(3)", "{**{}}", "x=1", ",", "[,]",
        "'''a'", '"""a"', "'''a", "''''a'", "b'''a'", "'a' '''b'", "''''", "'\\N{KEYCAP DIGIT ONE}'", "'\x00'",
        "'\ud800'", "...", "1 if 1 else 2", "[1][0]", "'a'.upper()", "none", "0.1.2", "\x00",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(LiteralError):
        parse_literal(text)
    with pytest.raises(LiteralError):
        parse_args(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + ")" * 5000,
        "[" * 65 + "]" * 65,
        "frozenset({" * 65 + "})" * 65,
        "-frozenset({" * 2000,
        "-float(" * 2000,
        "set(set(" * 2000,
        "{1:" * 100 + "1" + "}" * 100,
        "9" * 5000,
        "0x" + "f" * 4000,
        "[" + "1," * 60_000 + "]",
        "'" + "a" * values.MAX_BYTES + "'",
        "'" + "é" * (values.MAX_BYTES // 2) + "'",
    ],
)
def test_budgets_of_the_reader(text: str) -> None:
    with pytest.raises(CodecError):
        parse_literal(text, max_bytes=values.MAX_BYTES + 1 if "1,1," not in text else 2 * values.MAX_BYTES)


def _walk(bits: int, count: int) -> list[int]:
    """The order in which CPython's dict tries the places of a table of 2**bits for a small number, from place 1 on."""
    place, places = 1, []
    for _ in range(count):
        places.append(place)
        place = (5 * place + 1) % (1 << bits)
    return places


def _frozensets(depth: int, salt: int) -> str:
    if depth == 0:
        return str(5 + salt * _P)
    return f"frozenset({{{', '.join(_frozensets(depth - 1, salt * 4 + place) for place in range(4))}}})"


_P = (1 << 61) - 1  # integers that differ by this have the same hash
_SAME = [5 + _P * times for times in range(12_000)]
_CROWDED = [*_walk(14, 4950), *[place + (times << 14) for times, place in enumerate(_walk(14, 4950), 1)]]
_CHOSEN = {
    "integers": f"{{{_SAME}}}".replace("[", "").replace("]", ""),
    "keys": f"{{{', '.join(f'{number}: 0' for number in _SAME)}}}",
    "floats": f"{{{', '.join(repr(m * 2.0 ** (61 * k)) for m in range(1, 600, 2) for k in range(-16, 16))}}}",
    "integers and floats": f"{{{', '.join(f'{2**i}, {-(2.0**i)!r}' for i in range(1000))}}}",
    "tuples": f"{{{', '.join(f'(1, (({number},),))' for number in _SAME[:9000])}}}",
    "frozensets": f"{{{', '.join(f'frozenset({{{a}, {b + 4}}})' for a in _SAME[:60] for b in _SAME[:60])}}}",
    "nested frozensets": f"{{{', '.join(_frozensets(5, number) for number in range(20))}}}",
    "many small sets": f"[{', '.join(['{' + str(_SAME[:8])[1:-1] + '}'] * 1500)}]",
    "deep sets": f"[{', '.join(['frozenset({' * 63 + '1' + '})' * 63] * 700)}]",
    "a crowded table": f"{{{str(_CROWDED)[1:-1]}}}",
    "a crowded table of keys": f"{{{', '.join(f'{number}: 0' for number in _CROWDED)}}}",
    "equal keys": f"{{{', '.join(['(1, (2, (3,)))'] * 9000)}}}",
    "signs": "-" * 100_000 + "1",
    "strings side by side": "'' " * 50_000,
    "names of characters": "'" + "\\N{BULLET}" * 15_000 + "'",
    "one long name": "'\\N{" + "A" * 200_000 + "}'",
    "an open string": "'" + "\\x" * 50_000,
    "large integers": f"[{', '.join(['9' * 4200] * 150)}]",
    "long floats": f"[{'1' * 300_000}.5, {'1' * 300_000}e-3]",
}


@pytest.mark.parametrize("name", _CHOSEN)
def test_no_choice_of_values_makes_reading_them_slow(name: str) -> None:
    """Whether a text is read or refused, with all that is done with a value after it. (The first took 15 s and
    more.)"""
    text, limit = _CHOSEN[name], values.MAX_INPUT_BYTES
    before = time.process_time()
    with contextlib.suppress(BudgetError, LiteralError):
        value = parse_literal(text, limit)
        encoded = encode(value, limit)
        assert equal(decode(encoded, limit), value)
        assert equal(parse_literal(canonical(value), limit), value, "python")
    assert time.process_time() - before < 8


def test_a_child_cannot_send_what_a_text_may_not_hold() -> None:
    for node in (
        ["s", *_SAME[:9000]],
        ["d", *[part for number in _SAME[:5000] for part in (number, 1)]],
        ["f", *_SAME],
    ):
        with pytest.raises(BudgetError):
            decode(json.dumps(node), 1 << 20)
    for node in (["s", 1, 1], ["s", 1, True], ["d", 0.0, 1, -0.0, 2], ["f", ["t", 1], ["t", 1.0]]):
        with pytest.raises(LiteralError):
            decode(json.dumps(node))


def test_honest_collections_are_within_the_budget() -> None:
    for value in (
        {2**place for place in range(500)},
        {2.0**place: place for place in range(-900, 900)},
        set(range(9000)),
        {(-1, -2, row, -column) for row in range(40) for column in range(40)},
    ):
        assert equal(decode(encode(value)), value)
        assert equal(parse_literal(canonical(value)), value)


def test_as_deep_as_allowed() -> None:
    for text in ("[" * 64 + "]" * 64, "frozenset({" * 64 + "})" * 64):
        value = parse_literal(text.replace("({})", "()"))
        assert equal(parse_literal(canonical(value)), value)
        assert equal(decode(encode(value)), value)


def test_signs_do_not_nest() -> None:
    assert parse_literal("-" * 15_000 + "1") == 1


def test_one_argument_or_several() -> None:
    assert parse_args("'abc'") == ("abc",)
    assert parse_args("1, [2, 3]") == (1, [2, 3])
    assert parse_args("(1, 2)") == ((1, 2),)
    assert parse_args("(1, 2), 3") == ((1, 2), 3)
    assert parse_args("'a',\n  {'k':\n   1}") == ("a", {"k": 1})
    assert [canonical_args(parse_args(text)) for text in ("1,2", "(1,2)", "(1,)")] == ["1, 2", "(1, 2)", "(1,)"]


def test_sets_are_written_in_one_order() -> None:
    assert canonical({10, 9, -1}) == "{-1, 9, 10}"
    assert canonical({"b", "a", "c"}) == "{'a', 'b', 'c'}"
    assert canonical({frozenset({2, 1}), (3,), "x"}) == "{'x', (3,), frozenset({1, 2})}"


class _Text(str):
    pass


@pytest.mark.parametrize("value", [_Text("a"), range(3), object(), 1j, bytearray(b"a"), len, [{"k": _Text()}]])
def test_only_exact_builtin_types(value: object) -> None:
    with pytest.raises(UnserialisableError):
        canonical(value)
    with pytest.raises(UnserialisableError):
        encode(value)


def _deep() -> object:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


def _wide() -> object:
    value: list[object] = [1]
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize("make", [_deep, _wide, lambda: 1 << 20_000, lambda: [0] * 60_000])
def test_budgets_of_the_writers(make: Any) -> None:
    value = make()
    with pytest.raises(BudgetError):
        canonical(value)
    with pytest.raises(BudgetError):
        encode(value)


def test_the_size_of_an_encoding_is_limited() -> None:
    assert decode(encode("a" * 62, 64), 64) == "a" * 62
    for value in ("a" * 63, "é" * 20, b"a" * 40, [1] * 40):
        with pytest.raises(BudgetError):
            encode(value, 64)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "{}", "[]", '["q"]', "[[1]]", "[1]", '["d",1]', '["b"]', '["b",1]', '["b","zz"]', '["s",["l"]]',
        '["d",["l"],1]', "[" * 30_000, '["l",' * 100 + "1" + "]" * 100, "1" * 5000, '{"a":1}', "undefined",
    ],
)  # fmt: skip
def test_forged_encodings_are_refused(text: str) -> None:
    with pytest.raises(CodecError):
        decode(text)


def _nans(*items: object) -> dict[float, object]:
    """A dict whose keys are all NaN."""
    return {float("nan"): item for item in items}


@pytest.mark.parametrize(
    ("one", "other", "type_aware", "python"),
    [
        (1, 1, True, True),
        (1, True, False, True),
        (1, 1.0, False, True),
        ("1", 1, False, False),
        (b"a", "a", False, False),
        (None, False, False, False),
        ((), [], False, False),
        ({1}, frozenset({1}), False, True),
        ({1, 2}, {2, 1}, True, True),
        ({1: 2, 3: 4}, {3: 4, 1: 2}, True, True),
        ({1: "a"}, {True: "a"}, False, True),
        ([{1.0}], [{1}], False, True),
        (math.nan, math.nan, True, True),
        ([math.nan, {math.nan: math.nan}], [math.nan, {math.nan: math.nan}], True, True),
        (0.0, -0.0, True, True),
        (0.1 + 0.2, 0.3, False, False),
        ("é", "e\u0301", False, False),
        ([1, 2], [2, 1], False, False),
        ("nan", math.nan, False, False),
        ({math.nan: 2}, _nans(1, 2), False, False),
        (_nans(1, 2), _nans(2, 1), True, True),
        (_nans(1, 1), _nans(1, 2), False, False),
        (set(_nans(1, 2)), {math.nan}, False, False),
        (set(_nans(1, 2)), frozenset(_nans(1, 2)), False, True),
        ("\ud83d\ude00", "\U0001f600", False, False),
    ],
)
def test_equality(one: object, other: object, type_aware: bool, python: bool) -> None:
    for left, right in ((one, other), (other, one)):
        assert equal(left, right) is type_aware
        assert equal(left, right, "type_aware") is type_aware
        assert equal(left, right, "python") is python


@pytest.mark.parametrize(
    "value",
    [
        frozenset(range(6000)),
        [frozenset({number}) for number in range(4900)],
        frozenset(number * (2**61 - 1) for number in range(1, 1500)),
        frozenset(float("nan") for _ in range(9000)),
        frozenset({frozenset({number, -1}) for number in range(3000)}),
    ],
    ids=["elements", "many", "collisions", "nan", "nested"],
)
def test_a_frozenset_that_a_program_may_return_can_be_read_back(value: object) -> None:
    """Its canonical text takes no more of the budgets than the value did."""
    text = canonical(decode(encode(value)))
    assert canonical(parse_literal(text, 16 * values.MAX_BYTES)) == text
    assert canonical_args(parse_args(text, 16 * values.MAX_BYTES)) == text
