"""Composite functions: a proposal's f that builds on earlier functions g_0, g_1, ..., and still is one self-contained
text.

Model text is never parsed here. An earlier program is indented under a factory of its own, whose locals keep its f and
its helpers apart from everybody else's:

    def _make_g0():
        def f(x):
            return x + 1
        return f
    g_0 = _make_g0()

Indentation also goes into strings that span lines, which may change what g_0 gives: no harm, since the whole text is
what is validated and what a solver is shown.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

_UNFIT = ("import *", "global ", "__future__", "_make_g", "\\\n", "\t")
"""Forms that mean something else inside a function, or mark a composite. A program that contains one is passed over,
even if it only mentions it."""


def fit(program: str) -> bool:
    """Whether a program may become an earlier function."""
    return not any(text in program for text in _UNFIT)


def definitions(earlier: Sequence[str], numbers: Sequence[int] | None = None) -> str:
    """Source that defines g_<number> for each of the earlier programs. `numbers`: 0, 1, ... unless given."""
    return "\n".join(
        f"def _make_g{number}():\n{textwrap.indent(program, '    ')}\n    return f\ng_{number} = _make_g{number}()\n"
        for number, program in zip(numbers or range(len(earlier)), earlier, strict=True)
    )


def composite(program: str, earlier: Sequence[str]) -> str:
    """The self-contained text of a proposal that was given `earlier`: with those definitions before it that it names.

    Without any of them it is the proposal's own text alone. A reply that repeats the definitions gets them once.
    """
    own = program.strip().removeprefix(definitions(earlier).strip()).strip("\n")
    used = [number for number in range(len(earlier)) if re.search(rf"\bg_{number}\b", own)]
    if not used:
        return own
    return f"{definitions([earlier[number] for number in used], used)}\n{own}"
