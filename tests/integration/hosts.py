"""Two hosts on one machine: each with a network, a name, an /etc/hosts, a /tmp, a /dev/shm and processes of its own.

They are Linux namespaces, which need root and programs that Debian installs by itself (`unshare`, `nsenter`, `ip`).
Nothing in them can reach the machine's own network, or be reached from it. /etc/hosts is as Debian installs it: the
host's own name leads to 127.0.1.1.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

NUM_HOSTS = 2
_INIT = "import os, time\nwhile True:\n    try: os.waitpid(-1, 0)\n    except ChildProcessError: time.sleep(0.1)"
"""The first process of a host: takes over what is left behind there. Its end is the end of all of them."""


class Hosts:
    """The hosts n1 and n2, with the addresses 10.77.0.1 and 10.77.0.2."""

    def __init__(self, folder: Path, shared: Sequence[Path]) -> None:
        self._folder = folder
        self._shared = shared
        self._inits: dict[int, int] = {}
        self._switch: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Why this machine cannot have them; "" if it can."""
        missing = [name for name in ("unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]
        if os.getuid() != 0:
            return "needs root"
        if missing:
            return f"needs {', '.join(missing)}"
        tried = subprocess.run(["unshare", "-n", "-m", "-u", "-p", "--fork", "true"], capture_output=True, check=False)
        return tried.stderr.decode().strip()

    @staticmethod
    def address(host: int) -> str:
        """The address of host 1 or 2."""
        return f"10.77.0.{host}"

    def start(self) -> None:
        """Start both hosts."""
        self._switch = _namespace(["unshare", "-n", "sleep", "infinity"])
        switch = self._switch.pid
        wait_until(lambda: _net(switch) != _net(os.getpid()))
        _in(switch, "ip link add br0 type bridge; ip link set br0 up")
        for host in range(1, NUM_HOSTS + 1):
            self._start(host, switch)

    def _start(self, host: int, switch: int) -> None:
        hosts = self._folder / f"hosts.n{host}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 n{host}\n")
        shared = [str(path) for path in self._shared if path.is_relative_to("/tmp")]
        ready = self._folder / f"ready.n{host}"
        binds = "".join(f"mkdir -p {path}; mount --bind /mnt/{path.removeprefix('/tmp/')} {path}; " for path in shared)
        script = (
            f"hostname n{host}; mount --make-rprivate /; mount -t tmpfs none /dev/shm; mount --bind /tmp /mnt; "
            f"mount -t tmpfs none /tmp; {binds} umount /mnt; mount --bind {hosts} /etc/hosts; ip link set lo up; "
            f"exec {sys.executable} -c '{_INIT}'"
        )
        outer = _namespace(["unshare", "-n", "-u", "-m", "-p", "--fork", "--mount-proc", "sh", "-ec", script])
        ready.unlink(missing_ok=True)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        wait_until(lambda: bool(children.read_text().split()))
        init = self._inits[host] = int(children.read_text().split()[0])
        wait_until(lambda: b"waitpid" in Path(f"/proc/{init}/cmdline").read_bytes())
        _in(switch, f"ip link add v{host} type veth peer name eth0 netns {init}; ip link set v{host} master br0 up")
        _in(init, f"ip addr add {self.address(host)}/24 dev eth0; ip link set eth0 up")

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a host, in the present working directory."""
        enter = ["nsenter", "-t", str(self._inits[host]), "-n", "-m", "-u", "-p", f"--wd={Path.cwd()}"]
        return [*enter, *command]

    def popen(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on a host."""
        return subprocess.Popen(self.command(host, command), **options)

    def lose(self, host: int) -> None:
        """A power cut: all processes of the host end at once."""
        os.kill(self._inits.pop(host), signal.SIGKILL)

    def stop(self) -> None:
        """End both hosts with all that runs there."""
        for host in list(self._inits):
            self.lose(host)
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()


@contextmanager
def two_hosts(folder: Path, shared: Sequence[Path]) -> Iterator[Hosts]:
    """Two hosts until the block ends. `shared`: folders below /tmp that both see; all others there are their own."""
    hosts = Hosts(folder, shared)
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


def _namespace(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, start_new_session=True)


def _net(process: int) -> str:
    return os.readlink(f"/proc/{process}/ns/net")


def _in(process: int, script: str) -> None:
    """Run a script in the network of a process."""
    subprocess.run(["nsenter", "-t", str(process), "-n", "sh", "-ec", script], check=True)
