"""One simulated inference engine: continuous batching over a paged key/value cache.

An engine step computes one token for every running sequence, and the prompts that it admits:

    seconds = max(least, step + sequence x B + context x C) + prompt x P

for B sequences with C tokens of context in all and P prompt tokens that are in no cache (`EngineFigures`). Requests are
admitted first come, first served, while there are sequences, batched tokens and cache left. A full cache preempts the
sequence that came last; it is computed again. New weights stand the engine still between two steps; tokens sampled
afterwards are of the new version, and the prefix cache is forgotten.

Between two events (an admission, an end, new weights) the batch does not change, so its steps are one job of the
machine. An event in between ends the job at the boundary of the step that is under way, as the engine does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import simpy

from launch.tune.calibration import EngineFigures
from launch.tune.machine import Job, Machine, Process, Role


class Spans(NamedTuple):
    """The versions that sampled a response."""

    oldest: int
    newest: int


@dataclass(eq=False, slots=True)
class Request:
    """One response to sample."""

    key: object
    """Identity of its prompt: requests with one key share what is cached of it."""
    prompt: int
    remaining: int
    """Tokens that it has still to sample."""
    done: simpy.Event
    """Succeeds with its `Spans`."""
    came_s: float
    context: int = 0
    """Tokens of prompt and response that the cache holds; 0 while it waits."""
    sampled: int = 0
    oldest: int = -1


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step; see the head of this file. Scaled by the engine's own threads."""

    step_s: float
    sequence_s: float
    context_s: float
    prompt_s: float
    cached_share: float
    block_tokens: int
    least_s: float = 0.0

    @classmethod
    def of(cls, figures: EngineFigures) -> StepCost:
        """The cost that a calibration measured."""
        return cls(
            figures.step_s.value,
            figures.sequence_s.value,
            figures.context_token_s.value,
            figures.prompt_token_s.value,
            figures.cached_share.value,
            figures.block_tokens,
            figures.least_step_s.value,
        )

    def decode(self, sequences: int, context: int, steps: int) -> float:
        """Seconds of `steps` decode steps, the first of them over `context` tokens of context in all."""
        first, growth = self._first(sequences, context)
        return steps * first + growth * steps * (steps - 1) / 2

    def steps_within(self, sequences: int, context: int, seconds: float) -> int:
        """Steps that have begun after `seconds` of decoding: the last of them may be under way."""
        first, growth = self._first(sequences, context)
        if growth * seconds < 1e-9 * first * first:
            return math.floor(seconds / first + 1e-9) + 1
        half = first / growth - 0.5
        return math.floor(math.sqrt(half * half + 2 * seconds / growth) - half + 1e-9) + 1

    def _first(self, sequences: int, context: int) -> tuple[float, float]:
        """Seconds of a decode step, and what each further one takes more. Where the least time is above what the step
        would take, it is taken to stay so."""
        first = self.step_s + self.sequence_s * sequences + self.context_s * context
        return (first, self.context_s * sequences) if first >= self.least_s else (self.least_s, 0.0)


