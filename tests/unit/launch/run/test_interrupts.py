"""What signals do to a run, as a state machine, and in a process that is really sent them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.signals import SIGNALS
from launch.run.interrupts import LOST, NOTHING_TO_SAVE, SAME_S, SAVED, UNLIMITED, Interrupts, State, StopLimits
from tests.waiting import wait_until


class Run:
    """A run that notes what its signals did."""

    def __init__(self, unsaved: bool = True, limits: StopLimits = UNLIMITED) -> None:
        self.now, self.unsaved = 100.0, unsaved
        self.codes: list[int] = []
        self.asked = 0
        self.said: list[str] = []
        self.interrupts = Interrupts(end=self.codes.append, clock=lambda: self.now, limits=limits)

    def stop(self) -> bool:
        self.asked += self.unsaved
        return self.unsaved

    def signals(self, *after_s: float, number: int = signal.SIGINT) -> None:
        for seconds in after_s:
            self.now += seconds
            self.interrupts.came(number)


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
        run.signals(0.0, 0.1, SAME_S - 0.2)
    assert (run.asked, run.codes, run.interrupts.stopping) == (1, [], True)
    (said,) = run.said
    assert "stopping after the present step, and saving" in said and "5 s" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_scheduler_asks_once_however_often_it_asks(number: signal.Signals) -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, 0.02, SAME_S, 100.0, number=number)
        for other in set(SIGNALS) - {signal.SIGINT}:
            run.signals(100.0, number=other)
    assert (run.asked, run.codes) == (1, [])
    assert len(run.said) == 1 and number.name in run.said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_ctrl_c_twice_stops_at_once_also_where_a_scheduler_asked_first(number: signal.Signals) -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, number=number)
        run.signals(60.0, SAME_S - 0.1)
        assert run.codes == [] and "stopping already" in run.said[-1]
        run.signals(60.0, number=number)
        assert run.codes == []
        run.signals(0.1)
    assert run.codes == [LOST]


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_second_signal_is_heard_also_while_the_run_closes(is_saved: bool) -> None:
    run = Run()
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0)
        if is_saved:
            run.interrupts.saved()
    run.signals(SAME_S)
    assert run.codes == [SAVED if is_saved else LOST]


def test_a_stop_has_the_time_that_is_left_of_its_grace_and_of_the_job() -> None:
    run = Run(limits=StopLimits(grace_s=30))
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, number=signal.SIGTERM)
        run.now += 10
        assert run.interrupts.left_s() == 20
    assert "saving within 30 s (SIGTERM)" in run.said[0]
    left = Interrupts(limits=StopLimits(grace_s=1e6, stop_by=time.time() + 50)).left_s()
    assert left is not None and left <= 50
    assert Interrupts().left_s() is None


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_run_that_is_saved_and_still_closes_when_its_time_is_up_ends_with_its_own_exit_code(is_saved: bool) -> None:
    run = Run(limits=StopLimits(grace_s=30))
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, number=signal.SIGTERM)
        if is_saved:
            run.interrupts.saved()
        run.now += 20
        run.interrupts.look()
        assert run.codes == []
    run.now += 9
    run.interrupts.look()
    assert run.codes == ([SAVED] if is_saved else [])


def test_a_warning_leaves_the_time_until_the_end_and_a_later_signal_shortens_it() -> None:
    run = Run(limits=StopLimits(grace_s=30, stop_by=time.time() + 500))
    with run.interrupts.running(run.stop, run.said.append):
        run.signals(0.0, number=signal.SIGUSR2)
        warned = run.interrupts.left_s()
        run.signals(10.0, 0.02, number=signal.SIGTERM)
        run.now += 10
        assert run.interrupts.left_s() == pytest.approx(20, abs=0.1)
    assert warned is not None and 400 < warned <= 500
    assert run.asked == 2, "once for each bound"
    assert "saving within 30 s (SIGTERM)" in run.said[1]


def test_a_run_is_asked_to_stop_once_its_end_is_no_further_away_than_a_stop_takes() -> None:
    end = time.time() + 3000
    run, needed = Run(limits=StopLimits(stop_by=end)), 2000.0
    with run.interrupts.running(run.stop, run.said.append, lambda: needed):
        run.interrupts.look()
        assert run.asked == 0
        needed = 3001.0
        run.interrupts.look()
        run.interrupts.look()
        assert (run.asked, run.codes) == (1, [])
        assert "is near" in run.said[0]


def test_a_run_whose_end_comes_before_it_has_begun_ends() -> None:
    run = Run(limits=StopLimits(stop_by=time.time() - 1))
    run.interrupts.look()
    assert run.codes == [NOTHING_TO_SAVE]


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
import ctypes, signal, subprocess, sys, threading
from launch.run.interrupts import listening
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
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
            sys.stdin.read()
            child.kill()
            sys.exit(7)
    print(child.pid, flush=True)
    while True:
        ctypes.CDLL(None).poll(None, 0, -1)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("how", "code"), [("asked", 7), ("in a library", NOTHING_TO_SAVE)])
def test_a_process_hears_signals_inside_of_a_library_and_takes_its_children_along(
    number: signal.Signals, how: str, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        if how == "asked":
            process.send_signal(number)  # within 20 ms, as SLURM does
            process.stdin.close()
        assert process.wait(60) == code
        assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


def test_a_signal_after_the_end_of_a_run_does_not_change_its_exit_code() -> None:
    program = """
import os, sys
from executor.signals import SIGNALS
from launch.run.interrupts import listening
with listening(to_exit=True) as interrupts:
    pass
for number in SIGNALS:
    os.kill(os.getpid(), number)
sys.exit(75)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 75


def test_a_process_that_was_started_to_ignore_a_hangup_goes_on() -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", _PROGRAM, "asked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.stdin.close()
        assert process.wait(60) == 7


def test_a_process_that_was_suspended_and_goes_on_has_not_been_interrupted() -> None:
    program = """
import sys
from launch.run.interrupts import listening
with listening() as interrupts, interrupts.running(lambda: True, lambda text: None):
    print("listens", flush=True)
    sys.stdin.readline()
    print(interrupts.stopping, flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() > stopped + 1)  # longer than the listener waits
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "False\n"
        process.stdin.write("\n")
