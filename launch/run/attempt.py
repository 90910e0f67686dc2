"""An attempt of a run: one start or one resume. Says what it goes on from, and keeps its configuration.

    attempts/NNN/config.toml    the configuration that the attempt began with
    config.toml                 that of the newest attempt whose learner loaded its checkpoint with it (`adopt`)

So an attempt that fails to start leaves `config.toml`, which the next resume reads, as it was.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.config import Config, SftConfig
from launch.json_lines import to_json
from launch.machine import describe_machine, in_words
from launch.run.aside import last_step, set_aside_all
from launch.run.changes import Changes, changes
from launch.run.configuration import load_run, to_run_toml, with_absolute_paths
from launch.run.folder import AttemptFolder, RunFolder, RunFolderError, append_event
from launch.run.measurements import lacks_last
from launch.versions import version_of
from learner.checkpoint import Checkpoints
from learner.disk import matches, sync


@dataclass(frozen=True)
class Start:
    """What a command does with a folder that holds a run; by default it refuses it."""

    former: Config | SftConfig | None = None
    """`--resume`: the configuration of the run's last attempt; the run goes on."""
    over: bool = False
    """`--start-over`, with `former`: what is recorded is set aside first."""
    auto: bool = False
    """`--auto-resume`: the run goes on where the folder holds one, and begins otherwise."""


@dataclass(frozen=True)
class Origin:
    """The state that an attempt goes on from."""

    checkpoint: Path | None = None
    """None: the attempt begins at step 1."""
    recorded: int = 0
    """The newest step in metrics or trajectories."""
    resumes: bool = False
    """Whether the run has begun before."""
    start_over: bool = False
    """Whether everything recorded is set aside first."""
    notices: list[str] = field(default_factory=list)
    """Sentences about checkpoints that were mended or set aside."""
    former: Config | SftConfig | None = None
    """The configuration of the run's last attempt; None where there was none."""

    @property
    def goes_on(self) -> bool:
        """Whether the attempt keeps what the run has: its steps, its checkpoints and its task buffer."""
        return self.resumes and not self.start_over

    @property
    def step(self) -> int:
        """The step of the checkpoint; 0 without one."""
        return int(self.checkpoint.name.removeprefix("step_")) if self.checkpoint else 0


def find_origin(config: Config | SftConfig, folder: RunFolder, start: Start) -> Origin:
    """The origin of the attempt that begins now. The folder's owner calls this: it may mend checkpoints.

    Raises RunFolderError, CheckpointError, and ConfigError where the folder's configuration cannot be read.
    """
    former = start.former
    if start.auto and folder.config.exists():
        is_sft = isinstance(config, SftConfig)
        former = load_run(folder.path, [], SftConfig)[0] if is_sft else load_run(folder.path, [], Config)[0]
    if former is None:
        return new_run(config, folder)
    over = start.over or (start.auto and _has_no_checkpoint(folder))
    return replace(former_run(config, folder, over), former=former)


def new_run(config: Config | SftConfig, folder: RunFolder) -> Origin:
    """The origin of a new run. Raises RunFolderError where the folder has steps or checkpoints of another one."""
    if last_step(folder) or matches(folder.checkpoints, "step_.*"):
        resume = f"{command(config)} --resume {shlex.quote(str(folder.path))}"
        raise RunFolderError(
            f"{folder.path} holds a run already. Go on with it: {resume}. Begin it again, with what it recorded set "
            f"aside: {resume} --start-over. Start another: add run.name=NAME."
        )
    return Origin()


def former_run(config: Config | SftConfig, folder: RunFolder, start_over: bool = False) -> Origin:
    """The origin of a resume: the newest complete checkpoint. The folder's owner calls this: it mends the checkpoints.

    Raises RunFolderError where steps are recorded and there is no checkpoint, and CheckpointError. `start_over`: set
    everything aside in place of that.
    """
    recorded = last_step(folder)
    if start_over:
        return Origin(None, recorded, resumes=True, start_over=True)
    checkpoints = Checkpoints(folder.checkpoints, config.learner.keep_checkpoints)
    notices = checkpoints.recover()
    latest = checkpoints.latest()
    if latest is None and recorded:
        raise RunFolderError(
            f"{folder.path} has {recorded} recorded steps and no checkpoint to go on from, so these steps cannot be "
            f"continued. To begin at step 1 again: {command(config)} --resume {shlex.quote(str(folder.path))} "
            "--start-over. That moves all that is recorded to attempts/ in the run folder and deletes nothing."
        )
    return Origin(latest, recorded, resumes=True, notices=notices)


