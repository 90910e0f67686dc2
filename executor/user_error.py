"""The base of all errors whose text is written for the user."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something that the user can mend; the text says what is wrong and what to do.

    The `azr` command prints the text on stderr, without a traceback, and exits with `exit_code`. Every exception class
    of this project that can reach the user derives from it.
    """

    exit_code: ClassVar[int] = 2
    """2: the command, the configuration or a file is wrong. 1: a correct command failed. 3: the sandbox failed."""
