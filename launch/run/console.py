"""The console of a run: a live view on a terminal, one line a step elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from actors.kinds.registry import names
from launch.config import Config
from launch.run.status import RunStatus, TrainingStatus, describe
from launch.standard_streams import lasting
from learner.phase import Phase

_LOG = logging.getLogger(__name__)

REFRESH_S = 0.5
"""Seconds between two looks at a run."""

StatusT = TypeVar("StatusT", bound=TrainingStatus)


class View(ABC, Generic[StatusT]):
    """Shows the state of a run: as a live view on a terminal, elsewhere line by line."""

    def __init__(self) -> None:
        self._terminal = Terminal(file=lasting(sys.stdout), highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._printed_step = 0
        self._warned_step = -1
        self._printed_phase = describe(TrainingStatus())
        self._started = time.monotonic()
        self._said_end = False
        self.stop_by: float | None = None
        """Unix time by which the run is saved (`--stop-by`); None: there is none."""

    def say(self, text: str) -> None:
        """One line of news, on the terminal and in the log."""
        _LOG.info(text)
        self._terminal.print(f"[{time.monotonic() - self._started:6.1f} s] {text}", markup=False)

    @contextmanager
    def open(self) -> Iterator[None]:
        """The live view, where there is a terminal."""
        if not self._terminal.is_terminal:
            yield
            return
        with Live(console=self._terminal, refresh_per_second=4, transient=False) as self._live:
            yield
        self._live = None

    def show(self, status: StatusT) -> None:
        """Bring the view up to date."""
        last = status.last
        if last.get("skipped_update") and last["step"] > self._warned_step:
            self._warned_step = int(last["step"])
            self.say(f"step {self._warned_step}: an update was skipped, because its gradient was not finite")
        if not self._said_end and self._live is None and (end := self._end(status)):
            self._said_end = True
            self.say(end)
        if self._live is not None:
            self._live.update(self._render(status))
        elif last.get("step", 0) > self._printed_step:
            self._printed_step = int(last["step"])
            self.say(self._line(last))
        elif (status.stop or status.phase is Phase.MEASURING or not self._printed_step) and (
            phase := describe(status)
        ) != self._printed_phase:
            self._printed_phase = phase  # before the first step and after the last one there is nothing else to see
            self.say(f"learner: {phase}")

    @contextmanager
    def following(self, status: Callable[[], StatusT]) -> Iterator[None]:
        """Show what `status` returns, again and again until the block ends: for a run in this process."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(REFRESH_S):
                self.show(status())

        with self.open():
            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()
                self.show(status())

    def _end(self, status: TrainingStatus) -> str:
        """The time at which the run stops by itself, in words; empty where no time ends it."""
        ends = [(end, why) for end, why in ((status.ends_at, "run.max_minutes"), (self.stop_by, "--stop-by")) if end]
        return end_in_words(*min(ends), time.time()) if ends else ""

    @abstractmethod
    def _line(self, last: Mapping[str, float]) -> str:
        """A step's metrics on one line."""

    @abstractmethod
    def _render(self, status: StatusT) -> RenderableType:
        """The live view."""


