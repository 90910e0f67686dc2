"""`azr bench learner` on a GPU: how much of the device's peak the learner reaches, and its rate and memory beside
transformers.

Models of real shapes with random weights, batches of random tokens with real mixes of lengths (`learner_shapes.py`).
azr's learner and transformers are loaded one after the other, in one process, and measured on the same batches: both
together would not fit one device. A measurement that fails, or has no time left, is named in the notes, and the others
go on. `tiny` runs the same code on small shapes, on any device.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.bench.learner_shapes import MIXES, SHAPES, TINY, peak_flops, step_bytes, step_flops
from launch.bench.learner_side import Ours, Transformers, peak_memory_mib
from launch.bench.report import Goal, Report, TableOfFigures, describe_versions, progress
from learner.batching.packing import TokenSequence
from learner.device import device
from learner.model.architecture import Architecture
from learner.settings import KernelSettings

GOALS = {
    "mfu_1_5b": Goal(0.45),
    "mfu_7b_slice": Goal(0.55),
    "rows_over_transformers": Goal(1.3),
    "tokens_over_transformers": Goal(2.5),
    "memory_over_transformers": Goal(1.0, at_most=True),
}
RECOMPUTE = ("none", "selective", "full")
"""In order of the time that they cost."""
USABLE = 0.92
"""Share of the device's memory that a step may be expected to need."""


@dataclass(frozen=True)
class Part:
    """One way to train one shape on the batch of one mix."""

    shape: str
    batch_rows: int
    """Rows of the batch, about."""
    rows: int
    """Rows of a micro-batch at most."""
    mix: str

    def __str__(self) -> str:
        return f"{self.shape}, {self.rows}, {self.mix}"


@dataclass(frozen=True)
class Job:
    """Batches that one side, loaded once, is measured on."""

    side: str
    shape: str
    parts: tuple[tuple[bool, str], ...]
    """(at the larger number of rows, mix)."""


SELF_PLAY, LONG = (True, "self-play"), (True, "long")
SELF_PLAY_8K, LONG_8K = (False, "self-play"), (False, "long")
JOBS = (
    Job("azr", "1.5b", (SELF_PLAY_8K,)),
    Job("transformers", "1.5b", (SELF_PLAY_8K,)),
    Job("azr", "7b_slice", (SELF_PLAY_8K, SELF_PLAY)),
    Job("azr", "1.5b", (SELF_PLAY, LONG_8K, LONG)),
    Job("transformers", "1.5b", (LONG_8K,)),
    Job("azr", "0.5b", (SELF_PLAY_8K, LONG_8K, SELF_PLAY)),
    Job("transformers", "0.5b", (SELF_PLAY_8K, LONG_8K)),
    Job("azr", "7b_slice", (LONG_8K, LONG)),
    Job("transformers", "7b_slice", (SELF_PLAY_8K,)),
)
"""What does not fit in the time is left out, from the end. The first three jobs give every figure with a goal, at the
smaller number of rows; later parts try the larger one. `tiny` takes these three. transformers has the smaller number
alone: it holds the logits of all tokens of a padded micro-batch at once."""
HEADLINE = "self-play"
"""The mix of the ratios, with the faster number of rows."""
ROWS, TINY_ROWS = (8192, 32768), (128, 256)
"""The smaller and the larger number of rows of a micro-batch."""
LONGEST = 8192
"""Tokens of a sequence at most, and at most half of the larger micro-batch."""
BATCH = 1.9
"""Rows of a batch, as a multiple of those of the larger micro-batch: two of them, nearly full."""


@dataclass
class Found:
    """A side's figures for a part."""

    part: Part
    side: str
    rows: int
    tokens: int
    """Of the batch: each sequence with its prompt."""
    seconds: list[float]
    """Of each step."""
    memory_bytes: int
    flops: int = 0
    note: str = ""

    @property
    def rates(self) -> list[float]:
        """Rows a second, by step."""
        return [self.rows / seconds for seconds in self.seconds]


@dataclass
class Clock:
    """The time that there is."""

    allowed_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.allowed_s - (time.monotonic() - self.started)