def begin(config: Config | SftConfig, folder: RunFolder, origin: Origin) -> list[str]:
    """Begin an attempt: make its folder, with its configuration. The folder's owner calls this; returns lines for the
    console, settings that changed since the attempt before among them."""
    changed = _changes(config, origin)
    _keep_config(folder)
    attempt = folder.new_attempt()
    attempt.config.write_text(to_run_toml(config))
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    began: dict[str, Any] = {
        "attempt": attempt.number,
        "time": now,
        "host": platform.node(),
        "machine": in_words(describe_machine()),
        "azr": version_of("azr"),
        "pid": os.getpid(),
        "command": sys.argv,
    }
    if job := os.environ.get("SLURM_JOB_ID"):
        began |= {"slurm_job": job, "slurm_restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}
    attempt.record.write_text(to_json(began) + "\n")
    folder.create()
    lines = [*origin.notices]
    for notice in origin.notices:
        append_event(folder, "checkpoint_incomplete", notice=notice)
    details: dict[str, Any] = {"attempt": attempt.number, "step": origin.step}
    if origin.start_over:
        aside = set_aside_all(folder).relative_to(folder.path)
        folder.create()
        details["set_aside"] = str(aside)
        lines.append(f"starting over: {origin.recorded} steps and all checkpoints were moved to {folder.path / aside}")
    elif origin.checkpoint is not None:
        lines.append(f"going on from {origin.checkpoint}, after step {origin.step}")
        details["checkpoint"] = origin.checkpoint.name
        if isinstance(config, Config) and origin.step >= config.learner.steps:
            lines.append(
                "all steps are taken: only the last version is still to be measured on the held-out tasks "
                "(selfplay.heldout_every=0 leaves that out)"
            )
    if not origin.start_over and origin.recorded > origin.step:
        one = origin.recorded == origin.step + 1
        again = f"step {origin.recorded} is" if one else f"steps {origin.step + 1} to {origin.recorded} are"
        lines.append(f"{again} taken again; what was recorded of that moves to {attempt.path}")
    if changed:
        lines += changed.sentences()
        details["changed"] = changed.values
    append_event(folder, "run_resumed" if origin.resumes else "run_started", **details)
    return lines


def adopt(folder: RunFolder) -> None:
    """Make the newest attempt's configuration the run's, which the next resume reads. The attempt has really begun."""
    attempt = folder.newest_attempt()
    if attempt is None:
        return
    fresh = folder.config.with_suffix(".partial")
    fresh.write_bytes(attempt.config.read_bytes())
    sync(fresh)  # or a machine that loses power may keep the new name, and no content
    fresh.rename(folder.config)


def finished(config: Config | SftConfig, folder: RunFolder, origin: Origin, num_steps: int) -> str | None:
    """The sentence for a run that has all its steps; None where some are left, or its last version's measurement on the
    held-out tasks, without which nothing is said about learning."""
    if origin.step < num_steps or _lacks_measurement(config, folder, origin):
        return None
    more = "learner.steps=N" if isinstance(config, Config) else "sft.epochs=N"
    return (
        f"{origin.step} of {num_steps} steps are taken: there is nothing left to do, and nothing was changed. To go "
        f"on: {command(config)} --resume {shlex.quote(str(folder.path))} {more}"
    )


def _lacks_measurement(config: Config | SftConfig, folder: RunFolder, origin: Origin) -> bool:
    return isinstance(config, Config) and lacks_last(config, folder, origin.step)


def command(config: Config | SftConfig) -> str:
    """The command of this kind of run, as the user calls it."""
    return "azr train" if isinstance(config, Config) else "azr sft"


def _has_no_checkpoint(folder: RunFolder) -> bool:
    """Whether steps are recorded that no checkpoint, complete or not, was written of."""
    return bool(last_step(folder)) and not matches(folder.checkpoints, "step_.*")


def _changes(config: Config | SftConfig, origin: Origin) -> Changes:
    if origin.former is None:
        return Changes()
    return changes(with_absolute_paths(origin.former), with_absolute_paths(config), origin.checkpoint)


def _keep_config(folder: RunFolder) -> None:
    """Keep the configuration of a run that an older version, which made no folders for attempts, has begun."""
    if folder.config.exists() and folder.newest_attempt() is None:
        first = AttemptFolder(folder.attempts / "000")
        first.path.mkdir(parents=True)
        first.config.write_bytes(folder.config.read_bytes())
