"""Supervises the learner's ranks: starts them, watches them, and restarts all of them when one dies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.cluster.budget import FailureBudget
from launch.cluster.context import RunContext, RunFailed
from launch.cluster.learner_actor import LearnerActor
from launch.cluster.placement import PlacementError
from launch.cluster.places import Places
from launch.cluster.ray_port import CallFailed, Handle, ProcessEnded, Reference
from launch.run.status import RunStatus, describe
from learner.checkpoint import CheckpointError, Checkpoints
from learner.stream.keys import LearnerKeys

RANKS_S = 10.0
"""Seconds to wait after one rank's error for the end of the process that may have caused it."""


class LearnerRanks:
    """All learner ranks. When one dies, all are killed and restarted from the last checkpoint, within a budget."""

    def __init__(self, context: RunContext, places: Places) -> None:
        config = context.config
        self._context = context
        self._places = places
        self._budget = FailureBudget(config.supervision.max_learner_restarts, config.supervision.restart_window_s)
        self._buffer: Handle = None
        self._keys: LearnerKeys | None = None
        self._handles: list[Handle] = []
        self._runs: list[Reference] = []
        self._start_at: float | None = None
        self._stopping: str | None = None
        self._save_by: float | None = None
        self._listening: Reference | None = None
        self._asked: dict[int, Reference] = {}
        self._answered_at: dict[int, float] = {}
        self._reported_at = context.clock()
        self._fresh: RunStatus | None = None
        ranks = range(config.learner.parallel.world_size)
        self._first_log = max(context.folder.next_log(f"learner{rank}") for rank in ranks)
        self.life = -1
        """Number of restarts so far; -1 before the first start."""
        self.endpoint: str | None = None
        """The endpoint of the stream on rank 0; None until it is known."""
        self.status = RunStatus()
        """Rank 0's newest status."""

    @property
    def is_up(self) -> bool:
        """False from the death of a rank until all ranks have been restarted."""
        return self._start_at is None

    @property
    def handles(self) -> dict[int, Handle]:
        """The process of each rank, by rank."""
        return dict(enumerate(self._handles))

    @property
    def runs(self) -> list[Reference]:
        """References to the results of the ranks' `run`; empty while `is_up` is false."""
        return self._runs

    @property
    def restarts(self) -> int:
        """Failures so far."""
        return self._budget.total

    def start(self, buffer: Handle, keys: LearnerKeys | None, resume: bool) -> None:
        """Start every rank, for the first time. `buffer`: the task buffer; `keys`: of the stream."""
        self._buffer, self._keys = buffer, keys
        self._start(resume, expected=self._context.config.actors.num_actors)

    def poll(self, num_actors: int) -> bool:
        """Look at every rank once; True when all have ended well. `num_actors`: number wanted. Raises RunFailed."""
        now = self._context.clock()
        if self._start_at is not None:
            if now >= self._start_at:
                self._start_at = None
                self._recover_checkpoints()
                self._start(resume=True, expected=1)
        else:
            outcomes = self._outcomes()
            died = {rank: error for rank, error in outcomes.items() if isinstance(error, ProcessEnded)}
            if died:
                rank = min(died)
                self._died(rank, str(died[rank]))
            elif failed := {rank: error for rank, error in outcomes.items() if error is not None}:
                rank = min(failed)
                raise RunFailed(f"the learner failed: {failed[rank]}\nIts log: {self._log(rank)}")
            elif len(outcomes) == len(self._runs):
                return True
            else:
                self._ask_status(now)
                self._report_stillness(now, num_actors)
        self._follow_endpoint()
        return False

    def fresh_status(self) -> RunStatus | None:
        """The newest status if it has come since the last call, otherwise None."""
        status, self._fresh = self._fresh, None
        return status

    def stop(self, why: str, save_in_s: float | None = None) -> None:
        """Ask every rank to stop before its next step, and to save; `save_in_s`: see `Progress.ask_to_stop`."""
        self._stopping = why
        self._save_by = None if save_in_s is None else self._context.clock() + save_in_s
        for handle in self._handles:
            self._context.ray.call(handle, "stop", why, save_in_s)

    def retire(self, actor_id: str) -> None:
        """Tell rank 0 to grant this actor nothing more, so that it ends when it holds no slots."""
        self._context.ray.call(self._handles[0], "retire", actor_id)

    def lost(self, actor_id: str, incarnation: int) -> None:
        """Tell rank 0 that this actor's process ended, so that it need not wait for missing heartbeats."""
        self._context.ray.call(self._handles[0], "lost", actor_id, incarnation)

    def result(self) -> tuple[Any, str, int, dict[str, str]]:
        """See `LearnerActor.result`; call it after the end. Raises RunFailed."""
        try:
            ledger, why, version, digests = self._context.ray.result(self._context.ray.call(self._handles[0], "result"))
        except CallFailed as error:
            raise RunFailed(
                f"the learner finished, and its process ended before it gave its result: {error}\n"
                f"Its log: {self._log(0)}"
            ) from None
        return ledger, why, version, digests

    def kill(self) -> None:
        """End every process."""
        for handle in self._handles:
            self._context.ray.kill(handle)

    def _start(self, resume: bool, expected: int) -> None:
        """Start every rank; `expected`: rollout actors to wait for before the first batch."""
        context, ray = self._context, self._context.ray
        try:
            assignments = self._places.ranks()
        except PlacementError as error:
            raise RunFailed(f"a machine of the learner is lost, and the others have no room. {error}") from None
        self.life += 1
        self._handles = [
            ray.start(
                assignment,
                LearnerActor,
                context.workload,
                context.config,
                context.folder,
                assignment.index,
                self.life,
                self._buffer,
                self._keys,
                self._first_log,
                max_concurrency=4,
            )
            for assignment in assignments
        ]
        # Ray passes rank 0's answer on to the others; this process does not wait for it.
        store = ray.call(self._handles[0], "rendezvous") if len(self._handles) > 1 else None
        arguments = store, self.endpoint, resume, expected, self.status.ends_at
        self._runs = [ray.call(handle, "run", *arguments) for handle in self._handles]
        self._listening = ray.call(self._handles[0], "listening")
        # What the former ranks said of their phase and members no longer holds.
        former = self.status
        self.status = RunStatus(
            last=former.last,
            live=former.live,
            ledger=former.ledger,
            stop=former.stop,
            durations=former.durations,
            ends_at=former.ends_at,
        )
        self._asked, self._answered_at = {}, dict.fromkeys(self.handles, context.clock())
        if self._stopping:
            self.stop(self._stopping, None if self._save_by is None else self._save_by - context.clock())

    def _outcomes(self) -> dict[int, CallFailed | None]:
        """The ranks that have ended: rank -> its error, or None where it ended well."""
        ray, count = self._context.ray, len(self._runs)
        outcomes = self._results(ray.finished(self._runs, count=count))
        if any(error is not None for error in outcomes.values()) and len(outcomes) < count:
            # The end of one process makes the other ranks' collectives fail, and their errors may arrive first.
            outcomes = self._results(ray.finished(self._runs, RANKS_S, count=count))
        return outcomes

    def _results(self, finished: list[Reference]) -> dict[int, CallFailed | None]:
        outcomes: dict[int, CallFailed | None] = {}
        for run in finished:
            outcomes[self._runs.index(run)] = None
            try:
                self._context.ray.result(run)
            except CallFailed as error:
                outcomes[self._runs.index(run)] = error
        return outcomes

    def _died(self, rank: int, why: str) -> None:
        context, log = self._context, self._log(rank)
        now = context.clock()
        wait_s = self._budget.failed(now)
        context.event("learner_lost", rank=rank, why=why)
        if wait_s is None:
            raise RunFailed(
                f"learner{rank} failed {self._budget.total} times (supervision.max_learner_restarts = "
                f"{self._budget.most}): {why}\nIts log: {log}"
            )
        context.say(f"learner{rank} ended ({why}); all ranks start again from the last checkpoint; log: {log}")
        self.kill()
        self._runs = []
        self._listening = None
        self._start_at = now + wait_s

    def _recover_checkpoints(self) -> None:
        """Repair or set aside an interrupted checkpoint write.

        Raises RunFailed where no checkpoint is left to restart from.
        """
        context = self._context
        checkpoints = Checkpoints(context.folder.checkpoints, context.config.learner.keep_checkpoints)
        try:
            for notice in checkpoints.recover():
                context.say(notice)
                context.event("checkpoint_incomplete", notice=notice)
        except CheckpointError as error:
            raise RunFailed(str(error)) from None
        step = int(self.status.last.get("step", 0))
        if step and checkpoints.latest() is None:
            raise RunFailed(
                f"the learner ended after step {step}, and there is no checkpoint to go on from: set "
                "learner.checkpoint_minutes or learner.checkpoint_every lower"
            )

    def _follow_endpoint(self) -> None:
        """Note the stream's endpoint when rank 0 tells it."""
        ray = self._context.ray
        if self._listening is None or not ray.finished([self._listening]):
            return
        listening, self._listening = self._listening, None
        try:
            endpoint = ray.result(listening)
        except CallFailed:  # the rank's run fails as well, and `poll` sees that
            return
        former, self.endpoint = self.endpoint, endpoint
        if former not in (None, endpoint):
            self._context.say(f"the learner has moved from {former} to {endpoint}: its actors start again, to find it")
            self._context.event("learner_moved", former=former, endpoint=endpoint)

    def _ask_status(self, now: float) -> None:
        """Ask every rank for its status. A rank without an answer for `supervision.watchdog_s` is treated as dead."""
        ray = self._context.ray
        for rank, handle in self.handles.items():
            if rank not in self._asked:
                self._asked[rank] = ray.call(handle, "status")
            elif ray.finished([self._asked[rank]]):
                asked = self._asked.pop(rank)
                with contextlib.suppress(CallFailed):  # the rank's run fails as well, and `poll` sees that
                    status = ray.result(asked)
                    self._answered_at[rank] = now
                    if rank == 0:
                        self.status = self._fresh = status
        rank, silent_s = longest_silence(self._answered_at, now)
        if silent_s > self._context.config.supervision.watchdog_s:
            phase = describe(self.status)
            self._died(rank, f"it has not answered for {silent_s:.0f} s; the learner's last phase: {phase}")

    def _report_stillness(self, now: float, num_actors: int) -> None:
        """Report a phase that lasts longer than `supervision.watchdog_s`, and what it waits for; once in that time."""
        watchdog_s, status = self._context.config.supervision.watchdog_s, self.status
        if not self.is_up or status.phase_s <= watchdog_s or now - self._reported_at <= watchdog_s:
            return
        self._reported_at = now
        text = f"the learner has been {describe(status)} for {status.phase_s:.0f} s. {status.waiting_for}"
        absent = [f"rollout{index}" for index in range(num_actors) if f"rollout{index}" not in status.members]
        if absent:
            text += f"; not connected: {', '.join(absent)}"
        self._context.say(text)
        self._context.event("watchdog", text=text)

    def _log(self, rank: int) -> Path:
        return self._context.folder.logs / f"learner{rank}.{self._first_log + self.life}.log"


def longest_silence(answered_at: Mapping[int, float], now: float) -> tuple[int, float]:
    """The rank that answered least recently, and for how many seconds it has not."""
    rank = min(answered_at, key=lambda rank: answered_at[rank])
    return rank, now - answered_at[rank]
