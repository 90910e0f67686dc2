"""A run's held-out measurements: their files, the wait for the last one, and the row that gets its numbers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.heldout.course import Course
from actors.heldout.measurement import Measurement, MeasurementError, TaskResult, gain, read_measurement
from actors.settings import SelfPlaySettings
from executor.outcomes import InfrastructureError
from launch.config import load
from launch.metric_catalogue import METRICS
from launch.run.aside import undo_measurements, undo_steps
from launch.run.folder import RunFolder
from launch.run.interrupts import INTERRUPTED
from launch.run.measurements import await_last, both_ends, bounded, files, keep_in, last_is_due, newest, reported
from launch.run.recorder import Recorder
from launch.run.status import Progress
from learner.lineage import label_of
from learner.places import Holder
from learner.stream.reports import Reports

MEASURED = Measurement(
    set=2, digest="d", version=0, newest=0, samples=2, temperature=1.0, seconds=1.5, tokens=9, skipped=("long",),
    prompt_settings={"examples": 0},
    results={
        "a": TaskResult("deduction", 1, "p", (True, False), ("1", None), (False, False)),
        "b": TaskResult("abduction", 2, "q", (False, False), ("2", "3")),
    },
)  # fmt: skip


def folder_with(tmp_path: Path, *versions: int) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.create()
    for version in versions:
        keep_in(folder)(replace(MEASURED, version=version, newest=version))
    return folder


def test_measurements_are_kept_by_version_and_read_back(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 16, 0, 5)
    assert list(files(folder)) == [0, 5, 16] and newest(folder) == 16
    assert both_ends(folder) == (MEASURED, replace(MEASURED, version=16, newest=16))
    assert both_ends(folder_with(tmp_path / "one", 3)) is None
    assert newest(RunFolder(tmp_path / "none")) == -1


def test_every_number_of_a_measurement_is_listed_and_travels_as_one(tmp_path: Path) -> None:
    reports = Reports()
    numbers = MEASURED.numbers()
    reports.report(Holder("rollout0", 0), numbers)  # a warning is an error in tests
    assert reports.combined() == numbers
    METRICS.check(numbers)


def test_a_file_that_is_no_measurement_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 0, 1, 2)
    files(folder)[2].write_text("{}")
    with pytest.raises(MeasurementError, match=r"version_00000002\.json is no measurement"):
        read_measurement(files(folder)[2])
    ends = both_ends(folder)
    assert ends is not None and ends[1].version == 1


def test_measurements_with_different_settings_are_not_compared() -> None:
    for changes in ({"set": 3}, {"temperature": 0.5}, {"prompt_settings": {"examples": 2}}):
        with pytest.raises(MeasurementError, match=r"cannot be compared"):
            gain(MEASURED, replace(MEASURED, **changes))
    assert gain(MEASURED, replace(MEASURED, prompt_settings={})) is not None, "a file of an older version"


def test_a_resumed_run_sets_measurements_of_undone_versions_aside(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 0, 16, 20)
    aside = undo_steps(folder, 16)
    assert aside is not None and [path.name for path in (aside / "heldout").iterdir()] == ["version_00000020.json"]
    assert list(files(folder)) == [0, 16]


def test_a_measurement_that_ended_while_the_learner_started_again_is_set_aside(tmp_path: Path) -> None:
    """It is of version 18, which the learner undid; the actor learns of that when it loads version 16 again."""

    async def main(folder: RunFolder) -> None:
        slow = Slow(18)
        slow.undo = partial(undo_measurements, folder)  # type: ignore[method-assign]
        course = Course(slow)
        course.loaded(18)
        await turn()
        assert list(files(folder)) == [0, 16, 18]
        course.loaded(label_of(16, 1))
        assert list(files(folder)) == [0, 16]
        slow.go.set()
        assert course.running is not None
        await course.running

    folder = folder_with(tmp_path, 0, 16, 18)
    asyncio.run(main(folder))
    assert [path.name for path in tmp_path.glob("attempts/*/aside.1/heldout/*")] == ["version_00000018.json"]
    assert undo_measurements(folder, 16) is None, "there is nothing more to move"


def test_the_last_version_s_numbers_come_into_its_row(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, None, False)
    for number in (1, 2):
        recorder.step({"step": number, "version": number, "loss": 0.5}, [])
    recorder.measured({"heldout/mean": 0.25, "heldout/version": 2.0})
    recorder.measured({})
    recorder.measured({"heldout/mean": 0.75, "heldout/version": 2.0})  # it has them
    recorder.close()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row.get("heldout/mean") for row in rows] == [None, 0.25]
    assert [row["loss"] for row in rows] == [0.5, 0.5]


# -- the wait for the last one ---------------------------------------------------------------------------------------


class Stream:
    """The learner's end, with one actor that reports what is written here, a line a look."""

    def __init__(self, *reports: dict[str, float], loaded: int = 7) -> None:
        self.reports = list(reports)
        self.loaded = loaded
        self.asked: list[Any] = []

    def pause(self) -> None:
        self.asked.append("pause")

    def measure(self, version: int) -> None:
        self.asked.append(version)

    def members(self) -> list[Any]:
        return [SimpleNamespace(holder=Holder("rollout0", 0), loaded_version=self.loaded)]

    def stats(self) -> dict[str, float]:
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]


