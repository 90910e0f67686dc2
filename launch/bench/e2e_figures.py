"""What a measured run's rows of metrics come to: figures of a mode, both ledgers, and the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launch.bench.e2e_modes import Block
from launch.bench.report import Goal, Report, Samples, Slice, TableOfFigures, by_run
from launch.run.totals import ACTOR_PARTS
from learner.time_ledger import LEARNER_PARTS

Row = Mapping[str, float]

UNACCOUNTED_GOAL = Goal(0.02, at_most=True)
IDEAL_GOAL = Goal(0.95)
LEARNER_PHASES = ("connect_s", "ready_s", "prepare_s", "transfer_s", "send_s", "wait_loaded_s")
ENGINE_PHASES = ("pause_s", "start_s", "transfer_s", "load_s", "finish_s", "resume_s")
_GENERATE, _TRAIN = "T_gen", "T_train"


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows, and the row before them, at whose end they begin."""

    before: Row
    rows: Sequence[Row]

    @classmethod
    def of(cls, rows: Sequence[Row], first: int, last: int) -> Stretch:
        """The steps `first` to `last`. Raises KeyError where one is missing."""
        by_step = {int(row["step"]): row for row in rows}
        return cls(by_step[first - 1], [by_step[step] for step in range(first, last + 1)])

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.grown("time_s")

    def grown(self, name: str) -> float:
        """How much a counter has grown."""
        return self.rows[-1].get(name, 0.0) - self.before.get(name, 0.0)

    def total(self, name: str) -> float:
        """Sum of what each step has by itself."""
        return sum(row.get(name, 0.0) for row in self.rows)

    def mean(self, name: str) -> float:
        """Mean over the steps."""
        return self.total(name) / len(self.rows)

    def most(self, name: str) -> float:
        """The largest."""
        return max(row.get(name, 0.0) for row in self.rows)


def trained_per_s(stretch: Stretch) -> float:
    """Response tokens trained per second."""
    return stretch.total("tokens_trained") / stretch.seconds


def learner_shares(stretch: Stretch) -> dict[str, float]:
    """The learner's seconds by part, as shares of all; `unaccounted` among them."""
    total = stretch.total("learner_time/total_s")
    return {part: stretch.total(f"learner_time/{part}_s") / total for part in (*LEARNER_PARTS, "unaccounted")}


def actor_shares(stretch: Stretch) -> dict[str, float]:
    """The actors' seconds by part, as shares of all; `unaccounted` among them."""
    total = stretch.grown("connected_actor_s")
    shares = {part: stretch.grown(f"actor_time/{part}_actor_s") / total for part in ACTOR_PARTS}
    return shares | {"unaccounted": 1.0 - sum(shares.values())}


def stages(synchronous: Stretch) -> dict[str, float]:
    """Seconds that each stage needs for a batch when the other one stands still, as in synchronous steps: T_gen, from
    the first grant to the whole batch; T_train, the rest of the step: training, publishing, recording."""
    generate_s = synchronous.mean("wait_for_batch_s")
    return {_GENERATE: generate_s, _TRAIN: synchronous.seconds / len(synchronous.rows) - generate_s}


def seconds_alone(synchronous: Stretch, other: Stretch, train_cost: float = 1.0, generate_cost: float = 1.0) -> float:
    """Seconds that the slower stage alone needs for a step of `other`: max(T_gen, T_train), each for the work in its
    batches. With equal work in both, asynchronous over synchronous speed is then (T_gen + T_train) / max(T_gen,
    T_train), the ideal, where a step takes this long.

    `train_cost`, `generate_cost`: factors on what a pass and a token cost while the other stage works, too.
    """
    found = stages(synchronous)
    passes_s = synchronous.mean("forward_backward_s")
    generate_s = found[_GENERATE] * generate_cost * _work(synchronous, other, "tokens_trained")
    train_s = (found[_TRAIN] + passes_s * (train_cost - 1.0)) * _work(synchronous, other, "train_flops")
    return max(generate_s, train_s)


def _work(synchronous: Stretch, other: Stretch, of: str) -> float:
    """What a step of `other` has to do, over that of a synchronous one."""
    of = of if synchronous.total(of) else "tokens_trained"  # a rehearsed learner computes nothing
    return other.mean(of) / synchronous.mean(of)


def train_cost(stretch: Stretch) -> float:
    """Seconds of forward and backward passes for an operation."""
    return stretch.total("forward_backward_s") / stretch.total("train_flops")


def generate_cost(stretch: Stretch) -> float:
    """Seconds of an engine's steps for a token."""
    engine_s = stretch.grown("actor_time/prefill_actor_s") + stretch.grown("actor_time/decode_actor_s")
    return engine_s / stretch.grown("tokens_generated")


