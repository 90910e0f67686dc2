from __future__ import annotations

import io
import time
from dataclasses import replace

from rich.console import Console as Terminal

from launch.config import load
from launch.run.console import Console, step_line
from launch.run.status import RunStatus
from learner.phase import Phase

NUMBERS = {
    "step": 3,
    "valid_rate/deduction": 0.25,
    "solve_rate/deduction": 0.5,
    "age_mean": 0.5,
    "age_max": 1.0,
    "learner_tokens_per_s": 321.0,
    "generate_tokens_per_s": 123.0,
    "wait_for_batch_s": 1.5,
    "wait_for_batch_share": 0.25,
    "wait_for_policy_share": 0.125,
    "ledger/queued": 7.0,
}
STATUS = RunStatus(
    phase=Phase.WAITING_FOR_BATCH,
    phase_s=12.0,
    last=NUMBERS,
    live={"actors": 2, "running": 5, "waiting": 1},
    ledger={"queued": 7, "in_flight": 9, "trained": 30, "returned": 1, "dropped": 0},
    generate_tokens_per_s=123.0,
)


def test_the_live_view_shows_what_a_run_is_watched_for() -> None:
    terminal = Terminal(width=120, record=True, force_terminal=False, file=io.StringIO())
    terminal.print(Console(load("smollm2-cpu"))._render(STATUS))
    shown = terminal.export_text()
    for words in (
        "3 of 16", "waiting for a batch", "for 12 s", "valid  25%", "solved  50%", "7 queued, 9 in flight",
        "30 trained", "generating 123", "training 321", "learner for a batch 1.5 s (25% of the step)",
        "actors for grants 12% of their time", "2 actors, 5 running",
    ):  # fmt: skip
        assert words in shown, words


def test_a_step_is_one_line() -> None:
    line = step_line(NUMBERS, 16)
    assert "\n" not in line
    assert "step 3/16" in line
    assert "ded  25%" in line
    assert "abd    -" in line, "a kind without a rate is not 0%"


def test_what_tells_learning_from_collapse_stands_beside_the_solve_rate() -> None:
    facts = {"ignores_input/deduction": 0.75, "duplicates/deduction": 0.4, "ignores_input/abduction": 0.25}
    heldout = {"heldout/mean": 0.125, "heldout/deduction": 0.25, "heldout/version": 5.0}
    terminal = Terminal(width=120, record=True, force_terminal=False, file=io.StringIO())
    status = replace(STATUS, last=NUMBERS | facts, live={**STATUS.live, **heldout})
    terminal.print(Console(load("smollm2-cpu"))._render(status))
    shown = terminal.export_text()
    for words in ("ignore their input  75%", "known tasks  40%", "held-out", "solved  12%", "ded  25%", "version 5"):
        assert words in shown, words
    line = step_line(NUMBERS | facts | heldout, 16)
    assert "ignore input:  50%" in line
    assert "held-out (version 5):  12%" in line
    assert "held-out" not in step_line(NUMBERS, 16)
    assert "ignore input" not in step_line(NUMBERS, 16)


def test_the_view_lives_before_the_first_step() -> None:
    terminal = Terminal(width=120, record=True, file=io.StringIO())
    terminal.print(Console(load("smollm2-cpu"))._render(RunStatus()))
    assert "starting" in terminal.export_text()


def test_a_run_that_stops_shows_its_phases_and_one_that_seeds_how_far_it_is() -> None:
    view = Console(load("smollm2-cpu"))
    view._terminal = Terminal(width=200, record=True, force_terminal=False, file=io.StringIO())
    view.show(STATUS)
    view.show(replace(STATUS, phase=Phase.SAVING))
    view.show(replace(STATUS, phase=Phase.DRAINING, stop="interrupted"))
    view.show(replace(STATUS, phase=Phase.SAVING, stop="interrupted"))
    lines = view._terminal.export_text().splitlines()
    assert [line.partition("] ")[2][:20] for line in lines] == [
        "step 3/16 | valid: d", "learner: waiting for", "learner: saving",
    ]  # fmt: skip
    seeding = RunStatus(phase=Phase.WAITING_FOR_ACTORS, seeding=(37, 200), live={"actors": 1})
    view._terminal.print(view._render(seeding))
    shown = view._terminal.export_text()
    assert "37 of 200 triplets" in shown and "1 actor," in shown


def test_a_skipped_update_is_said_once() -> None:
    console = Console(load("smollm2-cpu"))
    said: list[str] = []
    console.say = said.append  # type: ignore[method-assign]
    skipped = replace(STATUS, last=NUMBERS | {"skipped_update": 1.0})
    for status in (STATUS, skipped, skipped):
        console.show(status)
    assert [line for line in said if "skipped" in line] == [
        "step 3: an update was skipped, because its gradient was not finite"
    ]


def test_when_a_run_stops_by_itself_is_said_once_and_shown() -> None:
    view = Console(load("smollm2-cpu"))
    view._terminal = Terminal(width=200, record=True, force_terminal=False, file=io.StringIO())
    now = time.time()
    for _ in range(2):
        view.show(replace(STATUS, ends_at=now + 3600))
    view.stop_by = now + 33 * 60
    view._terminal.print(view._render(replace(STATUS, ends_at=now + 3600)))
    lines = view._terminal.export_text().splitlines()
    clock = [time.strftime("%H:%M", time.localtime(now + minutes * 60)) for minutes in (60, 33)]
    assert sum(f"stops by {clock[0]} (run.max_minutes), 60 min left" in line for line in lines) == 1
    assert any(f"stops by {clock[1]} (--stop-by), 33 min left" in line for line in lines), "the one that comes first"
