"""Ray on one node of a job: its environment, its folder, its processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from executor.signals import end_with_parent, withheld
from executor.user_error import UserError

_LOG = logging.getLogger(__name__)
_STARTED = "Ray runtime started"
_ADVICE = re.compile(r"(INFO|SUCC) (scripts|cli_output_helpers)\.py")
"""What Ray says to a person who starts it by hand, such as to end it by `ray stop`, which ends all of a user's Rays."""
_FORMER = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Variables that would have this Ray join, or resemble, another one."""


class FolderError(UserError):
    """The folder for sockets cannot be made; the message says why."""


def folder_of(job_id: str, attempt: int, index: int) -> Path:
    """Where this node keeps sockets and temporary files: not in the run folder, because the path of a socket is limited
    to 107 bytes and shared file systems have no sockets. Not in TMPDIR, which is long on many sites."""
    return Path("/tmp") / f"azr-{job_id}-{attempt}-{index}"


def make_folder(job_id: str, attempt: int, index: int) -> Path:
    """Make this node's folder, mode 0700, and remove those of the job's earlier attempts. Raises FolderError."""
    folder = folder_of(job_id, attempt, index)
    for number in range(attempt + 1):
        former = folder_of(job_id, number, index)
        with contextlib.suppress(OSError):
            if former.lstat().st_uid == os.getuid():
                shutil.rmtree(former, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
        (folder / "tmp").mkdir(mode=0o700)
    except OSError as error:
        raise FolderError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def environment_of(variables: Mapping[str, str], token: Path, folder: Path) -> dict[str, str]:
    """The environment of Ray and of the driver on this node.

    Ray's workers have it as well; the driver's own would not reach them. `variables`: set where they are not set
    already. `token`: the file with Ray's token.
    """
    own = {name: value for name, value in os.environ.items() if name not in _FORMER}
    mine = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "TMPDIR": str(folder / "tmp"),
    }
    return dict(variables) | own | mine


class RayNode:
    """`ray start --block` as a child of this process. Signals of the job do not reach it, nor what it starts."""

    def __init__(
        self, address: str, head: str, labels: Mapping[str, str], num_cpus: int, folder: Path, env: Mapping[str, str]
    ) -> None:
        """Start Ray at this node's `address`. `head`: `host:port` of the first node's; it is started where the host is
        `address`."""
        host, port = head.rsplit(":", 1)
        role = ["--head", f"--port={port}", "--include-dashboard=false"] if host == address else [f"--address={head}"]
        command = [
            sys.executable, "-u", "-m", "ray.scripts.scripts", "start", "--block", *role,
            f"--node-ip-address={address}",
            # The operating system gives free ports to all but the head's.
            "--min-worker-port=0", "--max-worker-port=0",
            f"--temp-dir={folder}",
            f"--num-cpus={num_cpus}",
            "--include-log-monitor=false", "--disable-usage-stats", "--log-style=record",
        ]  # fmt: skip
        if labels:
            command.append("--labels=" + ",".join(f"{name}={value}" for name, value in labels.items() if value))
        _LOG.info("starting Ray: %s", " ".join(command))
        with withheld():
            self.process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", cwd=folder,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
            )  # fmt: skip
        self._started = threading.Event()
        self._last = ""
        threading.Thread(target=self._read, name="azr-ray-output", daemon=True).start()

    @property
    def is_up(self) -> bool:
        """Whether this node has joined the cluster."""
        return self._started.is_set()

    @property
    def exit_code(self) -> int | None:
        """How it ended, as a shell says it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    @property
    def last_words(self) -> str:
        """The last line of its output."""
        return self._last or "it said nothing"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if _STARTED in line:
                self._started.set()
            if not _ADVICE.search(line):
                self._last = line.strip() or self._last
                _LOG.info("ray: %s", line.rstrip())
