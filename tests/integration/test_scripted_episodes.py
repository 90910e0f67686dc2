"""Whole episodes against hand-computed trajectories: the model's words are given, all else is real (environment,
sandbox, buffer).

Each test says what the model replies, and in full what has to come of it: every trajectory's slot, role, reward,
outcome and origin, the slots that go back, and what the buffer knows afterwards.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from actors.buffer.task_buffer import TaskBuffer
from actors.environment import Environment
from actors.parsing import FormatError
from actors.propose import ProposalOutcome
from actors.settings import SelfPlaySettings
from executor.tasks import RejectionReason, Task
from learner.settings import BatchSettings
from learner.staleness import Grant
from learner.trajectory import Role
from tests.unit.actors.scripted import Answer, Played, deduction, fenced, give, judging, play, r1, reply

KINDS = BatchSettings().kinds

FORMATS = ["completion", "r1"]
SETTINGS = SelfPlaySettings(
    prompt_format="completion", references=1, solutions=4, induction_inputs=2, max_prompt_tokens=4000
)
ZERO = "'Hello World'"


def settings(**changes: Any) -> SelfPlaySettings:
    return SelfPlaySettings.model_validate(SETTINGS.model_dump() | changes)


class Row(NamedTuple):
    """A trajectory as this file writes it down."""

    slot: int
    role: str
    reward: float
    outcome: str
    origin: str
    """Of a solution: `fresh` or `replayed`."""


def rows(played: Played) -> list[Row]:
    def origin(parts: dict[str, float]) -> str:
        if "replayed" not in parts:
            return ""
        assert parts["replayed"] + parts["estimate"] == 1.0
        return "replayed" if parts["replayed"] else "fresh"

    return [
        Row(t.slot, t.cell.role.value, t.reward, t.outcome, origin(t.reward_parts))
        for t in sorted(played.out, key=lambda t: t.slot)
    ]


def P(slot: int, reward: float, outcome: str) -> Row:
    return Row(slot, "propose", reward, outcome, "")


def S(slot: int, reward: float, outcome: str, origin: str = "fresh") -> Row:
    return Row(slot, "solve", reward, outcome, origin)


def proposing(prompt: str) -> bool:
    heads = (
        "All functions differ",
        "a message that says what f does",
        "Write a Python function named f and one",
        "Below is",
    )
    return any(head in prompt for head in heads)


def script(proposal: str, solutions: list[str], zero: str = ZERO) -> Answer:
    """The proposal whenever asked; for the zero task `zero`; for another the solutions in turn."""

    def answer(prompt: str, turn: int) -> str:
        if proposing(prompt):
            return proposal
        task = prompt.rpartition("Example 2" if "Example 2" in prompt else "User:")[2]
        return zero if ZERO in task or "return x\n" in task else solutions[turn]

    return answer


def known(folder: Path, columns: str, where: str = "proposer_version >= 0") -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "tasks.sqlite") as database:
        return database.execute(f"SELECT {columns} FROM tasks WHERE {where} ORDER BY id").fetchall()


# -- valid, in both formats ----------------------------------------------------------------------------------

TRIPLE = "def f(x):\n    return [x, x, x]"


class Case(NamedTuple):
    """What a model writes in the blocks, whole; the completion format gives the first characters."""

    kind: str
    proposal: str
    solutions: list[str]
    rows: list[Row]


CASES = [
    Case(
        "deduction",
        fenced(("python", TRIPLE), ("input", "7")),
        [fenced(("output", text)) for text in ("[7, 7, 7]", "[7,7,7]", "21", "seven")],
        [
            P(0, 0.5, "valid"),
            S(1, 1.0, "correct"),
            S(2, 1.0, "correct"),
            S(3, -0.5, "wrong"),
            S(4, -1.0, "unparseable"),
        ],
    ),
    Case(
        "abduction",
        fenced(("python", "def f(x):\n    return abs(x) + 1"), ("input", "-2")),
        [fenced(("input", text)) for text in ("2", "3", "'x'", "f(-2)")],
        [P(0, 0.5, "valid"), S(1, 1.0, "correct"), S(2, -0.5, "wrong"), S(3, -0.5, "error"), S(4, 1.0, "correct")],
    ),
    Case(
        "induction",
        fenced(("message", "The same again."), ("input", "'a'"), ("input", "[1]")),
        [
            fenced(("python", f"def f({text}"))
            for text in ("x):\n    return x", "x):\n    return 'a'", "x):\n    return x[0]", "x):\n    return +")
        ],
        [P(0, 0.75, "valid"), S(1, 1.0, "correct"), S(2, -0.5, "wrong"), S(3, -0.5, "wrong"), S(4, -0.5, "error")],
    ),
]
STARTS = {
    ("deduction", "propose"): "```python\ndef f(",
    ("abduction", "propose"): "```python\ndef f(",
    ("induction", "propose"): "```message\n",
    ("deduction", "solve"): "```output\n",
    ("abduction", "solve"): "```input\n",
    ("induction", "solve"): "```python\ndef f(",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
@pytest.mark.parametrize("prompt_format", FORMATS)
def test_a_valid_proposal(
    environment: Environment, store: TaskBuffer, tmp_path: Path, prompt_format: str, case: Case
) -> None:
    def answer(prompt: str, turn: int) -> str:
        role = "propose" if proposing(prompt) else "solve"
        text = case.proposal if role == "propose" else case.solutions[turn]
        return r1(text) if prompt_format == "r1" else text.removeprefix(STARTS[case.kind, role])

    grant = Grant(5, case.kind, 0, (0,), (1, 2, 3, 4))
    played = play(environment, store, grant, answer, settings(prompt_format=prompt_format))
    assert rows(played) == case.rows
    assert played.returned == []
    solved = sum(row.reward == 1.0 for row in case.rows[1:])
    assert known(tmp_path, "kind, attempts, solved, reward, proposer_version, episode_id") == [
        (case.kind, 4, solved, case.rows[0].reward, 3, "5.0")
    ]
    assert played.proposal.reward_parts["solve_rate"] == solved / 4


# -- invalid, by every reason --------------------------------------------------------------------------------

X = ("input", "3")


def program(text: str, given: tuple[str, str] = X) -> str:
    return fenced(("python", text), given)


INVALID: list[tuple[str, str, str]] = [
    ("deduction", fenced(X), FormatError.NO_PROGRAM),
    ("deduction", fenced(("python", TRIPLE)), FormatError.NO_INPUT),
    ("deduction", fenced(("python", " "), X), FormatError.EMPTY),
    ("abduction", "Here it is: f(x) = x", FormatError.NO_PROGRAM),
    ("induction", fenced(("input", "1"), ("input", "2")), FormatError.NO_MESSAGE),
    ("induction", fenced(("message", "m"), ("input", "1")), FormatError.TOO_FEW_INPUTS),
    ("induction", fenced(("message", "m"), ("input", "1"), ("input", "1")), RejectionReason.DUPLICATE_INPUT),
    ("induction", fenced(("message", "m"), ("input", "1"), ("input", "x")), RejectionReason.UNPARSEABLE_INPUT),
    ("deduction", program(TRIPLE, ("input", "open('f')")), RejectionReason.UNPARSEABLE_INPUT),
    ("abduction", program("def f(x):\n    return 1 / (x - 3)"), RejectionReason.ERROR),
    ("abduction", program("def g(x):\n    return x"), RejectionReason.ERROR),
    ("deduction", program("def f(x):\n    while True: pass"), RejectionReason.TIMEOUT),
    ("deduction", program("def f(x):\n    return len('a' * 10 ** 11)"), RejectionReason.MEMORY),
    ("deduction", program("def f(x):\n    return 'a' * 10 ** 6"), RejectionReason.OUTPUT_TOO_LARGE),
    ("deduction", program("def f(x):\n    return f"), RejectionReason.UNSERIALISABLE),
    ("deduction", program("import os\ndef f(x):\n    return os.getpid()"), RejectionReason.UNSAFE),
    ("abduction", program("def f(x):\n    return hash('abc')"), RejectionReason.NONDETERMINISTIC),
    ("abduction", program("def f(x):\n    return 'x' * 4000"), ProposalOutcome.TOO_LONG),
]


@pytest.mark.parametrize(
    ("kind", "text", "outcome"), INVALID, ids=[f"{kind}-{outcome}" for kind, _, outcome in INVALID]
)
def test_an_invalid_proposal(
    environment: Environment, store: TaskBuffer, tmp_path: Path, kind: str, text: str, outcome: str
) -> None:
    """It is paid -1 and named; its solve slots go to the zero task, or back where the buffer has none of the kind."""
    zero = r1(fenced(("output", ZERO), ("input", ZERO)))
    played = play(
        environment, store, Grant(1, kind, 0, (0,), (1, 2)), script(r1(text), [], zero), settings(prompt_format="r1")
    )
    replays = [S(1, 1.0, "correct", "replayed"), S(2, 1.0, "correct", "replayed")]
    assert rows(played) == [P(0, -1.0, outcome), *([] if kind == "induction" else replays)]
    assert played.returned == ([1, 2] if kind == "induction" else [])
    assert played.proposal.reward_parts == {"valid": 0.0, "reward/invalid": -1.0}
    assert known(tmp_path, "id") == []


def test_every_reason_is_played_here() -> None:
    """But for no answer, ignored and copied input (below), an input count that parsing never lets through, and a crash,
    which no program is known to bring about; `no_output` is a solver's."""
    seen = {outcome for _, _, outcome in INVALID}
    elsewhere = {
        FormatError.NO_ANSWER,
        FormatError.NO_INPUT,
        FormatError.NO_OUTPUT,
        "ignores_input",
        "copies_input",
        "input_count",
        "crashed",
    }
    assert {*FormatError, *RejectionReason} - seen <= elsewhere


