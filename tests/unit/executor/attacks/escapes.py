"""Attempts to reach anything outside: files, network, processes, memory of others, the kernel's more dangerous doors.

Each would do no lasting harm if it succeeded.
"""

from __future__ import annotations

import os

from executor.outcomes import Status
from tests.unit.executor.attacks.attack import MARK, NOT_OK, SYSV_KEY, Attack, Expected, libc, number, syscall

UNSAFE, ERROR, CRASHED = Status.UNSAFE, Status.ERROR, Status.CRASHED
# What a call on files may say: forbidden by seccomp or Landlock, or not there in the sandbox's empty root.
_REFUSED = ("PermissionError", "FileNotFoundError", "OSError")


def _escape(aim: str, name: str, program: str, expected: Expected = UNSAFE, *details: str) -> Attack:
    return Attack(f"{aim}: {name}", aim, program, expected, details=details)


def _file(name: str, expression: str) -> Attack:
    return _escape("file", name, f"import os, sys\ndef f(x): return {expression}", ERROR, *_REFUSED)


_FILES = (
    _file("read", "open('/etc/passwd').read(1)"),
    _file("read a device", "open('/dev/zero', 'rb').read(1)"),
    _file("read its own program file", "open(sys.executable, 'rb').read(1)"),
    _file("its server's environment", "open('/proc/%d/environ' % os.getppid()).read()"),
    _file("its own memory", "open('/proc/self/mem', 'rb').read(1)"),
    _file("list the root", "os.listdir('/')"),
    _file("list processes", "os.listdir('/proc')"),
    _file("size", "os.stat('/etc/passwd').st_size"),
    _file("where its executable is", "os.readlink('/proc/self/exe')"),
    _file("write", f"open('/tmp/{MARK}', 'w').write('x')"),
    _file("write here", f"open('{MARK}', 'w').write('x')"),
    _file("write into shared memory", f"open('/dev/shm/{MARK}', 'w').write('x')"),
    _file("a nameless file", "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)"),
    _file("make a folder", f"os.mkdir('/tmp/{MARK}')"),
    _file("make a link", f"os.symlink('/etc/passwd', '/tmp/{MARK}')"),
    _file("make a pipe", f"os.mkfifo('/tmp/{MARK}')"),
    _file("make a device", f"os.mknod('/tmp/{MARK}', 0o20666, 0x101)"),
    _file("remove", "os.rmdir('/')"),
    _file("rename", "os.rename('/', '/')"),
    _file("change times", "os.utime('/')"),
    _file("change directory", "os.chdir('/tmp')"),
    _file("truncate", "os.truncate('/', 0)"),
    _escape("file", "past Python", libc("c.open(b'/etc/passwd', 0)"), ERROR, *_REFUSED),
    _escape("file", "by number", libc(f"c.syscall({number('openat')}, -100, b'/', 0, 0)"),
            ERROR, *_REFUSED),
    _escape("file", "the newest open", syscall("openat2", -100, 0, 0, 0), ERROR, *_REFUSED),
    _escape("file", "by handle", syscall("open_by_handle_at", -100, 0, 0)),
    _escape("file", "watch", libc("c.inotify_init1(0)"), ERROR, *_REFUSED),
)  # fmt: skip

_NETWORK = (
    _escape("network", "tcp", libc("c.socket(2, 1, 0)")),
    _escape("network", "udp", libc("c.socket(2, 2, 0)")),
    _escape("network", "unix", libc("c.socket(1, 1, 0)")),
    _escape("network", "netlink", libc("c.socket(16, 3, 0)")),
    _escape("network", "raw packets", libc("c.socket(17, 3, 0)")),
    _escape("network", "a pair", libc("c.socketpair(1, 1, 0, ctypes.byref(ctypes.c_int64()))")),
    _escape("network", "send on what it has", libc("c.sendto(1, b'x', 1, 0, None, 0)")),
    _escape("network", "the host's name", "import os\ndef f(x): return os.uname().nodename", ERROR, *_REFUSED),
)

