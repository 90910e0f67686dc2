"""The layers of the wall that a process installs on itself: limits, Landlock and seccomp.

Namespaces (`namespaces.py`) are added where the machine permits them; the layers here must hold without them.

There are two seccomp filters. The outer one is for the fork server and all that it forks. It is an allow-list, which
checks the architecture first. A call that only an attack makes kills; a call that an honest program may make (opening a
file) fails with EPERM, and so does every unknown one. The inner filter is added in each forked child and takes away
processes, threads, signals, pipes and limits.

Becoming root would undo none of it: setuid, mount and the like are among the calls that kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import signal
import struct
from collections.abc import Collection

from executor.layers import Layer

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
# Access rights of the file system that each Landlock version knows; a newer one knows at least those of the last.
_LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LANDLOCK_NET_SINCE, _LANDLOCK_NET = 4, 0b11  # TCP: bind, connect
_LANDLOCK_SCOPED_SINCE, _LANDLOCK_SCOPED = 6, 0b11  # abstract sockets and signals of processes outside

MAX_DESCRIPTORS = 16
"""Descriptors that the fork server may hold. It holds seven at most; its children cannot open any."""

# name: (x86_64, aarch64); None where the architecture has no such call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283), "futex": (202, 98), "sched_yield": (24, 124),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getrandom": (318, 278), "getcpu": (309, 168),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getrusage": (98, 165), "getrlimit": (97, 163), "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "restart_syscall": (219, 128),
    "exit": (60, 93), "exit_group": (231, 94), "close_range": (436, 436), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "rseq": (334, 293),
}  # fmt: skip

# For the fork server alone: the inner filter takes these from its children. So is `clone`, whose flags are checked.
_SERVER_ONLY: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "wait4": (61, 260), "kill": (62, 129), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "prctl": (157, 167), "prlimit64": (302, 261), "setrlimit": (160, 164), "seccomp": (317, 277),
    "sched_setaffinity": (203, 122), "rt_sigtimedwait": (128, 137),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE3 = 435
# CLONE_VM (threads, vfork) and every CLONE_NEW* of the old call.
_CLONE_DEADLY_FLAGS = 0x7E020100

_DEADLY: dict[str, tuple[int | None, int | None]] = {
    "execve": (59, 221), "execveat": (322, 281), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201), "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "sendmmsg": (307, 269), "recvmmsg": (299, 243),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "personality": (135, 92), "capset": (126, 91),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "setsid": (112, 157), "setpgid": (109, 154),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "tkill": (200, 130),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip


class JailError(RuntimeError):
    """A layer of the wall could not be installed, or does not hold."""


class _Filter(ctypes.Structure):
    """`struct sock_fprog`: a number of eight-byte BPF instructions."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_libc.prctl.restype = ctypes.c_int


# PyDLL: the interpreter's lock stays held, in the child too.
_fork = ctypes.PyDLL(None, use_errno=True).fork
_fork.argtypes, _fork.restype = (), ctypes.c_int


def fork() -> int:
    """Fork without the work that `os.fork` does for threads and for modules such as `random`. Raises OSError.

    For a process without threads whose child soon ends. That work causes more than half of the page faults of a child
    which does nothing.
    """
    pid: int = _fork()
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def current_cpu() -> int:
    """Number of the CPU that this process runs on."""
    cpu: int = _libc.sched_getcpu()
    return cpu


def bind(pid: int, cpus: Collection[int]) -> None:
    """Restrict a process to `cpus`, if the system permits it. `pid` 0 is this process."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, cpus)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends. A change of the user cancels this."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def harden(wanted: Collection[Layer]) -> dict[Layer, str]:
    """Set limits, no_new_privs and Landlock for the fork server and all that it forks.

    Returns the layers that are missing, with the reasons. Raises JailError if a layer fails that every kernel has.
    """
    missing: dict[Layer, str] = {}
    _prctl(PR_SET_DUMPABLE, 0)
    if Layer.NO_NEW_PRIVS in wanted:
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if Layer.RLIMITS in wanted:
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK):
            resource.setrlimit(limit, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    if Layer.LANDLOCK in wanted:
        try:
            _deny_files()
        except OSError as error:
            missing[Layer.LANDLOCK] = str(error.strerror)
    return missing


def enclose_server() -> None:
    """Install the outer filter. Raises JailError where the kernel or the container does not permit it."""
    _child_filter()  # built once, before the first fork
    _install(_server_filter())


def limit_memory(address_space: int) -> None:
    """Limit the address space of this process and of those that it forks, in bytes.

    The fork server can raise the limit again; its children cannot, because of their filter.
    """
    resource.setrlimit(resource.RLIMIT_AS, (address_space, resource.RLIM_INFINITY))


def limit_cpu(seconds: int) -> None:
    """Limit the CPU time of this process: SIGXCPU after `seconds`, SIGKILL a second later."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def enclose_child() -> None:
    """Install the inner filter in a forked child."""
    _install_at(_child_filter())