@pytest.mark.parametrize("text", ["no tags at all", "```python\nx\n```</think> never answered"])
def test_a_reply_without_an_answer(environment: Environment, store: TaskBuffer, text: str) -> None:
    played = play(
        environment, store, Grant(1, "deduction", 0, (0,), (1,)), lambda p, t: text, settings(prompt_format="r1")
    )
    assert rows(played) == [P(0, -1.0, "no_answer"), S(1, -1.0, "no_answer", "replayed")]


@pytest.mark.parametrize(("required", "expected"), [(True, P(0, -1.0, "ignores_input")), (False, P(0, 0.0, "valid"))])
def test_a_constant_function(store: TaskBuffer, required: bool, expected: Row) -> None:
    rules = settings(input_dependence=required)
    answer = script(reply("def f(x):\n    return 6", "1"), ["6"] * 4)
    with judging(rules) as environment:
        played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), answer, rules)
    origin = "replayed" if required else "fresh"
    assert rows(played) == [expected, *(S(slot, 1.0, "correct", origin) for slot in (1, 2, 3, 4))]
    assert played.proposal.reward_parts["ignores_input"] == 1.0, "seen either way"


@pytest.mark.parametrize(
    ("program", "answer", "required", "expected"),
    [
        ("def f(x):\n    return x", "1", True, P(0, -1.0, "copies_input")),
        ("def f(x, y):\n    return y", "1, 2", True, P(0, -1.0, "copies_input")),
        ("def f(x):\n    return x", "1", False, P(0, 0.0, "valid")),
    ],
)
def test_a_copy(store: TaskBuffer, program: str, answer: str, required: bool, expected: Row) -> None:
    """A proposal whose value is its input, or one of its arguments."""
    rules = settings(reject_copies=required)
    with judging(rules) as environment:
        played = play(environment, store, Grant(1, "deduction", 0, (0,), ()), script(reply(program, answer), []), rules)
    assert rows(played) == [expected]


