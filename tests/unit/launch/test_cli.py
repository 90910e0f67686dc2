"""The `azr` command: its help, its start, and errors as messages."""

from __future__ import annotations

import argparse
import ast
import builtins
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.user_error import UserError
from launch import cli
from launch.bench.options import LateParser
from launch.config import Config, SftConfig, override

ROOT = Path(cli.__file__).parents[1]
INTERNAL = {
    "ActorKilled", "BatchTimeout", "BudgetError", "CallFailed", "CodecError", "DeadError", "DeltaError", "Ended",
    "EngineAborted", "EngineDead", "JailError", "LearnerLost", "LiteralError", "ProcessEnded",
    "ProcessRestarting", "PromptTooLong", "ReceiversEnded", "Refused", "RolloutBroken", "StepGivenUp",
    "UnserialisableError", "WeightSyncError", "WeightSyncTimeout", "WeightUpdateFailed", "WireError",
    "WorkerFailed",
}  # fmt: skip
"""Exceptions that this project catches itself: they become an outcome, or end a process that is started again, with
their text in its log."""


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and every command within it, by its name on the command line."""
    waiting = [("azr", cli.make_parser())]
    while waiting:
        name, parser = waiting.pop()
        if isinstance(parser, LateParser) and parser.fill is not None:
            parser.fill(parser)
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [(f"{name} {key}", found) for key, found in action.choices.items()]


PARSERS = dict(parsers())


@pytest.mark.parametrize("name", PARSERS)
def test_the_help_of_every_command_teaches_it_by_examples_that_parse(name: str) -> None:
    parser = PARSERS[name]
    shown = parser.format_help()
    examples = re.findall(r"^ {2}(?:.* \| )?(azr .*)$", shown, re.MULTILINE)
    command = name.split()[:2]
    assert any(example.split()[: len(command)] == command for example in examples), f"no example of {name}"
    assert parser.description, "it says what the command does"
    for example in examples:
        # An example ends where two spaces begin what is said about it.
        words = shlex.split(re.split(r" {2,}|[<>]| \|\| ", example)[0])
        arguments, rest = cli.make_parser().parse_known_args(words[1:])
        assert callable(arguments.run)
        assert all("=" in word for word in rest), example
        settings = [word for word in words if re.match(r"[a-z_]+\.[a-z_.]+=", word)]
        if words[1] == "sft":
            override({"sft": {"data": "examples.jsonl"}}, {}, settings, SftConfig)  # raises what the user would see
        else:
            override({}, {}, settings, Config)


def test_no_command_lies_outside_the_list() -> None:
    import launch.commands

    files = {module.name for module in pkgutil.iter_modules(launch.commands.__path__)}
    assert set(cli.COMMANDS) == files


def test_help_imports_nothing_that_takes_long() -> None:
    program = "import sys, launch.cli; launch.cli.make_parser().format_help(); print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "torch",
        "ray",
        "vllm",
        "megatron",
        "transformers",
        "numpy",
        "pydantic",
        "rich",
        "zmq",
        "asyncio",
    }


def exceptions() -> dict[str, set[str]]:
    """The exception classes that this project's source defines: name -> all classes that it derives from, by name."""
    bases: dict[str, set[str]] = {}
    for package in ("executor", "actors", "learner", "launch"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}

    def above(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        return {name}.union(*(above(base, seen | {name}) for base in bases.get(name, set()) - seen - {name}))

    builtin = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException) and not issubclass(value, Warning)
    }
    return {name: above(name) for name in bases if above(name) & builtin}


def test_every_exception_that_reaches_the_user_is_a_user_error() -> None:
    found = exceptions()
    others = {name for name, above in found.items() if "UserError" not in above}
    assert others == INTERNAL, "derive it from UserError, so that `azr` shows its text; or catch it, and name it here"
    assert len(found) > 30


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_user_error_is_a_line_on_stderr_and_an_exit_code(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(UserError):
        exit_code = code

    def fail(arguments: argparse.Namespace) -> int:
        raise Broken("the file x is missing; make it")

    monkeypatch.setattr("launch.commands.model._list", fail)
    assert cli.main(["model", "list"]) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "azr: the file x is missing; make it\n")


def test_another_error_is_a_defect_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("launch.commands.model._list", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["model", "list"])


def test_the_version_names_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    number = r"\d+\.\d+\.\d+\S*"
    packages = ", ".join(f"{name} {number}" for name in ("torch", "vllm", "megatron-core", "ray"))
    assert re.fullmatch(rf"azr {number} \(Python {number}, {packages}\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["--help"], ["config", "docs"]])
def test_a_reader_that_goes_away_is_no_traceback(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "launch.cli", *arguments]
    found = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writer)
    assert found.stderr == ""
    assert found.returncode in (0, cli.BROKEN_PIPE)  # argparse does not notice it


@pytest.mark.parametrize("where", ["launch.standard_streams.prepare_streams", "launch.cli.make_parser"])
def test_an_interrupt_while_a_command_starts_is_no_traceback(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert cli.main(["model", "list"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "azr: interrupted\n"


def test_a_working_directory_that_was_removed_is_named(tmp_path: Path) -> None:
    program = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m launch.cli model list"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.endswith(
        "azr: the working directory cannot be used (No such file or directory): cd to one that exists\n"
    )