def run(tiny: bool, runs: int, seconds: float, file: Path | None = None) -> Report:
    """Measure for at most about `seconds`, each step `runs` times. Raises OSError where no model can be written.

    The report is written to `file` after each part, too: what was measured is kept where this process is stopped.
    """
    shapes, rows, clock = (TINY, TINY_ROWS, Clock(seconds)) if tiny else (SHAPES, ROWS, Clock(seconds))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report = Report(
        "learner",
        settings={
            "suite": "tiny" if tiny else "gpu", "runs": runs, "seconds": seconds, "device": name, "dtype": "bfloat16",
        },
        versions=describe_versions(("azr", "torch", "triton", "megatron-core", "transformers")),
    )  # fmt: skip
    peak = peak_flops(name)
    if peak is None:
        peak = measured_peak(256 if tiny else 4096)
        report.notes["peak"] = f"{name} has no entry in PEAKS; measured: {peak / 1e12:.3g} 10^12 operations a second"
    else:
        report.notes["peak"] = f"{name}: {peak / 1e12:.0f} 10^12 operations a second (dense bfloat16, data sheet)"
    goals = {} if tiny or peak_flops(name) is None else GOALS
    found: list[Found] = []
    late = []
    jobs = JOBS[:3] if tiny else JOBS
    with progress(sum(len(job.parts) for job in jobs)) as say, _scratch() as folder:
        for job in jobs:
            model_dir = folder / job.shape
            side: Azr | Peer | None = None
            try:
                for larger, mix in job.parts:
                    part = Part(job.shape, int(BATCH * rows[True]), rows[larger], mix)
                    say(f"{job.side}: {part}")
                    if clock.left_s <= 0:
                        late.append(f"{job.side}: {part}")
                        continue
                    report.notes["unfinished"] = f"stopped while it measured {job.side}: {part}, or a later one"
                    _save(report, found, peak, goals, file)
                    if not model_dir.exists():
                        shapes[job.shape].write(model_dir, device())
                        _release()
                    side = side or (Azr(model_dir) if job.side == "azr" else Peer(model_dir))
                    found += side.measure(part, runs)
            except Exception as error:  # the next job may do
                report.notes[f"{job.side}, {job.shape}"] = _short_error(error)
            _save(report, found, peak, goals, file)
            side = None
            _release()
    report.notes.pop("unfinished", None)
    if late:
        report.notes["left out"] = f"no time was left for {'; '.join(late)}"
    _sum_up(report, found, peak, goals)
    return report


def _save(report: Report, found: list[Found], peak: float, goals: dict[str, Goal], file: Path | None) -> None:
    """Write what there is by now to `file`, unless that is something like a pipe, which takes one report."""
    if file and (file.is_file() or not file.exists()):
        _sum_up(report, found, peak, goals)
        report.write(file)


def _sum_up(report: Report, found: list[Found], peak: float, goals: dict[str, Goal]) -> None:
    """Let the report have the figures, goals and failures of what was found, and no earlier ones."""
    report.tables, report.ratios, report.failures = [], {}, []
    _figures(report, found, peak)
    report.goals = {key: goal for key, goal in goals.items() if key in report.ratios}
    missing = [key for key in GOALS if key not in report.ratios]
    if missing:
        report.failures.append(f"not measured: {', '.join(missing)}; the notes say why")


def measured_peak(size: int) -> float:
    """Return the operations a second of the best of ten bfloat16 products of this size."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device()) for _ in range(2))
    best = min(_seconds(lambda: left @ right) for _ in range(10))
    return 2 * size**3 / best


class Azr:
    """This side, loaded with the least recomputation with which a batch fits the device."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        self._shape = Architecture.read(model_dir)
        self._side: Ours | None = None
        self._recompute = ""

    def measure(self, part: Part, runs: int) -> list[Found]:
        """Measure one part. Raises torch.OutOfMemoryError where nothing fits."""
        batch = _batch(part, self._shape)
        first = RECOMPUTE.index(_least(self._shape, part.rows))
        for recompute in RECOMPUTE[first:-1]:
            with contextlib.suppress(torch.OutOfMemoryError):
                return [self._measure(part, batch, recompute, runs)]
        return [self._measure(part, batch, RECOMPUTE[-1], runs)]

    def _measure(self, part: Part, batch: list[TokenSequence], recompute: str, runs: int) -> Found:
        ours = self._load(recompute)
        ours.take(batch, part.rows)
        seconds, memory = _steps(ours, runs)
        flops, note = step_flops(self._shape, ours.micros), f"recompute {recompute}"
        return Found(part, "azr", ours.rows, _tokens(batch), seconds, memory, flops, note)

    def _load(self, recompute: str) -> Ours:
        if self._side is None or self._recompute != recompute:
            self._side = None
            _release()
            torch._dynamo.reset()  # kernels of another shape
            self._side = Ours(self._model_dir, KernelSettings.model_validate({"recompute": recompute}))
            self._recompute = recompute
        return self._side


