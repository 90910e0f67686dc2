from __future__ import annotations

import asyncio
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from executor.tasks import Proposal, Task
from launch.bench import endurance, executor, mix, mix_comparison, peers
from launch.bench.mix import Mix, MixError, Verification
from launch.cli import main
from learner.settings import BatchSettings

KINDS = BatchSettings().kinds

IDENTITY = "def f(x):\n    return x"
TASK = {"kind": "deduction", "program": IDENTITY, "inputs": ["1"], "outputs": ["1"], "message": ""}
PROPOSAL = {"op": "validate", "kind": "deduction", "program": IDENTITY, "inputs": ["1"], "message": ""}


def _file(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "work.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ------------------------------------------------------------------------------------------------------------ the mix


def test_answers_of_one_task_are_taken_together_across_other_lines(tmp_path: Path) -> None:
    other = {**TASK, "inputs": ["2"], "outputs": ["2"]}
    lines = [
        {"op": "verify", **TASK, "answer": "1"}, PROPOSAL, {"op": "verify", **other, "answer": "3"},
        {"op": "verify", **TASK, "answer": "2"},
    ]  # fmt: skip
    found = mix.load(_file(tmp_path, *lines)).items
    assert found == [
        Verification(Task("deduction", IDENTITY, ("1",), ("1",)), ("1", "2")),
        Proposal("deduction", IDENTITY, ("1",)),
        Verification(Task("deduction", IDENTITY, ("2",), ("2",)), ("3",)),
    ]


def test_a_task_that_comes_back_later_is_another_item(tmp_path: Path) -> None:
    lines = [{"op": "verify", **TASK, "answer": str(n)} for n in range(mix.MAX_ANSWERS + 3)]
    items = mix.load(_file(tmp_path, *lines)).items
    assert [len(item.answers) for item in items] == [mix.MAX_ANSWERS, 3]  # type: ignore[union-attr]


def test_a_mix_survives_being_written(tmp_path: Path) -> None:
    items = [
        Proposal("induction", IDENTITY, ("1", "2"), "a message"),
        Verification(Task("abduction", IDENTITY, ("1",), ("1",)), ("'ü'", "2")),
    ]
    for name in ("mix.jsonl", "mix.jsonl.gz"):
        mix.write(tmp_path / name, items, {"model": "some"})
        found = mix.load(tmp_path / name)
        assert found.items == items
        assert found.header == {"model": "some"}
    first = (tmp_path / "mix.jsonl.gz").read_bytes()
    mix.write(tmp_path / "mix.jsonl.gz", items, {"model": "some"})
    assert (tmp_path / "mix.jsonl.gz").read_bytes() == first


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"op": "guess"}',
        json.dumps({**PROPOSAL, "kind": "magic"}),
        json.dumps({**PROPOSAL, "program": 1}),
        json.dumps({"op": "verify", **TASK, "outputs": [], "answer": "1"}),
    ],
)
def test_a_line_that_is_no_work_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text(json.dumps(PROPOSAL) + "\n" + line + "\n")
    with pytest.raises(MixError, match="line 2"):
        mix.load(path)


def test_files_that_hold_no_mix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MixError, match="cannot be read"):
        mix.load(tmp_path / "missing.jsonl")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    with pytest.raises(MixError, match="cannot be read"):
        mix.load(tmp_path / "broken.jsonl.gz")
    with pytest.raises(MixError, match="no work"):
        mix.load(_file(tmp_path, {"format": "azr-mix-1"}))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os\ndef f(x):\n    return os.getpid()", "1"),
        ("def f(x):\n    return open(x)", "1"),
        ("def f(x):\n    return input()", "1"),
        ("def f(x):\n    while True:\n        pass", "1"),
        ("def f(x):\n    return ().__class__.__bases__", "1"),
        (IDENTITY, "open('x', 'w')"),
        (IDENTITY, "1), __import__('os').getpid("),
    ],
)
def test_what_must_not_run_without_isolation_is_left_out(tmp_path: Path, program: str, text: str) -> None:
    bad = {**PROPOSAL, "program": program, "inputs": [text]}
    abduction = {**TASK, "op": "verify", "kind": "abduction", "program": program, "answer": text}
    induction = {
        **TASK,
        "op": "verify",
        "kind": "induction",
        "inputs": ["1", "2"],
        "outputs": ["1", "2"],
        "answer": program,
    }
    found = mix.load(_file(tmp_path, PROPOSAL, bad, abduction, *([] if program == IDENTITY else [induction])))
    assert found.items == [Proposal("deduction", IDENTITY, ("1",))]
    assert found.left_out.total() == (2 if program == IDENTITY else 3)


