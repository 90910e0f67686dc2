"""`azr drill`: kills a run's processes at random while it trains, and checks that nothing is lost.

The processes are ended by SIGKILL, so none can clean up. The next kill comes when the run has recovered from the last
one (every part is there, and a step has been taken since) and a random time has passed, so that kills fall anywhere in
a step. After the last kill the run takes two more steps and ends by itself.

Passed: every part that was killed came back, the run went on, the ledger is conserved, no version is missing, and what
was trained, as the run recorded it, is what the ledger says, each slot once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.arguments import add_overrides, new_command, overrides_of
from launch.run.interrupts import listening

if TYPE_CHECKING:
    from launch.cluster.supervisor import Supervisor
    from launch.cluster.workload import Workload
    from launch.config import Config
    from launch.run.console import Console
    from launch.run.folder import RunFolder
    from launch.run.interrupts import Interrupts

PARTS = ("actor", "executor", "buffer", "learner")
CHECKPOINT_EVERY = 2
"""Steps between checkpoints, where the recipe has none: a learner that dies goes on from one."""
MORE_STEPS = 2
"""Steps after the last kill."""
LONGEST_WAIT_S = 10.0
"""Longest wait between a recovery and the next kill, in seconds; drawn uniformly from 0 on."""

_EXAMPLES = """\
examples:
  azr drill smollm2-cpu-small --times 5                               five kills of anything: some minutes
  azr drill smollm2-cpu-small --kill learner,actor --times 4 --seed 7
"""


class DrillError(UserError):
    """A drill that cannot be held; the message says what to do."""


class Drill:
    """Kills one part after another; `watch` is called by the run's driver."""

    def __init__(self, parts: list[str], times: int, seed: int, folder: RunFolder, console: Console) -> None:
        self._random = random.Random(seed)
        # Every part in turn, in random order: no part is left out by chance.
        order: list[str] = []
        while len(order) < times:
            order += self._random.sample(parts, len(parts))
        self._order = order[:times]
        self._folder = folder
        self._console = console
        self.killed: Counter[str] = Counter()
        self._step = 0
        """Steps that the run had taken at the last kill."""
        self._due: float | None = None
        self.done = False
        """True once every kill was made and the run has recovered from the last one."""

    def watch(self, supervisor: Supervisor) -> None:
        """Kill, where it is time to."""
        step = int(supervisor.status().last.get("step", 0))
        # A learner that went back to its checkpoint has fewer steps than before.
        self._step = min(self._step, step)
        whole = supervisor.whole()
        if not self._order:
            if whole and step >= self._step + MORE_STEPS and not self.done:
                self.done = True
                supervisor.stop("the drill is over")
            return
        if not whole or step <= self._step:
            self._due = None
            return
        if self._order[0] == "learner" and not any(self._folder.checkpoints.glob("step_*/complete.json")):
            return  # a run without a checkpoint has nothing to go on from, and says so
        now = time.monotonic()
        if self._due is None:
            self._due = now + self._random.uniform(0, LONGEST_WAIT_S)
        if now >= self._due:
            self._kill(supervisor, self._order.pop(0))
            self._step, self._due = step, None

    def _kill(self, supervisor: Supervisor, part: str) -> None:
        from launch.run.folder import append_event

        index, process = self._random.choice(
            sorted(supervisor.processes("actor" if part == "executor" else part).items())
        )
        if part == "executor":
            servers = supervisor.ask(process, "sandbox_pids")
            if not servers:
                raise DrillError(f"rollout{index} has no sandbox")
            pid = self._random.choice(processes_of(self._random.choice(servers)))
        else:
            pid = supervisor.ask(process, "pid")
        os.kill(pid, signal.SIGKILL)
        self.killed[part] += 1
        names = {"actor": f"rollout{index}", "executor": f"a sandbox of rollout{index}", "learner": f"learner{index}"}
        self._console.say(
            f"drill: killed {names.get(part, 'the task buffer')} (process {pid}); {len(self._order)} more to come"
        )
        append_event(self._folder, "drill_kill", part=part, index=index, pid=pid)


def processes_of(fork_server: int) -> list[int]:
    """The processes of the sandbox with this fork server: its keeper, itself, and the programs that it runs now."""
    import psutil

    server = psutil.Process(fork_server)
    return [server.ppid(), fork_server, *(child.pid for child in server.children(recursive=True))]


