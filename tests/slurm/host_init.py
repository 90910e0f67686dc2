"""The first process of a host of `hosts.py`: mounts what the host has of its own, then reaps what loses its parent.

    unshare --net --uts --mount --pid --fork --mount-proc python host_init.py NAME HOSTS_FILE SHARED...

`HOSTS_FILE` becomes /etc/hosts. `SHARED`: folders that the host has in common with this machine; all outside of /tmp
and /dev/shm is shared in any case. It writes `ready` to standard output, and ends when it is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

BIND = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    """mount(2). Raises OSError."""
    if _LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {source} at {target}")


def main(name: str, hosts_file: str, *shared: str) -> None:
    """Become the host `name`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    socket.sethostname(name)
    mount(hosts_file, "/etc/hosts", flags=BIND)
    hidden = {folder: os.open(folder, os.O_PATH) for folder in shared if folder.startswith(("/tmp/", "/dev/shm/"))}
    mount("none", "/dev/shm", "tmpfs")
    mount("none", "/tmp", "tmpfs")
    os.chmod("/tmp", 0o1777)
    os.chmod("/dev/shm", 0o1777)
    for folder, descriptor in hidden.items():
        os.makedirs(folder)
        mount(f"/proc/self/fd/{descriptor}", folder, flags=BIND)
        os.close(descriptor)
    print("ready", flush=True)
    while True:
        signal.sigwait([signal.SIGCHLD])
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