def useful_share(stretch: Stretch) -> float:
    """Tokens trained over tokens generated, of those whose fate is known at the end: neither queued nor in flight."""
    open_before = stretch.grown("token_ledger/queued") + stretch.grown("token_ledger/in_flight")
    return stretch.grown("token_ledger/trained") / (stretch.grown("token_ledger/generated") - open_before)


class Figures:
    """The blocks of a run, by mode and repetition."""

    def __init__(self, rows: Sequence[Row], blocks: Sequence[Block], peak_flops: float | None) -> None:
        """`peak_flops`: operations a second that the learner's ranks could do together; None in a rehearsal, whose
        learner and engines compute nothing."""
        self._rows = rows
        self._peak_flops = peak_flops
        modes = sorted({block.staleness for block in blocks})
        runs = sorted({block.run for block in blocks})
        found = {(block.run, block.staleness): Stretch.of(rows, block.first, block.last) for block in blocks}
        # A repetition that was interrupted does not count.
        self.runs = [run for run in runs if all((run, mode) in found for mode in modes)]
        self.modes = modes
        self.stretches = {key: stretch for key, stretch in found.items() if key[0] in self.runs}
        self._of_run = {
            run: (min(b.first for b in blocks if b.run == run), max(b.last for b in blocks if b.run == run))
            for run in self.runs
        }

    def by_run(self, mode: int, figure: Callable[[Stretch], float]) -> list[float]:
        """A figure of one mode, by repetition."""
        return [figure(self.stretches[run, mode]) for run in self.runs]

    def median(self, mode: int, figure: Callable[[Stretch], float]) -> float:
        """Its median over the repetitions."""
        return statistics.median(self.by_run(mode, figure))

    def report(self, report: Report) -> None:
        """Enter everything into `report`."""
        self._rates(report)
        self._modes_table(report)
        self._shares_table(report, "the learner's seconds, share of all", learner_shares)
        if self._peak_flops:
            self._shares_table(report, "the actors' seconds, share of all", actor_shares)
        self._sync_table(report)
        self._tokens_table(report)
        self._ratios(report)
        self._failures(report)

    def _rates(self, report: Report) -> None:
        """The speed of each mode by repetition: the rate that `azr bench compare` holds against a later one."""
        for mode in self.modes:
            samples = Samples(f"max_staleness {mode}", "trained tokens")
            for run in self.runs:
                stretch = self.stretches[run, mode]
                samples.add(Slice(int(stretch.total("tokens_trained")), stretch.seconds))
                samples.end_run()
            report.rows.append(samples.row())

    def _modes_table(self, report: Report) -> None:
        figures: dict[str, Callable[[Stretch], float]] = {
            "s a step": lambda s: s.seconds / len(s.rows),
            "tokens/s generated": lambda s: s.grown("tokens_generated") / s.seconds,
            "tokens/s trained": trained_per_s,
            "tokens/s useful": lambda s: s.total("tokens_useful") / s.seconds,
            "trajectories/s": lambda s: s.total("batch_size") / s.seconds,
            "executions/s": lambda s: s.grown("executions") / s.seconds,
            "age mean": lambda s: s.mean("age_mean"),
            "age max": lambda s: s.most("age_max"),
        }
        if peak := self._peak_flops:
            figures["FLOP share, training"] = lambda s: s.total("train_flops") / s.total("train_s") / peak
            figures["FLOP share, wall clock"] = lambda s: s.total("train_flops") / s.seconds / peak
        rows = [self._row(name, figure) for name, figure in figures.items()]
        if 0 in self.modes:
            alone = [statistics.median(self._alone_s(run, mode) for run in self.runs) for mode in self.modes]
            shares = [statistics.median(self._over_ideal(mode)) for mode in self.modes]
            rows += [["slower stage alone, s a step", *alone], ["share of that speed", *shares]]
        report.tables.append(TableOfFigures("throughput by max_staleness", self._columns(), rows))

    def _row(self, name: str, figure: Callable[[Stretch], float]) -> list[str | float]:
        return [name, *(self.median(mode, figure) for mode in self.modes)]

    def _columns(self) -> list[str]:
        return ["", *(str(mode) for mode in self.modes)]

    def _alone_s(self, run: int, mode: int, train_cost: float = 1.0, generate_cost: float = 1.0) -> float:
        """`seconds_alone` of a mode."""
        return seconds_alone(self.stretches[run, 0], self.stretches[run, mode], train_cost, generate_cost)

    def _over_ideal(self, mode: int) -> list[float]:
        """Speed of a mode over the ideal, by repetition."""
        return [self._alone_s(run, mode) / step_s for run, step_s in self._step_seconds(mode)]

    def _step_seconds(self, mode: int) -> list[tuple[int, float]]:
        stretches = [(run, self.stretches[run, mode]) for run in self.runs]
        return [(run, stretch.seconds / len(stretch.rows)) for run, stretch in stretches]

    def _shares_table(self, report: Report, title: str, shares: Callable[[Stretch], dict[str, float]]) -> None:
        def share(part: str) -> Callable[[Stretch], float]:
            return lambda stretch: shares(stretch)[part]

        rows = [self._row(part, share(part)) for part in shares(next(iter(self.stretches.values())))]
        report.tables.append(TableOfFigures(title, self._columns(), rows))

    def _sync_table(self, report: Report) -> None:
        def milliseconds(name: str) -> Callable[[Stretch], float]:
            return lambda stretch: 1000 * stretch.mean(name)

        names = [f"weights/{phase}" for phase in LEARNER_PHASES]
        names += [f"engine_weights/{phase}/mean" for phase in ENGINE_PHASES]
        rows = [self._row(name, milliseconds(name)) for name in names]
        report.tables.append(TableOfFigures("weight synchronisation, ms a step", self._columns(), rows))

    def _tokens_table(self, report: Report) -> None:
        last = {name: n for name, n in self._rows[-1].items() if name.startswith("token_ledger/")}
        rows: list[list[str | float]] = [[name.removeprefix("token_ledger/"), tokens] for name, tokens in last.items()]
        report.tables.append(TableOfFigures("tokens at the last step", ["", "tokens"], rows))

    def _ratios(self, report: Report) -> None:
        unaccounted = [
            max(self._unaccounted(stretch) for (of, _), stretch in self.stretches.items() if of == run)
            for run in self.runs
        ]
        asynchronous = [mode for mode in self.modes if mode]
        if 0 in self.modes and asynchronous:
            best = max(asynchronous, key=lambda mode: statistics.median(self._over_ideal(mode)))
            report.ratio("async_over_ideal", self._over_ideal(best), IDEAL_GOAL)
            found = [stages(self.stretches[run, 0]) for run in self.runs]
            medians = {name: statistics.median(stage[name] for stage in found) for name in (_GENERATE, _TRAIN)}
            report.notes["async_over_ideal"] = (
                f"best at max_staleness {best}; ideal is {sum(medians.values()) / max(medians.values()):.3f} times "
                f"synchronous: T_gen {medians[_GENERATE]:.2f} s and T_train {medians[_TRAIN]:.2f} s a batch"
            )
            for mode in asynchronous:
                speeds = by_run(self.by_run(mode, trained_per_s), self.by_run(0, trained_per_s))
                report.ratio(f"async{mode}_over_sync", speeds)
            if self._peak_flops:
                self._contention(report, best)
        else:
            report.notes["async_over_ideal"] = "it needs max_staleness 0 and another"
        whole = [Stretch.of(self._rows, *self._of_run[run]) for run in self.runs]
        report.ratio("useful_share", [useful_share(stretch) for stretch in whole])
        report.ratio("seconds_unaccounted_max", unaccounted, UNACCOUNTED_GOAL)

    def _unaccounted(self, stretch: Stretch) -> float:
        shares = [learner_shares(stretch), *([actor_shares(stretch)] if self._peak_flops else [])]
        return max(abs(share["unaccounted"]) for share in shares)

    def _contention(self, report: Report, best: int) -> None:
        """What each stage's own work costs more while the other one works, too: no schedule can win that back. And how
        close the run comes to what is then left of the ideal."""
        costs = {"train_cost_async_over_sync": train_cost, "generate_cost_async_over_sync": generate_cost}
        found = {key: by_run(self.by_run(best, cost), self.by_run(0, cost)) for key, cost in costs.items()}
        report.ratio(
            "async_over_contended_ideal",
            [
                self._alone_s(run, best, train, generate) / step_s
                for (run, step_s), train, generate in zip(self._step_seconds(best), *found.values(), strict=True)
            ],
            IDEAL_GOAL,
        )
        for key, values in found.items():
            report.ratio(key, values, less_is_better=True)

    def _failures(self, report: Report) -> None:
        worst = report.ratios["seconds_unaccounted_max"].median
        if not UNACCOUNTED_GOAL.met(worst):
            report.failures.append(
                f"{100 * worst:.1f}% of a process's seconds are in no part of its ledger; at most "
                f"{100 * UNACCOUNTED_GOAL.target:.0f}% may be"
            )
        missing = {int(row["step"]): n for row in self._rows if (n := row.get("token_ledger/unaccounted", 0.0))}
        if missing:
            report.failures.append(f"the ledger of tokens does not close at {len(missing)} steps, first: {missing}")
