"""Submits a run to SLURM: writes its batch script and its resolved recipe into the run folder, and calls sbatch."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from executor.user_error import UserError
from launch.cluster.placement import place_job
from launch.config import Config, SftConfig, build, load, root_of, to_toml
from launch.inputs import check_inputs
from launch.json_file import read_json, write_json
from launch.recipe import find_recipe, read_recipe
from launch.run.aside import last_step
from launch.run.configuration import load_run, to_run_toml
from launch.run.durations import read_durations
from launch.run.folder import RunFolder, RunFolderError
from launch.run.owner import refusal
from launch.slurm import client
from launch.slurm.folder import JobFolder
from launch.slurm.script import script, warning_s
from launch.whole_file import write_text


class SubmitError(UserError):
    """A run that cannot be submitted; the message says what to do."""


def load_new(recipe: str, overrides: Sequence[str]) -> Config | SftConfig:
    """The configuration of a new run, of self-play or of fine-tuning. Raises ConfigError; RunFolderError where its
    folder holds a run.
    """
    data, _ = read_recipe(find_recipe(recipe))
    config = _absolute(load(recipe, overrides, root_of(data)))
    folder = RunFolder(config.folder)
    if last_step(folder) or any(folder.checkpoints.glob("step_*")):
        raise RunFolderError(
            f"{folder.path} holds a run already. Go on with it: azr submit --resume {shlex.quote(str(folder.path))}. "
            "Start another: add run.name=NAME."
        )
    return config


def load_former(run: Path, overrides: Sequence[str]) -> Config | SftConfig:
    """The configuration of the run in folder `run`, which has begun or was only submitted. Raises ConfigError,
    RunFolderError.
    """
    recipe = JobFolder(run).recipe
    if os.path.isfile(run / "config.toml"):
        data, _ = read_recipe(run / "config.toml")
        root: Any = root_of(data)
        # The address is that of the Ray of its last job, or of another place.
        return _absolute(load_run(run, ["ray.address=none", *overrides], root)[0])
    if os.path.isfile(recipe):
        data, _ = read_recipe(recipe)
        path = Path(os.path.abspath(run))  # the folder may have been moved
        place = [f"run.dir={path.parent}", f"run.name={path.name}"]
        return _absolute(load(recipe, [*place, *overrides], root_of(data)))
    raise RunFolderError(f"{run} is no run folder: it has neither config.toml nor slurm/{recipe.name}. See `ls runs`.")


def submit(config: Config | SftConfig, dry_run: bool = False) -> tuple[JobFolder, str | None]:
    """Submit a run; returns its folder and the job's id, None with `dry_run`, which asks no SLURM.

    `config`: what `load_new` or `load_former` returned. The same configuration writes the same bytes. A folder that
    this makes is removed again where it raises: SubmitError, SlurmError, QuotingError, TemplateError, PlacementError,
    RunFolderError, SeedError, LengthsError, ConfigError, ModelError.
    """
    job = JobFolder(config.folder)
    _check(config)
    if dry_run:
        _check_ended(job)
    else:
        client.require("sbatch")
        _check_no_job(job)
        if used := refusal(RunFolder(config.folder), lambda job_id: not client.is_queued(job_id)):
            raise RunFolderError(used)
    with _removed_on_failure(job):
        _write(config, job)
        return job, None if dry_run else client.submit(job.script)


def _absolute(config: Config | SftConfig) -> Config | SftConfig:
    """`config` as it holds from every directory: run folder, template and input files are absolute."""
    data = tomllib.loads(to_run_toml(config))
    data["run"]["dir"] = os.path.abspath(os.path.expanduser(config.run.dir))
    if config.slurm.template is not None:
        data["slurm"]["template"] = os.path.abspath(os.path.expanduser(config.slurm.template))
    return build(data, None, type(config))


def _check(config: Config | SftConfig) -> None:
    """Refuse a run that cannot be a job."""
    learner, nodes = config.learner, config.slurm.nodes
    if not learner.checkpoint_minutes and not learner.checkpoint_every:
        raise SubmitError(
            "this run would write no checkpoint before its end (learner.checkpoint_minutes = 0, "
            "learner.checkpoint_every = 0): a preemption would lose everything. Set learner.checkpoint_minutes=10."
        )
    if config.ray.address is not None:
        raise SubmitError(
            f"ray.address = {config.ray.address!r} cannot be used: the job starts a Ray of its own on its nodes. "
            "Leave it out: ray.address=none."
        )
    if isinstance(config, Config) and config.run.mode == "serial" and nodes > 1:
        raise SubmitError(f"run.mode = serial is one process, and slurm.nodes is {nodes}: set slurm.nodes=1")
    place_job(config)
    if not any(RunFolder(config.folder).checkpoints.glob("step_*")):
        check_inputs(config)


def _write(config: Config | SftConfig, job: JobFolder) -> None:
    """Write the batch script, the resolved recipe, and the number of the first start that they hold for."""
    durations = read_durations(RunFolder(config.folder))
    warning = warning_s(config.slurm, None if durations.checkpoint_s is None else durations.stop_s)
    text = script(config, sys.executable, warning)
    _check_syntax(text)
    attempts = job.attempts()
    first = attempts[-1].number + 1 if attempts else 0
    try:
        job.path.mkdir(parents=True, exist_ok=True)
        write_text(job.recipe, to_toml(config))
        write_text(job.script, text, mode=0o755)
        write_json(job.submission, {"first_attempt": first, "warning_s": warning})
    except OSError as error:
        raise SubmitError(
            f"the run folder {job.run} cannot be written: {error.strerror} ({error.filename or job.run}). Set run.dir "
            "to a folder that every node of the job can write to"
        ) from None


def _check_ended(job: JobFolder) -> None:
    """Refuse a run whose last start has not ended, as far as its folder tells: its recipe must stay as it is."""
    attempts = job.attempts()
    record = read_json(attempts[-1].record) if attempts else {}
    if record and "ended" not in record:
        raise SubmitError(
            f"{job.run} may be in use: attempt {attempts[-1].number}, of job {record.get('job_id')} on "
            f"{record.get('nodes')}, has not recorded its end, and --dry-run does not ask SLURM. Without --dry-run, "
            "azr submit asks, and goes on where that job has ended."
        )


def _check_no_job(job: JobFolder) -> None:
    """Refuse a run that SLURM has a job of."""
    for other in client.jobs_of(job.script):
        raise SubmitError(
            f"job {other.job_id} is this run already ({other.state.lower()}, {other.node}). It goes on by itself after "
            f"preemption and time limit. To end it: scancel {other.job_id}. To start another run: run.name=NAME."
        )


@contextlib.contextmanager
def _removed_on_failure(job: JobFolder) -> Iterator[None]:
    """Remove the folders and files of `job` that the block made, where it raises."""
    made = [path for path in (job.path, *job.path.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if made:
            for path in (job.recipe, job.script, job.submission):
                path.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):  # another command has put something there
                path.rmdir()
        raise


def _check_syntax(text: str) -> None:
    """Let bash read the script without running it: a line of `slurm.setup` may leave a quote open."""
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if read.returncode:
        raise SubmitError(
            f"the batch script is no valid bash, see slurm.setup and slurm.template: {read.stderr.strip()}"
        )