def audit(folder: RunFolder) -> list[str]:
    """Check the files of a finished run; returns the faults, a sentence each, and none where all is well.

    Faults: missing versions, slots that were trained twice, a ledger that disagrees with the recorded trajectories.
    """
    rows = folder.read_metrics()
    versions = [row["version"] for row in rows]
    wrong = []
    if versions != list(range(1, len(versions) + 1)):
        wrong.append(f"versions are MISSING: {versions}")
    trained: Counter[int] = Counter()
    for path in folder.trajectories.glob("step_*.jsonl"):
        trained.update(json.loads(line)["slot"] for line in path.read_text().splitlines())
    if twice := sorted(slot for slot, times in trained.items() if times > 1):
        wrong.append(f"slots were trained TWICE: {twice[:10]}")
    counted = int(rows[-1]["ledger/trained"]) if rows else 0
    if counted != trained.total():
        wrong.append(f"the ledger says {counted} trained, but {trained.total()} trajectories were RECORDED as trained")
    return wrong


def register(commands: Any) -> None:
    """Add `drill` to argparse's subcommands."""
    drill = new_command(
        commands,
        "drill",
        "kill a run's processes at random, and see whether anything is lost",
        "Run a recipe, kill its processes (SIGKILL) one after another at random moments, and pass only if the run "
        "goes on each time and the ledger is conserved at the end. Prints the ledger, restarts and versions.",
        _EXAMPLES,
    )
    drill.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    add_overrides(drill, "settings on top")
    drill.add_argument(
        "--kill", type=_parts, default=list(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)} (default: all)"
    )
    drill.add_argument("--times", type=int, default=5, metavar="N", help="kills (default %(default)s)")
    drill.add_argument("--seed", type=int, default=0, metavar="S", help="of what is killed when (default %(default)s)")
    drill.set_defaults(run=_run)


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return parts


def _run(arguments: argparse.Namespace) -> int:
    """Hold the drill; exit code 0 only where it was passed."""
    with listening() as interrupts:  # before the imports, which take seconds
        return _drill(arguments, interrupts)


def _drill(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from launch.commands.train import begun
    from launch.config import load
    from launch.run.console import Console
    from launch.run.folder import end_at_once
    from launch.workloads.choose import workload_of

    if arguments.times < 1:
        raise DrillError(f"--times {arguments.times}: at least one kill")
    budget = arguments.times + 1
    forced = [
        "learner.steps=1000000",
        f"supervision.max_actor_restarts={budget}",
        f"supervision.max_learner_restarts={budget}",
        f"supervision.max_buffer_restarts={budget}",
        "run.record_trajectories=true",
    ]
    config = load(arguments.recipe, [*forced, *overrides_of(arguments)])
    if config.run.mode == "serial" or config.ray.address:
        raise DrillError(
            "a drill needs run.mode = async or rehearse and a Ray of its own (no ray.address): it ends processes here"
        )
    if config.run.mode == "rehearse" and "executor" in arguments.kill:
        raise DrillError("a rehearsal has no sandboxes: add --kill actor,buffer,learner")
    workload = workload_of(config)
    if not config.learner.checkpoint_every:
        learner = config.learner.model_copy(update={"checkpoint_every": CHECKPOINT_EVERY})
        config = config.model_copy(update={"learner": learner})
    if config.folder.exists():
        raise DrillError(f"{config.folder} is there already: add run.name=NAME, or remove it")
    console = Console(config)
    with begun(config, console, workload) as (folder, _):
        interrupts.last_acts.append(lambda why: end_at_once(folder, why))
        return _hold(arguments, config, folder, console, interrupts, workload)


def _hold(
    arguments: argparse.Namespace,
    config: Config,
    folder: RunFolder,
    console: Console,
    interrupts: Interrupts,
    workload: Workload,
) -> int:
    from launch.cluster import driver

    drill = Drill(arguments.kill, arguments.times, arguments.seed, folder, console)
    restarts: dict[str, int] = {}

    def watch(supervisor: Supervisor) -> None:
        drill.watch(supervisor)
        restarts.update(supervisor.restarts())

    code = driver.run(config, folder, False, console, workload, watch, interrupts)
    wrong = audit(folder)
    killed = ", ".join(f"{count} {part}" for part, count in sorted(drill.killed.items()))
    console.say(f"drill: killed {drill.killed.total()} ({killed}); restarts: {restarts}")
    for what in wrong:
        console.say(f"drill: {what}")
    if not wrong:
        console.say(f"drill: {len(folder.read_metrics())} versions, none missing; what was trained was trained once")
    passed = code == 0 and drill.done and not wrong
    console.say(
        "drill: PASSED" if passed else f"drill: FAILED (exit code of the run {code}, all kills made: {drill.done})"
    )
    return 0 if passed else 1
