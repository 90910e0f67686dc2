"""Settings of the actors: the self-play episode and the inference engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings import Section
from executor.tasks import ValidationRules


class IntrinsicSettings(Section):
    """`[selfplay.intrinsic]`: weights of what else pays a valid proposal. Each measure lies in 0..1; 0 turns its term off."""

    complexity: float = Field(default=0.0, ge=0)
    """Weight of the program's complexity, `c / (c + 10)`. Not for induction, whose proposer writes no program."""
    halstead: float = Field(default=0.0, ge=0)
    """Weight of the program's Halstead effort, `e / (e + 1000)`. Not for induction."""
    distance: float = Field(default=0.0, ge=0)
    """Weight of the mean edit distance between the syntax trees of the program and of the references. Not for induction."""
    answer_diversity: float = Field(default=0.0, ge=0)
    """Weight of 1 - p, where p is the share of the outputs among those of this actor's last 1,000 valid proposals of the kind.
    Serial mode saves that memory; in a distributed run each actor's is its own, and a new life of it starts with none."""


class SelfPlaySettings(Section):
    """`[selfplay]`: the Absolute Zero episode."""

    prompt_format: Literal["completion", "r1"] = "r1"
    """`r1`: instructions, reasoning in <think>, answer in <answer>; `completion`: few-shot continuation, for small base models."""
    references: int = Field(default=6, ge=0)
    """K: past tasks shown to the proposer, to differ from."""
    induction_inputs: int = Field(default=10, ge=2)
    """N: inputs of an induction task; the first half is shown to the solver, the second is hidden."""
    solutions: int = Field(default=8, ge=1)
    """n: solutions of a proposal, which estimate its difficulty."""
    proposals_per_prompt: int = Field(default=1, ge=1)
    """Proposals sampled from one prompt. 1 is the paper's way; more share the prompt's cost in engine and learner."""
    propose: bool = True
    """Train the proposer. False trains the solver only, as in the paper's ablation: proposals are still sampled and become tasks,
    but their slots go back to the learner (`returned` in the ledger), so a batch holds solutions alone. `learner.batch.propose`
    still says how many proposals are sampled a batch; where that is 0 too, only tasks of the buffer are solved."""
    train_on_estimates: bool = True
    """Train on the solutions that estimate a fresh proposal's difficulty. False is the reference's way: they are sampled without
    slots and thrown away, and the solve slots go to tasks of the buffer."""
    composite_functions: float = Field(default=0.0, ge=0, le=1)
    """Share of the deduction and abduction prompts that give earlier functions g_0, g_1, ... for the new f to call."""
    composite_max: int = Field(default=2, ge=1)
    """Most earlier functions of one prompt; their number is drawn uniformly."""
    max_prompt_tokens: int = Field(default=6144, ge=32)
    """Longest prompt; references are left out, oldest first, until it fits."""
    max_propose_tokens: int = Field(default=8096, ge=8)
    """Longest response of a proposer."""
    max_solve_tokens: int = Field(default=8096, ge=4)
    """Longest response of a solver."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. Off-policy correction is exact at 1.0."""
    compat: Literal["paper", "reference"] = "paper"
    """Reward of a valid proposal that all or no solutions solve: `paper` pays 0, `reference` pays -0.5."""
    input_dependence: bool = False
    """Refuse a proposal whose function gives the same value whatever its input (`ignores_input`)."""
    strip_comments: bool = False
    """Take comments out of proposed programs before they are validated and shown."""
    strip_docstrings: bool = False
    """Take docstrings out of proposed programs before they are validated and shown."""
    novelty: Literal["off", "penalise", "reject"] = "off"
    """A valid proposal that the buffer has already: `off` pays it like any other, `penalise` takes `duplicate_penalty` off,
    `reject` treats it as well-formed but wrong (-0.5, not solved)."""
    duplicate_penalty: float = Field(default=0.5, ge=0)
    """What `novelty = "penalise"` takes off. A valid proposal never falls below -0.5 by it."""
    intrinsic: IntrinsicSettings = IntrinsicSettings()
    seed_tasks: str | None = None
    """A file of tasks that a new buffer starts with; unset starts from the zero triplet alone."""
    seed_tasks_target: int = Field(default=0, ge=0)
    """Triplets that the base model proposes before the first batch (4 x the batch of a cell in the paper, 256); they are not
    trained on, and deduction and abduction both start from them. 0 starts at once. Counts into `actors.start_timeout_s`."""
    heldout_every: int = Field(default=0, ge=0)
    """Versions between measurements on held-out tasks, which are never trained on; 0 turns them off."""

    @property
    def rules(self) -> ValidationRules:
        """What the judge is to hold proposals to."""
        dependence: Literal["measure", "reject"] = "reject" if self.input_dependence else "measure"
        return ValidationRules(dependence, self.strip_comments, self.strip_docstrings)


class EngineSettings(Section):
    """`[engine]`: vLLM, one engine per rollout actor."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of generation."""
    max_model_len: int = Field(default=16384, ge=64)
    """Longest sequence, prompt and response, in tokens."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences decoded at once."""
    max_num_batched_tokens: int = Field(default=8192, ge=64)
    """Tokens of one engine step, prefill included."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Key/value cache on the CPU, in GiB. (A GPU takes `gpu_memory_utilization`.)"""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine takes."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one engine."""
    enforce_eager: bool = True
    """Skip compilation: starts sooner, generates slower."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 leaves the choice to vLLM."""
    seeded: bool = False
    """Sample every request by a seed that follows from `run.seed` and its slot, as serial mode always does: with one actor at
    `learner.max_staleness = 0`, and `max_num_seqs = 1`, a run repeats and equals serial mode. Costs speed: a generator a request."""


class ConcurrencySettings(Section):
    """`[actors.adapt]`: an actor's slots follow its engine's key/value cache, between `minimum` and `actors.concurrency`."""

    enabled: bool = True
    """False keeps every actor at `actors.concurrency`."""
    start: int = Field(default=0, ge=0)
    """Slots at the start; 0 starts at `actors.concurrency`."""
    minimum: int = Field(default=8, ge=1)
    """Never fewer slots than this (nor than one episode)."""
    increase: int = Field(default=8, ge=1)
    """Slots added at a heartbeat while all are used and the cache has room."""
    decrease: float = Field(default=0.7, gt=0, lt=1)
    """Factor at a heartbeat with a full cache or preempted sequences."""
    cooldown: int = Field(default=5, ge=1)
    """Heartbeats between two decreases."""
    kv_high: float = Field(default=0.95, gt=0, le=1)
    """Share of the cache in use from which the slots fall."""
    kv_low: float = Field(default=0.8, gt=0, le=1)
    """Share of the cache in use up to which the slots rise."""
