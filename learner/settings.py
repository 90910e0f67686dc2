"""Settings of the learner: what it trains, on how many ranks, from which batches, with which loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings import Section
from executor.tasks import Kind
from learner.trajectory import Cell, Role


class ModelSettings(Section):
    """`[model]`: the language model that proposes and solves."""

    path: str = "smollm2-135m-instruct"
    """A Hugging Face model folder, or the name of a model that `azr model prepare` knows."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Parameters and activations of the learner; the optimizer's masters are float32 either way."""


class ParallelSettings(Section):
    """`[learner.parallel]`: learner ranks = tensor x pipeline x context x data."""

    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline-parallel size: the layers are cut into that many stages."""
    context: int = Field(default=1, ge=1)
    """Context-parallel size: the rows of a micro-batch are shared out over that many ranks."""
    data: int = Field(default=1, ge=1)
    """Data-parallel size."""
    distributed_optimizer: bool = True
    """Share the optimizer's state out over data-parallel ranks (ZeRO 1); false keeps a whole copy on each."""

    @property
    def world_size(self) -> int:
        """Number of learner ranks."""
        return self.tensor * self.pipeline * self.context * self.data


class OptimizerSettings(Section):
    """`[learner.optimizer]`: AdamW, constant learning rate after a linear warm-up."""

    lr: float = Field(default=1e-6, gt=0)
    """Learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""


class LossSettings(Section):
    """`[learner.loss]`: the off-policy correction and the aggregation over tokens."""

    correction: Literal["clip", "none"] = "clip"
    """`clip`: PPO's clipped ratio against the behaviour policy; `none`: plain policy gradient, for the ablation."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss for negative advantages (dual-clip PPO); unset turns it off."""
    aggregation: Literal["token", "sequence"] = "token"
    """`token`: mean over the response tokens of the global batch; `sequence`: mean over sequences of their token means."""


class AdvantageSettings(Section):
    """`[learner.advantage]`: with whom a reward is compared."""

    estimator: Literal["trr++", "reinforce++", "reinforce", "group"] = "trr++"
    """`trr++`: normalised within each (kind, role) cell; `reinforce++`: over the whole batch; `group`: over the responses
    to one prompt (GRPO); `reinforce`: the plain reward."""
    weighting: Literal["sequence", "token"] = "sequence"
    """`sequence`: the paper's mean and deviation over sequences; `token`: the reference's, over response tokens."""
    group_std: bool = True
    """Of `group`: divide by the group's deviation (GRPO); false only subtracts its mean (Dr. GRPO)."""


class BatchSettings(Section):
    """`[learner.batch]`: how many trajectories of each (kind, role) cell make one optimizer step.

    A batch holds these quotas, cell by cell, however unevenly episodes finish. A cell starves where its kind's proposals
    are invalid: its solve slots are then spent on tasks of the buffer (`replayed/<kind>` in the metrics says how many), and
    given back where the buffer has none of that kind (`returned` in the ledger): the batch is then smaller, and
    `trajectories/<kind>/<role>` says by how much. No slot of one cell is ever filled by another.
    """

    kinds: tuple[Kind, ...] = (Kind.DEDUCTION, Kind.ABDUCTION, Kind.INDUCTION)
    """Kinds that are played at all; the quotas of others count as 0. One line leaves a kind out, for the ablations."""
    propose: dict[Kind, int] = {Kind.DEDUCTION: 64, Kind.ABDUCTION: 64, Kind.INDUCTION: 64}
    """Proposals of each kind in a batch; 0 or absent leaves them out."""
    solve: dict[Kind, int] = {Kind.DEDUCTION: 64, Kind.ABDUCTION: 64, Kind.INDUCTION: 64}
    """Solutions of each kind in a batch: of its proposals, and the rest of tasks in the buffer."""

    def quota(self, cell: Cell) -> int:
        """Trajectories of `cell` in one batch."""
        if cell.kind not in self.kinds:
            return 0
        return (self.propose if cell.role is Role.PROPOSE else self.solve).get(cell.kind, 0)


class LearnerSettings(Section):
    """`[learner]`: batches, loss, optimizer, parallel layout, checkpoints."""

    steps: int = Field(default=500, ge=1)
    """Optimizer steps of the whole run, resumed ones included."""
    max_staleness: int = Field(default=1, ge=0, le=64)
    """A trajectory is trained at most this many versions after the policy that started it; 0 is synchronous."""
    micro_batch_tokens: int = Field(default=4096, ge=64)
    """Token budget of one forward and backward pass."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each learner rank; 0 leaves the choice to torch."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; one is always written at the end. 0: only that one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    sync_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of each phase of a weight broadcast, in seconds."""
    batch_timeout_s: float = Field(default=600.0, gt=0)
    """A batch that takes longer than this to fill stops the run, naming the cells and actors it waits for."""
    batch: BatchSettings = BatchSettings()
    loss: LossSettings = LossSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    parallel: ParallelSettings = ParallelSettings()
