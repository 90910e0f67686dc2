"""`azr bench weights --delta`: how many weights change in a step, and what sending only those saves.

The model takes optimizer steps as in training, on recorded self-play tokens: minus the mean of advantage x
log-probability, with an advantage of +1 or -1 drawn for each sequence, AdamW on float32 masters of bfloat16 weights.
`WARM_STEPS` steps fill Adam's moments. Then, for each learning rate, the weights are set back, take one step, and the
elements whose bits it has changed are counted. Set back, each master is drawn from the numbers that round to its
weight, as masters lie after many steps; at the start of a run they are the weights themselves, and a small step changes
hardly any.

These two versions then go to receivers, in turns: whole, and as what has changed. Once over loopback, and once over a
loopback that a token bucket limits (`network.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from launch.bench.learner_side import load_batch
from launch.bench.network import NoOwnNetwork, own_network
from launch.bench.report import Report, TableOfFigures, by_run, describe_versions, progress
from launch.bench.weights_transport import Receivers, one_thread, started
from learner.batching.packing import MicroBatch, TokenSequence, pack
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from learner.weights.delta import changed_elements
from learner.weights.manifest import manifest_of
from learner.weights.transfer import Delta

LEARNING_RATES = (1e-7, 1e-6, 4e-6, 1e-5, 4e-5)
COMPARED = 1e-6
"""The learning rate of the ratios."""
WARM_STEPS = 8
SEQUENCES = 24
"""Sequences of a step."""
MICRO_BATCH_TOKENS = 4096
SLOW_BITS_PER_S = 1e9
LOOPBACK, SLOW = "loopback", "1 Gbit/s"

Named = list[tuple[str, torch.Tensor]]


@dataclass
class Measured:
    """Updates by one way over one link: seconds of each, and bytes of one."""

    seconds: list[float] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def median_s(self) -> float:
        """The middle of the seconds."""
        return statistics.median(self.seconds)


class Steps:
    """Optimizer steps of the real learner on recorded tokens."""

    def __init__(self, model_dir: Path, sequences: int = SEQUENCES) -> None:
        """`sequences`: those of one step."""
        init_parallel(ParallelSettings(), rank=0, world_size=1)
        self._model_dir = model_dir
        self.policy = PolicyModel(model_dir, ModelSettings(), OptimizerSettings(), ParallelSettings())
        self._recorded = load_batch()
        self._sequences = sequences
        self._next = 0
        self._draw = torch.Generator().manual_seed(0)

    def reset(self) -> None:
        """Set the weights back to those of the folder, with masters that round to them; Adam's moments stay."""
        self.policy.load_hf(self._model_dir)
        for parameter in self.policy.gpt.parameters():
            spread_master(parameter.detach(), getattr(parameter, "main_param", parameter), self._draw)

    def step(self, lr: float) -> None:
        """Take one step on the next sequences."""
        batch: list[TokenSequence] = []
        for _ in range(self._sequences):
            batch.append(self._recorded[self._next % len(self._recorded)])
            self._next += 1
        advantages = 2.0 * torch.randint(2, (len(batch),), generator=self._draw) - 1.0
        count = sum(len(response) for _, response in batch)

        def loss(_: int, micro: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            advantage = advantages[torch.from_numpy(micro.sequence_index).long()]
            return -(logprobs * advantage.to(logprobs.device)).sum() / count

        self.policy.zero_grad()
        self.policy.forward_backward(pack(batch, MICRO_BATCH_TOKENS, cost=self.policy.cost), loss)
        self.policy.step(lr)

    def weights(self) -> Named:
        """Copy the weights as they are sent."""
        return [(name, tensor.detach().cpu().clone()) for name, tensor in self.policy.export()]


@torch.no_grad()
def spread_master(weight: torch.Tensor, master: torch.Tensor, draw: torch.Generator) -> None:
    """Set a float32 master to random numbers, evenly from those that round to its bfloat16 weight."""
    mantissa, exponent = torch.frexp(weight.float())
    # Between two powers of two numbers are 2^-8 of the upper one apart; below a power of two half of that.
    spacing = torch.ldexp(torch.full_like(master, 2.0**-8), exponent.to(master.device))
    spacing[mantissa.abs() == 0.5] /= 2
    spacing[mantissa == 0] = 0
    noise = torch.rand(master.shape, generator=draw).to(master.device) - 0.5
    master.copy_(weight.float() + noise * spacing)


def changed_share(before: Named, after: Named) -> float:
    """Return the share of the elements whose bits differ."""
    pairs = zip(before, after, strict=True)
    changed = sum(int(torch.count_nonzero(changed_elements(new, old))) for (_, old), (_, new) in pairs)
    return changed / sum(tensor.numel() for _, tensor in after)


def run(model_dir: Path, model: str, runs: int, num_receivers: int) -> Report:
    """Measure and report. `runs`: pairs of updates by each way over each link."""
    settings = {"model": model, "runs": runs, "receivers": num_receivers, "warm_steps": WARM_STEPS, "delta": True}
    report = Report("weights", settings, describe_versions(("azr", "torch")))
    rows: list[list[str | float]] = []
    with ExitStack() as stack:
        steps = Steps(model_dir)  # torch's group needs the machine's own network
        links = _links(stack, report)
        receivers = stack.enter_context(started(num_receivers))
        step = stack.enter_context(progress(WARM_STEPS + 2 * len(LEARNING_RATES) + 1))
        for _ in range(WARM_STEPS):
            step("warming up the optimizer")
            steps.step(COMPARED)
        step("whole updates")
        steps.reset()
        before = steps.weights()
        whole = {link: _updates(receivers, before, before, runs, "off") for link in links()}
        for lr in LEARNING_RATES:
            step(f"an optimizer step at {lr:g}")
            steps.reset()
            steps.step(lr)
            after = steps.weights()
            step(f"what has changed at {lr:g}")
            sparse = {link: _updates(receivers, before, after, runs, "auto") for link in links()}
            rows.append(_row(lr, changed_share(before, after), whole, sparse))
            if lr == COMPARED:
                _compare(report, whole, sparse)
    columns = ["learning rate", "changed %", "sent MB", "of whole %"]
    for link in whole:
        columns += [f"{link}: whole ms", "changed ms"]
    report.tables.append(TableOfFigures("weights that change in a step, and sending only them", columns, rows))
    return report


def _links(stack: ExitStack, report: Report) -> Callable[[], Iterator[str]]:
    """Return what yields the names of the links, each while it is in force."""
    try:
        network = stack.enter_context(own_network())
        network.limit(SLOW_BITS_PER_S)
        network.limit(None)
    except NoOwnNetwork as error:
        report.notes[SLOW] = f"not measured: {error}"
        return lambda: iter([LOOPBACK])

    def both() -> Iterator[str]:
        yield LOOPBACK
        network.limit(SLOW_BITS_PER_S)
        yield SLOW
        network.limit(None)

    report.notes[SLOW] = "a loopback in a network namespace, limited by a token bucket of the kernel (tc-tbf)"
    return both


def _updates(receivers: Receivers, before: Named, after: Named, runs: int, delta: Delta) -> Measured:
    """Send both versions in turns; the first of each does not count."""
    measured = Measured()
    manifest = manifest_of(before)
    with one_thread(), receivers.joined(delta) as transport:
        for run in range(1 + runs):
            for version in (before, after):
                started = time.perf_counter()
                transport.update(version, manifest)
                if run > 0:
                    measured.seconds.append(time.perf_counter() - started)
        measured.num_bytes = transport.sender.sent.bytes
    return measured


def _row(lr: float, share: float, whole: dict[str, Measured], sparse: dict[str, Measured]) -> list[str | float]:
    sent, all_bytes = sparse[LOOPBACK].num_bytes, whole[LOOPBACK].num_bytes
    row: list[str | float] = [f"{lr:g}", 100 * share, sent / 1e6, 100 * sent / all_bytes]
    for link, measured in sparse.items():
        row += [1e3 * whole[link].median_s, 1e3 * measured.median_s]
    return row


def _compare(report: Report, whole: dict[str, Measured], sparse: dict[str, Measured]) -> None:
    """Add what the learning rate `COMPARED` comes to."""
    sent, all_bytes = sparse[LOOPBACK].num_bytes, whole[LOOPBACK].num_bytes
    report.ratio("changed_over_whole_bytes", [sent / all_bytes], less_is_better=True)
    for link, key in ((LOOPBACK, "changed_over_whole_loopback"), (SLOW, "changed_over_whole_1gbit")):
        if link in sparse:
            report.ratio(key, by_run(sparse[link].seconds, whole[link].seconds), less_is_better=True)
        else:
            report.notes[key] = report.notes[SLOW]
    extra_s = sparse[LOOPBACK].median_s - whole[LOOPBACK].median_s
    if extra_s > 0:
        gbit = 8e-9 * (all_bytes - sent) / extra_s
        report.notes["break-even"] = (
            f"at {COMPARED:g}, comparing and checking take {extra_s:.2f} s longer over loopback: what has changed is "
            f"faster to send on links below about {gbit:.1f} Gbit/s"
        )
