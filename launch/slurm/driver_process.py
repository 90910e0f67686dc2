"""The driver of the run, `azr train` or `azr sft`, as a child of the first node's agent."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from executor.signals import end_with_parent

_LOG = logging.getLogger(__name__)
SPARE_S = 2.0
"""Seconds of SLURM's KillWait that the agents need after the driver's end."""


def driver_command(recipe: Path, is_sft: bool, address: str, grace_s: float | None, ends_at: float | None) -> list[str]:
    """The driver's command line: begin the run, or go on with it.

    `address`: Ray's, `host:port`. `grace_s`: seconds from SIGTERM to SLURM's SIGKILL. `ends_at`: when the job ends, in
    seconds since the epoch.
    """
    limits = []
    if grace_s is not None:
        limits.append(f"--grace-s={max(1.0, grace_s - SPARE_S):g}")
    if ends_at is not None:
        limits.append(f"--stop-by={ends_at - SPARE_S:.0f}")
    command = "sft" if is_sft else "train"
    return [sys.executable, "-P", "-m", "launch.cli", command, str(recipe), "--auto-resume", *limits,
            f"ray.address={address}"]  # fmt: skip


class DriverProcess:
    """The driver. Its output goes to a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        _LOG.info("starting the driver: %s", " ".join(command))
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
            )  # fmt: skip
        self._sent: set[signal.Signals] = set()
        self._log = log

    @property
    def last_words(self) -> str:
        """The last line of its output that says why it failed; where none does, the last line."""
        with contextlib.suppress(OSError), self._log.open("rb") as output:
            output.seek(max(0, self._log.stat().st_size - 4096))
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
            why = [line for line in lines if "FAILED: " in line] or lines
            return why[-1].strip()[:400] if why else "it said nothing"
        return "it said nothing"

    @property
    def exit_code(self) -> int | None:
        """How it ended, as a shell says it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    @property
    def told(self) -> str:
        """How it ended, in a sentence for the user."""
        code = self.process.returncode
        if code < 0:
            return f"the run was killed by {signal.Signals(-code).name}; the last line of its log: {self.last_words}"
        return f"the run ended with exit code {code}" + (f": {self.last_words}" if code else "")

    def stop(self, killed_soon: bool) -> None:
        """Ask it to save and end. `killed_soon`: SLURM kills it after KillWait; otherwise it has until the job's end.

        Each of the two is said once.
        """
        number = signal.SIGTERM if killed_soon else signal.SIGUSR2
        if number not in self._sent:
            self._sent.add(number)
            _LOG.info("asking the driver to save and end: %s", number.name)
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
