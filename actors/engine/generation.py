"""The protocol of an inference engine, and the types that cross it. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from learner.lineage import split_label
from learner.trajectory import Status, VersionSpan
from learner.weights.group import GroupSpec
from learner.weights.manifest import TensorSpec


@dataclass(frozen=True)
class Sampling:
    """The sampling of one completion: from softmax(logits / temperature), or the likeliest token at temperature 0.

    With `seed` None the engine draws from its own random state.

    Nothing else shapes the distribution (top-p, penalties, ...): the learner computes its log-probabilities, too.
    """

    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """One finished response of R tokens, with the end-of-text token or the stop string's tokens."""

    token_ids: list[int]
    logprobs: list[float]
    """[R]: log-probability of each token in the distribution that it was sampled from, at its temperature; of
    softmax(logits) at temperature 0."""
    text: str
    """The response without the stop string and special tokens."""
    finish: Status
    versions: tuple[VersionSpan, ...]
    """The policy version that sampled each span of tokens; together the spans cover all R."""
    queue_s: float
    """Seconds between arrival and the first scheduled step."""
    generate_s: float
    """Seconds between the first scheduled step and the last token, weight updates included."""


class EngineAborted(RuntimeError):
    """A generation ended without a completion that can be used: it was aborted, or the engine failed."""


class EngineDead(EngineAborted):
    """A process of the engine has ended, or failed beyond repair. Nothing that is asked of it is answered any more."""

    def __init__(self) -> None:
        super().__init__(
            "a process of the inference engine (vLLM) has ended; this actor's log shows why, unless it was killed"
        )


class WorkerFailed(RuntimeError):
    """A call raised in a worker of the engine, which goes on. The message has what it raised."""


class WeightUpdateFailed(RuntimeError):
    """New weights did not arrive completely.

    `intact`: none had gone in, and generation goes on under the old policy. Otherwise the model is a mixture of two
    policies: generation stays paused until an update succeeds, and what is in flight waits for that.

    `interrupted`: the broadcast broke (the network, or another end of it), and this engine is sound: it can join
    another group and update again. Otherwise the engine itself could not load.
    """

    def __init__(self, version: int, cause: BaseException, *, intact: bool, interrupted: bool) -> None:
        number, _ = split_label(version)
        super().__init__(f"weights of version {number} ({'old ones in place' if intact else 'paused'}): {cause}")
        self.version = version
        self.intact = intact
        self.interrupted = interrupted


class Engine(Protocol):
    """An inference engine whose weights can change under running requests."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model folder."""

    @property
    def num_workers(self) -> int:
        """Ranks that this engine takes in a weight group."""

    async def start(self) -> None:
        """Load the model. Its policy is version 0 until `set_version` says otherwise."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """Sample one response. Raises `EngineAborted`, `EngineDead`; ValueError for a prompt that does not fit."""

    async def set_version(self, version: int) -> None:
        """Set the version of the loaded weights, a label (`learner/lineage.py`)."""

    async def join(self, spec: GroupSpec, rank: int) -> None:
        """Join a weight group with one rank a worker, the first of them `rank`. Generation goes on meanwhile. Raises
        `WeightUpdateFailed`."""

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """Receive one broadcast, under running requests. Returns seconds by phase: `pause_s`, `start_s`,
        `transfer_s`, `load_s`, `finish_s`, `resume_s`. Raises `WeightUpdateFailed`.

        Tokens that are sampled afterwards are as the new policy has them, with one exception: a request that has
        tokens of an older version keeps its keys and values of that version. An update that has begun goes on to its
        end when the caller is cancelled, and generation with it.
        """

    async def died(self) -> None:
        """Wait for the engine's death, then raise `EngineDead`."""

    async def checksums(self) -> dict[str, str]:
        """`learner.weights.manifest.checksum` of the weights that generation uses, under Hugging Face names."""

    async def versioned_checksums(self) -> tuple[int, dict[str, str]]:
        """The label of the version that runs, and `checksums` of it; waits for an update that goes on."""

    def stats(self) -> dict[str, float]:
        """`running`, `waiting` requests; `kv_usage` in 0..1; counts since the start: `preempted`, `tokens_generated`,
        `tokens_prompt`, `tokens_cached` (of the prompt), and `waited_over_update`: requests that were submitted under
        one version and have their first token from another."""

    async def close(self) -> None:
        """Stop the engine. Generations in flight raise `EngineAborted`."""
