"""What an attack is: a hostile or merely awkward program, and what the executor must find about it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from executor.judge import Judge
from executor.outcomes import Limits, Outcome, Status

MARK = "azr-attack"
"""In the name of every file that an attack tries to leave behind."""
SYSV_KEY = 0x617A7221
"""The key of every System V object that an attack tries to leave behind."""

NOT_OK = frozenset(Status) - {Status.OK, Status.INFRASTRUCTURE}
SURVIVE = frozenset(Status) - {Status.INFRASTRUCTURE}
"""Whatever it does concerns its own value only, and it could have returned that: what counts is that nobody else
notices."""

Expected = Status | frozenset[Status] | str
"""A status, one of several, or a string: `ok` with exactly this value."""


@dataclass(frozen=True)
class Attack:
    """One program, run on one input. `gate`: it is for the policy; otherwise the policy is off and the wall is
    alone."""

    name: str
    aim: str
    program: str
    expected: Expected
    given: str = "1"
    details: tuple[str, ...] = ()
    """Where given, the outcome's detail is one of these. An error can have other causes than the one that is tested."""
    gate: bool = False

    def complaint(self, outcome: Outcome) -> str:
        """What is wrong with an outcome; empty if nothing is."""
        expected = self.expected
        if isinstance(expected, (Status, frozenset)):  # a Status is a str, too
            right = outcome.status == expected or (isinstance(expected, frozenset) and outcome.status in expected)
        else:
            right = outcome.status is Status.OK and outcome.value == expected
        if outcome.status is Status.ERROR and self.details:
            right = right and outcome.detail in self.details
        wanted = f"{sorted(expected) if isinstance(expected, frozenset) else expected!r}"[:200]
        return "" if right else f"{self.name}: expected {wanted} {self.details or ''}, got {outcome}"[:600]


_CONTROLS = (
    ("def f(x): return [len(x), repr(x)]", "'still here'", "[10, \"'still here'\"]"),
    ("def f(x): return x", "{1}", "{1}"),
)


_TIGHT = Limits(timeout_s=0.5, memory_mb=64, output_bytes=1 << 16)
# On a busy machine, nothing but an endless program may run out of time.
_AMPLE = replace(_TIGHT, timeout_s=10)


async def attempt(judge: Judge, attack: Attack) -> str:
    """Run an attack as a proposal would be, then two harmless programs; what is wrong, or an empty string."""
    expected = attack.expected if isinstance(attack.expected, frozenset) else {attack.expected}
    limits = _TIGHT if Status.TIMEOUT in expected else _AMPLE
    complaint = attack.complaint(await judge.determine(attack.program, attack.given, limits))
    for program, given, value in _CONTROLS:
        after = await judge.determine(program, given, _AMPLE)
        if after != Outcome(Status.OK, value):
            return f"{attack.name}: a harmless program went wrong after it: {after}"
    return complaint


# Numbers of system calls: the C library has no function for some, and falls back to others for more.
_NUMBERS = {
    "kcmp": (312, 272), "execveat": (322, 281), "clone3": (435, 435), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "keyctl": (250, 219),
    "add_key": (248, 217), "openat": (257, 56), "openat2": (437, 437), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "pivot_root": (155, 41), "fsopen": (430, 430), "open_tree": (428, 428),
    "capset": (126, 91), "seccomp": (317, 277), "memfd_secret": (447, 447), "kexec_load": (246, 104),
    "socket": (41, 198), "rt_tgsigqueueinfo": (297, 240), "process_madvise": (440, 440),
    "landlock_create_ruleset": (444, 444),
}  # fmt: skip


def number(name: str) -> int:
    """The number of a system call on this machine."""
    return _NUMBERS[name][os.uname().machine == "aarch64"]


def libc(expression: str) -> str:
    """A program that evaluates an expression with the C library as `c`, and returns what is not a failure."""
    return (
        "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
        f"def f(x):\n r = {expression}\n if r == -1: raise OSError(ctypes.get_errno(), 'refused')\n return r"
    )


def syscall(name: str, *arguments: int) -> str:
    """A program that makes a system call by its number."""
    return libc(f"c.syscall({', '.join(map(str, (number(name), *arguments)))})")