def self_test() -> None:
    """Check from inside the wall that sockets, files and forks are stopped, each in a child. Raises JailError."""
    socket_number, open_number = _numbers({"socket": (41, 198), "openat": (257, 56)})

    def connect() -> None:
        _libc.syscall(socket_number, 1, 1, 0)

    def read() -> None:
        if _libc.syscall(open_number, -100, b"/", 0, 0) == -1 and ctypes.get_errno() == errno.EPERM:
            os._exit(errno.EPERM)

    def fork() -> None:
        enclose_child()
        os.fork()

    for attempt, expected in ((connect, -signal.SIGSYS), (read, errno.EPERM), (fork, -signal.SIGSYS)):
        child = os.fork()
        if child == 0:
            try:
                attempt()
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != expected:
            raise JailError(f"the wall does not hold: {attempt.__name__} was not stopped")


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, None, 0, 0) != 0:
        raise JailError(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _deny_files() -> None:
    """Install Landlock without a single rule: no path can be opened, whatever seccomp permits. Raises OSError."""
    version = _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version <= 0:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock (it needs 5.13, built in and switched on)")
    attributes = struct.pack("<Q", (1 << _LANDLOCK_RIGHTS[min(version, max(_LANDLOCK_RIGHTS))]) - 1)
    if version >= _LANDLOCK_NET_SINCE:
        attributes += struct.pack("<Q", _LANDLOCK_NET)
    if version >= _LANDLOCK_SCOPED_SINCE:
        attributes += struct.pack("<Q", _LANDLOCK_SCOPED)
    ruleset = _libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0 or _libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    os.close(ruleset)


# -------------------------------------------------------------------------------------------------- seccomp, as BPF

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARG0 = 0, 4, 16
# machine: (column of the tables, AUDIT_ARCH_*)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


@functools.cache  # inside the wall, uname fails
def _machine() -> tuple[int, int]:
    name = os.uname().machine
    if name not in _MACHINES:
        raise JailError(f"no system call tables for {name}")
    return _MACHINES[name]


def _numbers(table: dict[str, tuple[int | None, int | None]]) -> list[int]:
    column = _machine()[0]
    return [number for pair in table.values() if (number := pair[column]) is not None]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _answer(number: int, action: int) -> bytes:
    return _step(_JUMP_EQ, number, 0, 1) + _step(_RETURN, action)


def _prologue() -> bytes:
    """Kill foreign architectures and, on x86-64, the x32 range; leaves the call's number loaded."""
    return (
        _step(_LOAD, _OFFSET_ARCH)
        + _step(_JUMP_EQ, _machine()[1], 1, 0)
        + _step(_RETURN, KILL)
        + _step(_LOAD, _OFFSET_NUMBER)
        + _step(_JUMP_GE, 0x40000000, 0, 1)
        + _step(_RETURN, KILL)
    )


def _server_filter() -> bytes:
    steps = [_answer(number, ALLOW) for number in _numbers(_ALLOWED) + _numbers(_SERVER_ONLY)]
    steps += [_answer(number, KILL) for number in _numbers(_DEADLY)]
    # glibc falls back to clone, whose flags a filter can see.
    steps.append(_answer(_CLONE3, ERRNO | errno.ENOSYS))
    steps.append(_step(_JUMP_EQ, _CLONE[_machine()[0]], 0, 4) + _step(_LOAD, _OFFSET_ARG0))
    steps.append(_step(_JUMP_SET, _CLONE_DEADLY_FLAGS, 0, 1) + _step(_RETURN, KILL) + _step(_RETURN, ALLOW))
    return _prologue() + b"".join(steps) + _step(_RETURN, ERRNO | errno.EPERM)


def _filter(instructions: bytes) -> _Filter:
    return _Filter(len(instructions) // 8, instructions)


@functools.cache
def _built_child_filter() -> _Filter:
    numbers = [*_numbers(_SERVER_ONLY), _CLONE[_machine()[0]], _CLONE3]
    return _filter(_prologue() + b"".join(_answer(number, KILL) for number in numbers) + _step(_RETURN, ALLOW))


@functools.cache
def _child_filter() -> int:
    """The address of a child's filter. Filter and address are cached, which leaves less to do in a child."""
    return ctypes.addressof(_built_child_filter())


def _install(instructions: bytes) -> None:
    program = _filter(instructions)
    _install_at(ctypes.addressof(program))


def _install_at(address: int) -> None:
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0) != 0:
        raise JailError(f"the kernel or the container refuses seccomp filters: {os.strerror(ctypes.get_errno())}")
