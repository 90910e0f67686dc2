"""A calibration from run folders.

    engine           synchronous runs of one actor: recorded batches played again (`engine_fit.py`)
    learner          synchronous runs: `train_s` against `tokens_computed` (packed rows)
    more threads     synchronous runs with other `learner.threads`
    weights          the phases of publications in synchronous runs; with several actors, what each adds
    sharing          asynchronous runs, and runs of several actors (`sharing_fit.py`)
    lengths, rates   the trajectories of all runs

What no run tells is assumed, with an error as large as the doubt, and its source says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from executor.cpus import allowed_cpus
from launch.least_squares import fit_line_robustly, mean_and_error
from launch.machine import describe_machine
from launch.model_check import BLOCK_TOKENS, cache_bytes_per_token, num_parameters
from launch.models import prepare
from launch.tune.calibration import (
    ASSUMED,
    Calibration,
    CalibrationError,
    EngineFigures,
    ExecutorFigures,
    Figure,
    Group,
    Hardware,
    LearnerFigures,
    SharingFigures,
    StreamFigures,
    WeightFigures,
)
from launch.tune.engine_fit import fit_engine, over_ledger, setup_of
from launch.tune.engine_model import StepCost
from launch.tune.records import Recorded, RunRecord, publish_s
from launch.tune.sharing_fit import fit_sharing
from learner.model.architecture import Architecture
from learner.trajectory import Role

_GIB = 1 << 30


def calibrate(runs: Sequence[RunRecord], name: str) -> Calibration:
    """A calibration from one or more runs of one model on this machine's CPU. Raises CalibrationError."""
    import torch

    if torch.cuda.is_available():
        raise CalibrationError(
            "this machine has GPUs, and runs on them cannot be calibrated from yet: engines and learner are taken to "
            "share the machine's cores. For GPUs a calibration from their specifications ships "
            "(--calibration h100-7b), and azr tune --live RUN gives advice from a run's own counters. For runs that "
            'were made on its CPU, by CUDA_VISIBLE_DEVICES="", set that here, too'
        )
    if len({run.config.model.path for run in runs}) > 1:
        raise CalibrationError("the runs are of different models: calibrate each by itself")
    synchronous = [run for run in runs if run.config.learner.max_staleness == 0]
    alone = [run for run in synchronous if run.config.actors.num_actors == 1]
    if not alone:
        raise CalibrationError(
            "no run is synchronous with one actor: the times of engine and learner by themselves are unknown. Make one "
            "of a few steps: azr train RECIPE learner.max_staleness=0 actors.num_actors=1 learner.steps=8"
        )
    first = alone[0]
    cores = allowed_cpus()
    model = Architecture.read(prepare(first.config.model.path))
    kv_tokens = first.config.engine.kv_cache_gib * _GIB / cache_bytes_per_token(first.config, model)
    calibration = Calibration(
        name=name,
        hardware=Hardware(name=describe_machine()["processor"], kind="cpu", cores=cores),
        engine=_engine(alone, cores, kv_tokens),
        learner=_learner(alone, cores),
        weights=_weights(alone, synchronous),
        executor=_executor(runs),
        sharing=SharingFigures(
            engine_beside_learner=_assumed(1.0, 0.1, "factor"),
            learner_beside_engine=_assumed(1.0, 0.1, "factor"),
            engine_beside_engine=_assumed(1.0, 0.1, "factor"),
        ),
        stream=StreamFigures(
            message_s=_assumed(0.002, 0.002, "s"), trajectory_s=_assumed(1.2e-4, 4e-5, "s/trajectory")
        ),
        workload=workload_of(runs),
        solve_rate=_solve_rates(runs),
        model_bytes=2 * num_parameters(model),
    )
    return fit_sharing(runs, calibration)


def workload_of(runs: Sequence[RunRecord]) -> dict[str, tuple[Group, ...]]:
    """Groups of responses by cell: those of a batch that have one prompt."""
    groups: dict[str, list[Group]] = defaultdict(list)
    for run in runs:
        for batch in run.batches.values():
            for (cell, _), members in _by_prompt(batch).items():
                proposed = members[0].cell.role is Role.PROPOSE
                groups[cell].append(
                    Group(
                        version=min(item.oldest for item in members),
                        prompt=members[0].prompt,
                        responses=tuple(item.response for item in members),
                        valid=tuple(item.valid for item in members) if proposed else (),
                        known=tuple(item.known for item in members) if any(item.known for item in members) else (),
                    )
                )
    return {cell: tuple(found) for cell, found in sorted(groups.items())}