# -- duplicates ----------------------------------------------------------------------------------------------

SAME = "def f(number):\n    # the same under other names\n    return [number, number, number]"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [P(0, 0.5, "valid"), S(1, 1.0, "correct"), S(2, -0.5, "wrong")]),
        ({"novelty": "penalise", "duplicate_penalty": 0.25}, [
            P(0, 0.25, "valid"), S(1, 1.0, "correct"), S(2, -0.5, "wrong"),
        ]),
        ({"novelty": "reject"}, [
            P(0, -0.5, "duplicate"), S(1, -0.5, "wrong", "replayed"), S(2, -0.5, "wrong", "replayed"),
        ]),
    ],
)  # fmt: skip
def test_a_task_that_the_buffer_has(
    environment: Environment, store: TaskBuffer, tmp_path: Path, changes: dict[str, Any], expected: list[Row]
) -> None:
    def answer(prompt: str, turn: int) -> str:
        return reply(SAME, "7") if proposing(prompt) else ("[7, 7, 7]" if "# the same" in prompt and turn < 1 else "0")

    first = play(
        environment, store, Grant(1, "deduction", 0, (0,), ()), script(reply(TRIPLE, "7"), ["0"] * 4), SETTINGS
    )
    assert first.proposal.reward_parts["duplicate"] == 0.0
    played = play(environment, store, Grant(2, "deduction", 0, (0,), (1, 2)), answer, settings(solutions=2, **changes))
    assert rows(played) == expected
    assert played.proposal.reward_parts["duplicate"] == 1.0
    assert known(tmp_path, "program, episode_id, reward") == [(TRIPLE, "1.0", 0.0)], "the first keeps it"


