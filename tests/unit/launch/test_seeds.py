"""`azr seeds propose`, but for its engine: what is proposed, counted and kept, and when it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from actors.buffer.task_buffer import LocalBuffer, TaskBuffer
from actors.environment import Environment
from actors.roles import model_roles
from actors.settings import SelfPlaySettings
from launch.seeds import IDENTITY, Proposed, collect
from tests.unit.actors.scripted import Script, new_store, reply

SETTINGS = SelfPlaySettings(prompt_format="completion", references=1, induction_inputs=2, max_prompt_tokens=4000)


def proposed(environment: Environment, store: TaskBuffer, seconds: float, num_programs: int = 10**9) -> Proposed:
    """One call of the clock takes a second. Of 8 proposals five are tasks: two programs, one of them thrice, and a
    constant."""
    programs = iter(range(10**9))

    def answer(prompt: str, turn: int) -> str:
        if not prompt.endswith("def f("):
            return "adds\n```\n```input\n3\n```\n```input\n4\n```\n"
        number = next(programs)
        bodies = [f"x * 977 + {number}", *["x * 911 - 5"] * 3, "7"]
        return reply(f"def f(x):\n    return {bodies[number % 8]}", "2") if number % 8 < len(bodies) else "x): no"

    seconds_passed = iter(range(10**9))
    buffer = LocalBuffer(store)
    roles = model_roles(Script(answer), environment, buffer, SETTINGS)  # type: ignore[arg-type]
    return asyncio.run(
        collect(roles(IDENTITY, None).proposer, buffer, 1, seconds, num_programs, clock=lambda: next(seconds_passed))
    )


def test_programs_are_counted_once_and_by_whether_they_use_their_input(
    environment: Environment, tmp_path: Path
) -> None:
    store = new_store(tmp_path)
    found = proposed(environment, store, 1000, num_programs=3)
    # The ninth proposal has the third program; then a third as many are about their programs.
    assert (found.proposals, found.valid) == (12, 9)
    assert len(found.programs) in (3, 4), "perhaps that of the zero triplet"
    assert 1 <= found.ignoring <= 4, "the constant, and what is written about it"
    assert store.sizes() == {"deduction": 5, "abduction": 5, "induction": len({*_programs(store)})}
    assert str(found).startswith("9 valid of 12 proposals, ")
    store.close()


def _programs(store: TaskBuffer) -> list[str]:
    return [task.program for _, task in store.references(("induction",), 99, "s")]


def test_it_ends_after_its_time(environment: Environment, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    assert proposed(environment, store, 0).proposals == 0
    assert proposed(environment, store, 16).proposals in range(7, 10), "a proposal takes two looks at the clock"
    store.close()