def _by_prompt(batch: Sequence[Recorded]) -> dict[tuple[str, int], list[Recorded]]:
    found: dict[tuple[str, int], list[Recorded]] = defaultdict(list)
    for item in batch:
        found[item.cell.name, item.prompt_key].append(item)
    return found


def _engine(runs: Sequence[RunRecord], cores: int, kv_tokens: float) -> EngineFigures:
    cached, error = _cached_share(runs)
    setup = setup_of(runs[0], cores, kv_tokens, cached)
    fit, requests = fit_engine(runs, setup)
    source = f"{requests} requests of {_names(runs)}, played again; relative residual {fit.residual:.3f}"
    step_s, sequence_s, context_s, prompt_s = fit.values
    over = over_ledger(runs, StepCost(step_s, sequence_s, context_s, prompt_s, cached, BLOCK_TOKENS), setup)
    source += f"; engine steps take {over:.2f} times the ledger's seconds" if over else ""

    def figure(index: int, unit: str) -> Figure:
        return Figure(value=fit.values[index], error=fit.errors[index], unit=unit, source=source)

    return EngineFigures(
        step_s=figure(0, "s/step"),
        sequence_s=figure(1, "s/sequence"),
        context_token_s=figure(2, "s/token of context"),
        prompt_token_s=figure(3, "s/prompt token"),
        cached_share=Figure(value=cached, error=error, unit="share", source=f"tokens_cached of {_names(runs)}"),
        block_tokens=BLOCK_TOKENS,
        kv_tokens=Figure(value=kv_tokens, error=0, unit="tokens", source="engine.kv_cache_gib and the model's shape"),
        threads=setup.threads,
    )


def _cached_share(runs: Sequence[RunRecord]) -> tuple[float, float]:
    """Share of a prompt that is cached although the engine sees it for the first time since its last weights. From the
    counters of prompt tokens: what is computed, less what prompts that were seen leave of their last block."""
    shares = []
    for run in runs:
        for before, row in zip(run.rows, run.rows[1:], strict=False):
            batch = run.batches.get(int(row["step"]))
            if not batch:
                continue
            computed = sum(row[key] * sign - before[key] * sign for key, sign in _PROMPTS)
            first = seen = 0
            for members in _by_prompt(batch).values():
                first += members[0].prompt
                seen += sum((item.prompt - 1) % BLOCK_TOKENS + 1 for item in members[1:])
            shares.append(min(0.95, max(0.0, 1 - (computed - seen) / first)))
    return mean_and_error(shares) if shares else (0.0, 0.2)


_PROMPTS = (("tokens_prompt", 1), ("tokens_cached", -1))


def _learner(runs: Sequence[RunRecord], cores: int) -> LearnerFigures:
    by_threads: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if run.config.learner.parallel.world_size == 1:
            by_threads[run.config.learner.threads or cores] += run.steady
    if not by_threads:
        raise CalibrationError(
            "no synchronous run has a learner of one rank, which says what a step costs: make one with "
            "learner.parallel.tensor=1, .data=1 and so on"
        )
    threads = min(by_threads)
    rows = by_threads[threads]
    fit = fit_line_robustly(
        [[1.0] * len(rows), [r["tokens_computed"] for r in rows], [r["tokens_trained"] for r in rows]],
        [r["train_s"] for r in rows],
    )
    source = f"train_s of {len(rows)} steps of {_names(runs)}; residual {fit.residual:.2f} s"

    def figure(index: int, unit: str) -> Figure:
        return Figure(value=fit.values[index], error=fit.errors[index], unit=unit, source=source)

    between = [_between_s(row) for row in rows]
    value, error = mean_and_error([max(0.0, seconds) for seconds in between])
    return LearnerFigures(
        step_s=figure(0, "s/step"),
        row_s=figure(1, "s/row"),
        target_s=figure(2, "s/response token"),
        between_s=Figure(value=value, error=error, unit="s/step", source=f"the learner's ledger, {_names(runs)}"),
        threads=threads,
        parallel_share=_parallel_share(by_threads, threads, fit.values),
    )


