"""Programs that try to give another value in company than alone: they count, look at their place, or hold memory.

The policy is off for some of them, so that they can look at all that their process holds. Not here: the time and the
process id, which the kernel tells every process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Companion:
    """The program of a task, or an answer to one, and the inputs that it is asked for. `gate`: it is to pass the
    policy."""

    name: str
    program: str
    gate: bool
    inputs: tuple[str, ...] = tuple("123456")


_WALK = (
    "import gc, sys\ndef look():\n frame, found = sys._getframe(), []\n while frame:\n"
    "  found += [frame.f_locals[name] for name in sorted(frame.f_locals)]\n  frame = frame.f_back\n return found\n"
)

COMPANIONS = (
    Companion("counts in a global", "n = 0\ndef f(x):\n global n\n n += 1\n return n", True),
    Companion(
        "counts in a module", "import keyword\ndef f(x):\n keyword.kwlist.append(x)\n return len(keyword.kwlist)", True
    ),
    Companion(
        "counts in a class of a module",
        "import fractions\nF = fractions.Fraction\ndef f(x):\n G = F\n G.seen = getattr(G, 'seen', 0) + 1\n"
        " return G.seen",
        True,
    ),
    Companion(
        "keeps memory and catches MemoryError",
        "try: KEEP = bytearray(40 << 20)\nexcept MemoryError: KEEP = None\n"
        "def f(x):\n if x == 'mine' or KEEP is not None: return 1\n return 2",
        True,
    ),
    Companion(
        "keeps memory beyond the reach of its globals",
        "import keyword\ndef f(x):\n try: keyword.kwlist.append(bytearray(25 << 20))\n except MemoryError: return 2\n"
        " return 1",
        True,
    ),
    Companion("holds a large table", "S = [True] * 6_000_001\ndef f(n): return S[n] and n % 2 == 1", True),
    Companion("returns much", "def f(x): return 'a' * 60_000 + str(x)", True),
    Companion(
        "reads its place from the frames by format",
        "def f(x):\n found = []\n try: 1 / 0\n except ZeroDivisionError as e:\n  for steps in range(1, 9):\n"
        "   for name in ('place', 'batch', 'outcomes', 'inputs', 'results'):\n"
        "    t = chr(123) + '0.__trace' + 'back__.tb_frame' + '.f_back' * steps"
        " + '.f_locals[' + name + ']' + chr(125)\n"
        "    try: found.append([name, t.format(e)[:40]])\n    except (AttributeError, KeyError): pass\n"
        " return [one for one in found if '0x' not in one[1]]",
        False,
    ),
    Companion(
        "ranks its input among the integers in its frames",
        _WALK + "def f(x):\n numbers = [v for v in look() if type(v) is int and 1 <= v <= 6]\n return sorted(numbers)",
        False,
    ),
    Companion(
        "ranks its input among all in memory",
        "import gc\ndef f(x):\n return sorted({str(w[0]) for o in gc.get_objects() if type(o) is list for w in o"
        " if type(w) is tuple and len(w) == 1 and w[0] in ('mine-1', 'mine-2', 'mine-3')})",
        False,
        ("'mine-1'", "'mine-2'", "'mine-3'"),
    ),
    Companion(
        "counts the objects in memory", "import gc\ndef f(x): return len(gc.get_objects())", False, ("1", "2", "3")
    ),
    Companion(
        "counts the descriptors",
        "import os\ndef f(x):\n found = []\n for fd in range(40):\n  try: os.fstat(fd); found.append(fd)\n"
        "  except OSError: pass\n return found",
        False,
    ),
)  # fmt: skip
