"""Settings of the actors: the self-play episode and the inference engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings import Section


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
