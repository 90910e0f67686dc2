"""Tables and figures of a study's page, as Markdown text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every row has a cell for each heading."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def share(value: float | None) -> str:
    """A share in percent; `-` for None."""
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: Any, form: str) -> str:
    """A number in this format; `-` for None."""
    return "-" if value is None else format(value, form)
