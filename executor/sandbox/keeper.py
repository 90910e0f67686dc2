"""The process between the supervisor and a fork server: it begins the server's process namespace, and reaps it.

It exists because only the next fork is in a new process namespace, and because a process outside of the wall must be
there to reap what is inside. It holds no pipe, and does nothing but wait. When it dies, the kernel kills the fork
server. On SIGTERM it kills the fork server itself, and ends when no process is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

from executor.layers import Layer
from executor.sandbox import frames, jail, namespaces, zygote
from executor.sandbox.frames import REPLIES, REQUESTS, VALUES


def main(supervisor: int, config: dict[str, Any]) -> NoReturn:
    """Fork the server from this process; then wait for its end.

    Standard input and output are the pipes of requests and replies; `config["values"]` is the descriptor of the third.
    `supervisor` is the parent's process id, `config` what `Sandbox.start` sent. The first frame to the supervisor is
    {"zygote": process id}; or {"error": text} where there will be none.
    """
    values = config["values"]
    os.dup2(values, VALUES)
    if values != VALUES:
        os.close(values)
    os.dup2(0, REQUESTS)
    os.dup2(1, REPLIES)
    os.dup2(2, 0)  # the null device
    os.dup2(2, 1)
    jail.die_with_parent()
    if os.getppid() != supervisor:
        os._exit(1)
    wanted = frozenset(Layer(name) for name in config["layers"])
    missing: namespaces.Missing = {}
    try:
        _join_cgroup(config["cgroup"])
    except OSError as error:
        missing[Layer.CGROUP] = f"cannot join it: {error.strerror}"
    missing |= namespaces.enter_processes(wanted)
    # Where there is no process namespace, orphans come to this process.
    jail.adopt_orphans()
    server = os.fork()
    if server == 0:
        zygote.main(config, wanted, missing)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(server, signal.SIGKILL))
    with contextlib.suppress(OSError):
        _announce(server)
    for fd in (REQUESTS, REPLIES, VALUES):
        os.close(fd)
    os.waitpid(server, 0)
    _reap_all()
    os._exit(0)


def _announce(server: int) -> None:
    os.write(REPLIES, frames.pack(json.dumps({"zygote": server}).encode("ascii")))


def _join_cgroup(folders: list[str]) -> None:
    for folder in folders:
        with open(os.path.join(folder, "cgroup.procs"), "w") as file:
            file.write("0")


def _reap_all() -> None:
    """Kill and reap every orphan. In a process namespace of its own the kernel has done it already."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            children = []
        for child in children:
            os.kill(child, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
