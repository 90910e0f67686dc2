"""Recorded self-play work (`mix.py`), judged here and in the public reference's way, in turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from actors.environment import Environment
from executor.judge import Judge, JudgeStats
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Task
from launch.bench import mix
from launch.bench.executor_paths import MIX_TIMEOUT_S, Bench
from launch.bench.peers import PeerError, Reference
from launch.bench.report import Goal, Samples, Slice, by_run

IN_FLIGHT = 64
"""Items of the mix that are judged at the same time, on both sides. A rollout actor has more under way."""
GOAL = Goal(5)
"""Goal of `mix_over_reference`."""


class Comparison:
    """Recorded work, judged here and in the reference's way, in turns."""

    def __init__(self, bench: Bench, work: mix.Mix) -> None:
        self._bench = bench
        self._work = work
        self._settings = ExecutorSettings(workers=bench.options.workers, timeout_s=MIX_TIMEOUT_S)
        self._ours: list[list[str]] = []
        self._theirs: list[list[str]] = []
        self._shared = JudgeStats()
        self.samples = {"ours": Samples("mix, here", "judgements")}
        bench.report.settings["mix"] = {"file": str(bench.options.mix or "shipped"), **work.header}
        bench.report.notes["mix"] = work.describe()
        try:
            self._reference = bench.stack.enter_context(
                Reference(bench.options.workers, MIX_TIMEOUT_S, self._settings.memory_mb)
            )
            self._reference.load(bench.options.mix or mix.SHIPPED)
        except PeerError as error:
            bench.report.notes["mix_over_reference"] = str(error)
        else:
            self.samples["full"] = Samples("the same, its pool kept full", "judgements")
            self.samples["published"] = Samples("mix, the reference's way", "judgements")

    def measure(self, step: Callable[[str], None], backwards: bool) -> None:
        """Every side once."""
        count = self._work.proposals + self._work.verifications
        for key in reversed(self.samples) if backwards else self.samples:
            step(f"mix, {key}")
            if key == "ours":
                seconds, self._ours = asyncio.run(self._judge())
            else:
                allowed_s = 60.0 + count * MIX_TIMEOUT_S
                seconds, self._theirs = self._reference.judge(allowed_s, IN_FLIGHT if key == "full" else None)
            self.samples[key].add(Slice(count, seconds))

    async def _judge(self) -> tuple[float, list[list[str]]]:
        """Judge the mix once on a pool that has seen nothing of it: the seconds, and the findings of every item."""
        loop = asyncio.get_running_loop()
        pool = SandboxPool(self._settings)
        environment = Environment(Judge(pool, self._settings))
        findings: list[list[str]] = [[] for _ in self._work.items]
        waiting = iter(enumerate(self._work.items))

        async def caller() -> None:
            for index, item in waiting:
                if isinstance(item, Proposal):
                    result = await environment.validate(item)
                    findings[index] = ["ok" if isinstance(result, Task) else result.reason.value]
                else:
                    verdicts = await environment.verify_all(item.task, item.answers)
                    findings[index] = [verdict.reason.value for verdict in verdicts]

        await pool.start()
        try:
            started = loop.time()
            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
            self._shared = environment.stats
            return loop.time() - started, findings
        finally:
            await pool.close()

    def conclude(self) -> None:
        """Rows, ratios, and where the two sides differ."""
        report = self._bench.report
        rates = {key: samples.rates for key, samples in self.samples.items()}
        report.rows += [samples.row() for samples in self.samples.values()]
        shared = self._shared
        report.notes["mix_sharing"] = (
            f"{shared.executed} calls of programs here; of {shared.answers} answers {shared.shared_equal} were judged "
            f"by an equal one of the same task and {shared.shared_own} were the task's own input or program; "
            f"{shared.memo_hits} calls were remembered"
        )
        if "full" not in rates:
            return
        report.ratio("mix_over_reference", by_run(rates["ours"], rates["published"]), GOAL)
        report.ratio("mix_over_reference_kept_full", by_run(rates["ours"], rates["full"]))
        report.notes["mix_agreement"] = agreement(self._work.items, self._ours, self._theirs)


def agreement(items: Sequence[mix.Item], ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """Count the judgements that accept on one side and refuse on the other, by the reasons of both; returns a
    sentence."""
    accepted = ("ok", "correct")
    total = 0
    differences: Counter[str] = Counter()
    for item, one, other in zip(items, ours, theirs, strict=True):
        name = f"validation ({item.kind})" if isinstance(item, Proposal) else f"verification ({item.task.kind})"
        for finding, reference in zip(one, other, strict=True):
            total += 1
            if (finding in accepted) != (reference in accepted):
                differences[f"{name}: here {finding}, there {reference}"] += 1
    text = f"{differences.total()} of {total} judgements differ between the two ways"
    return text + "".join(f"; {count} x {what}" for what, count in differences.most_common())
