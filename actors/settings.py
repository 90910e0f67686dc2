"""Settings of the actors: the self-play episode and the inference engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from executor.settings_table import SettingsTable
from executor.tasks import ValidationRules


class IntrinsicSettings(SettingsTable):
    """`[selfplay.intrinsic]`: weights of additional reward terms for valid proposals.
    Each measure lies in 0..1 and is multiplied by its weight; 0 turns a term off. The paper has all of them off."""

    complexity: float = Field(default=0.0, ge=0)
    """Weight of the program's cognitive complexity c, measured as c / (c + 10).
    Unused for induction, whose proposer writes no program."""
    halstead: float = Field(default=0.0, ge=0)
    """Weight of the program's Halstead effort e, measured as e / (e + 1000).
    Unused for induction."""
    distance: float = Field(default=0.0, ge=0)
    """Weight of the mean edit distance between the syntax trees of the program and of its references.
    Unused for induction."""
    answer_diversity: float = Field(default=0.0, ge=0)
    """Weight of 1 - p, where p is how common the outputs are among this actor's last 1,000 valid proposals.
    They are counted per kind. Serial mode saves that memory in checkpoints; in a distributed run each actor has its
    own, and a restarted one begins without."""


class SelfPlaySettings(SettingsTable):
    """`[selfplay]`: prompts, lengths, rewards and seeding of the Absolute Zero episode."""

    prompt_format: Literal["completion", "r1"] = "r1"
    """Form of the prompts: `r1` or `completion`.
    `r1` gives instructions and asks for reasoning in `<think>` and an answer in `<answer>`. `completion` continues
    numbered examples, for base models too small to follow instructions."""
    references: int = Field(default=6, ge=0)
    """Number K of past tasks shown to a proposer, which is asked to differ from them.
    0 shows none (an ablation of the paper). More make prompts longer; those that do not fit are left out."""
    induction_inputs: int = Field(default=10, ge=2)
    """Number N of inputs of an induction task; half are shown to the solver, half are hidden.
    More: a surer verdict, and fewer valid proposals. SmolLM2-135M wrote no valid proposal with 4, and does with 2."""
    solutions: int = Field(default=8, ge=1)
    """Number n of solutions sampled for a proposal; their share of correct ones estimates its difficulty.
    Few: a coarse reward (with 4, five values of the solve rate). Many: more to generate for each proposal."""
    proposals_per_prompt: int = Field(default=1, ge=1)
    """Number of proposals sampled from one prompt.
    1 is the paper's way. More share the prompt's cost in engine and learner, and resemble each other more."""
    propose: bool = True
    """Train the proposer.
    False trains the solver only, as in the paper's ablation: proposals are still sampled and become tasks, but their
    slots are returned, so that a batch holds solutions alone. `learner.batch.propose` still says how many are
    sampled; where that is 0 too, only tasks of the buffer are solved."""
    train_on_estimates: bool = True
    """Train on the solutions that estimate a fresh proposal's difficulty.
    False is the way of the paper's public implementation: they are sampled without slots and thrown away, and the
    solve slots go to tasks of the buffer. It generates more for the same batch."""
    constructs: int = Field(default=0, ge=0)
    """Number of Python constructs (`sorted`, `%`, ...) that a deduction or abduction prompt names for the new f to use.
    They are drawn at random; 0: none, as in the paper.
    A small model that is only shown examples writes more of the same."""
    complete_inputs: bool = False
    """Let the executor find an input for a program that runs and was proposed with none, or with one that does not fit.
    The task enters the buffer; the proposer is paid as for any invalid proposal (docs/selfplay.md).
    A small model writes, at first, many more distinct programs that run than valid proposals."""
    composite_functions: float = Field(default=0.0, ge=0, le=1)
    """Share of deduction and abduction prompts that offer earlier functions g_0, g_1, ... for the new f to call.
    0 is the paper's default."""
    composite_max: int = Field(default=2, ge=1)
    """Maximum number of earlier functions in one prompt; the number is drawn uniformly from 1 to this."""
    max_prompt_tokens: int = Field(default=6144, ge=32)
    """Maximum length of a prompt in tokens.
    References are left out, oldest first, until a proposer's prompt fits (`references_left_out`). A task whose
    solver prompt would not fit is no task (`tasks_too_long`)."""
    max_propose_tokens: int = Field(default=8096, ge=8)
    """Maximum length of a proposer's response in tokens; longer ones are cut off there.
    Too short: replies end before the task is complete and count as invalid (`truncated/<kind>/propose`)."""
    max_solve_tokens: int = Field(default=8096, ge=4)
    """Maximum length of a solver's response in tokens; longer ones are cut off there.
    Too short: replies end before the answer and count as unreadable (`truncated/<kind>/solve`)."""
    temperature: float = Field(default=1.0, ge=0.01, le=2)
    """Sampling temperature of proposers and solvers.
    The policy that is trained is the one that samples: engine and learner both compute the log-probabilities of
    softmax(logits / temperature)."""
    compat: Literal["paper", "reference"] = "paper"
    """Reward of a valid proposal that all or none of its solutions solve: `paper` pays 0, `reference` -0.5.
    `reference` is the paper's public implementation."""
    input_dependence: bool = False
    """Reject a proposal whose function returns the same value for other inputs (outcome `ignores_input`).
    Off, as in the paper, a small model can drift to constant functions. On, fewer proposals are valid at first: use
    seeds (docs/selfplay.md). It is measured either way."""
    reject_copies: bool = False
    """Reject a proposal whose value is its input, or one of its arguments (outcome `copies_input`).
    Off, as in the paper, a small model can learn to repeat the input in place of running the program, where tasks that
    this solves are most of its reward. On, `abs` of 5 is refused, too."""
    strip_comments: bool = False
    """Remove comments from proposed programs before they are validated and shown."""
    strip_docstrings: bool = False
    """Remove docstrings from proposed programs before they are validated and shown."""
    novelty: Literal["off", "penalise", "reject"] = "off"
    """Reward of a valid proposal that the buffer already has: `off`, `penalise` or `reject`.
    `off` pays it like any other. `penalise` subtracts `selfplay.duplicate_penalty`. `reject` pays -0.5 and does not
    solve it."""
    duplicate_penalty: float = Field(default=0.5, ge=0)
    """Reward that `novelty = "penalise"` subtracts; a valid proposal never falls below -0.5 by it."""
    intrinsic: IntrinsicSettings = IntrinsicSettings()
    seed_tasks: str | None = None
    """File of tasks that a new buffer starts with (`azr seeds save` writes one).
    Each is validated again. Unset: the buffer starts with the zero triplet alone."""
    seed_tasks_target: int = Field(default=0, ge=0)
    """Number of triplets that the initial model proposes before the first batch; 0 starts at once.
    The paper's is 256 (4 x 64). They are not trained on; deduction and abduction start from them, induction from
    their programs. The time counts towards `actors.start_timeout_s`. A model that writes few valid tasks fails with
    SeedingFailed."""
    examples: int = Field(default=0, ge=0)
    """Number of past tasks that a solver's `completion` prompt shows solved, instead of the zero triplet.
    They have other programs than the task asked, and do not give back their input. Each costs 30 to 60 tokens of the
    prompt with small programs; those that do not fit `selfplay.max_prompt_tokens` are left out. `r1` shows none."""
    label_pairs: int = Field(default=0, ge=0)
    """Number of pairs of input and output that the executor labels of each distinct valid program; 0: none.
    For `learner.loss.supervised`. Takes twice as many executions for each program that is new; 4 is a start."""
    heldout_every: int = Field(default=0, ge=0)
    """Versions between measurements on held-out tasks, which are never trained on; 0: none are made.
    The first and the last version are always measured, alone and before and after all steps; those in between beside
    one actor's episodes, so frequent ones cost generation. A number above `learner.steps` measures both ends alone."""
    heldout_tasks: int = Field(default=0, ge=0)
    """Number of held-out tasks that are measured; 0: all of them, 711.
    The first ones of a fixed order, in which kinds and difficulties are balanced. Intervals shrink with the square root
    of the number: with all tasks the 95% interval of the mean is 1.5 to 2 points to either side at 5% correct."""
    heldout_samples: int = Field(default=4, ge=1)
    """Number of solutions that are sampled for each held-out task.
    The tasks and not the samples are what the interval is over: more tasks help more than more samples."""
    heldout_temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of held-out solutions; 0 takes the likeliest token, and needs `heldout_samples = 1`."""
    heldout_wait_s: float = Field(default=300.0, ge=0)
    """Longest time in seconds that a run waits for the measurement of its first version, and of its last; 0: neither.
    What takes longer is given up. The first counts towards `actors.start_timeout_s`. A run that a signal stops does not
    wait."""

    @model_validator(mode="after")
    def _check_label_pairs(self) -> SelfPlaySettings:
        if self.label_pairs == 1:
            raise ValueError(
                "label_pairs = 1 labels no program, since one pair does not tell a constant from a program that uses "
                "its input: set 2 or more, or 0 for none"
            )
        return self

    @model_validator(mode="after")
    def _check_heldout(self) -> SelfPlaySettings:
        if not self.heldout_temperature and self.heldout_samples > 1:
            raise ValueError(
                f"heldout_samples = {self.heldout_samples} with heldout_temperature = 0 would all be the same: set "
                "heldout_samples = 1, or a temperature"
            )
        return self

    @property
    def rules(self) -> ValidationRules:
        """The rules that the judge holds proposals to."""
        dependence: Literal["measure", "reject"] = "reject" if self.input_dependence else "measure"
        return ValidationRules(dependence, self.reject_copies, self.strip_comments, self.strip_docstrings)


SEVERAL_ENGINES = (
    "An actor has one engine, with one copy of the model: set actors.num_actors for more engines, and "
    "engine.tensor_parallel to split the model over GPUs."
)
"""What to set in place of vLLM's other kinds of parallelism."""


