"""The ranks of a distributed test: one process each, forked from a server that has imported torch and Megatron once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

PRELOADED = ["learner.model.policy", "tests.unit.learner.tiny", "pytest", "transformers"]
"""Imported before the first fork. Importing starts no thread, so a fork is safe; importing anew costs a rank five
seconds."""


def run_ranks(run_rank: Callable[..., None], args: tuple[Any, ...], size: int) -> None:
    """Call `run_rank(rank, *args)` in `size` processes and wait; the first error of a rank is raised with its
    traceback."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(run_rank, args=args, nprocs=size, start_method="forkserver")
