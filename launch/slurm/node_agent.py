"""What the agents of all nodes have in common: the attempt's folder, Ray on the node, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

from executor.cpus import allowed_cpus
from executor.user_error import UserError
from launch.addresses import free_port
from launch.run.scratch import remove
from launch.slurm.processes import end_descendants, reap
from launch.slurm.ray_node import RayNode, environment_of, make_folder
from launch.slurm.result import FAILED, Ended
from launch.slurm.step import Step

FOLDER_S = 10.0
"""Seconds that a node may take to see the folder of the attempt, which was made before its agent started."""
LOOK_S = 0.1
TRIES = 3
"""Number of times that Ray is started on a node: it gives itself 30 s, which a busy host may exceed, and its
port may be taken by another process."""
_LOG = logging.getLogger(__name__)


class Agent:
    """What the agents of all nodes have in common."""

    def __init__(self, step: Step, attempt: Path, nonce: str) -> None:
        self.step = step
        self.attempt = attempt
        self.nonce = nonce
        self.stop = asyncio.Event()
        """Set by the first signal."""
        self.heard: set[signal.Signals] = set()
        """The signals that came."""
        self.ray: RayNode | None = None
        self.own: set[int] = set()
        """Processes that this agent waits for itself."""
        self._folder: Path | None = None

    def hear(self, number: signal.Signals) -> None:
        """Note that a signal came."""
        self.heard.add(number)
        self.stop.set()

    @property
    def recipe(self) -> Path:
        """The run's resolved configuration."""
        return self.attempt.parent / "recipe.toml"

    def setting(self, name: str, default: Any) -> Any:
        """A setting of `[slurm]`, read without the libraries that the whole configuration needs."""
        return tomllib.loads(self.recipe.read_text()).get("slurm", {}).get(name, default)

    async def run(self) -> int:
        """Run the node's part of the job to its end; returns the exit code. `Ended` says how the job ended."""
        raise NotImplementedError

    async def start_ray(
        self, address: str, head: str | None, labels: dict[str, str], variables: dict[str, str], spare_cpus: int
    ) -> tuple[dict[str, str], str]:
        """Start Ray on this node, and wait until it has joined; returns its environment, and the head's `host:port`.

        `head`: the first node's Ray; None: this is the first. `spare_cpus`: logical CPUs that Ray gets in addition to
        those of the node; threads are set in the recipe. Raises Ended.
        """
        number = int(self.attempt.suffix[1:])
        for left in reversed(range(TRIES)):
            self._folder = make_folder(self.step.job_id, number, self.step.index)
            env = environment_of(variables, self.attempt / "token", self._folder)
            joined = head or f"{address}:{free_port(address)}"
            self.ray = RayNode(address, joined, labels, allowed_cpus() + spare_cpus, self._folder, env)
            self.own.add(self.ray.process.pid)
            while not self.ray.is_up and self.ray.exit_code is None:
                await asyncio.sleep(LOOK_S)
            if self.ray.is_up:
                return env, joined
            if not left:
                self.check_ray()
            self.say(f"Ray did not start, and is started again: {self.ray.last_words}")
            end_descendants()
        raise AssertionError

    def check_ray(self) -> None:
        """Raise Ended if Ray has ended on this node."""
        if self.ray is not None and (code := self.ray.exit_code) is not None:
            reason = f"Ray ended on {self.step.node} with exit code {code}: {self.ray.last_words}"
            raise Ended(code or FAILED, "ray", self.step.node, reason)

    def ended_by(self, error: Exception) -> Ended:
        """How the job ends where `error` ends this agent: not as by the loss of a node, for it would end so again."""
        if isinstance(error, Ended):
            return error
        if isinstance(error, UserError):
            return Ended(error.exit_code, "agent", self.step.node, str(error))
        _LOG.error("the agent failed", exc_info=error)
        return Ended(FAILED, "agent", self.step.node, f"{type(error).__name__}: {error}")

    def say(self, text: str) -> None:
        """Write a line to the job's log, and to this node's."""
        _LOG.info("%s", text)
        sys.stderr.write(f"azr: {self.step.node}: {text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End all that this agent started, and remove its folder."""
        if left := end_descendants():
            self.say(f"these processes cannot be ended: {', '.join(left)}")
        if self._folder is not None:
            remove(self._folder)

    async def reap_orphans(self) -> None:
        """Reap what lost its parent, without end."""
        while True:
            reap(self.own)
            await asyncio.sleep(1.0)


async def see_folder(attempt: Path, step: Step) -> None:
    """Wait until this node sees the folder of the attempt. Raises Ended."""
    try:
        async with asyncio.timeout(FOLDER_S):
            while True:
                with contextlib.suppress(OSError):
                    # To read a folder makes a network file system ask its server, instead of what it remembers.
                    if attempt.name in os.listdir(attempt.parent):
                        return
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        reason = f"{attempt} is not there: the run folder is not shared with this node"
        raise Ended(FAILED, "start", step.node, reason) from None
