"""The learner measured on a CPU: whole optimizer steps beside transformers, the layers beside the machine's peak, and
the packing. On a GPU `learner_gpu.py` measures in its place.

Both sides are processes of their own (`learner_side.py`) that take turns, A B B A, on the same recorded self-play batch
and the same number of threads; the one whose turn it is not sleeps. Tokens count as transformers computes them: each
sequence with its prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from executor.cpus import allowed_cpus
from executor.user_error import UserError
from launch import models
from launch.bench.learner_side import SHIPPED, load_batch
from launch.bench.options import add_model, add_seconds, positive
from launch.bench.peers import LineProcess
from launch.bench.report import Goal, Report, Samples, Slice, by_run, describe_versions, progress
from learner.batching.balance import CostModel
from learner.batching.packing import MicroBatch, TokenSequence, idle_share, micro_batch_cost, pack_ranks
from learner.model.architecture import Architecture

LAYER_ROWS = 2048
"""Packed rows that the layers are measured at."""
PEER_BUDGET = 2048
"""Most padded tokens of a micro-batch of transformers: the logits of all of them are held at once, in two precisions,
with their gradients. With 4,096 it wants more than 20 GiB for the model that ships, and is no faster."""
TIMEOUT_S = 600.0
"""Seconds that loading a model, or one step, may take."""
RANKS = (1, 2, 4, 8)
"""Data-parallel ranks that the packing is computed for."""
GOALS = {
    "layers_share_of_peak": Goal(0.6),
    "tokens_over_transformers": Goal(1.5),
    "memory_over_transformers": Goal(1.0, at_most=True),
    "padding_share": Goal(0.02, at_most=True),
    "shared_prompt_compute": Goal(1.05, at_most=True),
}

RUNS = 5

DESCRIPTION = """\
Measures the learner. On a CPU (--suite recorded): whole optimizer steps on a recorded self-play batch, in turns with
transformers and torch.optim on the same batch and threads; peak memory of both; the transformer layers at 2,048 packed
rows beside the machine's bfloat16 matrix peak; and what packing and shared prompts compute.
On a GPU (--suite gpu): model FLOPs utilization, memory and rows a second at the shapes of Qwen2.5 0.5B, 1.5B and six
layers of 7B, with micro-batches of 8,192 and 32,768 rows, recorded self-play lengths and long ones, beside transformers
on the same batches. --suite tiny: the same code on small shapes, for a first look; its figures say nothing.
A ratio is the median over the runs. Run it on a machine that does nothing else.
"""

EXAMPLES = """\
examples:
  azr bench learner                                  SmolLM2-135M on all cores: five to ten minutes
  azr bench learner --runs 1                         a first look
  azr bench learner --suite gpu --seconds 120        what can be had on a GPU in about two minutes
  azr bench learner --json learner.json              the same findings as JSON too
"""

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from launch.bench import learner_side; learner_side.main()"
)


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    runs: int = 5
    threads: int = 0
    """Threads of each side; 0 takes every core that this process may use."""
    model: str = "smollm2-135m-instruct"
    token_budget: int = 4096
    """Tokens of a micro-batch; transformers takes at most `PEER_BUDGET`."""
    batch: Path = SHIPPED
    sequences: int = 0
    """Number of its sequences that are trained on, the first ones; 0: all."""
    layer_rows: int = LAYER_ROWS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench learner`."""
    parser.add_argument(
        "--suite", choices=("recorded", "gpu", "tiny"), help="default: gpu where torch sees a GPU, else recorded"
    )
    add_seconds(parser, 240.0, "gpu and tiny: seconds after which no further part is begun")
    parser.add_argument("--threads", type=positive(int), default=0, help="of each side (default: all cores)")
    add_model(parser)
    parser.add_argument(
        "--token-budget", type=positive(int), default=4096, metavar="N", help="of a micro-batch (default %(default)s)"
    )
    parser.add_argument(
        "--sequences",
        type=positive(int),
        default=0,
        metavar="N",
        help="the first N of the recorded batch (default: all)",
    )


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    import torch

    has_gpu = torch.cuda.is_available()
    suite = arguments.suite or ("gpu" if has_gpu else "recorded")
    if suite == "recorded" and has_gpu:
        raise WrongSuite("--suite recorded measures the learner of a CPU, and torch sees a GPU; take --suite gpu")
    if suite == "gpu" and not has_gpu:
        raise WrongSuite("--suite gpu needs a GPU that torch sees; --suite tiny runs the same code without")
    if suite != "recorded":
        from launch.bench import learner_gpu

        return learner_gpu.run(suite == "tiny", arguments.runs, arguments.seconds, arguments.json)
    return run(
        Options(
            arguments.runs, arguments.threads, arguments.model, arguments.token_budget, sequences=arguments.sequences
        )
    )


