"""Settings of the learner: what it trains, on how many ranks, from which batches, with which loss."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, model_validator

from executor.settings import Section
from executor.tasks import Kind
from learner.trajectory import Cell, Role

OnStale = Literal["wait", "drop", "train"]
"""What becomes of a straggler (`learner.staleness`)."""


class ModelSettings(Section):
    """`[model]`: the language model that proposes and solves."""

    path: str = "smollm2-135m-instruct"
    """A Hugging Face model folder, or the name of a model that `azr model prepare` knows."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Parameters and activations of the learner; the optimizer's masters are float32 either way."""
    deterministic: bool = False
    """Use only operations that give the same bits every time, and fail at others: slower on GPUs, where it also needs
    `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment. It holds for the whole process. With `float32`, for tests."""


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
    """Versions over which the learning rate rises linearly from 0."""
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

    correction: Literal["clip", "decoupled", "tis", "none"] = "clip"
    """`clip`: PPO's clipped ratio against the behaviour policy. `decoupled`: against the policy at the batch's start, weighted
    with that policy's truncated ratio to the behaviour policy. `tis`: policy gradient with truncated importance weights.
    `none`: plain policy gradient, for the ablation."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio of `clip` and `decoupled` is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio of `clip` and `decoupled` is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Of `clip` and `decoupled`: bound of the loss for negative advantages (dual-clip PPO); unset turns it off."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Of `decoupled` and `tis`: importance weights are truncated here. Lower has less variance and more bias."""
    aggregation: Literal["token", "sequence", "fixed"] = "token"
    """`token`: mean over the response tokens of the global batch; `sequence`: mean over sequences of their token means;
    `fixed`: sum over tokens / (sequences x fixed_length), as in Dr. GRPO."""
    fixed_length: int | None = Field(default=None, gt=0)
    """Of `aggregation = fixed`, which needs it: the length that a response's sum is divided by, in tokens."""

    @model_validator(mode="after")
    def _fixed_needs_a_length(self) -> Self:
        if self.aggregation == "fixed" and self.fixed_length is None:
            raise ValueError(
                'aggregation = "fixed" needs fixed_length: the number of tokens that the sum over a response is divided by, '
                "for instance the longest response allowed"
            )
        return self


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
    """`[learner.batch]`: how many trajectories of each (kind, role) cell make one batch, and so one version.

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
    """Batches that the whole run trains on, resumed ones included; each makes one version of the policy."""
    max_staleness: int = Field(default=1, ge=0, le=64)
    """A trajectory is trained at most this many versions after the policy that started it; 0 is synchronous."""
    on_stale: OnStale = "wait"
    """`wait`: a batch waits for its stragglers, so slow and hard tasks are not under-represented. `drop` and `train`: a batch is
    what came first; a trajectory that is then too old is dropped and counted, or trained (above `max_staleness`) and counted."""
    updates_per_batch: int = Field(default=1, ge=1, le=64)
    """Optimizer steps that one batch is split into (PPO's mini-batches), each on its own part; they make one version."""
    micro_batch_tokens: int = Field(default=4096, ge=64)
    """Token budget of one forward and backward pass."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each learner rank; 0 leaves the choice to torch."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; one is always written at the end. 0: only that one. The run waits only while the state is
    copied in memory (16 bytes a parameter on rank 0, until it is written); serial mode first plays what is in flight to its end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    max_restarts: int = Field(default=3, ge=0)
    """How often the learner is started again from its last checkpoint within `actors.restart_window_s` before the run stops."""
    sync_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of each phase of a weight broadcast, in seconds."""
    batch_timeout_s: float = Field(default=600.0, gt=0)
    """A batch that takes longer than this to fill stops the run, naming the cells and actors it waits for."""
    batch: BatchSettings = BatchSettings()
    loss: LossSettings = LossSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    parallel: ParallelSettings = ParallelSettings()


class StreamSettings(Section):
    """`[stream]`: the learner's socket, who may use it, and how long silence is borne."""

    host: str = "auto"
    """Address that the learner binds to and that actors connect to, for trajectories and weights. `auto`: that of the learner's
    machine in its Ray cluster; loopback in a Ray of the run's own."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the learner; 0 takes a free one."""
    curve: Literal["auto", "on", "off"] = "auto"
    """Encrypt, and let in only who has the keys of this run (made for it in its folder `keys/`): `auto` means beyond loopback.
    With `off` anybody who reaches the port can read trajectories and send their own."""
    actor_silent_s: float = Field(default=60.0, gt=0)
    """An actor that is silent, or takes nothing, for so many seconds is lost: what it held is granted to others."""
    learner_silent_s: float = Field(default=10.0, gt=0)
    """After so many seconds without a word from the learner an actor says so, and greets it again until it answers."""
    learner_timeout_s: float = Field(default=600.0, gt=0)
    """After so many seconds without a word from the learner an actor gives up, naming it."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long a run that stops waits for what is in flight, so that its last checkpoint has it. 0: not at all."""

    @property
    def encrypted(self) -> bool:
        """Whether the stream needs keys."""
        return self.curve == "on" or (self.curve == "auto" and not _is_loopback(self.host))


def _is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach `host`. A name may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
