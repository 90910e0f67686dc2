"""The agent of the first node: gathers the others, starts Ray and the driver, and says how the job ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from typing import Any

from launch.config import Config, SftConfig, load
from launch.json_file import read_json, write_json
from launch.run.interrupts import NOTHING_TO_SAVE
from launch.run.scratch import is_used, remove, scratch_of
from launch.slurm.client import clean_environment
from launch.slurm.driver_process import DriverProcess, driver_command
from launch.slurm.facts import own_facts, own_versions
from launch.slurm.job_log import JobLog
from launch.slurm.limits import job_ends_at, kill_wait_s
from launch.slurm.meeting import Host, own_addresses
from launch.slurm.node_agent import LOOK_S, Agent
from launch.slurm.result import FAILED, Ended
from launch.slurm.roster import Roster
from launch.whole_file import write_text

PARTING_S = 5.0
"""Seconds that the other agents have to hear of the end."""
LAST_S = 10.0
"""Seconds that the driver has to end where it cannot save: a node of the learner is lost."""
WORDS_S = 1.0
"""Seconds between the line in the job's log that an agent has ended and the one that says why, at most."""
ONE_NODE = "127.0.0.2"
"""Address in a job of one node. Ray replaces 127.0.0.1 by an outward one."""
_LOG = logging.getLogger(__name__)


