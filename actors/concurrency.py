"""The number of rollouts that an engine plays at once: additive increase, multiplicative decrease. No clock, no I/O.

Too few rollouts leave the engine idle; too many fill its key/value cache, and vLLM then throws sequences out and
computes them again. The limit is found as TCP finds its window (Jacobson 1988; Chiu and Jain 1989 for why this
converges to a fair share): it rises by a constant while all of it is used and there is room, and falls by a factor when
the cache is full.

An observation is one heartbeat's view of the engine. The rules, in order:

  C1  pressure, that is `kv_usage >= kv_high` or sequences preempted since the last observation: limit *= decrease, at
      least `minimum`; then `cooldown` observations pass without a further decrease, since what is running takes time to
      end
  C2  the limit binds (`in_flight >= limit`), `kv_usage <= kv_low` and nobody waits inside the engine: limit +=
      increase, at most `maximum`
  C3  otherwise it stays. In particular it does not rise while the gate is what holds rollouts back (`in_flight <
      limit`): a limit that nothing tests says nothing, and would let a burst in when the gate opens
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.settings import ConcurrencySettings


@dataclass(frozen=True, slots=True)
class Load:
    """The load of an engine and its actor at one heartbeat."""

    in_flight: int
    """Slots that the actor holds."""
    kv_usage: float
    """Share of the key/value cache in use, 0 to 1."""
    waiting: float
    """Requests that the engine has not begun."""
    preempted: float
    """Sequences thrown out of the cache, counted since the engine started."""


class ConcurrencyController:
    """The limit on the slots of one actor."""

    def __init__(self, maximum: int, settings: ConcurrencySettings) -> None:
        """`maximum`: the most slots ever (`actors.concurrency`); the limit starts there, or at `settings.start`."""
        self.maximum = maximum
        self._settings = settings
        self._limit = float(min(settings.start or maximum, maximum))
        self._preempted = 0.0
        self._cooldown = 0

    @property
    def limit(self) -> int:
        """Slots that the actor may hold now."""
        return int(self._limit)

    def observe(self, load: Load) -> int:
        """Take one heartbeat's view into account; returns the new limit."""
        settings = self._settings
        preempted, self._preempted = load.preempted > self._preempted, load.preempted
        self._cooldown = max(0, self._cooldown - 1)
        if preempted or load.kv_usage >= settings.kv_high:
            if not self._cooldown:
                # From what is really in use: a limit that the gate never filled would take many cuts to matter.
                base = min(self._limit, max(load.in_flight, 1))
                self._limit = max(min(settings.minimum, self.maximum), base * settings.decrease)
                self._cooldown = settings.cooldown
        elif load.in_flight >= self.limit and load.kv_usage <= settings.kv_low and not load.waiting:
            self._limit = min(self.maximum, self._limit + settings.increase)
        return self.limit