_PROCESSES = (
    _escape("process", "fork", "import os\ndef f(x): return os.fork() and 1"),
    _escape("process", "fork past Python", libc("c.fork()")),
    _escape("process", "fork and go on alone", "import os\ndef f(x):\n if os.fork() == 0:\n  os.setsid()\n"
            "  while True: pass\n return 7"),
    _escape("process", "vfork", libc("c.vfork()")),
    _escape("process", "clone3", syscall("clone3", 0, 0)),
    _escape("process", "thread", "import _thread\ndef f(x): return _thread.start_new_thread(print, ())"),
    _escape("process", "exec", "import os\ndef f(x): os.execv('/bin/sh', ['sh', '-c', 'true'])"),
    _escape("process", "execveat", syscall("execveat", -100, 0, 0, 0, 0)),
    _escape("process", "spawn", "import os\ndef f(x): return os.posix_spawn('/bin/true', ['true'], {})"),
    _escape("process", "a shell", "import os\ndef f(x): return os.system('true')"),
    _escape("process", "a session of its own", "import os\ndef f(x): os.setsid()"),
    _escape("process", "a group of its own", "import os\ndef f(x): os.setpgid(0, 0)"),
    _escape("process", "outlive its server", libc("c.prctl(1, 0, 0, 0, 0)")),
)  # fmt: skip

_SIGNALS = (
    _escape("signal", "kill the server", "import os\ndef f(x): os.kill(os.getppid(), 9)"),
    _escape("signal", "kill everyone", "import os\ndef f(x): os.kill(-1, 0)"),
    _escape("signal", "kill its group", "import os\ndef f(x): os.killpg(0, 0)"),
    _escape("signal", "stop the server", "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGSTOP)"),
    _escape("signal", "a thread's", syscall("tkill", 1, 9)),
    _escape("signal", "a group's thread", syscall("tgkill", 1, 1, 9), NOT_OK),
    _escape("signal", "queued", syscall("rt_sigqueueinfo", 1, 9, 0)),
    _escape("signal", "by descriptor", syscall("pidfd_open", 1, 0)),
    _escape("signal", "sent by descriptor", syscall("pidfd_send_signal", 0, 9, 0, 0)),
    _escape("signal", "disarm the deadline", "import signal\ndef f(x):\n signal.setitimer(0, 0)\n signal.alarm(0)\n"
            " while True: pass", NOT_OK),
)  # fmt: skip

_MEMORY = (
    _escape("memory", "trace the server", libc("c.ptrace(16, os.getppid(), 0, 0)")),
    _escape("memory", "be traced", libc("c.ptrace(0, 0, 0, 0)")),
    _escape("memory", "read the server's", libc("c.process_vm_readv(os.getppid(), None, 0, None, 0, 0)")),
    _escape("memory", "write the server's", libc("c.process_vm_writev(os.getppid(), None, 0, None, 0, 0)")),
    _escape("memory", "compare with the server", syscall("kcmp", 1, 1, 0, 0, 0)),
    _escape("memory", "advise the server", syscall("process_madvise", 0, 0, 0, 0, 0), NOT_OK),
    _escape("memory", "nameless file", libc("c.memfd_create(b'a', 0)")),
    _escape("memory", "secret file", syscall("memfd_secret", 0)),
    _escape("memory", "shared by name", libc(f"c.shm_open(b'/{MARK}', 0o102, 0o600)"), ERROR, *_REFUSED),
    _escape("memory", "shared by key", libc(f"c.shmget({SYSV_KEY}, 4096, 0o1600)")),
    _escape("memory", "semaphore by key", libc(f"c.semget({SYSV_KEY}, 1, 0o1600)")),
    _escape("memory", "messages by key", libc(f"c.msgget({SYSV_KEY}, 0o1600)")),
    _escape("memory", "null pointer", "import ctypes\ndef f(x): ctypes.string_at(0)", CRASHED),
    _escape("memory", "far away", "import ctypes\ndef f(x): ctypes.memset(1 << 46, 0, 1 << 20)", CRASHED),
)

