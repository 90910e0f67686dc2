"""The keeper: the process that creates a fork server's process namespace and reaps the processes left in it.

It stands between the supervisor and the fork server for two reasons: a process that creates a process namespace is not
in it, only what it forks next; and a process outside the wall must reap those inside. It holds no pipe, and only waits.
When it dies, the kernel kills the fork server. On SIGTERM it kills the fork server itself, and ends when no process is
left.
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
    """Fork the server, then wait until it ends.

    Standard input and output are the pipes of requests and replies; `config["values"]` is the descriptor of the third.
    `supervisor` is the parent's process id, `config` the object that `Sandbox.start` sent. Sends the supervisor one
    frame, {"zygote": process id}; the server sends its own, {"missing": layers} or {"error": text}.
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the processes of a run are started without it
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
    """Kill and reap every orphan. Where there is a process namespace, the kernel has done so already."""
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
