"""Constructs that proposers' prompts name (`selfplay.constructs`)."""

from __future__ import annotations

import random

import pytest

from actors.constructs import CONSTRUCTS, asked_for, draw_constructs, named, used, uses
from actors.prompt_builder import PromptBuilder
from actors.prompts import PromptFormat
from executor.tasks import Task
from tests.unit.actors.scripted import Bytes

REFERENCE = Task("deduction", "def f(s):\n    return sorted(s.upper())", ("'b'",), ("['B']",))


def asked(prompt_format: PromptFormat, *constructs: str) -> str:
    prompt = PromptBuilder(Bytes(), prompt_format, 1 << 20, 2).propose("deduction", [REFERENCE], constructs=constructs)
    return bytes(prompt.token_ids).decode()


def test_a_draw_is_a_function_of_its_seed_and_reaches_every_construct() -> None:
    draws = [draw_constructs(2, seed) for seed in range(600)]
    assert draws == [draw_constructs(2, seed) for seed in range(600)]
    assert all(len(set(one)) == 2 for one in draws)
    assert {construct for one in draws for construct in one} == set(CONSTRUCTS)
    assert draw_constructs(0, 1) == ()
    assert set(draw_constructs(10**6, 1)) == set(CONSTRUCTS)


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_construct_is_found_where_it_is_used_and_not_in_the_head_or_in_other_words(construct: str) -> None:
    assert uses(f"def f(x):\n    return 1{construct}2 # {construct}", construct)
    assert not uses("def f(x):\n    return x", construct)
    if construct.isalpha():
        assert not uses(f"def f({construct}):\n    return {construct}s", construct)


@pytest.mark.parametrize("prompt_format", ["completion", "r1"])
def test_a_prompt_names_its_constructs(prompt_format: PromptFormat) -> None:
    assert asked(prompt_format) != asked(prompt_format, "zip") != asked(prompt_format, "divmod")
    assert named(["zip", "%"]) in asked(prompt_format, "zip", "%")


@pytest.mark.parametrize("prompt_format", ["completion", "r1"])
def test_examples_say_what_they_use_only_where_the_new_function_is_asked_for_something(
    prompt_format: PromptFormat,
) -> None:
    title = f"Example 1: f uses {named(used(REFERENCE.program)[:1])}\n"
    assert title in asked(prompt_format, "zip")
    assert used(REFERENCE.program, 1) == used(REFERENCE.program)[:1]
    assert "f uses" not in asked(prompt_format)


def test_a_label_s_prompt_asks_for_what_its_program_uses() -> None:
    draw = random.Random(0)
    assert set(asked_for(REFERENCE.program, 2, draw)) == {"sorted", "upper"}
    assert len(asked_for(REFERENCE.program, 1, draw)) == 1
    assert asked_for("def f(x):\n    return x", 2, draw) == ()


def test_constructs_are_named_in_a_sentence() -> None:
    assert [named(["len", "for", "%"][:count]) for count in range(4)] == [
        "",
        "`len`",
        "`len` and `for`",
        "`len`, `for` and `%`",
    ]


def test_a_power_is_no_product() -> None:
    assert used("def f(x):\n    return x ** 2") == ["**"]
    assert used("def f(x):\n    return x ** 2 * x") == ["*", "**"]
