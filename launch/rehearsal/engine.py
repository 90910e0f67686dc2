"""An engine that takes the time of sampling, and samples nothing.

A request takes its place among at most `engine.max_num_seqs` others, its prompt is computed, and then it gets a token
whenever all that run beside it get one: with b running requests each gets `min(request_tokens_per_s, tokens_per_s / b)`
tokens a second. While a prompt is computed, or new weights come in, nobody gets any. Weights are really received, and
each token has the version that was loaded when it was due.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.engine.generation import Completion, EngineAborted, Sampling, WeightUpdateFailed
from launch.rehearsal.receivers import Receivers
from launch.settings import RehearsalSettings
from learner.trajectory import Status, VersionSpan
from learner.weights.group import GroupSpec, WeightSyncError
from learner.weights.manifest import TensorSpec

LOGPROB = -1.0
"""Log-probability of every token."""
_EPSILON = 1e-6


@dataclass(eq=False)
class _Request:
    """One response that is asked for."""

    prompt: tuple[int, ...]
    num_tokens: int
    done: asyncio.Future[None]
    arrived: float
    began: float = 0.0
    """Time of its first step."""
    first: float = 0.0
    """Tokens that each running request had got, since the engine started, when its own first one was due."""
    versions: tuple[VersionSpan, ...] = ()
    """Those of its tokens, once it is complete."""


class RehearsedEngine:
    """See `actors.engine.generation.Engine`. A response has as many tokens as `Sampling.max_tokens` allows."""

    tokenizer: Any = None
    """There is no text."""

    def __init__(self, settings: RehearsalSettings, max_num_seqs: int, num_workers: int, receivers: Receivers) -> None:
        """`num_workers`: ranks that the engine takes in a weight group, with `receivers`."""
        self.num_workers = num_workers
        self._settings = settings
        self._scale = settings.time_scale
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[_Request] = deque()
        self._running: list[tuple[float, int, _Request]] = []
        """Heap of (tokens that each request has got when this one is complete, number, request)."""
        self._cached: set[tuple[int, ...]] = set()
        """Prompts that were computed since the last weights."""
        self._prefilling: _Request | None = None
        self._prefilled_at = 0.0
        self._given = 0.0
        """Tokens that a request would have got that runs since the engine started."""
        self._now = time.monotonic()
        """Time that `_given` is of."""
        self._pauses = 0
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0
        self._versions: list[tuple[float, int]] = [(0.0, 0)]
        """(`_given` when it was loaded, label), the oldest first."""
        self._receivers = receivers
        self._control = asyncio.Lock()
        self._stats = dict.fromkeys(
            ("tokens_generated", "tokens_prompt", "tokens_cached", "waited_over_update", "preempted"), 0.0
        )

    async def start(self) -> None:
        """See `Engine`."""
        await asyncio.sleep(self._settings.start_s / self._scale)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """See `Engine`."""
        request = _Request(
            tuple(prompt_ids), sampling.max_tokens, asyncio.get_running_loop().create_future(), time.monotonic()
        )
        submitted = self._label
        self._waiting.append(request)
        self._go_on()
        try:
            await request.done
        except asyncio.CancelledError:
            self._forget(request)
            raise
        now = time.monotonic()
        spans = request.versions
        self._stats["tokens_prompt"] += len(request.prompt)
        self._stats["waited_over_update"] += spans[0] != VersionSpan.of_label(submitted, 0, spans[0].end)
        return Completion(
            token_ids=[0] * request.num_tokens,
            logprobs=[LOGPROB] * request.num_tokens,
            text="",
            finish=Status.STOPPED,
            versions=spans,
            queue_s=request.began - request.arrived,
            generate_s=now - request.began,
        )

    async def set_version(self, version: int) -> None:
        """See `Engine`."""
        self._advance()
        self._load(version)

    async def join(self, spec: GroupSpec, rank: int) -> None:
        """See `Engine`."""
        try:
            await self._receivers.connect(spec, rank)
        except WeightSyncError as error:
            raise WeightUpdateFailed(self._label, error, intact=True, interrupted=True) from error

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """See `Engine`."""
        return await asyncio.shield(asyncio.ensure_future(self._update(manifest, version)))

    async def died(self) -> None:
        """See `Engine`: when its receivers do."""
        await self._receivers.died()
        raise EngineAborted("the process of the weight receivers has ended")

    async def checksums(self) -> dict[str, str]:
        """See `Engine`."""
        return await self._receivers.checksums()

    async def versioned_checksums(self) -> tuple[int, dict[str, str]]:
        """See `Engine`."""
        async with self._control:
            return self._label, await self.checksums()

    def stats(self) -> dict[str, float]:
        """See `Engine`. The key/value cache is not rehearsed: it is never in use."""
        self._advance()
        waiting = len(self._waiting) + (self._prefilling is not None)
        return {"running": float(len(self._running)), "waiting": float(waiting), "kv_usage": 0.0} | self._stats

    async def close(self) -> None:
        """See `Engine`."""
        self._pauses += 1
        self._go_on()
        prefilling = [self._prefilling] if self._prefilling else []
        for request in [*self._waiting, *prefilling, *(request for _, _, request in self._running)]:
            if not request.done.done():
                request.done.set_exception(EngineAborted("the engine was closed"))
        self._receivers.close()

    # -- weights -------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> int:
        return self._versions[-1][1]

    async def _update(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        async with self._control:
            self._pause()
            try:
                began = time.monotonic()
                await self._receivers.receive(manifest)
                arrived = time.monotonic()
                await asyncio.sleep(self._settings.load_s / self._scale)
                self._load(version)
                self._cached.clear()
                loaded = time.monotonic()
            except WeightSyncError as error:
                raise WeightUpdateFailed(version, error, intact=True, interrupted=True) from error
            finally:
                self._resume()
            spent = {"transfer_s": arrived - began, "load_s": loaded - arrived}
            return dict.fromkeys(("pause_s", "start_s", "finish_s", "resume_s"), 0.0) | spent

    def _pause(self) -> None:
        self._advance()
        self._pauses += 1
        if self._prefilling is not None:  # its prompt is computed from the start with the new weights
            self._waiting.appendleft(self._prefilling)
            self._prefilling = None
        self._go_on()

    def _resume(self) -> None:
        self._advance()
        self._pauses -= 1
        self._go_on()

    def _spans(self, request: _Request) -> tuple[VersionSpan, ...]:
        """The versions of a finished request's tokens. Token i was due when running requests had got `first + i + 1`
        tokens each."""
        spans: list[VersionSpan] = []
        start = 0
        for (_, label), (until, _) in zip(self._versions, [*self._versions[1:], (math.inf, 0)], strict=True):
            end = request.num_tokens if until == math.inf else min(request.num_tokens, int(until - request.first))
            if end > start:
                spans.append(VersionSpan.of_label(label, start, end))
                start = end
        return tuple(spans)

    def _load(self, version: int) -> None:
        """`version`, a label, is loaded; forget the versions that no running request has tokens of."""
        self._versions.append((self._given, version))
        oldest = min((one.first for _, _, one in self._running), default=self._given)
        while len(self._versions) > 1 and self._versions[1][0] < oldest:
            del self._versions[0]

    # -- time ----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Give every running request the tokens that were due since the last look."""
        now = time.monotonic()
        if not self._pauses and self._prefilling is None and self._running:
            given = (now - self._now) * self._rate()
            self._given += given
            self._stats["tokens_generated"] += given * len(self._running)
        self._now = now

    def _rate(self) -> float:
        """Tokens per second of the clock that each running request gets."""
        settings = self._settings
        return self._scale * min(settings.request_tokens_per_s, settings.tokens_per_s / len(self._running))

    def _go_on(self) -> None:
        """End what is complete, start what there is room for, and set the timer for the next event."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._advance()
        if self._pauses:
            return
        while True:
            if self._prefilling is not None:
                if self._prefilled_at > self._now + _EPSILON:
                    break
                self._admit(self._prefilling)
                self._prefilling = None
            while self._running and self._running[0][0] <= self._given + _EPSILON:
                _, _, request = heapq.heappop(self._running)
                request.versions = self._spans(request)
                if not request.done.done():
                    request.done.set_result(None)
            if not self._waiting or len(self._running) >= self._max_num_seqs:
                break
            self._prefill(self._waiting.popleft())
        self._set_timer()

    def _prefill(self, request: _Request) -> None:
        request.began = self._now
        if request.prompt in self._cached:
            self._stats["tokens_cached"] += len(request.prompt)
            self._prefilled_at = self._now
        else:
            self._cached.add(request.prompt)
            self._prefilled_at = self._now + len(request.prompt) / (self._settings.prefill_tokens_per_s * self._scale)
        self._prefilling = request

    def _admit(self, request: _Request) -> None:
        request.first = self._given
        self._number += 1
        heapq.heappush(self._running, (self._given + request.num_tokens, self._number, request))

    def _set_timer(self) -> None:
        if self._prefilling is not None:
            wait_s = self._prefilled_at - self._now
        elif self._running:
            wait_s = (self._running[0][0] - self._given) / self._rate()
        else:
            return
        self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._go_on)

    def _forget(self, request: _Request) -> None:
        """A request whose caller was cancelled."""
        self._advance()
        if request in self._waiting:
            self._waiting.remove(request)
        elif request is self._prefilling:
            self._prefilling = None
        else:
            self._running = [entry for entry in self._running if entry[2] is not request]
            heapq.heapify(self._running)
        self._go_on()