# -- where solve slots go ------------------------------------------------------------------------------------


def test_a_grant_of_solutions_alone_replays(environment: Environment, store: TaskBuffer, tmp_path: Path) -> None:
    played = play(environment, store, Grant(1, "abduction", 0, (), (3, 4)), lambda p, turn: [ZERO, "1"][turn], SETTINGS)
    assert rows(played) == [S(3, 1.0, "correct", "replayed"), S(4, -0.5, "wrong", "replayed")]
    assert known(tmp_path, "kind, attempts, solved", "attempts > 0") == [("abduction", 2, 1)]


def test_an_empty_buffer_returns_slots(environment: Environment, store: TaskBuffer) -> None:
    played = play(environment, store, Grant(1, "induction", 0, (), (3, 4)), lambda p, t: "unused", SETTINGS)
    assert (rows(played), played.returned, played.engine.prompts) == ([], [3, 4], [])


def test_several_proposals_share_a_prompt_and_the_slots(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if proposing(prompt):
            return [reply(TRIPLE, "7"), "x): no program"][turn]
        return ZERO if "[x, x, x]" not in prompt else ["[7, 7, 7]", "0", "0", "0"][turn]

    played = play(environment, store, Grant(1, "deduction", 0, (0, 1), (2, 3, 4)), answer, SETTINGS)
    assert rows(played) == [
        P(0, 0.75, "valid"), P(1, -1.0, "no_input"),
        S(2, 1.0, "correct"), S(3, 1.0, "correct", "replayed"), S(4, -0.5, "wrong"),
    ]  # fmt: skip
    assert len({tuple(t.prompt_ids) for t in played.by_slot(Role.PROPOSE)}) == 1


def test_estimates_that_are_not_trained_on(environment: Environment, store: TaskBuffer, tmp_path: Path) -> None:
    """All n estimates are made without slots; the slots go to the buffer (the draw falls on the zero task here)."""
    answer = script(reply(TRIPLE, "7"), ["[7, 7, 7]", "0", "0", "0"])
    changed = settings(train_on_estimates=False)
    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, changed, seed=4)
    assert rows(played) == [
        P(0, 0.75, "valid"), S(1, 1.0, "correct", "replayed"), S(2, 1.0, "correct", "replayed"),
    ]  # fmt: skip
    assert len(played.engine.prompts) == 1 + 4 + 2
    assert known(tmp_path, "attempts, solved, reward") == [(4, 1, 0.75)]


