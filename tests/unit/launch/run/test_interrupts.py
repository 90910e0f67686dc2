"""What signals do to a run, as a state machine, and in a process that is really sent them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.run.interrupts import LOST, NOTHING_TO_SAVE, SAME_S, SAVED, Interrupts, State


class Run:
    """A run that notes what its signals did."""

    def __init__(self, unsaved: bool = True) -> None:
        self.now, self.unsaved = 100.0, unsaved
        self.codes: list[int] = []
        self.asked = 0
        self.said: list[str] = []
        self.interrupts = Interrupts(end=self.codes.append, clock=lambda: self.now)

    def stop(self) -> bool:
        self.asked += self.unsaved
        return self.unsaved

    def signals(self, *after_s: float) -> None:
        for seconds in after_s:
            self.now += seconds
            self.interrupts.came()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.run.descendants.descendants", list)  # those of the tests' process are not ours


def test_before_a_run_can_be_asked_the_first_signal_ends_it() -> None:
    run = Run()
    run.signals(0.0)
    assert run.codes == [NOTHING_TO_SAVE]


def test_a_run_without_unsaved_work_ends_at_once() -> None:
    run = Run(unsaved=False)
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0)
    assert run.codes == [NOTHING_TO_SAVE] and not run.said


def test_a_run_with_unsaved_work_is_asked_once_and_says_so() -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, 0.1, SAME_S - 0.2)  # as schedulers send them
    assert (run.asked, run.codes, run.interrupts.stopping) == (1, [], True)
    (said,) = run.said
    assert "stopping after the present step, and saving" in said and "5 s" in said


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_second_signal_is_heard_also_while_the_run_closes(is_saved: bool) -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0)
        if is_saved:
            run.interrupts.saved()
    run.signals(SAME_S)
    assert run.codes == [SAVED if is_saved else LOST]


def test_a_run_that_has_ended_well_is_not_stopping() -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        pass
    assert run.interrupts.state is State.STARTING


def test_what_must_not_stay_behind_is_removed_before_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    run = Run()
    order: list[str] = []
    run.interrupts.last_acts += [
        lambda why: order.append(f"first {why}"),
        lambda why: 1 / 0,
        lambda why: order.append("last"),
    ]
    run.interrupts.end(LOST, "because")
    assert order == ["last", "first because"] and run.codes == [LOST]
    assert capfd.readouterr().err == "azr: because\n"


_PROGRAM = """
import ctypes, subprocess, sys, threading
from launch.run.interrupts import listening
with listening() as interrupts:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    stopped = threading.Event()
    def stop():
        stopped.set()
        return True
    if sys.argv[1] == "asked":
        with interrupts.running(stop, lambda text: None):
            print(child.pid, flush=True)
            stopped.wait()
            child.kill()
            sys.exit(7)
    print(child.pid, flush=True)
    while True:
        ctypes.CDLL(None).poll(None, 0, -1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("how", "code"), [("asked", 7), ("in a library", NOTHING_TO_SAVE)])
def test_a_process_hears_signals_inside_of_a_library_and_takes_its_children_along(
    number: signal.Signals, how: str, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(60) == code
        assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
