"""What the actor knows of an inference engine: the protocol, and the types that cross it. No vLLM in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from learner.trajectory import Status, VersionSpan
from learner.weights.group import GroupSpec
from learner.weights.manifest import TensorSpec


@dataclass(frozen=True)
class Sampling:
    """How to sample one completion. `seed` None draws from the engine's own random state."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """One finished response of R tokens, the end-of-text token or stop string's tokens included."""

    token_ids: list[int]
    logprobs: list[float]
    """[R]: log-probability under the policy that sampled the token, at temperature 1."""
    text: str
    """The response without the stop string and special tokens."""
    finish: Status
    versions: tuple[VersionSpan, ...]
    """Which policy version sampled which tokens; together they cover all R."""
    queue_s: float
    """Seconds between arrival and the first scheduled step."""
    generate_s: float
    """Seconds between the first scheduled step and the last token, weight updates included."""


class EngineAborted(RuntimeError):
    """A generation that ended without a completion: aborted, or the engine failed."""


class WeightUpdateFailed(RuntimeError):
    """Weights did not arrive whole.

    `intact`: none had gone in, and generation goes on under the old policy. Otherwise the model is a mixture of two
    policies: generation stays paused until an update succeeds, and what is in flight waits for that.
    """

    def __init__(self, version: int, intact: bool, cause: BaseException) -> None:
        super().__init__(f"weights of version {version} ({'old ones in place' if intact else 'paused'}): {cause}")
        self.version = version
        self.intact = intact


class Engine(Protocol):
    """What the actor knows of an engine."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model folder."""

    @property
    def num_workers(self) -> int:
        """Ranks that this engine takes in a weight group."""

    async def start(self) -> None:
        """Load the model. Its policy is version 0 until `set_version` says otherwise."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """Sample one response. Raises `EngineAborted`; ValueError for a prompt that does not fit."""

    async def set_version(self, version: int) -> None:
        """Name the policy that is loaded."""

    async def join(self, spec: GroupSpec, rank: int) -> None:
        """Join a weight group as `rank` (and the following, one a worker). Generation goes on meanwhile."""

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """Receive one broadcast, under running requests. Returns seconds by phase: `pause_s`, `start_s`,
        `transfer_s`, `load_s`, `finish_s`, `resume_s`. Raises `WeightUpdateFailed`."""

    async def checksums(self) -> dict[str, str]:
        """`learner.weights.manifest.checksum` of the weights that generation uses, under Hugging Face names."""

    def stats(self) -> dict[str, float]:
        """`running`, `waiting` requests; `kv_usage` in 0..1; `tokens_generated`, `tokens_prompt`, `tokens_cached`."""

    async def close(self) -> None:
        """Stop the engine. Generations in flight raise `EngineAborted`."""