class FirstAgent(Agent):
    """The agent of node 0, on which the batch script runs as well."""

    async def run(self) -> int:
        """Run the job to its end, write `result.json`, and tell the others; returns the job's exit code."""
        record = read_json(self.attempt / "attempt.json")
        self._nodes = _node_names(self.step.num_nodes)
        self._job_log = JobLog(self.attempt.parent / "job.log", int(record.get("log_bytes") or 0))
        self._roster = Roster(self._nodes, own_facts(0, self.step.node, str(record.get("nonce")), own_versions()))
        self._driver: DriverProcess | None = None
        try:
            write_text(self.attempt / "agent.pid", f"{os.getpid()}\n")
            ended = await self._job()
        except Exception as error:
            ended = self.ended_by(error)
        try:
            ended.write(self.attempt / "result.json")
        except OSError as error:
            self.say(f"result.json cannot be written: {error}")
        self.say(f"{ended.part} on {ended.node}: {ended.reason}")
        await self._roster.dismiss(PARTING_S)
        return ended.exit_code

    def close(self) -> None:
        """End all that this agent started, and the agents that do not hear of the end: those that have not joined, and
        those that hang, for which srun would wait until the time limit."""
        super().close()
        if self._driver is not None and not is_used(scratch := scratch_of(self.attempt.parent.parent)):
            remove(scratch)  # of a driver that was killed
        if self._roster.silent or set(self._roster.missing) - set(self._refused()):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            step = f"{self.step.job_id}.{self.step.step_id}"
            subprocess.run(["scancel", step], env=clean_environment(os.environ), check=False)

    async def _job(self) -> Ended:
        """Bring the job up, and run the driver to its end. Raises Ended where something else ends before."""
        timeout_s = float(self.setting("start_timeout_s", 600.0))
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                root = SftConfig if "sft" in tomllib.loads(self.recipe.read_text()) else Config
                config = load(self.recipe, (), root)
                env, head = await self._bring_up(config)
        except TimeoutError:
            raise Ended(FAILED, "start", *self._late(f"slurm.start_timeout_s = {timeout_s:g} s")) from None
        self.say(f"Ray is up on {self.step.num_nodes} nodes after {time.monotonic() - began:.0f} s; the driver starts")
        ends_at, grace_s = job_ends_at(self.step.job_id), kill_wait_s()
        command = driver_command(self.recipe, isinstance(config, SftConfig), head, grace_s, ends_at)
        self._driver = DriverProcess(command, env, self.attempt / "driver.log")
        return await self._drive(self._driver, grace_s or LAST_S)

    async def _bring_up(self, config: Config | SftConfig) -> tuple[dict[str, str], str]:
        """Gather all agents and start Ray on all nodes; returns the driver's environment, and Ray's address."""
        from launch.cluster.environment import VARIABLES
        from launch.cluster.placement import job_role
        from launch.cluster.ray_session import SPARE_CPUS

        address = await self._gather(config.slurm.interface)
        how: dict[str, Any] = {"variables": VARIABLES, "spare_cpus": SPARE_CPUS}
        learners = [index for index in range(self.step.num_nodes) if job_role(config, index) == "learner"]
        self._learner_nodes = {self._nodes[index] for index in learners or range(self.step.num_nodes)}
        labels = [{"role": job_role(config, index), "node_index": str(index)} for index in range(self.step.num_nodes)]
        starting = asyncio.create_task(self.start_ray(address, None, labels[0], **how))
        await self._until(starting.done)
        env, head = starting.result()
        for index in range(1, self.step.num_nodes):
            message = {"head": head, "labels": labels[index], "interface": config.slurm.interface, **how}
            await self._roster.tell(index, ray=message)
        await self._until(self._all_up)
        return env, head

    def _all_up(self) -> bool:
        self.check_ray()
        return not self._roster.starting

    async def _gather(self, interface: str | None) -> str:
        """Wait until all agents have joined; returns this node's address, as they reach it."""
        if self.step.num_nodes == 1:
            return own_addresses(0, interface)[0] if interface else ONE_NODE
        addresses = own_addresses(0, interface)
        host = Host((self.attempt / "token").read_text().strip(), self._roster.welcome)
        try:
            port = await host.open(addresses[0] if interface else "0.0.0.0")
            record = {"nonce": self.nonce, "addresses": addresses, "port": port}
            write_json(self.attempt / "meeting.json", record)
            await self._until(lambda: not self._roster.missing)
        finally:
            host.close()
        return self._roster.address or addresses[0]

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition()`. Raises Ended where a part ends before, a node cannot start, or a signal comes."""
        while not condition():
            self._roster.check()
            if self._refused():
                await asyncio.sleep(WORDS_S)
                refused = self._refused()
                told = "; ".join(f"{node} does not start: {why}" for node, why in refused.items())
                raise Ended(FAILED, "start", ",".join(refused), told)
            if self.stop.is_set():
                raise Ended(NOTHING_TO_SAVE, "start", self.step.node, "stopped before the run had begun")
            await asyncio.sleep(LOOK_S)

    def _refused(self) -> dict[str, str]:
        """Nodes that have not joined and will not -> why."""
        missing = self._roster.missing
        return {node: why for node, why in self._job_log.refusals().items() if node in missing} if missing else {}

    def _late(self, limit: str) -> tuple[str, str]:
        """(nodes, reason) where the job is not up in time."""
        if missing := self._roster.missing:
            told = ", ".join(missing)
            return ",".join(missing), (
                f"{told} did not join within {limit}: the log of the job has what SLURM says of them. Where it says "
                "nothing, they do not see the run folder, or cannot reach this node"
            )
        # The others are told to start theirs when the first node's is up.
        is_up = self.ray is not None and self.ray.is_up
        starting = self._roster.starting if is_up and self._roster.starting else [self.step.node]
        return ",".join(starting), f"Ray did not start on {', '.join(starting)} within {limit}: see node.NAME.log"

    async def _drive(self, driver: DriverProcess, grace_s: float) -> Ended:
        """Wait for the driver's end. Raises Ended where another part ends before; the driver may save first."""
        self.own.add(driver.process.pid)
        try:
            while (code := driver.exit_code) is None:
                if self.heard:
                    driver.stop(killed_soon=self.heard != {signal.SIGUSR2})
                self.check_ray()
                self._roster.check()
                await asyncio.sleep(LOOK_S)
        except Ended as ended:
            self.say(f"{ended.reason}; the driver is asked to save and end")
            lost = set(ended.node.split(",")) & self._learner_nodes
            driver.stop(killed_soon=True)
            await self._wait(driver, LAST_S if lost else max(grace_s, LAST_S))
            raise
        return Ended(code, "driver", self.step.node, driver.told)

    async def _wait(self, driver: DriverProcess, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while driver.exit_code is None and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)


def _node_names(num_nodes: int) -> list[str]:
    """SLURM's names of the job's nodes, in the order of their numbers."""
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_STEP_NODELIST", "")]
    names = subprocess.run(
        command, env=clean_environment(os.environ), capture_output=True, text=True, check=False
    ).stdout.split()
    return names if len(names) == num_nodes else [f"node {index}" for index in range(num_nodes)]
