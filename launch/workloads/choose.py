"""Chooses what the processes of a run do, by `run.mode`."""

from __future__ import annotations

from launch.cluster.workload import Workload
from launch.config import Config
from launch.rehearsal.workload import RehearsedWorkload
from launch.workloads.model import ModelWorkload


def workload_of(config: Config) -> Workload:
    """The workload of a run with this configuration."""
    return RehearsedWorkload() if config.run.mode == "rehearse" else ModelWorkload()
