"""Quotes text for a batch script, so that it arrives unchanged and nothing in it is executed.

Two programs read such a script. Bash reads its commands; `sbatch` reads its lines `#SBATCH --option=value` by rules of
its own, in which a backslash escapes the next character even within single quotes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from executor.user_error import UserError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class QuotingError(UserError):
    """A text that a batch script cannot carry; the message names it."""


def shell(value: object) -> str:
    """Quote `value` as one word of bash. Raises QuotingError for a NUL byte, which no word can hold."""
    text = str(value)
    if "\0" in text:
        raise QuotingError(f"{text!r:.80} has a NUL byte, which a shell script cannot carry")
    return shlex.quote(text)


def sbatch(value: object) -> str:
    """Quote `value` for a line `#SBATCH --option=value`. Raises QuotingError for what is not one line of text."""
    text = str(value)
    if _CONTROL.search(text):
        raise QuotingError(
            f"{text!r:.80} has a line break or another control character, which sbatch cannot read from a script"
        )
    if re.fullmatch(r"[\w@%+=:,./&|\[\]()*-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def log_path(path: Path) -> str:
    """Write `path` as a value of `--output`, in which `%` begins a replacement. Raises QuotingError for a backslash."""
    text = str(path)
    if "\\" in text:
        raise QuotingError(f"SLURM cannot write a log below {text}: take the backslash out of run.dir and run.name")
    return text.replace("%", "%%")