OLD = {"heldout/version": 5.0, "heldout/mean": 0.1, "episodes": 3.0}
NEW = {"heldout/version": 7.0, "heldout/mean": 0.2, "episodes": 4.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.run.measurements._POLL_S", 0.001)


def test_the_end_of_a_run_waits_for_its_last_version() -> None:
    stream = Stream(OLD, OLD, OLD, NEW)
    found = await_last(stream, 7, label_of(7, 1), 60.0, Progress())
    assert found == {"heldout/version": 7.0, "heldout/mean": 0.2}
    assert stream.asked == ["pause", label_of(7, 1)], "nothing is granted meanwhile"


@pytest.mark.parametrize(
    ("stream", "wait_s", "why"),
    [
        (Stream(OLD), 0.01, "takes longer than selfplay.heldout_wait_s = 0.01"),
        (Stream(OLD, OLD | {"heldout_failures": 1.0}), 60.0, "it failed"),
        (Stream(OLD, loaded=5), 60.0, "its actor is gone"),
    ],
)
def test_the_wait_ends_where_no_measurement_comes(
    caplog: pytest.LogCaptureFixture, stream: Stream, wait_s: float, why: str
) -> None:
    assert await_last(stream, 7, 7, wait_s, Progress()) == {}
    assert why in caplog.text


def test_what_was_measured_before_the_wait_is_found_and_other_versions_are_not() -> None:
    assert reported(Stream(NEW), 7) == {"heldout/version": 7.0, "heldout/mean": 0.2}
    assert reported(Stream(OLD), 7) == reported(Stream({"episodes": 3.0}), 7) == {}


def test_in_serial_mode_a_measurement_that_fails_or_takes_too_long_leaves_the_run_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing() -> int:
        raise InfrastructureError("no sandbox")

    async def endless() -> int:
        await asyncio.Event().wait()
        return 1

    async def quick() -> int:
        return 1

    assert asyncio.run(bounded(quick(), 60.0, Progress())) == 1
    assert asyncio.run(bounded(failing(), 60.0, Progress())) is None
    assert "InfrastructureError: no sandbox" in caplog.text
    assert asyncio.run(bounded(endless(), 0.01, Progress())) is None
    assert "it took too long" in caplog.text


def test_a_signal_ends_the_wait() -> None:
    progress = Progress()

    class Interrupted(Stream):
        def members(self) -> list[Any]:
            progress.ask_to_stop(INTERRUPTED)
            return super().members()

    assert await_last(Interrupted(OLD), 7, 7, 60.0, progress) == {}


def test_the_last_measurement_is_for_runs_that_end_by_themselves(tmp_path: Path) -> None:
    config = load("smollm2-cpu", ["selfplay.heldout_every=5"])
    folder, ended, stopped = folder_with(tmp_path, 0), Progress(), Progress()
    ended.ask_to_stop("run.max_minutes = 13 is over")
    stopped.ask_to_stop(INTERRUPTED)
    assert last_is_due(config, folder, Progress(), 7) and last_is_due(config, folder, ended, 7)
    assert not last_is_due(config, folder, stopped, 7)
    assert not last_is_due(config, folder, Progress(), 0), "it is measured"
    for setting in ("selfplay.heldout_every=0", "selfplay.heldout_wait_s=0", "run.mode=rehearse"):
        changed = load("smollm2-cpu", ["selfplay.heldout_every=5", setting])
        assert not last_is_due(changed, folder, Progress(), 7)


# -- the actor's side ------------------------------------------------------------------------------------------------


class Slow:
    """Measurements that end when they are let go."""

    def __init__(self, measured: int = -1) -> None:
        self.measured = measured
        self.go = asyncio.Event()
        self.began: list[tuple[str, int]] = []
        self.goes_on: int | None = None

    async def maybe_run(self, version: int, alone: bool = False) -> dict[str, float] | None:
        return await self._run("alone" if alone else "beside", version)

    async def run_last(self, version: int) -> dict[str, float] | None:
        return await self._run("last", version)

    async def _run(self, how: str, version: int) -> dict[str, float]:
        assert self.goes_on is None, "one at a time"
        self.began.append((how, version))
        self.goes_on = self.measured = version
        try:
            await self.go.wait()
        finally:
            self.goes_on = None
        return {"heldout/version": float(version)}

    def hurry(self) -> int | None:
        if self.goes_on is not None:
            self.began.append(("hurry", self.goes_on))
        return self.goes_on

    def undo(self, version: int) -> None:
        self.measured = min(self.measured, version)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_last_version_replaces_an_earlier_one_that_is_still_measured() -> None:
    async def main() -> list[tuple[str, int]]:
        slow = Slow(0)
        course = Course(slow)
        course.loaded(6)
        await turn()
        course.loaded(7)
        course.last(6)  # the engine runs another
        course.last(7)
        await turn()
        assert course.numbers() == {"heldout_failures": 0.0}
        slow.go.set()
        assert course.running is not None
        await course.running
        assert course.numbers()["heldout/version"] == 7.0
        return slow.began

    assert asyncio.run(main()) == [("beside", 6), ("hurry", 6), ("last", 7)]


def test_a_measurement_of_the_last_version_that_goes_on_is_hurried() -> None:
    async def main() -> list[tuple[str, int]]:
        slow = Slow(0)
        course = Course(slow)
        course.loaded(7)
        await turn()
        course.last(7)
        slow.go.set()
        assert course.running is not None
        await course.running
        return slow.began

    assert asyncio.run(main()) == [("beside", 7), ("hurry", 7)]


def test_the_base_model_is_measured_alone_for_a_bounded_time(caplog: pytest.LogCaptureFixture) -> None:
    async def main(slow: Slow, wait_s: float) -> tuple[list[tuple[str, int]], dict[str, float]]:
        course = Course(slow)
        await course.base(SelfPlaySettings(heldout_wait_s=wait_s))
        return slow.began, course.numbers()

    quick = Slow()
    quick.go.set()
    began, numbers = asyncio.run(main(quick, 60.0))
    assert began == [("alone", 0)] and numbers["heldout/version"] == 0.0
    assert asyncio.run(main(Slow(), 0.01)) == ([("alone", 0)], {"heldout_failures": 1.0})
    assert "takes longer than selfplay.heldout_wait_s = 0.01" in caplog.text
    assert asyncio.run(main(Slow(measured=4), 60.0))[0] == [], "a run that goes on has been measured"
