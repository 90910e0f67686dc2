"""The callback by which a part of the run reports an event."""

from __future__ import annotations

from typing import Any, Protocol


class OnEvent(Protocol):
    """Records an event; must not block, and may be called on any thread."""

    def __call__(self, name: str, **details: Any) -> None:
        """`name`: what happened, such as `actor_lost`; `details`: plain data."""


def ignore_event(name: str, **details: Any) -> None:
    """Record nothing."""
