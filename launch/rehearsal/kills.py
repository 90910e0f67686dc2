"""Kills during a rehearsal, at given times: `node:60`, `actor:30x5`, `learner:90`, `buffer:20`."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from executor.user_error import UserError
from launch.rehearsal.packed_ray import process_of
from launch.run.folder import RunFolder, append_event
from learner.phase import Phase

_FORM = re.compile(r"(node|actor|learner|buffer):(\d+(?:\.\d+)?)(?:x(\d+))?")


class KillError(UserError):
    """A kill that cannot be understood; the message says what to write."""


@dataclass
class Kill:
    """One entry of `--kill`, and what it led to."""

    part: str
    """`node` (a process with all its actors), `actor`, `learner` or `buffer`."""
    at_s: float
    """Seconds of the rehearsed run, after the first batch is waited for."""
    count: int = 1
    """How many of them."""
    actors: list[str] = field(default_factory=list)
    """The rollout actors that it ended."""
    killed_at: float | None = None
    """Time of the kill, in monotonic seconds; None before it."""
    back_s: float | None = None
    """Seconds until every process was there and connected again; None while that is not so."""
    dropped_before: float = 0.0
    """Slots of the ledger that had been dropped before."""
    dropped: float = 0.0
    """Slots that were dropped until the run was whole again."""

    @classmethod
    def parse(cls, text: str) -> Kill:
        """The kill that a text such as `node:60` or `actor:30x5` asks for. Raises KillError."""
        found = _FORM.fullmatch(text.strip())
        if found is None or found[3] == "0":
            raise KillError(
                f"--kill {text!r}: write PART:SECONDS or PART:SECONDSxCOUNT, with node, actor, learner or buffer as "
                "PART, such as node:60 or actor:30x5"
            )
        return cls(found[1], float(found[2]), int(found[3] or 1))

    def describe(self) -> str:
        """What happened, in words."""
        what = f"{self.count} x {self.part}" if self.count > 1 else self.part
        if self.killed_at is None:
            return f"{what} at {self.at_s:g} s: the run had ended"
        with_actors = f" with {len(self.actors)} actors" if self.part == "node" else ""
        back = f"whole again after {self.back_s:.1f} s" if self.back_s is not None else "not whole again at the end"
        return f"{what} at {self.at_s:g} s{with_actors}: {back}, {self.dropped:.0f} slots dropped meanwhile"


class Killable(Protocol):
    """The supervisor, as kills use it."""

    def processes(self, part: str) -> dict[int, Any]:
        """See `Supervisor.processes`."""

    def end(self, process: Any) -> None:
        """See `Supervisor.end`."""

    def whole(self) -> bool:
        """See `Supervisor.whole`."""

    def status(self) -> Any:
        """See `Supervisor.status`."""


class Kills:
    """Carries out kills; `watch` is called by the run's driver."""

    def __init__(
        self,
        kills: Sequence[Kill],
        folder: RunFolder,
        time_scale: float,
        seed: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self.kills = sorted(kills, key=lambda kill: kill.at_s)
        self._folder = folder
        self._scale = time_scale
        self._random = random.Random(seed)
        self._say = say
        self._clock = clock
        self._since: float | None = None

    def watch(self, supervisor: Killable) -> None:
        """Kill what is due, and note what has recovered."""
        now = self._clock()
        status = supervisor.status()
        if self._since is None:
            if status.phase in (Phase.STARTING, Phase.WAITING_FOR_ACTORS, Phase.RESTARTING):
                return
            self._since = now
        dropped = float(status.ledger.get("dropped", 0))
        for kill in self.kills:
            if kill.killed_at is None:
                if now - self._since >= kill.at_s / self._scale:
                    self._kill(kill, supervisor, now, dropped)
            elif kill.back_s is None:
                kill.dropped = max(kill.dropped, dropped - kill.dropped_before)
                # A loss takes a moment to be noticed: until then everything still looks whole.
                if now - kill.killed_at > 2.0 and supervisor.whole():
                    kill.back_s = now - kill.killed_at

    def _kill(self, kill: Kill, supervisor: Killable, now: float, dropped: float) -> None:
        kill.killed_at, kill.dropped_before = now, dropped
        if kill.part in ("learner", "buffer"):
            targets = list(supervisor.processes(kill.part).values())[: kill.count]
        else:
            actors = supervisor.processes("actor")
            hosts: dict[Any, list[int]] = {}
            for index, handle in actors.items():
                hosts.setdefault(process_of(handle) if kill.part == "node" else handle, []).append(index)
            targets = self._random.sample(list(hosts), min(kill.count, len(hosts)))
            kill.actors = [f"rollout{index}" for target in targets for index in hosts[target]]
        for target in targets:
            supervisor.end(target)
        self._say(f"rehearsal: killed {kill.count} x {kill.part} ({', '.join(kill.actors[:3]) or kill.part} ...)")
        append_event(self._folder, "rehearsal_kill", part=kill.part, count=kill.count, actors=kill.actors)