class Peer:
    """transformers, with as many tokens in a micro-batch, padding included, as the part has rows; fewer where these do
    not fit."""

    def __init__(self, model_dir: Path) -> None:
        self._shape = Architecture.read(model_dir)
        self._side = Transformers(model_dir)

    def measure(self, part: Part, runs: int) -> list[Found]:
        """Measure one part, padded and packed, half as often: it takes longer. Raises torch.OutOfMemoryError where
        nothing fits."""
        batch = _batch(part, self._shape)
        return [self._measure(part, batch, packed, max(1, runs // 2)) for packed in (False, True)]

    def _measure(self, part: Part, batch: list[TokenSequence], packed: bool, runs: int) -> Found:
        budget = part.rows
        while True:
            try:
                self._side.take(batch, budget, packed)
                seconds, memory = _steps(self._side, runs)
                break
            except torch.OutOfMemoryError:
                if budget * 8 < part.rows:
                    raise
            budget //= 2
            _release()
        side = f"transformers, {'packed' if packed else 'padded'}"
        note = f"{budget} tokens a micro-batch"
        return Found(part, side, self._side.rows, _tokens(batch), seconds, memory, note=note)


def _batch(part: Part, shape: Architecture) -> list[TokenSequence]:
    return MIXES[part.mix](part.batch_rows, shape.vocab_size, min(LONGEST, part.batch_rows // 4))


def _tokens(batch: list[TokenSequence]) -> int:
    return sum(len(prompt) + len(response) for prompt, response in batch)


def _least(shape: Architecture, rows: int) -> str:
    """The least recomputation with which a step is expected to fit the device; `none` where there is no GPU."""
    if not torch.cuda.is_available():
        return "none"
    memory = USABLE * torch.cuda.get_device_properties(device()).total_memory
    return next((level for level in RECOMPUTE if step_bytes(shape, rows, level) <= memory), RECOMPUTE[-1])


def _steps(side: Ours | Transformers, runs: int) -> tuple[list[float], int]:
    """Seconds of each of `runs` steps, after a first one that compiles and allocates, and the most bytes they held."""
    side.warm_up()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = [_seconds(side.step) for _ in range(runs)]
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else int(peak_memory_mib() * 2**20)
    return seconds, memory


def _seconds(call: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _figures(report: Report, found: list[Found], peak: float) -> None:
    """Add the table of all that was found, and the ratios of the headline parts."""
    columns = ("side, model, rows of a micro-batch, mix", "rows/s", "tokens/s", "MFU", "GiB", "")
    rows: list[list[str | float]] = []
    for one in found:
        rate = statistics.median(one.rates)
        mfu = one.flops / statistics.median(one.seconds) / peak if one.flops else 0.0
        cells: list[str | float] = [f"{one.side}: {one.part}", rate, rate * one.tokens / one.rows]
        rows.append([*cells, mfu if one.flops else "", one.memory_bytes / 2**30, one.note])
    report.tables.append(TableOfFigures("A step, medians", columns, rows))
    for shape in SHAPES:
        here = [one for one in found if (one.part.shape, one.part.mix) == (shape, HEADLINE)]
        here.sort(key=lambda one: statistics.median(one.seconds))
        ours = next((one for one in here if one.side == "azr"), None)
        peer = next((one for one in here if one.side != "azr"), None)
        if ours is None:
            continue
        report.ratio(f"mfu_{shape.replace('.', '_')}", [ours.flops / seconds / peak for seconds in ours.seconds])
        if peer is None:
            continue
        suffix = "" if shape == "1.5b" else f"_{shape.replace('.', '_')}"
        ratio = [rate / statistics.median(peer.rates) for rate in ours.rates]
        report.ratio(f"rows_over_transformers{suffix}", ratio)
        by_tokens = [value * peer.rows / ours.rows for value in ratio]
        report.ratio(f"tokens_over_transformers{suffix}", by_tokens)
        memory = ours.memory_bytes / peer.memory_bytes
        report.ratio(f"memory_over_transformers{suffix}", [memory], less_is_better=True)
        report.notes[f"faster{suffix}"] = f"azr with {ours.part.rows} rows, {ours.note}; {peer.side}, {peer.note}"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the models: in memory where that has room, as the largest takes 4 GB."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 16 << 30
    with tempfile.TemporaryDirectory(prefix="azr-bench-", dir=memory if roomy else None) as folder:
        yield Path(folder)


def _release() -> None:
    """Give back what nothing refers to, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short_error(error: Exception) -> str:
    """The error's type and its first line: what torch says of a compiler is pages long."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
