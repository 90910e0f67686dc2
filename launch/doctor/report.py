"""The report of `azr doctor`: sections of checks, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class CheckState(StrEnum):
    """The result of a check."""

    ON = "on"
    """There, and as it should be."""
    OFF = "off"
    """Missing. azr works without it, with less protection."""
    FAILED = "failed"
    """Missing or wrong, and azr does not work, or must not, until it is mended."""
    INFO = "info"
    """A fact, neither good nor bad."""


@dataclass(frozen=True)
class Check:
    """One line of a report."""

    name: str
    state: CheckState
    detail: str = ""
    """The fact, or why it is not on."""
    purpose: str = ""
    """The protection or the function that it gives."""
    mend: str = ""
    """Instructions for getting it."""


@dataclass(frozen=True)
class Section:
    """One subject of a report."""

    name: str
    checks: tuple[Check, ...]
    summary: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    """Findings of the whole section for programs, such as the tier."""

    @property
    def failed(self) -> bool:
        """True if anything in it must be mended."""
        return any(check.state is CheckState.FAILED for check in self.checks)


def as_json(sections: list[Section]) -> dict[str, Any]:
    """The report for programs: {"ok", "sections": [{"name", "failed", "summary", ..., "checks": [...]}]}."""
    return {
        "ok": not any(section.failed for section in sections),
        "sections": [
            {
                "name": section.name,
                "failed": section.failed,
                "summary": section.summary,
                **section.facts,
                "checks": [vars(check) for check in section.checks],
            }
            for section in sections
        ],
    }


def as_text(sections: list[Section]) -> str:
    """The report for people."""
    lines: list[str] = []
    above = ""
    for section in sections:
        lines += [section.name + (f": {section.summary}" if section.summary else "")]
        width = max((len(check.name) for check in section.checks), default=0)
        for check in section.checks:
            mark = {CheckState.INFO: "", CheckState.OFF: "OFF", CheckState.FAILED: "FAILED"}.get(
                check.state, check.state.value
            )
            about = check.purpose or check.detail
            lines.append(f"  {mark:6}  {check.name:{width}}  {about}".rstrip())
            indent = " " * (width + 12)
            if check.purpose and check.detail:
                label = "why" if check.state in (CheckState.OFF, CheckState.FAILED) else "found"
                lines.append(f"{indent}{label}: {check.detail}")
            if check.mend:
                lines.append(f"{indent}to get it: {'as above' if check.mend == above else check.mend}")
                above = check.mend
        lines.append("")
    bad = [check.name for section in sections for check in section.checks if check.state is CheckState.FAILED]
    lines.append(f"to be mended: {', '.join(bad)}" if bad else "nothing has to be mended")
    return "\n".join(lines)