_KERNEL = (
    _escape("kernel", "bpf", syscall("bpf", 0, 0, 0)),
    _escape("kernel", "performance counters", syscall("perf_event_open", 0, 0, 0, 0, 0)),
    _escape("kernel", "user faults", syscall("userfaultfd", 0)),
    _escape("kernel", "io_uring", syscall("io_uring_setup", 1, 0)),
    _escape("kernel", "keys", syscall("keyctl", 0, 0, 0, 0, 0)),
    _escape("kernel", "add a key", syscall("add_key", 0, 0, 0, 0, 0)),
    _escape("kernel", "a module", syscall("init_module", 0, 0, 0)),
    _escape("kernel", "another kernel", syscall("kexec_load", 0, 0, 0, 0)),
    _escape("kernel", "reboot", libc("c.reboot(0)")),
    _escape("kernel", "personality", libc("c.personality(0x0040000)")),
    _escape("kernel", "the x32 range", libc("c.syscall(0x40000000 + 39)")),
    _escape("kernel", "no such call", libc("c.syscall(9999)"), ERROR, *_REFUSED),
)

_PRIVILEGES = (
    _escape("privilege", "become root", "import os\ndef f(x): os.setuid(0)"),
    _escape("privilege", "become root, all ids", libc("c.setresuid(0, 0, 0)")),
    _escape("privilege", "join groups", libc("c.setgroups(0, None)")),
    _escape("privilege", "capabilities", syscall("capset", 0, 0)),
    _escape("privilege", "lift a limit", "import resource\ndef f(x): resource.setrlimit(7, (99, 99))"),
    _escape("privilege", "be dumpable", libc("c.prctl(4, 1, 0, 0, 0)")),
    _escape("privilege", "another filter", syscall("seccomp", 1, 0, 0)),
    _escape("privilege", "more of the processor", "import os\ndef f(x): return os.nice(-5)", ERROR, *_REFUSED),
    _escape("privilege", "a rule for files", syscall("landlock_create_ruleset", 0, 0, 1), ERROR, *_REFUSED),
    _escape("namespace", "a user namespace", libc("c.unshare(0x10000000)")),
    _escape("namespace", "enter another", libc("c.setns(0, 0)")),
    _escape("namespace", "another root", libc("c.chroot(b'/')")),
    _escape("namespace", "pivot", syscall("pivot_root", 0, 0)),
    _escape("namespace", "mount", libc("c.mount(None, b'/', b'tmpfs', 0, None)")),
    _escape("namespace", "unmount", libc("c.umount2(b'/', 0)")),
    _escape("namespace", "the new mount calls", syscall("fsopen", 0, 0)),
    _escape("namespace", "a tree of mounts", syscall("open_tree", -100, 0, 0)),
)


def _code(name: str, code: str, expected: Expected) -> Attack:
    """Machine code for x86-64, in memory that may be run."""
    program = f"""
import ctypes
c = ctypes.CDLL(None)
c.mmap.restype = ctypes.c_void_p
def f(x):
    code = bytes.fromhex({code!r})
    at = c.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_size_t(0))
    ctypes.memmove(at, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()
"""
    return _escape("machine code", name, program, expected)


_X86_ONLY = (
    _code("it runs", "b82a000000c3", "42"),
    # mov edi, 2; mov esi, 1; xor edx, edx; mov eax, 41; syscall; ret
    _code("socket", "bf02000000be0100000031d2b8290000000f05c3", UNSAFE),
    # The 32-bit entry, where numbers mean other calls: mov eax, 2 (fork); int 0x80; ret
    _code("fork through the 32-bit door", "b802000000cd80c3", frozenset({UNSAFE, CRASHED})),
)

ATTACKS = (
    *_FILES, *_NETWORK, *_PROCESSES, *_SIGNALS, *_MEMORY, *_KERNEL, *_PRIVILEGES,
    *(_X86_ONLY if os.uname().machine == "x86_64" else ()),
)  # fmt: skip