class EngineSettings(SettingsTable):
    """`[engine]`: vLLM. Each rollout actor has one engine."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the engine's weights and activations.
    Should equal `model.dtype`, or the two ends' log-probabilities differ more (`logprob_mismatch`)."""
    max_model_len: int = Field(default=16384, ge=64)
    """Maximum length of a sequence, prompt and response, in tokens.
    At least `selfplay.max_prompt_tokens` plus the longer response limit."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Maximum number of sequences decoded at the same time.
    More: higher throughput and more key/value cache. Requests beyond it wait inside the engine."""
    max_num_batched_tokens: int = Field(default=8192, ge=64)
    """Maximum number of tokens in one engine step, prompts included.
    On a CPU it is raised to `engine.max_model_len`, because prompts are not split there."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Size of the key/value cache on a CPU, in GiB; unused on GPUs (see `engine.gpu_memory_utilization`).
    The workers of the engine share it. Too small: sequences are preempted and computed again (`preempted`)."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine takes, weights and key/value cache included; unused on a CPU."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Number of workers of one engine, each a process with a GPU; the model is split over them.
    On a CPU, workers are processes on the same cores. It must divide the model's attention heads, and divide its
    key/value heads or be a multiple of them. All workers are on one node, and one that dies ends the engine. For more
    engines set `actors.num_actors`: data-parallel and expert-parallel engines are refused."""
    enforce_eager: bool = True
    """Run the model without compilation and CUDA graphs.
    Starts sooner and generates slower; set it to false for long runs on GPUs."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each worker of the engine; 0: on a CPU, the allowed cores divided by `engine.tensor_parallel`.
    On a CPU, engines and learner share the cores: too many threads slow both down."""
    seeded: bool = False
    """Give every request a seed that follows from `run.seed` and its slot, as serial mode always does.
    With one actor, `learner.max_staleness = 0` and `engine.max_num_seqs = 1` a run repeats and equals serial mode.
    Slower: each request has its own random generator."""


