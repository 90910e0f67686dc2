"""A SLURM for tests: its daemons, and what a test does with it. `Loopback` has two nodes on this host."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.addresses import LOOPBACK, free_port
from tests.slurm.configuration import Address, write_configuration

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip")
NODES = ("n1", "n2")
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
"""States that a job does not leave by itself."""
_LOOK_S = 0.05


class Cluster:
    """A SLURM whose daemons are children of this process, and end with it.

    All its hosts share `folder`. Jobs of the partition `high` preempt those of `low`, the default.
    """

    def __init__(self, user: str | None = None) -> None:
        """`user`: owner of the daemons and the jobs; by default the one who runs the tests."""
        me = pwd.getpwuid(os.getuid())
        self.account = pwd.getpwnam(user) if user else me
        self._becomes = [] if self.account == me else _becomes(self.account)
        # Not in pytest's folder: that is closed to other users, and too long for the paths of sockets.
        self.folder = Path(tempfile.mkdtemp(prefix="azr-slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._num_folders = 0

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user of this cluster."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        if self._becomes:
            own |= {"HOME": str(self.folder), "USER": self.account.pw_name, "LOGNAME": self.account.pw_name}
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        """Start every daemon; return when both nodes are idle."""
        raise NotImplementedError

    def inside(self, host: str, command: Iterable[str], folder: Path | None = None) -> list[str]:
        """The command line that runs `command` on `host` (`login`, `n1`, `n2`) as the cluster's user in `folder`."""
        raise NotImplementedError

    def stop(self) -> None:
        """End every job, then every daemon, and remove the folder."""
        with contextlib.suppress(AssertionError):
            self.clear()
        # A controller that ends first leaves slurmd and slurmstepd waiting for it.
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, host: str = "login", cwd: Path | None = None, check: bool = True, **env: str) -> str:
        """Run a command to its end; returns what it wrote. With `check`, AssertionError where it fails."""
        done = subprocess.run(
            self.inside(host, command, cwd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self.environment | env, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def spawn(self, *command: str, host: str = "login", cwd: Path | None = None, **options: Any) -> Any:
        """Start a command; returns its `Popen`."""
        return subprocess.Popen(self.inside(host, command, cwd), **{"env": self.environment} | options)

    def new_folder(self) -> Path:
        """An empty folder of the cluster's user that all hosts share."""
        self._num_folders += 1
        made = self.folder / "work" / str(self._num_folders)
        made.mkdir(parents=True)
        self._give(made)
        return made

    def batch(self, script: str, *options: str) -> str:
        """Submit a script; returns the job's id. Its log is `job.log` beside it, in a folder of its own."""
        folder = self.new_folder()
        (folder / "job.sh").write_text(script)
        return self.run(
            "sbatch", "--parsable", f"--output={folder / 'job.log'}", *options, str(folder / "job.sh"), cwd=folder
        )

    def job(self, job: str) -> dict[str, str]:
        """What SLURM says of a job, by its own names: `JobState`, `ExitCode`, `Restarts`, `Reason`, ..."""
        text = self.run("scontrol", "show", "job", "-o", job)
        return {match[1]: match[2] for match in re.finditer(r"([A-Za-z/:]+)=(.*?)(?=\s+[A-Za-z/:]+=|$)", text)}

    def wait_for(self, job: str, *states: str, seconds: float = 120.0) -> dict[str, str]:
        """Wait until the job is in one of `states` (by default: it has ended); returns what SLURM then says of it."""
        wanted = states or ENDED
        found: dict[str, str] = {}

        def there() -> bool:
            found.update(self.job(job))
            return found["JobState"] in wanted

        self.wait_until(there, seconds, lambda: f"job {job} is {found['JobState']}, not one of {wanted}: {found}")
        return found

    def wait_until(
        self, condition: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "it did not come"
    ) -> None:
        """Return once `condition()` holds; AssertionError with `why()` after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, why()
            time.sleep(_LOOK_S)

    def clear(self) -> None:
        """End every job, and wait until both nodes are idle."""
        if jobs := self._jobs():
            self.run("scancel", *jobs, check=False)
        self.wait_until(lambda: not self._jobs(), 60, lambda: self.run("squeue", check=False))
        self.wait_until(self._is_idle, 60, lambda: self.run("sinfo", "--Node", "--long", check=False))

    def _jobs(self) -> list[str]:
        return self.run("squeue", "--noheader", "--format=%A", check=False).split()

    def _is_idle(self) -> bool:
        found = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).splitlines()
        return set(found) == {f"{node} idle" for node in NODES}

    def _logs(self) -> str:
        """The last lines of every daemon's log."""
        tails = {log.name: log.read_text(errors="replace").splitlines()[-10:] for log in self.folder.glob("log/*")}
        return "\n".join(f"{name}: {line}" for name, lines in tails.items() for line in lines)

    def _daemon(self, host: str, *command: str) -> None:
        """Start a daemon in the foreground. It ends when its parent, this process, does."""
        with (self.folder / "log" / f"{command[0]}.{host}.out").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    self.inside(host, ["setpriv", "--pdeathsig", "TERM", *command]),
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            )

    def _start_munge(self) -> None:
        """Start munged with a key of its own: jobs of other clusters on this machine are strangers."""
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (self.folder / "log").mkdir(exist_ok=True)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o600)
        self._give(munge)
        files = {name: f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")}
        self._daemon(
            "login", "munged", "--foreground", f"--socket={munge / 'socket'}", "--num-threads=2", *files.values()
        )
        self.wait_until((munge / "socket").is_socket, 20)

    def _give(self, folder: Path) -> None:
        """Make the cluster's user the owner of the folder and all in it."""
        if self._becomes:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)


class Loopback(Cluster):
    """Two nodes on this host, at ports of 127.0.0.1: one network, one /tmp, one list of processes for both."""

    def start(self) -> None:
        """Start every daemon; return when both nodes are idle."""
        self._start_munge()
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(len(NODES) + 1)
        write_configuration(
            self.folder,
            self.account.pw_name,
            Address(host, LOOPBACK, ports[0]),
            {node: Address(host, LOOPBACK, port) for node, port in zip(NODES, ports[1:], strict=True)},
            only_loopback=True,
        )
        self._give(self.folder)
        self._daemon("login", "slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon(node, "slurmd", "-D", "-c", "-N", node)
        self.wait_until(self._is_idle, 60, self._logs)

    def inside(self, host: str, command: Iterable[str], folder: Path | None = None) -> list[str]:
        """The command line that runs `command` as the cluster's user in `folder`; all hosts are this one."""
        return [*self._becomes, "env", f"--chdir={folder or self.folder}", *command]


def missing_programs() -> Sequence[str]:
    """The programs of SLURM, and around it, that this machine lacks."""
    return [program for program in PROGRAMS if not shutil.which(program, path=_path())]


def _becomes(account: pwd.struct_passwd) -> list[str]:
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]


def _path() -> str:
    """PATH with the folders of daemons, which those who are not root often lack."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)