class EngineModel:
    """An engine that requests are handed to, and whose weights change."""

    def __init__(
        self,
        env: simpy.Environment,
        machine: Machine,
        pool: str,
        cost: StepCost,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        kv_tokens: float,
        threads: int = 1,
    ) -> None:
        self._env = env
        self._machine = machine
        self._pool = pool
        self._cost = cost
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._kv_tokens = kv_tokens
        self._threads = threads
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._context = 0
        self._cached: set[object] = set()
        self._changed = env.event()
        self._still: simpy.Event | None = None
        """Succeeds when the engine stands still, as it was asked to."""
        self._resume = env.event()
        self.version = 0
        self.preempted = 0
        self.tokens = 0
        """Tokens sampled since the start."""
        self.request_s = 0.0
        """Seconds of all finished requests, from their coming to their last token."""
        self.finished_tokens = 0
        """Tokens of these."""
        self.busy_s = 0.0
        """Seconds in which steps were computed."""
        self.still_s = 0.0
        """Seconds in which the engine stood still for new weights."""
        env.process(self._run())

    @property
    def kv_usage(self) -> float:
        """Share of the key/value cache in use, 0 to 1."""
        return min(1.0, self._context / self._kv_tokens)

    @property
    def num_waiting(self) -> int:
        """Requests that the engine has not begun."""
        return len(self._waiting)

    def generate(self, key: object, prompt: int, tokens: int) -> simpy.Event:
        """Hand in a request for `tokens` tokens; the event succeeds with its `Spans`."""
        request = Request(key, prompt, tokens, self._env.event(), self._env.now)
        self._waiting.append(request)
        self._notify()
        return request.done

    def pause(self) -> simpy.Event:
        """Ask the engine to stand still; the event succeeds when it does."""
        self._still = self._env.event()
        self._resume = self._env.event()
        self._notify()
        return self._still

    def resume(self, version: int) -> None:
        """Go on, with the weights of `version`."""
        self.version = version
        self._cached.clear()
        self._resume.succeed()

    def _notify(self) -> None:
        if not self._changed.triggered:
            self._changed.succeed()

    def _run(self) -> Process:
        while True:
            self._changed = self._env.event()
            if self._still is not None:
                still, self._still = self._still, None
                since = self._env.now
                still.succeed()
                yield self._resume
                self.still_s += self._env.now - since
                continue
            admitted, computed = self._admit()
            if not self._running:
                yield self._changed
                continue
            since = self._env.now
            if admitted:
                yield from self._first_step(computed)
            else:
                yield from self._decode()
            self.busy_s += self._env.now - since

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit(self) -> tuple[bool, float]:
        """Admit what there is room for. Returns whether anything was, and the prompt tokens to compute."""
        admitted, computed = False, 0.0
        budget = self._max_num_batched_tokens - len(self._running)
        while self._waiting and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            whole = request.prompt + request.sampled
            tokens = self._uncached(request)
            if admitted and computed + tokens > budget:
                break
            if self._running and self._context + whole + len(self._running) + 1 > self._kv_tokens:
                break
            self._waiting.popleft()
            self._cached.add(request.key)
            request.context = whole
            self._context += whole
            self._running.append(request)
            admitted, computed = True, computed + tokens
        return admitted, computed

    def _uncached(self, request: Request) -> float:
        """Tokens of a prompt, and of what a preempted request had sampled, that have to be computed."""
        if request.key in self._cached and not request.sampled:
            return float((request.prompt - 1) % self._cost.block_tokens + 1)
        return max(1.0, request.prompt * (1 - self._cost.cached_share)) + request.sampled

    # -- steps ---------------------------------------------------------------------------------------------------

    def _first_step(self, computed: float) -> Process:
        """The step that computes admitted prompts, and a token of every sequence."""
        seconds = self._cost.decode(len(self._running), self._context, 1) + self._cost.prompt_s * computed
        yield self._machine.run(self._pool, Role.ENGINE, seconds, self._threads)
        self._advance(1)

    def _decode(self) -> Process:
        """Steps over an unchanged batch, until a sequence ends or something changes."""
        count, context = len(self._running), self._context
        steps = min(request.remaining for request in self._running)
        room = int((self._kv_tokens - context) // count)
        if room < 1 and count > 1:
            self._preempt()
            return
        steps = min(steps, max(room, 1))
        job = self._machine.start(self._pool, Role.ENGINE, self._cost.decode(count, context, steps), self._threads)
        # Those that wait could not be admitted; only an end or new weights change that.
        yield job.done | self._changed
        if not job.done.triggered:
            steps = min(steps, self._finish_step(job, count, context))
            yield job.done
        self._advance(steps)

    def _finish_step(self, job: Job, count: int, context: int) -> int:
        """Let a job end with the step that is under way. Returns the steps that it has made by then."""
        done_s = self._machine.done_s(job)
        begun = self._cost.steps_within(count, context, done_s)
        until = min(self._cost.decode(count, context, begun), job.work_s)
        self._machine.extend(job, until - done_s)
        return begun

    def _advance(self, steps: int) -> None:
        """Every running sequence has sampled `steps` tokens more; those that are complete leave."""
        self.tokens += steps * len(self._running)
        left: list[Request] = []
        for request in self._running:
            if request.oldest < 0:
                request.oldest = self.version
            request.remaining -= steps
            request.sampled += steps
            request.context += steps
            self._context += steps
            if request.remaining:
                left.append(request)
            else:
                self._context -= request.context
                self.request_s += self._env.now - request.came_s
                self.finished_tokens += request.sampled
                request.done.succeed(Spans(request.oldest, self.version))
        self._running = left

    def _preempt(self) -> None:
        """Throw out the sequence that came last; it waits, and is computed again."""
        request = self._running.pop()
        self._context -= request.context
        request.context = 0
        self._waiting.appendleft(request)
        self.preempted += 1