class ConcurrencySettings(SettingsTable):
    """`[actors.adapt]`: adapts an actor's slot limit to its engine's key/value cache.
    The limit rises by a constant and falls by a factor, between `minimum` and `actors.concurrency`, once a heartbeat
    (a second)."""

    enabled: bool = True
    """Adapt the limit. False keeps every actor at `actors.concurrency`."""
    start: int = Field(default=0, ge=0)
    """Slot limit at the start; 0: `actors.concurrency`."""
    minimum: int = Field(default=8, ge=1)
    """Minimum slot limit. One episode is always granted, even if it is larger."""
    increase: int = Field(default=8, ge=1)
    """Slots added at a heartbeat at which all slots are used and the cache has room."""
    decrease: float = Field(default=0.7, gt=0, lt=1)
    """Factor of the slots in use at a heartbeat with a full cache or preempted sequences."""
    cooldown: int = Field(default=5, ge=1)
    """Heartbeats between two decreases.
    Too few: the limit falls again before running sequences have ended."""
    kv_high: float = Field(default=0.95, gt=0, le=1)
    """Share of the cache in use, 0 to 1, from which the limit falls."""
    kv_low: float = Field(default=0.8, gt=0, le=1)
    """Share of the cache in use, 0 to 1, up to which the limit rises."""
