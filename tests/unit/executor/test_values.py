"""The literal codec: what it reads, what it writes, and what it refuses. Its laws are in `test_values_properties.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from executor import values
from executor.values import (
    BudgetError,
    CodecError,
    LiteralError,
    UnserialisableError,
    canonical,
    canonical_args,
    decode,
    encode,
    equal,
    parse_args,
    parse_literal,
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
        "...", "1 if 1 else 2", "[1][0]", "'a'.upper()", "none", "0.1.2", "\x00",
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


def test_as_deep_as_allowed() -> None:
    for text in ("[" * 64 + "]" * 64, "frozenset({" * 64 + "})" * 64):
        value = parse_literal(text.replace("({})", "()"))
        assert equal(parse_literal(canonical(value)), value)
        assert equal(decode(encode(value)), value)


def test_signs_do_not_nest() -> None:
    assert parse_literal("-" * 60_000 + "1") == 1


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
    ],
)
def test_equality(one: object, other: object, type_aware: bool, python: bool) -> None:
    for left, right in ((one, other), (other, one)):
        assert equal(left, right) is type_aware
        assert equal(left, right, "type_aware") is type_aware
        assert equal(left, right, "python") is python