class WrongSuite(UserError):
    """A suite that this machine cannot run."""


class Side(LineProcess):
    """A loaded side."""

    def __init__(self, name: str, model_dir: Path, options: Options, keep_memory: bool = True) -> None:
        """Raises PeerError where it does not start or load."""
        # As in a run: threads that spin at a barrier would take the cores from the side whose turn it is.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        super().__init__(
            name, [sys.executable, "-W", "ignore", "-c", _CHILD, json.dumps(sys.path, allow_nan=False)], environment
        )
        budget = PEER_BUDGET if name == "transformers" else options.token_budget
        try:
            loaded = self.request(
                "load", side=name, model_dir=str(model_dir), batch=str(options.batch), keep_memory=keep_memory,
                sequences=options.sequences, threads=options.threads or allowed_cpus(),
                token_budget=min(budget, options.token_budget),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.rows = int(loaded["rows"])

    def request(self, op: str, **details: Any) -> dict[str, Any]:
        """Ask for one thing. Raises PeerError."""
        return self.ask({"op": op, **details}, TIMEOUT_S)


def run(options: Options) -> Report:
    """Measure. Ctrl-C ends it with the runs that are complete. Raises PeerError, ModelError, OSError, ValueError."""
    batch = load_batch(options.batch, options.sequences)
    model_dir = models.prepare(options.model)
    threads = options.threads or allowed_cpus()
    report = Report(
        "learner",
        settings={
            "runs": options.runs, "threads": threads, "model": options.model, "token_budget": options.token_budget,
            "layer_rows": options.layer_rows, "batch": options.batch.name, "sequences": len(batch), "dtype": "bfloat16",
        },
        versions=describe_versions(("azr", "torch", "megatron-core", "transformers")),
    )  # fmt: skip
    load, cores = report.machine["load_at_start"], report.machine["cores"]
    if load > 0.3 * cores:
        report.notes["load"] = f"the machine was busy at the start ({load} on {cores} cores); don't trust these figures"
    _packing(report, batch, Architecture.read(model_dir), options.token_budget)
    with ExitStack() as stack:
        with progress(4 + 6 * options.runs) as say:
            say("loading azr's learner")
            ours = stack.enter_context(Side("azr", model_dir, options))
            say("loading transformers")
            peer = stack.enter_context(Side("transformers", model_dir, options))
            say("first steps")
            # The first step allocates, and both have the same weights only before it.
            losses = [side.request("step")["loss"] for side in (ours, peer)]
            ours.request("layers", rows=options.layer_rows)
            say("memory of transformers with the allocator as it comes")
            with Side("transformers", model_dir, options, keep_memory=False) as plain:
                plain.request("step")
                plain.request("step")
                peer_mib = float(plain.request("memory")["mib"])
            _steps(report, options, ours, peer, sum(len(p) + len(r) for p, r in batch), say)
        report.ratio("memory_over_transformers", [float(ours.request("memory")["mib"]) / peer_mib])
    report.notes["loss"] = f"before the first step: {losses[0]:.4f} here, {losses[1]:.4f} in transformers"
    report.notes["memory"] = (
        f"peak resident: {peer_mib * report.ratios['memory_over_transformers'].median:,.0f} MiB here, "
        f"{peer_mib:,.0f} MiB in transformers"
    )
    report.goals |= {key: goal for key, goal in GOALS.items() if key in report.ratios}
    return report


def _steps(report: Report, options: Options, ours: Side, peer: Side, tokens: int, say: Any) -> None:
    """Measure whole steps and the layers, in turns."""
    sides = {"azr": ours, "transformers": peer}
    samples = {name: Samples(f"step, {name}", "tokens") for name in sides}
    layers: list[float] = []
    peaks: list[float] = []
    own_peaks: list[float] = []
    try:
        for number in range(1, options.runs + 1):
            for name in ("azr", "transformers", "transformers", "azr"):
                say(f"run {number} of {options.runs}: {name}")
                seconds = float(sides[name].request("step")["seconds"])
                samples[name].add(Slice(tokens, seconds, [seconds]))
            say(f"run {number} of {options.runs}: layers")
            found = [ours.request("layers", rows=options.layer_rows) for _ in range(3)]
            say(f"run {number} of {options.runs}: peak")
            peak = ours.request("peak", rows=options.layer_rows)
            found += [ours.request("layers", rows=options.layer_rows) for _ in range(3)]
            rates = sorted(one["flops"] / one["seconds"] / 1e9 for one in found)
            layers.append((rates[2] + rates[3]) / 2)
            peaks.append(float(peak["best"]))
            own_peaks.append(float(peak["own"]))
            for each in samples.values():
                each.end_run()
    except KeyboardInterrupt:
        report.notes["interrupted"] = f"stopped after {len(layers)} of {options.runs} runs"
    if not layers:
        for key in (
            "tokens_over_transformers",
            "rows_over_transformers",
            "layers_share_of_peak",
            "layers_share_of_own",
        ):
            report.notes[key] = "no run was complete"
        return
    ratio = by_run(samples["azr"].rates, samples["transformers"].rates)
    for name, side in sides.items():
        report.rows.append(samples[name].row(f"{side.rows:,} rows computed for {tokens:,} tokens"))
    report.ratio("tokens_over_transformers", ratio)
    report.ratio("rows_over_transformers", [value * ours.rows / peer.rows for value in ratio])
    report.ratio("layers_share_of_peak", by_run(layers, peaks))
    report.ratio("layers_share_of_own_shapes", by_run(layers, own_peaks))
    report.notes["peak"] = (
        f"10^9 operations a second, medians: layers {np.median(layers):,.0f}, products of the layers' own shapes alone "
        f"{np.median(own_peaks):,.0f}, of the best shape {np.median(peaks):,.0f}"
    )


def _packing(report: Report, batch: Sequence[TokenSequence], shape: Architecture, token_budget: int) -> None:
    """Compare the tokens that are computed with those of the batch: padding, shared prompts, idle ranks."""
    cost = shape.cost
    unique = sum(map(len, {tuple(prompt.tolist()) for prompt, _ in batch})) + sum(len(ids) for _, ids in batch)
    padding, idle = [], []
    for num_ranks in RANKS:
        by_rank = pack_ranks(batch, token_budget, num_ranks, cost)
        padding.append(padding_share(by_rank, cost))
        idle.append(f"{num_ranks}: {100 * idle_share(by_rank, cost):.2f}%")
        if num_ranks == 1:
            rows = sum(micro.num_tokens for micros in by_rank for micro in micros)
            report.ratio("shared_prompt_compute", [rows / unique])
    report.ratio("padding_share", [max(padding)])
    report.notes["packing"] = (
        f"{sum(len(p) + len(ids) for p, ids in batch):,} tokens in {len(batch)} sequences, {unique:,} of them unique; "
        f"ranks idle by cost, of {', '.join(idle)}"
    )


def padding_share(by_rank: Sequence[Sequence[MicroBatch]], cost: CostModel) -> float:
    """The share of what ranks compute that is for no token of the batch, by cost.

    Rows are never padded. What is: responses of similar length whose attention is computed together, up to the
    longest of them. A prompt that is computed on two ranks is no padding; `shared_prompt_compute` counts it. Nor are
    scores between rows that are there anyway and do not see one another: they cost time, which the rates show.
    """
    from learner.model.cpu_attention import plan_cpu

    real = padded = 0
    for micro in (micro for micros in by_rank for micro in micros):
        real += micro_batch_cost(micro, cost)
        plan = plan_cpu(micro)
        for mask in plan.leaf_masks:
            lengths = mask.sum(1).numpy()
            longest = mask.shape[1]
            pairs = len(lengths) * longest * (longest + 1) // 2 - int((lengths * (lengths + 1) // 2).sum())
            padded += cost.per_pair * pairs
    return padded / (real + padded) if real else 0.0