def _between_s(row: dict[str, Any]) -> float:
    """Seconds of a step in which the learner records and decides: of its ledger, or what its other parts leave."""
    if "learner_time/recording_s" in row:
        return sum(float(row[f"learner_time/{part}_s"]) for part in ("recording", "other", "unaccounted"))
    return float(row["step_s"] - row["wait_for_batch_s"] - row["train_s"]) - publish_s(row)


def _parallel_share(by_threads: dict[int, list[dict[str, Any]]], threads: int, costs: Sequence[float]) -> Figure:
    """Amdahl's share, from steps with other numbers of threads: time over that with `threads` is (1 - p) + p x
    threads / others. `costs`: seconds with `threads` of a step, a row and a response token."""
    step_s, row_s, target_s = costs
    shares = []
    for others, rows in by_threads.items():
        if others == threads:
            continue
        alone = sum(step_s + row_s * r["tokens_computed"] + target_s * r["tokens_trained"] for r in rows)
        scale = sum(r["train_s"] for r in rows) / alone
        shares.append(min(1.0, max(0.0, (1 - scale) / (1 - threads / others))))
    if not shares:
        return _assumed(0.9, 0.1, "share")
    value, error = mean_and_error(shares)
    return Figure(value=value, error=min(error, 0.1), unit="share", source=f"runs with {sorted(by_threads)} threads")


def _weights(alone: Sequence[RunRecord], synchronous: Sequence[RunRecord]) -> WeightFigures:
    rows = [row for run in alone for row in run.steady]
    source = f"weights/* of {len(rows)} steps of {_names(alone)}"

    def figure(values: Sequence[float]) -> Figure:
        value, error = mean_and_error(values)
        return Figure(value=value, error=error, unit="s", source=source)

    sends = [r["weights/send_s"] - r["weights/ready_s"] for r in rows]
    more = [run for run in synchronous if run.config.actors.num_actors > 1]
    added = [
        max(0.0, (r["weights/send_s"] - r["weights/ready_s"] - sum(sends) / len(sends)) / (r["actors"] - 1))
        for run in more
        for r in run.steady
        if r["actors"] > 1
    ]
    send = figure(sends)
    if added:
        value, error = mean_and_error(added)
        actor = Figure(value=value, error=error, unit="s/actor", source=f"weights/send_s of {_names(more)}")
    else:
        actor = _assumed(send.value / 2, send.value / 2, "s/actor")
    return WeightFigures(
        ready_s=figure([r["weights/ready_s"] for r in rows]),
        send_s=send,
        load_s=figure([r["weights/wait_loaded_s"] for r in rows]),
        actor_s=actor,
    )


def _executor(runs: Sequence[RunRecord]) -> ExecutorFigures:
    proposals = [i.execute_s for run in runs for b in run.batches.values() for i in b if i.cell.role is Role.PROPOSE]
    answers = [i.execute_s for run in runs for b in run.batches.values() for i in b if i.cell.role is Role.SOLVE]

    def figure(seconds: Sequence[float]) -> Figure:
        if not seconds:
            return _assumed(0.01, 0.01, "s")
        value, error = mean_and_error(seconds)
        return Figure(value=value, error=error, unit="s", source=f"{len(seconds)} trajectories of {_names(runs)}")

    return ExecutorFigures(validate_s=figure(proposals), verify_s=figure(answers))


def _solve_rates(runs: Sequence[RunRecord]) -> dict[str, Figure]:
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for batch in run.batches.values():
            for item in batch:
                if item.cell.role is Role.SOLVE:
                    found[item.cell.kind].append(float(item.correct))
    rates = {}
    for kind, values in found.items():
        value, error = mean_and_error(values)
        rates[kind] = Figure(value=value, error=error, unit="share", source=f"{len(values)} solutions")
    return rates


def _assumed(value: float, error: float, unit: str) -> Figure:
    return Figure(value=value, error=error, unit=unit, source=ASSUMED)


def _names(runs: Sequence[RunRecord]) -> str:
    return ", ".join(run.name for run in runs)
