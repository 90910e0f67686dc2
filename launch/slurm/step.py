"""What SLURM tells each agent of the step that it is a task of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from executor.user_error import UserError


class StepError(UserError):
    """The process was not started by srun as an agent has to be."""


@dataclass(frozen=True)
class Step:
    """One step with one task on each node of the job."""

    job_id: str
    step_id: str
    index: int
    """Number of this node in the job, from 0. The batch script runs on node 0."""
    num_nodes: int
    node: str
    """SLURM's name of this node."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Step:
        """The step of this process. Raises StepError outside of one, and where nodes have several tasks."""
        try:
            # In a heterogeneous job SLURM_NODEID and SLURM_NNODES would count within one component in some versions.
            step = cls(
                job_id=environment["SLURM_JOB_ID"],
                step_id=environment["SLURM_STEP_ID"],
                index=int(environment["SLURM_PROCID"]),
                num_nodes=int(environment["SLURM_NTASKS"]),
                node=environment["SLURMD_NODENAME"],
            )
        except KeyError as missing:
            raise StepError(
                f"an agent is a task of srun, and {missing} is not set: azr submit writes its job"
            ) from None
        if environment.get("SLURM_LOCALID", "0") != "0":
            raise StepError("several agents were started on one node: srun needs --ntasks-per-node=1")
        return step
