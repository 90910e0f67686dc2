"""A SLURM of a login host and two nodes that are hosts of their own, in namespaces of this kernel. It needs root.

Each host has its own network, name, /etc/hosts (as Debian installs it: its name is at 127.0.1.1), /tmp, /dev/shm and
processes. They reach each other through a bridge, and nothing else; nothing else reaches them.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.slurm.cluster import NODES, Cluster
from tests.slurm.configuration import Address, write_configuration

ROOT = Path(__file__).parents[2]
ADDRESSES = {"login": "10.77.0.254", "n1": "10.77.0.1", "n2": "10.77.0.2"}
_DAEMONS = ("slurmd", "slurmstepd", "setpriv")


class HostsRefused(Exception):
    """The kernel, or a container around this process, does not allow such hosts."""


class Hosts(Cluster):
    """A login host and two nodes, each a host of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[str, subprocess.Popen[str]] = {}
        self._inits: dict[str, psutil.Process] = {}

    def start(self) -> None:
        """Make the hosts and start every daemon; return when both nodes are idle. Raises HostsRefused."""
        for host in ADDRESSES:
            self._make(host)
        self._start_munge()
        write_configuration(
            self.folder,
            self.account.pw_name,
            Address("login", ADDRESSES["login"], 6817),
            {node: Address(node, ADDRESSES[node], 6818) for node in NODES},
            only_loopback=False,
        )
        self._daemon("login", "slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon(node, "slurmd", "-D", "-c", "-N", node)
        self.wait_until(self._is_idle, 60, self._logs)

    def inside(self, host: str, command: Iterable[str], folder: Path | None = None) -> list[str]:
        """The command line that runs `command` on `host` in `folder`."""
        enter = ["nsenter", f"--target={self._inits[host].pid}", "--net", "--uts", "--mount", "--pid"]
        return [*enter, "env", f"--chdir={folder or self.folder}", *command]

    def lose(self, node: str) -> None:
        """Cut the node's power: the kernel ends every process of it at once, and its network with it."""
        self._inits.pop(node).kill()
        self._hosts.pop(node).wait()

    @property
    def on(self) -> set[str]:
        """The nodes that have power."""
        return set(self._hosts) & set(NODES)

    def clear(self) -> None:
        """Switch nodes on again that were lost, end every job, and wait until both nodes are idle."""
        for node in NODES:
            if node not in self.on:
                self.switch_on(node)
        super().clear()

    def switch_on(self, node: str) -> None:
        """Start a lost node again, with an empty /tmp."""
        self._make(node)
        self._daemon(node, "slurmd", "-D", "-c", "-N", node)

    def stop(self) -> None:
        """End every job, then every host and all its processes, and remove the folder."""
        with contextlib.suppress(AssertionError, KeyError, HostsRefused):
            self.clear()
        for host in list(self._hosts):
            self.lose(host)
        for daemon in self._daemons:
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def tree(self, node: str) -> list[psutil.Process]:
        """All processes on a node but the first."""
        return list(self._inits[node].children(recursive=True))

    def processes(self, node: str) -> list[str]:
        """The command lines of the processes on a node that are not the node's own; those that only wait to be reaped
        do not count."""
        found = []
        for process in self.tree(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and process.name() not in _DAEMONS:
                    found.append(" ".join(process.cmdline()) or process.name())
        return found

    @property
    def shared_in_tmp(self) -> set[str]:
        """Names in /tmp of every host that are shared: the cluster's folder, and an installation that lies there."""
        return {path.parts[2] for path in self._shared() if path.parts[1] == "tmp"}

    def _shared(self) -> set[Path]:
        """Folders that every host sees, none of them within another."""
        wanted = {Path(path) for path in (self.folder, ROOT, sys.prefix, sys.base_prefix)}
        return {path for path in wanted if not wanted & set(path.parents)}

    def _make(self, host: str) -> None:
        """Make a host with its network. Raises HostsRefused."""
        address = ADDRESSES[host]
        own = f"127.0.1.1 {host}\n" if host in NODES else ""
        hosts_file = self.folder / f"hosts.{host}"
        hosts_file.write_text(f"127.0.0.1 localhost\n{own}{ADDRESSES['login']} login\n")
        shared = {str(path) for path in self._shared()}
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        init = [sys.executable, str(Path(__file__).with_name("host_init.py")), host, str(hosts_file), *sorted(shared)]
        made = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, *init],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert made.stdout is not None and made.stderr is not None
        if made.stdout.readline() != "ready\n":
            said = made.stderr.read().strip()
            # The kernel's refusal is a reason to skip; what host_init.py says is a fault of it.
            ours = "Traceback" in said and "PermissionError" not in said
            raise (RuntimeError if ours else HostsRefused)(f"no namespaces here: {said}")
        (first,) = psutil.Process(made.pid).children()
        self._hosts[host], self._inits[host] = made, first
        if host == "login":
            self._ip(host, "link add br0 type bridge", f"addr add {address}/24 dev br0", "link set br0 up")
        else:
            self._ip("login", f"link add {host} type veth peer name eth0 netns {first.pid}")
            self._ip("login", f"link set {host} master br0 up")
            self._ip(host, f"addr add {address}/24 dev eth0", "link set eth0 up")
        self._ip(host, "link set lo up")
        for other in self._hosts:
            self._ip(other, "neigh flush all")  # a host that is there again has another hardware address

    def _ip(self, host: str, *lines: str) -> None:
        enter = ["nsenter", f"--target={self._inits[host].pid}", "--net", "ip", "-batch", "-"]
        done = subprocess.run(
            enter, input="\n".join(lines), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HostsRefused(f"no network of its own for a host here: {done.stderr.strip()}")