@pytest.mark.parametrize(
    ("proposal", "expected", "tasks"),
    [
        (reply(TRIPLE, "7"), [S(1, 1.0, "correct"), S(2, -0.5, "wrong")], [(2, 1, None)]),
        ("x): nothing", [S(1, 1.0, "correct", "replayed"), S(2, 1.0, "correct", "replayed")], []),
    ],
)
def test_training_the_solver_alone(
    environment: Environment, store: TaskBuffer, tmp_path: Path, proposal: str, expected: list[Row], tasks: list[Any]
) -> None:
    """The proposal makes a task, nobody estimates it or is paid for it, and its slot goes back."""
    answer = script(proposal, ["[7, 7, 7]", "0"])
    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, settings(propose=False))
    assert rows(played) == expected
    assert played.returned == [0]
    assert known(tmp_path, "attempts, solved, reward") == tasks


# -- too long ------------------------------------------------------------------------------------------------


def test_an_induction_program_too_long_for_a_prompt_is_drawn_again(environment: Environment, store: TaskBuffer) -> None:
    long = "def f(x):\n    return x" + " + x" * 300
    give(store, *(deduction(long, str(number), "0") for number in range(2)))
    reply_text = "It is x.\n```\n```input\n1\n```\n```input\n2\n```\n"
    for episode in range(1, 9):
        grant = Grant(episode, "induction", 0, (0,), ())
        played = play(
            environment, store, grant, script(reply_text, ["x):\n    return x"] * 4), settings(max_prompt_tokens=900)
        )
        assert rows(played) == [P(0, 0.0, "valid")]
        if played.player.counts()["prompts_too_long"]:
            return
    raise AssertionError("the long programs were never drawn")


def test_a_prompt_that_never_fits_gives_its_slots_back(environment: Environment, store: TaskBuffer) -> None:
    for kind in KINDS:
        grant = Grant(1, kind, 0, (0, 1), (2, 3))
        played = play(environment, store, grant, lambda p, t: "unused", settings(max_prompt_tokens=40))
        assert (played.out, sorted(played.returned), played.engine.prompts) == ([], [0, 1, 2, 3], [])
        assert played.player.counts()["prompts_too_long"] > 0


def test_references_that_do_not_fit_are_counted(environment: Environment, store: TaskBuffer) -> None:
    give(store, *(deduction(f"def f(x):\n    return x + {number}" + " + x" * 60, "1", "0") for number in range(5)))
    played = play(
        environment,
        store,
        Grant(1, "deduction", 0, (0,), ()),
        lambda p, t: "x): no",
        settings(max_prompt_tokens=600, references=6),
    )
    shown = played.engine.prompts[0].count("```output")
    assert {name: count for name, count in played.player.counts().items() if count} == {
        "references_left_out": 6 - shown
    }
    assert 0 < shown < 6


# -- composite functions -------------------------------------------------------------------------------------

