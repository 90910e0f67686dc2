"""`azr train`: prepares the run's folder, runs it in the mode of its configuration, and ends with the summary."""

from __future__ import annotations

from launch.config import Config, to_toml
from launch.models import prepare
from launch.run.console import Console
from launch.run.folder import RunFolder, append_event
from learner.checkpoint import Checkpoints


def train(config: Config, resume: bool = False) -> int:
    """Run to the end; returns the exit code."""
    console = Console(config)
    folder = begin(config, console, resume)
    # Each mode brings in its own world (Ray, or vLLM in this process): only the one that runs is imported.
    if config.run.mode == "serial":
        from launch.run import serial

        return serial.run(config, folder, resume, console)
    from launch.cluster import driver as cluster

    return cluster.run(config, folder, resume, console)


def begin(config: Config, console: Console, resume: bool = False) -> RunFolder:
    """Prepare the model and the run's folder."""
    prepare(config.model.path, console.say)
    folder = RunFolder(config.folder)
    folder.create()
    if resume:
        for notice in Checkpoints(folder.checkpoints, config.learner.keep_checkpoints).recover():
            console.say(notice)
            append_event(folder, "checkpoint_incomplete", notice=notice)
    folder.config.write_text(to_toml(config))
    console.say(f"run folder: {folder.path}")
    return folder