def test_what_does_not_parse_is_kept_since_it_runs_nowhere() -> None:
    assert mix.unfit(Proposal("deduction", "def f(x) return", ("append 1 to the list",))) is None


def test_a_sample_is_spread_over_the_run_in_its_proportion() -> None:
    items: list[mix.Item] = []
    for n in range(100):
        items.append(Proposal("deduction", IDENTITY, (str(n),)))
        items.append(Verification(Task("deduction", IDENTITY, (str(n),), (str(n),)), (str(n),)))
    chosen = mix.sample(Mix(items), 10)
    assert [item.inputs for item in chosen if isinstance(item, Proposal)] == [(str(n),) for n in range(0, 100, 10)]
    assert sum(isinstance(item, Verification) for item in chosen) == 10
    assert mix.sample(Mix(items), 1000) == items


def test_the_shipped_mix_holds_work_of_every_kind_and_says_where_it_is_from() -> None:
    found = mix.load(mix.SHIPPED)
    assert found.header["model"]
    assert found.header["recipe"]
    assert found.proposals >= 150
    assert found.verifications >= 4 * found.proposals
    assert not found.left_out
    for kind in KINDS:
        assert any(isinstance(item, Proposal) and item.kind == kind for item in found.items)
        assert any(isinstance(item, Verification) and item.task.kind == kind for item in found.items)


# ------------------------------------------------------------------------------------------------------- the reference


def test_the_reference_judges_as_its_way_does(tmp_path: Path) -> None:
    pytest.importorskip("pebble")
    double = "def f(x):\n    return 2 * x"
    induction = {"kind": "induction", "program": double, "inputs": ["1", "2"], "outputs": ["2", "4"], "message": ""}
    lines = [
        PROPOSAL,
        {**PROPOSAL, "program": "def f(x):\n    return 1 / 0"},
        {**PROPOSAL, "program": "def f(x):\n    for y in iter(int, 1):\n        pass"},
        {**PROPOSAL, "program": "def f(x):\n    print('noise')\n    raise SystemExit"},
        {"op": "verify", **TASK, "answers": ["1", "1.0", "2", "no literal"]},
        {"op": "verify", **TASK, "kind": "abduction", "program": double, "outputs": ["2"], "answers": ["1", "2", "("]},
        {"op": "verify", **induction, "answers": [double, IDENTITY, "def g(x): return x"]},
    ]
    with peers.Reference(2, 0.3, 128) as reference:
        assert reference.load(_file(tmp_path, *lines)) == len(lines)
        for in_flight in (8, None):
            seconds, findings = reference.judge(30.0, in_flight)
            assert seconds > 0.3, "one program never ends"
            assert findings == [
                ["ok"], ["error"], ["timeout"], ["error"],
                ["correct", "correct", "wrong", "error"],
                ["correct", "wrong", "error"],
                ["correct", "wrong", "error"],
            ]  # fmt: skip
        assert reference.measure(double, 0.01).units >= 1


def test_differences_are_counted_by_both_sides_reasons() -> None:
    items = [
        Proposal("deduction", IDENTITY, ("1",)),
        Verification(Task("abduction", IDENTITY, ("1",), ("1",)), ("1", "2")),
    ]
    text = mix_comparison.agreement(items, [["timeout"], ["correct", "wrong"]], [["error"], ["correct", "correct"]])
    assert (
        text == "1 of 3 judgements differ between the two ways; 1 x verification (abduction): here wrong, there correct"
    )


