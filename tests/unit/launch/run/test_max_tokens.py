"""`run.max_tokens`: a run ends at the step that reaches them, however often it was stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.config import load
from launch.run.folder import RunFolder
from launch.run.hooks import make_hooks
from launch.run.recorder import Recorder
from launch.run.status import Progress
from launch.study.result import is_finished
from learner.phase import Phase
from tests.unit.launch.study.studies import write_run

TOKENS = [120, 80, 100, 60, 140, 90, 110]
"""Of each step."""


def attempt(folder: RunFolder, limit: int, first: int, last: int) -> tuple[int, str]:
    """Go on after step `first`, at most to `last`; returns the steps that are taken, and the reason of the end."""
    recorder, progress = Recorder(folder, None, False, first, went_on=False), Progress()
    config = load("smollm2-cpu", [f"run.max_tokens={limit}"])
    hooks = make_hooks(config, recorder, lambda version: None, progress)
    progress.enter(Phase.WAITING_FOR_BATCH)
    step = first
    while step < last and not hooks.interrupted():
        step += 1
        hooks.on_step({"step": step, "version": step, "tokens_trained": TOKENS[step - 1]}, [])
    hooks.interrupted()
    recorder.close()
    return step, progress.stop


@settings(deadline=None, max_examples=25)
@given(st.integers(1, sum(TOKENS) + 100), st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), max_size=3))
def test_tokens_count_over_all_attempts_without_undone_steps(limit: int, stops: list[tuple[int, int]]) -> None:
    """`stops`: an attempt ends at this step, and that many of its steps have no checkpoint."""
    with TemporaryDirectory() as name:
        folder, step = RunFolder(Path(name)), 0
        for last, undone in stops:
            step = max(0, attempt(folder, limit, step, last)[0] - undone)
        step, why = attempt(folder, limit, step, len(TOKENS))
        assert sum(TOKENS[: step - 1]) < limit, "no step is taken after the tokens are reached"
        assert (sum(TOKENS[:step]) >= limit) == (why == f"run.max_tokens = {limit} is reached")
        assert why or step == len(TOKENS)


def test_a_run_that_is_gone_on_with_at_its_end_waits_for_actors_and_takes_no_step(tmp_path: Path) -> None:
    assert attempt(folder := RunFolder(tmp_path), 150, 0, 7)[0] == 2
    recorder, progress = Recorder(folder, None, False, 2), Progress()
    interrupted = make_hooks(
        load("smollm2-cpu", ["run.max_tokens=150"]), recorder, lambda _: None, progress
    ).interrupted
    recorder.close()
    progress.enter(Phase.WAITING_FOR_ACTORS)
    assert not interrupted(), "they measure its last version"
    progress.enter(Phase.WAITING_FOR_BATCH)
    assert interrupted()


@pytest.mark.parametrize(("why", "finished"), [("run.max_tokens = 150 is reached", True), ("interrupted", False)])
def test_a_run_that_has_its_tokens_is_over(tmp_path: Path, why: str, finished: bool) -> None:
    write_run(RunFolder(tmp_path), [], why)
    assert is_finished(RunFolder(tmp_path)) is finished
