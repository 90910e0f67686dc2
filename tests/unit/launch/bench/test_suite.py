"""`azr bench all`: every benchmark is in it, with options that it knows."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from launch.bench import peer_environment, suite
from launch.commands.bench import SUBJECTS


@pytest.mark.parametrize("name", suite.SHORT)
def test_the_short_settings_are_options_of_their_benchmark(name: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int)
    importlib.import_module(f"launch.bench.{name}").add_options(parser)
    parser.parse_args(suite.SHORT[name])


def test_every_benchmark_is_part_of_the_suite() -> None:
    assert set(suite.SHORT) == set(SUBJECTS)


def test_the_benchmark_beside_trl_is_part_of_it_where_trl_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZR_CACHE", str(tmp_path))
    assert set(SUBJECTS) - set(suite.available()) == {"peer"}
    environment = tmp_path / "peer-trl"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    (environment / "azr-peer").write_text(peer_environment.requirements_digest(peer_environment._torch()))
    assert set(suite.available()) == set(SUBJECTS)


@pytest.mark.slow
def test_each_result_is_in_the_folder_and_a_failure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"executor": ["--only", "error", "--runs", "1", "--seconds", "0.05"], "buffer": ["--tasks", "7"]}
    monkeypatch.setattr(suite, "SHORT", tiny)
    assert suite.run_all(tmp_path / "results", list(tiny)) == 1
    assert json.loads((tmp_path / "results" / "executor.json").read_text())["bench"] == "executor"
    assert "at least 1000 tasks" in (tmp_path / "results" / "buffer.txt").read_text()
    assert "FAILED: buffer" in capsys.readouterr().out
