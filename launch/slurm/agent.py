"""The agent of one node of a job: `srun ... python -m launch.slurm.agent ATTEMPT NONCE`, one on each node.

    agent 0                                    the others
    listens; writes meeting.json
                                               read meeting.json; connect; say versions, clock, nonce
    checks what they say
    starts Ray's head
                                               start Ray, which joins the head
    starts the driver, and waits for its end
    writes result.json; says the end
    all end what they started, remove their folder in /tmp, and exit

Every agent is the subreaper of its node: nothing that it started outlives it. SIGTERM, SIGUSR2 and SIGINT at agent 0
ask the driver to save and end; the others hold them back, because the driver needs their Ray until it has saved. A node
whose connection to agent 0 breaks ends what it runs. `ATTEMPT` is the folder of the attempt, which
`launch.slurm.attempt` made; docs/slurm.md lists its files.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

from executor.user_error import UserError
from launch.logs import log_to_file
from launch.slurm.first_agent import FirstAgent
from launch.slurm.node_agent import Agent, see_folder
from launch.slurm.other_agent import OtherAgent
from launch.slurm.processes import become_subreaper
from launch.slurm.result import Ended
from launch.slurm.step import Step

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


async def work(step: Step, attempt: Path, nonce: str) -> int:
    """Run this node's agent; returns its exit code."""
    agent: Agent = (OtherAgent if step.index else FirstAgent)(step, attempt, nonce)
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, agent.hear, number)
    reaping = asyncio.create_task(agent.reap_orphans())
    try:
        await see_folder(attempt, step)
        log_to_file(attempt / f"node.{step.node}.log", f"agent{step.index}", "info")
        return await agent.run()
    except (Ended, UserError) as error:
        agent.say(error.reason if isinstance(error, Ended) else str(error))
        return error.exit_code
    finally:
        reaping.cancel()
        agent.close()


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code."""
    if len(argv) != 2:
        sys.stderr.write("usage: python -m launch.slurm.agent ATTEMPT NONCE (a job of azr submit calls it)\n")
        return 2
    try:
        step = Step.of()
    except UserError as error:
        sys.stderr.write(f"azr: {error}\n")
        return error.exit_code
    become_subreaper()
    # Hundreds of connections a node: engines, sandboxes, Ray.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(work(step, Path(argv[0]), argv[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
