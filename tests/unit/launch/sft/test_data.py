"""`azr sft-data`: what it writes reads back as the task, in the words of self-play's prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.heldout.tasks import held_out_programs
from actors.parsing import answer_of
from actors.prompt_builder import PromptBuilder
from actors.prompts import PromptFormat
from executor.inspection import inspect
from executor.tasks import Task
from launch.cli import main
from launch.recipe import RECIPES
from launch.sft.data import examples
from launch.shipped.sft_examples import FILE, SOURCES
from learner.settings import BatchSettings
from tests.unit.actors.reading import parse_proposal, parse_solution

KINDS = BatchSettings().kinds

PROGRAM = "def f(x):\n    return x + x"
TASK = {
    "deduction": Task("deduction", PROGRAM, ("2",), ("4",)),
    "abduction": Task("abduction", PROGRAM, ("'é`'",), ("'é`é`'",)),
    "induction": Task("induction", PROGRAM, ("1", "2"), ("2", "4"), "twice"),
}
OTHER = Task("deduction", "def f(y):\n    return [y]", ("1",), ("[1]",))


class Letters:
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.mark.parametrize("prompt_format", ["completion", "r1"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_replies_read_back_as_the_task(kind: str, prompt_format: PromptFormat) -> None:
    task = TASK[kind]
    solve, propose, *_ = examples([task, OTHER], prompt_format, ("solve", "propose"), 2, 0)
    builder = PromptBuilder(Letters(), prompt_format, 1 << 20, len(task.inputs))
    prompts = builder.solve(task), builder.propose(kind, [task] if kind == "induction" else [OTHER])
    replies = []
    assert solve and propose
    for example, prompt in zip((solve, propose), prompts, strict=True):
        assert example["prompt"] == ["".join(map(chr, prompt.token_ids[s.start : s.end])) for s in prompt.spans]
        assert example["response"].endswith(prompt.stop)
        stopped = min(example["response"].find(stop) % (1 << 30) for stop in prompt.stop)
        if prompt_format == "r1":
            assert stopped == len(example["response"]) - len(prompt.stop[0])
        replies.append(answer_of(prompt.reply_start + example["response"][:stopped], prompt_format))
    assert parse_solution(kind, replies[0]) == {
        "deduction": task.outputs[0],
        "abduction": task.inputs[0],
        "induction": PROGRAM,
    }[kind]  # fmt: skip
    proposal = parse_proposal(kind, replies[1], PROGRAM, len(task.inputs))
    assert (proposal.kind, proposal.program, proposal.inputs, proposal.message) == (
        kind,
        PROGRAM,
        task.inputs,
        task.message,
    )


@pytest.mark.parametrize(
    ("task", "sayable"),
    [
        (Task("deduction", "import math\ndef f(x):\n    return math.gcd(x, 4)", ("2",), ("2",)), [True, False]),
        (Task("abduction", PROGRAM, ("'```'",), ("'``````'",)), [False, True]),
        (Task("induction", PROGRAM, ("1", "2"), ("2", "4"), "Example of a sum"), [True, False]),
    ],
)
def test_what_the_completion_format_cannot_say_is_left_out(task: Task, sayable: list[bool]) -> None:
    """Such a reply would not begin where the prompt ends, or a stop string would cut it. (A proposer opens its own
    fences.)"""
    roles = ("solve", "propose")
    assert [bool(example) for example in examples([task], "completion", roles, 2, 0)] == sayable
    assert all(examples([task], "r1", roles, 2, 0))


def test_solvers_see_as_many_examples_as_in_the_run() -> None:
    tasks = [Task("deduction", f"def f(x):\n    return x + {n}", ("2",), (f"{2 + n}",)) for n in range(4)]
    for task, example in zip(tasks, examples(tasks, "completion", ("solve",), 0, 0, num_examples=2), strict=True):
        assert example
        *head, program, given, _ = example["prompt"]
        shown = [piece for piece in head if piece.startswith("```python")]
        assert len(shown) == 2 and program not in shown and "x + 0" not in "".join(shown), "x + 0 is a copy"
        assert (program, given) == (f"```python\n{task.program}\n```\n", "```input\n2\n```\n")


def test_the_command_validates_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"kind": "deduction", "program": PROGRAM, "inputs": ["3"]},
        {"kind": "abduction", "program": PROGRAM, "inputs": ["3"], "outputs": ["7"]},
        {"kind": "induction", "program": PROGRAM, "inputs": ["1", "2"], "message": "twice"},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["sft-data", str(tmp_path / "tasks.jsonl"), str(tmp_path / "out.jsonl"), "--role", "solve"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "line 2 left out: outputs differ" in printed
    assert f"2 examples to {tmp_path / 'out.jsonl'}, of 2 tasks (1 deduction, 0 abduction, 1 induction)" in printed
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [example["response"] for example in written] == ["6\n```", "x):\n    return x + x\n```"]
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_data_that_ships_is_small_and_holds_nothing_that_is_held_out() -> None:
    assert FILE.stat().st_size < 100_000
    assert (RECIPES / "sft-smollm2-cpu.toml").exists()
    programs = {f"def f({source.parameters}):\n    {source.body}" for source in SOURCES}
    assert len(programs) == len(SOURCES)
    assert not {inspect(program)[0] for program in programs} & held_out_programs(), "whatever their names are"
    text = FILE.read_text()
    assert all(json.dumps(program.removeprefix("def f("))[1:-1] in text for program in programs)


def test_with_pairs_every_program_is_labelled_once_with_other_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"kind": "deduction", "program": "def f(x):\n    return x * 7 - 1", "inputs": ["3"]},
        {"kind": "abduction", "program": "def f(y):\n    return y * 7 - 1", "inputs": ["4"]},
        {"kind": "induction", "program": "def f(z):\n    return z * 7 - 1", "inputs": ["5", "6"], "message": "sevens"},
        {"kind": "deduction", "program": "def f(x):\n    return 'same'", "inputs": ["3"]},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["sft-data", str(tmp_path / "tasks.jsonl"), str(tmp_path / "out.jsonl"), "--pairs", "5"]) == 0
    assert "1 of 2 distinct programs labelled, 5 pairs" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    solved = [example for example in written if example["prompt"][-1].startswith("```")][: 5 + 5 + 1]
    # Five pairs in two kinds and one induction; each kind is proposed once.
    assert len(written) == 5 + 5 + 1 + 3
    answers = [example["response"] for example in solved]
    shown = written[5 + 5]["prompt"]
    assert sum(piece.startswith("```output") for piece in shown) == 1 + 5 // 2, "its own, and half of all pairs"
    assert written[-1]["response"].count("```input\n") == 2, "a proposer writes --inputs"
    assert answers[:5] == [f"{7 * x - 1}\n```" for x in [int(answer.split()[0]) for answer in answers[5:10]]]
    assert "same" not in json.dumps(written)


@pytest.mark.parametrize(
    "options", [["--references", "-1"], ["--constructs", "-1"], ["--pairs", "x"], ["--inputs", "0"], ["--examples=-1"]]
)
def test_numbers_out_of_bounds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sft-data", str(tmp_path / "tasks.jsonl"), str(tmp_path / "out.jsonl"), *options])
    assert stopped.value.code == 2 and "is no whole number from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"), [("tasks.jsonl", "exists already"), ("none/out.jsonl", "is no folder that can be written to")]
)
def test_where_it_cannot_write_is_said_before_it_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    (tmp_path / "tasks.jsonl").write_text("no task")
    assert main(["sft-data", str(tmp_path / "tasks.jsonl"), str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err


def test_tasks_that_give_no_example_write_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ignores = {"kind": "deduction", "program": "def f(x):\n    return 7", "inputs": ["2"]}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(ignores))
    assert main(["sft-data", str(tmp_path / "tasks.jsonl"), str(tmp_path / "out.jsonl"), "--pairs", "2"]) == 2
    assert "gives no example with these options" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_numbers_of_labels_are_bounded_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "tasks.jsonl"), str(tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit):
        main(["sft-data", *files, "--pairs", "9" * 20])
    assert "is above 64" in capsys.readouterr().err
    assert main(["sft-data", *files, "--inputs", "3"]) == 2
    assert "give --pairs, too" in capsys.readouterr().err