DEFINED = "def _make_g0():\n    def f(x):\n        return x\n    return f\ng_0 = _make_g0()\n"


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize(
    ("own", "whole", "part"),
    [
        ("def f(x):\n    return g_0(x) * 2", f"{DEFINED}\ndef f(x):\n    return g_0(x) * 2", 1.0),
        ("def f(x):\n    return x * 2", "def f(x):\n    return x * 2", 0.0),
    ],
)
def test_a_composite_proposal(
    environment: Environment, store: TaskBuffer, tmp_path: Path, prompt_format: str, own: str, whole: str, part: float
) -> None:
    def answer(prompt: str, turn: int) -> str:
        if proposing(prompt):
            assert DEFINED in prompt
            return r1(fenced(("python", own), ("input", "21"))) if prompt_format == "r1" else reply(own, "21")
        assert whole in prompt, "the solver sees one self-contained program"
        text = ["42", "42", "43", "44"][turn]
        return r1(fenced(("output", text))) if prompt_format == "r1" else text

    changed = settings(prompt_format=prompt_format, composite_functions=1.0, composite_max=1)
    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), answer, changed)
    assert rows(played) == [
        P(0, 0.5, "valid"), S(1, 1.0, "correct"), S(2, 1.0, "correct"), S(3, -0.5, "wrong"), S(4, -0.5, "wrong"),
    ]  # fmt: skip
    assert played.proposal.reward_parts["composite"] == part
    assert known(tmp_path, "program, outputs") == [(whole, '["42"]')]


def test_composite_prompts_come_as_often_as_set(environment: Environment, store: TaskBuffer) -> None:
    give(store, Task("abduction", "from math import *\ndef f(x):\n    return sqrt(x)", ("4",), ("2.0",)))

    def share(composite_functions: float) -> float:
        changed = settings(composite_functions=composite_functions, composite_max=3)
        prompts = [
            play(
                environment, store, Grant(number, "abduction", 0, (0,), ()), lambda p, t: "x): no", changed
            ).engine.prompts[0]
            for number in range(60)
        ]
        assert not any("import *" in prompt.partition("_make_g")[2] for prompt in prompts)
        return sum("_make_g0" in prompt for prompt in prompts) / len(prompts)

    assert (share(0.0), share(1.0)) == (0.0, 1.0)
    assert 0.25 < share(0.5) < 0.75  # 0.5 is expected; 4 deviations of 60 draws


# -- intrinsic rewards ---------------------------------------------------------------------------------------


def test_intrinsic_terms_are_paid_by_name(environment: Environment, store: TaskBuffer) -> None:
    weights = {"complexity": 0.3, "halstead": 0.2, "distance": 0.5, "answer_diversity": 0.1}
    branching = "def f(x):\n    if x > 3:\n        return [x, x, x]\n    return x + 1"
    answer = script(reply(branching, "7"), ["[7, 7, 7]", "0", "0", "0"])
    plain = play(environment, store, Grant(1, "deduction", 0, (0,), ()), answer, SETTINGS, seed=1)
    parts = plain.proposal.reward_parts
    again = play(environment, store, Grant(1, "deduction", 0, (0,), ()), answer, settings(intrinsic=weights), seed=1)
    shown = sum("[x, x, x]" in p.rpartition("Example 2")[0] for p in again.engine.prompts[:1])
    found = again.proposal.reward_parts
    assert found["reward/difficulty"] == 0.75
    assert found["reward/complexity"] == pytest.approx(0.3 * parts["complexity"] / (parts["complexity"] + 10))
    assert found["reward/halstead"] == pytest.approx(0.2 * parts["halstead"] / (parts["halstead"] + 1000))
    assert found["reward/distance"] == pytest.approx(0.5 * (0.0 if shown else parts["distance"]))
    assert found["reward/answer_diversity"] == pytest.approx(0.1), "the first of its player"
    induced = play(
        environment, store, Grant(2, "induction", 0, (0,), ()),
        script("It is x.\n```\n```input\n1\n```\n```input\n2\n```\n", ["x):\n    return x"] * 4, "x):\n    return x"),
        settings(intrinsic=weights),
    )  # fmt: skip
    terms = {name for name in induced.proposal.reward_parts if name.startswith("reward/")}
    assert terms == {"reward/difficulty", "reward/answer_diversity"}, "its proposer did not write the program"