class Console(View[RunStatus]):
    """Shows the state of a self-play run."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config

    def _line(self, last: Mapping[str, float]) -> str:
        return step_line(last, self._config.learner.steps)

    def _render(self, status: RunStatus) -> Panel:
        last, live, ledger = status.last, status.live, status.ledger
        elapsed = time.monotonic() - self._started
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{int(last.get('step', 0))} of {self._config.learner.steps}", f"{elapsed:.0f} s elapsed")
        table.add_row("learner", describe(status), f"for {status.phase_s:.0f} s")
        if status.seeding is not None:
            have, wanted = status.seeding
            table.add_row("seeding", f"{have} of {wanted} triplets", "")
        for kind in names():
            if f"valid_rate/{kind}" in last or f"solve_rate/{kind}" in last:
                table.add_row(
                    kind,
                    f"valid {_percent(last.get(f'valid_rate/{kind}'))}",
                    f"solved {_percent(last.get(f'solve_rate/{kind}'))}",
                )
                if f"ignores_input/{kind}" in last or f"duplicates/{kind}" in last:
                    table.add_row(
                        "",
                        f"ignore their input {_percent(last.get(f'ignores_input/{kind}'))}",
                        f"known tasks {_percent(last.get(f'duplicates/{kind}'))}",
                    )
        if "heldout/mean" in live:
            kinds = " ".join(f"{kind[:3]} {_percent(live.get(f'heldout/{kind}'))}" for kind in names())
            table.add_row(
                "held-out",
                f"solved {_percent(live['heldout/mean'])}",
                f"{kinds}, version {live['heldout/version']:.0f}",
            )
        table.add_row("age", f"mean {last.get('age_mean', 0):.2f}", f"max {last.get('age_max', 0):.0f} versions")
        table.add_row(
            "slots",
            f"{ledger.get('queued', 0)} queued, {ledger.get('in_flight', 0)} in flight",
            f"{ledger.get('trained', 0)} trained, {ledger.get('returned', 0)} returned, {ledger.get('dropped', 0)} "
            "dropped",
        )
        table.add_row(
            "tokens/s",
            f"generating {status.generate_tokens_per_s:.0f}",
            f"training {last.get('learner_tokens_per_s', 0):.0f}",
        )
        table.add_row(
            "waits, last step",
            f"learner for a batch {last.get('wait_for_batch_s', 0):.1f} s "
            f"({last.get('wait_for_batch_share', 0):.0%} of the step)",
            f"actors for grants {last.get('wait_for_policy_share', 0):.0%} of their time",
        )
        table.add_row(
            "engines",
            f"{counted(int(live.get('actors', 0)), 'actor')}, {int(live.get('running', 0))} running",
            f"{int(live.get('waiting', 0))} waiting",
        )
        return Panel(
            table, title=f"azr: {self._config.run.name}", subtitle=subtitle(status, self._end(status)), expand=False
        )


def subtitle(status: TrainingStatus, end: str = "") -> str:
    """The present effect of Ctrl-C, in words, and `end`, when the run stops by itself."""
    if status.stop:
        return "stopping; Ctrl-C twice stops at once"
    return "Ctrl-C stops and saves" + (f"; {end}" if end else "")


def end_in_words(end: float, why: str, now: float) -> str:
    """`stops by 14:20 (--stop-by), 33 min left`. `end`, `now`: Unix times; `why`: what sets the end."""
    clock = time.strftime("%H:%M", time.localtime(end))
    return f"stops by {clock} ({why}), {max(0.0, end - now) / 60:.0f} min left"


def counted(number: int, noun: str) -> str:
    """A number with its noun in the singular or plural."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def step_line(metrics: Mapping[str, float], steps: int) -> str:
    """One step on one line."""
    valid = " ".join(f"{kind[:3]} {_percent(metrics.get(f'valid_rate/{kind}'))}" for kind in names())
    solved = " ".join(f"{kind[:3]} {_percent(metrics.get(f'solve_rate/{kind}'))}" for kind in names())
    constant = [metrics[f"ignores_input/{kind}"] for kind in names() if f"ignores_input/{kind}" in metrics]
    more = f" | ignore input: {_percent(sum(constant) / len(constant))}" if constant else ""
    if "heldout/mean" in metrics:
        more += f" | held-out (version {metrics['heldout/version']:.0f}): {_percent(metrics['heldout/mean'])}"
    return (
        f"step {int(metrics['step'])}/{steps} | valid: {valid} | solved: {solved}{more} | age "
        f"{metrics['age_mean']:.2f} (max {metrics['age_max']:.0f}) | tokens/s: generate "
        f"{metrics.get('generate_tokens_per_s', 0):.0f}, train {metrics['learner_tokens_per_s']:.0f} | waits: learner "
        f"{metrics.get('wait_for_batch_share', 0):.0%}, actors {metrics.get('wait_for_policy_share', 0):.0%} | queued "
        f"{metrics.get('ledger/queued', 0):.0f}"
    )


def _percent(rate: float | None) -> str:
    return "   -" if rate is None else f"{100 * rate:3.0f}%"
