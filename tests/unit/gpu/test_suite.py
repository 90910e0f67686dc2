"""`tests/gpu/run` without a GPU: parts that fail or hang, packages that are missing, and all of it as a dry run."""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.gpu import wheels
from tests.gpu.command import KEYS, chosen_parts
from tests.gpu.parts import PARTS, ROOT, Part, pytest_on
from tests.gpu.result import result_of, table
from tests.gpu.suite import AT_ONCE, Suite
from tests.unit.gpu import bare
from tests.waiting import wait_until

HANGS = """
import pathlib, subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(4)]
pathlib.Path(sys.argv[2]).write_text(" ".join(str(child.pid) for child in children))
finding = '{"test": "first", "outcome": "passed", "seconds": 1, "message": "", "figures": {"off": 0.5}}'
pathlib.Path(sys.argv[1]).write_text(finding + '\\n{"test": "sec')
def stands_here():
    time.sleep(600)
stands_here()
"""
TESTS = """
import pytest
def test_good(record_property):
    record_property("off", float("nan"))
def test_bad():
    assert 1 + 1 == 3
@pytest.mark.skipif(True, reason="there is one GPU")
def test_left_out():
    pass
"""


def python(code: str, *arguments: str) -> Callable[[Path, Path, bool], list[str]]:
    return lambda findings, folder, dry: [sys.executable, "-c", code, str(findings), *arguments]


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_part_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    tests, children = tmp_path / "test_parts.py", tmp_path / "children"
    tests.write_text(TESTS)
    report = {"ratios": {"mfu_1_5b": {"median": 0.5}}, "goals": {"mfu_1_5b": {"value": 0.5, "met": False}}}
    parts = [
        Part("hangs", "", 2, python(HANGS, str(children))),
        Part("tests", "", 60, pytest_on(str(tests))),
        Part("skipped", "", 60, pytest_on(str(tests), "-k", "left_out")),
        Part("nothing", "", 60, pytest_on(str(tests), "-k", "no_such_test")),
        Part("broken-bench", "", 60, python("raise SystemExit('no memory')"), bench=True),
        Part("bench", "", 60, python(f"import sys; open(sys.argv[1], 'w').write({json.dumps(report)!r})"), bench=True),
    ]
    (tmp_path / "work").mkdir()
    suite = Suite(parts, tmp_path / "work", dry=True, packages=tmp_path / "packages")
    suite.run()
    found = {result.name: result for result in suite.results}
    assert {name: result.status for name, result in found.items()} == {
        "hangs": "timed out", "tests": "failed", "skipped": "skipped", "nothing": "failed", "broken-bench": "failed",
        "bench": "passed",
    }  # fmt: skip
    assert found["hangs"].figures == {"off": 0.5} and "in stands_here" in found["hangs"].log_excerpt
    lines = found["hangs"].log_excerpt.splitlines()
    assert [line for line in lines if line.count("File ") > 1 or line.count("Fatal") > 1] == []  # one stack at a time
    log = (tmp_path / "work" / "hangs" / "log").read_text()
    assert log.count("Fatal Python error: Aborted") == 1 + len(children.read_text().split())
    wait_until(lambda: all(ended(int(pid)) for pid in children.read_text().split()))
    assert found["tests"].counts() == "1 passed, 1 failed, 1 skipped"
    assert found["tests"].figures == {"off": "nan"}
    assert found["bench"].figures == {"mfu_1_5b": 0.5}
    shown = table(suite.results)
    for text in ("assert (1 + 1) == 3", "there is one GPU", "no memory", "goal missed: mfu_1_5b is 0.5"):
        assert text in shown


@pytest.mark.parametrize(("code", "status"), [(0, "passed"), (1, "failed"), (None, "timed out")])
def test_what_a_benchmark_wrote_is_kept_however_it_ended(tmp_path: Path, code: int | None, status: str) -> None:
    part, file = Part("bench", "", 60, python(""), bench=True), tmp_path / "findings"
    report = {"ratios": {"mfu_1_5b": {"median": 0.5}}, "notes": {"unfinished": "a part"}}
    file.write_text(json.dumps(report))
    found = result_of(part, code, 60.0, 60.0, file, "the log")
    assert (found.status, found.report, found.figures) == (status, report, {"mfu_1_5b": 0.5})
    file.write_text(json.dumps(report)[:-9])  # as it was being written
    found = result_of(part, code, 60.0, 60.0, file, "the log")
    assert (found.report, found.figures, found.log_excerpt) == (None, {}, "the log")


def test_hanging_parts_take_less_than_six_minutes() -> None:
    workers = [0.0] * AT_ONCE
    for part in PARTS:
        if not part.bench:
            heapq.heappush(workers, heapq.heappop(workers) + part.limit_s)
    assert max(workers) + sum(part.limit_s for part in PARTS if part.bench) < 350


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheels, "WHEELS", ROOT / "build" / "none")
    monkeypatch.setitem(wheels.CARRIED, "no_such_module", ("some-package",))
    with pytest.raises(wheels.WheelError, match=r"lacks some-package.*run tests/gpu/pack, then bring build/none"):
        wheels.install(tmp_path)
    monkeypatch.setattr(wheels, "EXPECTED", ("no_such_module",))
    with pytest.raises(wheels.WheelError, match=r"lacks no_such_module: run the Python that has torch"):
        wheels.install(tmp_path)


def test_every_carried_package_has_its_version_in_the_lock() -> None:
    assert len(wheels.pins()) == sum(map(len, wheels.CARRIED.values()))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The Python of an environment like that of a bare GPU machine, and its variables."""
    found, packages = bare.environment(tmp_path_factory.mktemp("bare"))
    return found, bare.variables() | {"PYTHONPATH": str(packages)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run_passes_on_a_bare_machine(machine: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """All parts, in an environment without Ray, vLLM and all else that such a machine lacks."""
    interpreter, variables = machine
    absent = (
        "import importlib.util as u; assert not any(map(u.find_spec, ('ray', 'vllm', 'azr', 'simpy', 'matplotlib')))"
    )
    subprocess.run([interpreter, "-c", absent], env=variables, cwd=tmp_path, check=True)
    command = [interpreter, ROOT / "tests" / "gpu" / "run", "--dry", "--json", tmp_path / "gpu.json"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["ok"] and found["dry"]
    assert {part["name"]: part["status"] for part in found["parts"]} == {
        part.name: "passed" for part in chosen_parts((), dry=True)
    }
    assert {part["name"] for part in found["parts"] if not part["figures"]} <= {"attention"}
    assert set(KEYS) <= set(found)


@pytest.mark.slow
def test_without_a_gpu_nothing_is_run(machine: tuple[Path, dict[str, str]]) -> None:
    interpreter, variables = machine
    command = [interpreter, ROOT / "tests" / "gpu" / "run"]
    done = subprocess.run(
        command, env=variables | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    of = f"torch {torch.__version__} of {interpreter}"
    assert done.stderr == f"tests/gpu/run: {of} sees no GPU; --dry runs the same code on the CPU\n"
