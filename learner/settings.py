"""Settings of the learner: what it trains, on how many ranks, from which batches, with which loss."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, model_validator

from executor.settings_table import SettingsTable
from learner.trajectory import Cell, Role

OnStale = Literal["wait", "drop", "train"]
"""Ways to treat a straggler (`learner.staleness`)."""


class ModelSettings(SettingsTable):
    """`[model]`: the language model, which is both proposer and solver."""

    path: str = "smollm2-135m-instruct"
    """Hugging Face model folder, or the name of a model that `azr model list` shows.
    The folder holds `config.json`, safetensors and the tokenizer. Nothing is downloaded from a hub."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the learner's parameters and activations.
    The optimizer's master weights and moments are float32 either way. `float32` doubles memory and traffic; tests
    use it to compare numbers exactly. The engine's own is `engine.dtype`: with a different one, log-probabilities
    disagree more."""
    deterministic: bool = False
    """Let torch run only operations that give the same bits every time; others raise an error.
    Slower on GPUs, where `CUBLAS_WORKSPACE_CONFIG=:4096:8` must also be set in the environment. It applies to the
    whole process."""


class ParallelSettings(SettingsTable):
    """`[learner.parallel]`: the learner's ranks. Their number is tensor x pipeline x context x data."""

    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size: every matrix is split over this many ranks.
    Must divide the number of attention heads and of key/value heads. Saves memory, costs communication in every
    layer."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline-parallel size: the layers are split into this many stages.
    Saves memory; ranks idle at the start and end of a step unless there are many micro-batches."""
    context: int = Field(default=1, ge=1)
    """Context-parallel size: the rows of a micro-batch are split over this many ranks.
    Must divide the attention heads of a tensor-parallel rank. For sequences whose activations do not fit on one
    device."""
    data: int = Field(default=1, ge=1)
    """Data-parallel size: the sequences of a batch are split over this many replicas of the model."""
    distributed_optimizer: bool = True
    """Split the optimizer's state over the data-parallel ranks (ZeRO stage 1).
    True holds 12 / (data x context) bytes a parameter on each rank, false 12 bytes on each. The numbers are the
    same."""

    @property
    def world_size(self) -> int:
        """Number of learner ranks."""
        return self.tensor * self.pipeline * self.context * self.data


class KernelSettings(SettingsTable):
    """`[learner.kernels]`: how the layers are computed. The numbers are the same, but for rounding."""

    compile: bool = True
    """On a GPU, compile attention, norms, SwiGLU, rotary embedding and log-probabilities (torch.compile).
    False is for finding faults: it is slow, and attention then needs memory in the square of a micro-batch's rows. A
    compiler for C must be there. The first step, and one whose micro-batches have other lengths than those before, take
    some ten seconds longer. On a CPU nothing is compiled."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that the backward pass computes again, to save memory: `none`, `selective` or `full`.
    `selective`: the outputs of norms and SwiGLU, about a third of the activations, for a few percent of a step's time.
    `full`: all but the input of each layer, for a third more time."""


class OptimizerSettings(SettingsTable):
    """`[learner.optimizer]`: AdamW with a constant learning rate after a linear warm-up."""

    lr: float = Field(default=1e-6, gt=0)
    """Learning rate after the warm-up.
    Too high: `clip_fraction` and `grad_norm` rise and entropy collapses. Too low: nothing is learned. Small models
    take larger ones: the recipe for 135M parameters has 4e-5."""
    warmup_steps: int = Field(default=0, ge=0)
    """Number of versions over which the learning rate rises linearly to `lr`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay rate of the first moment (mean of gradients)."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay rate of the second moment (mean of squared gradients).
    Runs of a few dozen steps want a lower one, such as 0.95, so that the moment settles."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon, added to the denominator of the update."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay, per step and multiplied by the learning rate."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Maximum global L2 norm of the gradient; larger gradients are scaled down to it.
    0 turns clipping off. `grad_norm` in the metrics is the norm before clipping."""


class LossSettings(SettingsTable):
    """`[learner.loss]`: the correction for off-policy data, and how tokens are averaged. Formulas: docs/learner.md."""

    correction: Literal["clip", "decoupled", "tis", "none"] = "clip"
    """Correction for tokens that an older policy sampled: `clip`, `decoupled`, `tis` or `none`.
    `clip`: PPO's clipped ratio against the behaviour policy. `decoupled`: the clipped ratio against the policy at
    the batch's start, weighted by that policy's truncated ratio to the behaviour policy. `tis`: policy gradient with
    truncated importance weights. `none`: plain policy gradient, for an ablation. docs/learner.md says when to take
    which."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower clip range of `clip` and `decoupled`: the ratio is clipped at 1 - `clip_low`.
    A small range takes the gradient from more tokens (`clip_fraction_low`); a large one allows larger steps."""
    clip_high: float = Field(default=0.2, gt=0)
    """Upper clip range of `clip` and `decoupled`: the ratio is clipped at 1 + `clip_high`.
    Larger than `clip_low` (DAPO's 0.28) leaves rare tokens more room to become likely."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Dual-clip PPO: bound of the ratio where the advantage is negative; only `clip` and `decoupled`.
    3.0 is common. Unset: no bound, so that one token with a large ratio can dominate a step."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Maximum importance weight of `decoupled` and `tis`; larger ones are truncated to it.
    Lower: less variance, more bias. `truncated_weights` is the share of tokens at the cap."""
    policy: float = Field(default=1.0, ge=0)
    """Weight of the policy loss, with its entropy bonus; 0 trains on labels alone (`supervised`).
    0 is a control: it shows what rewards add to labels. Episodes are generated and rewarded all the same."""
    supervised: float = Field(default=0.0, ge=0)
    """Weight of the mean negative log-likelihood of `learner.batch.labelled` right replies a step; 0: none.
    They are replies to tasks that the run's own proposers wrote and the executor labelled (`selfplay.label_pairs`).
    Teaches what rewards are too rare to teach. Too large: it drowns the policy gradient (compare `grad_norm`)."""
    entropy_floor: float = Field(default=0.0, ge=0)
    """Entropy of the sampling policy, in nats per token, below which the loss rewards entropy; 0: never.
    For runs whose entropy collapses. The weight of the bonus is `entropy_weight` at no entropy, and falls linearly to
    0 at the floor. `clip_high` above `clip_low` slows the collapse as well, at no cost."""
    entropy_weight: float = Field(default=0.02, gt=0)
    """Largest weight of the entropy in the loss; only with `entropy_floor`.
    Too large: responses become noise (`entropy` far above the floor). Too small: the entropy falls below it all the
    same."""
    aggregation: Literal["token", "sequence", "fixed"] = "token"
    """How token losses become one number: `token`, `sequence` or `fixed`.
    `token`: mean over all response tokens of the global batch, so long responses weigh more. `sequence`: mean over
    sequences of their token means, so tokens of long responses weigh less. `fixed`: sum over tokens / (sequences x
    `fixed_length`), as in Dr. GRPO."""
    fixed_length: int | None = Field(default=None, gt=0)
    """Length in tokens that `aggregation = "fixed"` divides by; required there, unused elsewhere.
    The longest allowed response is a usual choice. A smaller one acts like a larger learning rate."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not self.policy and not self.supervised:
            raise ValueError("policy = 0 and supervised = 0 leave nothing to learn from: set one of them above 0")
        return self

    @model_validator(mode="after")
    def _fixed_needs_a_length(self) -> Self:
        if self.aggregation == "fixed" and self.fixed_length is None:
            raise ValueError(
                'aggregation = "fixed" needs fixed_length: the number of tokens that the sum over a response is '
                "divided by, for instance the longest response allowed"
            )
        return self


class AdvantageSettings(SettingsTable):
    """`[learner.advantage]`: how rewards become advantages."""

    estimator: Literal["trr++", "reinforce++", "reinforce", "group"] = "trr++"
    """The trajectories that a reward is compared with: `trr++`, `reinforce++`, `group` or `reinforce`.
    `trr++`: those of the same (kind, role) cell. `reinforce++`: the whole batch. `group`: the responses to the same
    prompt (GRPO); a proposer then learns only with `selfplay.proposals_per_prompt` above 1. `reinforce`: none, the
    advantage is the reward."""
    weighting: Literal["sequence", "token"] = "sequence"
    """Weights of mean and standard deviation: `sequence` or `token`.
    `sequence` (the paper) counts every trajectory once; `token` (the reference implementation) once for each
    response token."""
    group_std: bool = True
    """Divide by the standard deviation of the group; only for `estimator = "group"`.
    True is GRPO. False subtracts the mean only (Dr. GRPO), so that groups of nearly equal rewards are not inflated."""


class BatchSettings(SettingsTable):
    """`[learner.batch]`: how many trajectories of each (kind, role) cell make a batch, and so a version.

    A batch has these quotas in every cell, however unevenly episodes finish; no slot of one cell is ever filled by
    another. Where proposals of a kind are invalid, their solve slots go to tasks of the buffer (`replayed/<kind>` in
    the metrics). Where the buffer has none of that kind, they are returned (`returned` in the ledger): the batch is
    smaller, and `trajectories/<kind>/<role>` says by how much.
    """

    kinds: tuple[str, ...] = ("deduction", "abduction", "induction")
    """Kinds of tasks that are played; the quotas of other kinds count as 0.
    A kind has the name under which it is registered (docs/extending.md)."""
    propose: dict[str, int] = {"deduction": 64, "abduction": 64, "induction": 64}
    """Number of proposals of each kind in a batch; 0 or absent: none.
    With none, solutions of that kind can only replay tasks that the buffer already has."""
    solve: dict[str, int] = {"deduction": 64, "abduction": 64, "induction": 64}
    """Number of solutions of each kind in a batch; 0 or absent: none.
    They are shared out evenly over the batch's proposals, at most `selfplay.solutions` each; the rest replay tasks
    of the buffer."""
    labelled: int = Field(default=32, ge=1)
    """Number of labelled examples a step, beside the batch, with `learner.loss.supervised`.
    Each has a prompt of its own, while the solutions of a task share one: in `smollm2-cpu` some 110 rows, so that 32
    of them add 3,500 to `tokens_computed`."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of a batch, in the order of `kinds`; some may have a quota of 0."""
        return tuple(Cell(kind, role) for kind in dict.fromkeys(self.kinds) for role in Role)

    def quota(self, cell: Cell) -> int:
        """Return the number of trajectories of `cell` in one batch."""
        if cell.kind not in self.kinds:
            return 0
        return (self.propose if cell.role is Role.PROPOSE else self.solve).get(cell.kind, 0)


class LearnerSettings(SettingsTable):
    """`[learner]`: steps, staleness, memory, checkpoints and deadlines."""

    steps: int = Field(default=500, ge=1)
    """Number of batches that the run trains on in all, those before a resume included.
    Each batch makes one new version of the policy."""
    max_staleness: int = Field(default=1, ge=0, le=64)
    """Maximum age of a trajectory: versions between its oldest token and the training step.
    0 is synchronous: the learner waits for the actors and they for it. 1 overlaps both. More helps only while the
    learner still waits for batches, and makes the data more off-policy. docs/staleness.md has figures."""
    on_stale: OnStale = "wait"
    """Treatment of a batch's stragglers: `wait`, `drop` or `train`.
    `wait`: the batch waits for them, so slow and hard tasks keep their share. `drop`: the batch is filled with what
    comes first, and a trajectory that is then too old is dropped and counted. `train`: the same, but it is trained
    on, above `max_staleness`, and counted. The last two favour short responses."""
    updates_per_batch: int = Field(default=1, ge=1, le=64)
    """Number of optimizer steps per batch, each on its own part of it (PPO's mini-batches).
    They make one version together. More steps learn more from a batch and move further from the policy that sampled
    it."""
    max_skipped_updates: int = Field(default=3, ge=1)
    """Number of optimizer steps in a row that may be skipped because the gradient is not finite; then the run stops.
    It stops before the weights of that step are published. A skipped step leaves the weights as they were."""
    micro_batch_tokens: int = Field(default=4096, ge=64)
    """Maximum number of rows (tokens, shared prompts counted once) in one forward and backward pass.
    Higher is faster until memory runs out. A single sequence may be longer; it is then a micro-batch by itself."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each learner rank; 0: as many as this process may use.
    That is the least of its CPU affinity, the quota of its control groups and `SLURM_CPUS_PER_TASK`.
    Unused on GPUs. On a CPU, learner and engines share the cores: too many threads slow both down."""
    cpus: tuple[int, ...] = ()
    """Numbers of the CPU cores that the learner's ranks may use on their nodes, such as `[1]`; empty: all.
    With `actors.cpus` it keeps learner and actors out of each other's way where they share a machine without GPUs.
    The same cores for every rank of a node. Serial mode leaves it out."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0: they do not count.
    A checkpoint is also written after `learner.checkpoint_minutes`, and at the end of the run. The run waits only
    while the state is copied in memory (16 bytes a parameter on rank 0, held until it is on disk)."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """Minutes after which a step is followed by a checkpoint; 0: they do not count.
    A run that is killed loses at most the work since the last checkpoint, and a learner that dies before the first one
    ends the run. For 135 million parameters on two busy cores the run waits 1 to 3 s for the copy, which is written
    beside training in 10 to 15 s. Serial mode counts steps only: a checkpoint changes the path that a seed repeats."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep; older ones are deleted.
    One more is on the disk while it is written. A checkpoint has 14 bytes a parameter: 1.9 GB for 135 million."""
    sync_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline in seconds of each phase of a weight update: connecting, sending, loading.
    An actor that misses it is counted out and replaced. Too short: healthy engines are lost on a busy machine. Too
    long: a dead one holds up the learner for that time."""
    weights_delta: Literal["off", "auto"] = "off"
    """Send to the engines only the weights that have changed: `off` or `auto`.
    `auto` sends the changed elements of a bucket where they are fewer bytes than the bucket, and compares a digest of
    the whole at the other end. It needs memory for one more copy of all weights on rank 0's device and on that of each
    engine worker, also where `engine.tensor_parallel` splits the model (lower `engine.gpu_memory_utilization`), and
    time to compare. It pays where learning rates are small and the network is slow; docs/performance.md has figures.
    Serial mode sends nothing, and leaves it out."""
    batch_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that the learner waits for a batch before the run stops and names the missing cells and actors.
    It is also the deadline of exchanges between learner ranks. The slowest batch must fit."""
    batch: BatchSettings = BatchSettings()
    loss: LossSettings = LossSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    kernels: KernelSettings = KernelSettings()
    parallel: ParallelSettings = ParallelSettings()


class StreamSettings(SettingsTable):
    """`[stream]`: the learner's socket, its encryption, and the deadlines of a silent connection."""

    host: str = "auto"
    """Address that the learner listens on and actors connect to, for trajectories and weights.
    `auto`: the address of the learner's node in its Ray cluster, or loopback with a Ray of the run's own."""
    port: int = Field(default=0, ge=0, le=65535)
    """TCP port of the learner; 0: a free one."""
    curve: Literal["auto", "on", "off"] = "auto"
    """Encrypt the stream and admit only holders of this run's keys: `auto`, `on` or `off`.
    The keys are made in the run folder's `keys/`. `auto`: on unless the learner listens on loopback. With `off`,
    any process that reaches the port can read trajectories and send its own."""
    actor_silent_s: float = Field(default=60.0, gt=0)
    """Seconds without a message from an actor, or without it taking one, after which it is declared lost.
    Its slots are granted again. Too short: a busy machine loses healthy actors. Too long: a batch waits that long
    for a dead one where Ray has not reported it."""
    learner_silent_s: float = Field(default=10.0, gt=0)
    """Seconds without a message from the learner after which an actor reports it and greets it again."""
    learner_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds without a message from the learner after which an actor gives up and ends.
    A restart of the learner must fit into it, or the actors restart too."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that a stopping run waits for rollouts in flight, so that its last checkpoint includes them.
    0: they are dropped, and their work is lost."""


def needs_keys(curve: str, host: str) -> bool:
    """Whether a stream that listens on `host` is encrypted; `curve` as in `stream.curve`. `host`: an address, never
    `auto`."""
    return curve == "on" or (curve == "auto" and not _is_loopback(host))


def _is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach `host`. A name may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