def test_a_peer_that_dies_is_named() -> None:
    with pytest.raises(peers.PeerError, match=r"the example died \(exit code 3\)"):
        peers.LineProcess("the example", ["sh", "-c", "exit 3"])
    process = peers.LineProcess("the example", ["sh", "-c", "echo {}; read line"])
    with process, pytest.raises(peers.PeerError, match="the example died"):
        process.ask({})


def test_a_fresh_interpreter_gives_the_value_or_says_why_not() -> None:
    assert peers.fresh_python(IDENTITY, "'a', ".rstrip(", ")) == "'a'"
    with pytest.raises(peers.PeerError, match="ZeroDivisionError"):
        peers.fresh_python("def f(x):\n    return x / 0", "1")


# ----------------------------------------------------------------------------------------------------------- the whole


def _bench(*arguments: str) -> int:
    return main(["bench", "executor", *arguments])


@pytest.mark.slow
def test_every_path_and_ratio_is_there_once_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = _file(tmp_path, PROPOSAL, {"op": "verify", **TASK, "answers": ["1", "2"]})
    target = tmp_path / "found.json"
    assert _bench("--runs", "2", "--seconds", "0.02", "--mix", str(work), "--json", str(target)) == 0
    found = json.loads(target.read_text())
    expected = {
        "isolated_over_fork", "new_program_over_fork", "batch10_over_fork", "batch50_over_fork", "hardened_over_bare",
        "two_workers_over_one", "p99_over_p50", "mix_over_reference",
    }  # fmt: skip
    assert expected <= {*found["ratios"], *found["notes"]}
    assert {"isolated_over_fork", "hardened_over_bare", "two_workers_over_one"} <= set(found["ratios"])
    assert all(ratio["runs"] == 2 and ratio["median"] > 0 for ratio in found["ratios"].values())
    assert found["goals"]["timeout_overshoot_ms"]["value"] > 0
    shown = capsys.readouterr().out
    assert "program seen before" in shown
    assert "hardened_over_bare" in shown


def test_only_what_was_asked_for_is_measured(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    assert _bench("--runs", "1", "--seconds", "0.01", "--only", "cached", "--json", str(target)) == 0
    found = json.loads(target.read_text())
    assert [row["path"] for row in found["rows"]] == ["F: fork, exit, wait", "program seen before"]
    assert set(found["ratios"]) == {"isolated_over_fork", "p99_over_p50"}


def test_ctrl_c_keeps_the_runs_that_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = peers.Fork.measure
    calls = 0

    def interrupted(self: peers.Fork, seconds: float) -> Any:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt
        return measured(self, seconds)

    monkeypatch.setattr(peers.Fork, "measure", interrupted)
    report = executor.run(executor.Options(runs=50, seconds=0.01, only=frozenset({"python"})))
    assert report.notes["interrupted"].endswith("of 50 runs")
    assert report.rows, "there were complete runs"


def test_wrong_use_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench("--json", str(tmp_path / "missing" / "found.json")) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert _bench("--mix", str(tmp_path / "missing.jsonl")) == 2
    assert "cannot be read" in capsys.readouterr().err
    for wrong in (["--runs", "0"], ["--workers", "1"], ["--only", "everything"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit):
            _bench(*wrong)


def test_a_missing_pebble_leaves_a_note_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    report = executor.run(executor.Options(runs=1, seconds=0.01, only=frozenset({"pebble"})))
    assert "azr[bench]" in report.notes["pebble"]
    assert len(report.rows) == 1


def test_endurance_reports_every_tenth() -> None:
    report = endurance.run(400, 2)
    assert len(report.rows) == endurance.PARTS
    assert 400 <= sum(row["executions"] for row in report.rows) < 1500
    assert all(row["sandbox_mib"] > 1 and row["own_mib"] > 1 for row in report.rows)
    assert set(report.ratios) == set(endurance.GOALS)


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert endurance.memory_mib(os.getpid(), with_children=False) > 1

    async def gone() -> int:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        return process.pid

    assert endurance.memory_mib(asyncio.run(gone())) == 0
