"""A rank's part of a checkpoint: the state to go on from, and on rank 0 the weights as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from learner.model.convert import HfWriter
from learner.model.state import StateCopy


@dataclass(frozen=True)
class PolicyCopy:
    """A policy at one moment, in buffers of its own: training may go on while it is written."""

    state: StateCopy
    exported: Sequence[tuple[str, Tensor]] | None
    """All weights under their Hugging Face names; None on ranks other than 0, and where they were not asked for."""
    model_dir: Path
    """The folder whose tokenizer and configuration go with the weights."""
    dtype: torch.dtype

    def write(self, folder: Path, group: dist.ProcessGroup | None, hurried: Callable[[], bool] = lambda: False) -> None:
        """Write `model/` and, on rank 0, `hf/` into `folder`. Collective over `group`; None: this is the only rank.

        Once `hurried` holds, `hf/` is left out.
        """
        (folder / "model").mkdir(exist_ok=True)
        self.state.write(folder / "model", group)
        if self.exported is not None:
            self._export(folder / "hf", self.exported, hurried)

    def _export(self, folder: Path, tensors: Sequence[tuple[str, Tensor]], hurried: Callable[[], bool]) -> None:
        writer = HfWriter(folder)
        for name, tensor in tensors:
            if hurried():
                shutil.rmtree(folder)
                return
            writer.add(name, tensor)
        writer.finish(self.model_dir, self.dtype)
