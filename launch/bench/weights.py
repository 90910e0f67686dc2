"""The weight broadcast measured: the whole update beside a raw broadcast of as many bytes, and beside a file.

Three ways to bring a model's weights to another process take turns, the second time backwards:

- an *update* as training does it: exported from the learner's model, in buckets, under names, until the receiver has
  had each tensor;
- a *raw broadcast* of as many bytes over the same process group, from one allocated flat tensor into another;
- a *file*: the same tensors saved as safetensors (to memory, where the machine has a file system there) and loaded.

Then a real engine takes updates at random moments while it generates, and says how long each phase took: `ready` (the
engine gets ready to load), `prepare` (gathering, copying into buckets), `pause` (until generation stands still),
`transfer` (waiting for bytes), `load` (putting them in place), `resume`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from launch.bench import weights_delta, weights_fit
from launch.bench.options import add_model, positive
from launch.bench.report import Goal, Report, Samples, Slice, by_run, describe_versions, progress
from launch.bench.weights_fit import Observation, Update
from launch.bench.weights_shapes import SHAPES, model_of_shape, weights_of
from launch.bench.weights_transport import Transport, one_thread, started
from learner.weights.manifest import Manifest, manifest_of
from learner.weights.transfer import WeightSender

RATE_GOAL = Goal(0.8)
PAUSE_GOAL = Goal(0.1, at_most=True)
ENGINE_PHASES = ("ready", "prepare", "pause", "transfer", "load", "resume")
REQUESTS = 32
"""Requests that the engine generates while its weights change."""
UPDATES = 4
"""Weight updates of the engine in one run."""
MOMENTS_S = 0.25
"""Updates come at a random moment within this time, in seconds: it spans several steps of the engine, which pauses only
between two of them."""

ENGINE_FIT_TITLE = "an engine's update: the same, over models of four sizes"
FIT_TITLE = "transport: time = fixed + tensors x a + bytes / b, and what updates of 7B and 235B take by it"

RUNS = 5

DESCRIPTION = """\
Measures the weight broadcast from learner to engines: a whole update, in buckets and under names, in turns with a raw
broadcast of as many bytes over the same group and with a safetensors file saved and loaded. Then a vLLM engine takes
updates while it generates, and each phase is timed apart.
"""

EXAMPLES = """\
examples:
  azr bench weights                                  about two minutes; most of it starts the engine
  azr bench weights --no-engine --receivers 2        the transport alone, to two processes
  azr bench weights --delta                          about three minutes: what changes in a step, and sending only that
  azr bench weights --json weights.json              the same findings as JSON too
"""

Export = Callable[[], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    model: str = "smollm2-135m-instruct"
    """A Hugging Face folder, or the name of a model that `azr model prepare` knows."""
    runs: int = 5
    receivers: int = 1
    repeats: int = 4
    """Times that each way is taken in one half of a run."""
    engine: bool = True
    """Measure a vLLM engine, too."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench weights`."""
    add_model(parser)
    parser.add_argument(
        "--receivers", type=positive(int), default=1, metavar="N", help="processes that receive (default %(default)s)"
    )
    parser.add_argument(
        "--no-engine", action="store_true", help="leave the vLLM engine out: seconds in place of minutes"
    )
    parser.add_argument(
        "--delta",
        action="store_true",
        help="measure sparse updates in place of all this: what changes in a step, bytes and seconds",
    )


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    if arguments.delta:
        from launch.models import prepare

        return weights_delta.run(prepare(arguments.model), arguments.model, arguments.runs, arguments.receivers)
    return run(Options(arguments.model, arguments.runs, arguments.receivers, engine=not arguments.no_engine))


def run(options: Options) -> Report:
    """Measure and report."""
    export = _policy(options.model)
    manifest = manifest_of(export())
    num_bytes = sum(spec.num_bytes for spec in manifest)
    report = Report(
        "weights",
        {"model": options.model, "runs": options.runs, "receivers": options.receivers, "num_bytes": num_bytes},
        describe_versions(("azr", "torch", "vllm", "safetensors")),
    )
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        engine_steps = options.runs + 1 + 2 * len(SHAPES) if options.engine else 0
        step = stack.enter_context(progress(3 * options.runs + 1 + engine_steps))
        step("starting the receivers")
        receivers = stack.enter_context(started(options.receivers))
        transport = stack.enter_context(receivers.joined())
        ways = stack.enter_context(_ways(export, manifest, num_bytes, transport))
        samples = {name: Samples(name, "bytes") for name in ways}
        for way in ways.values():
            way()  # the first of each pays for its memory
        for _ in range(options.runs):
            for names in (list(ways), list(ways)[::-1]):
                step("update, raw broadcast, file")
                for name in names:
                    for _ in range(options.repeats):
                        samples[name].add(_timed(ways[name], num_bytes))
            for sample in samples.values():
                sample.end_run()
        report.rows = [sample.row() for sample in samples.values()]
        rates = {name: sample.rates for name, sample in samples.items()}
        report.ratio("rate_over_raw_broadcast", by_run(rates["update"], rates["raw broadcast"]), RATE_GOAL)
        report.ratio("rate_over_file", by_run(rates["update"], rates["file, saved and loaded"]))
        observed = weights_fit.observe(transport, options.runs, step)
        weights_fit.add_fit(report, FIT_TITLE, observed, weights_fit.TRANSPORT)
        if options.engine:
            phases = asyncio.run(_engine(options, export, manifest, step))
            _report_engine(report, phases, num_bytes)
            observed = [Observation(Update(len(manifest), num_bytes), found) for found in phases]
            observed += _other_shapes(options, step)
            named_phases = {f"{phase}_s": phase for phase in ENGINE_PHASES}
            weights_fit.add_fit(report, ENGINE_FIT_TITLE, observed, named_phases)
        else:
            report.notes["pause_over_transfer"] = "the engine was left out (--no-engine)"
    report.notes["sizes"] = f"{num_bytes / 1e6:.0f} MB in {len(manifest)} tensors to {options.receivers} receivers"
    return report


def _policy(model: str) -> Export:
    from launch.models import prepare
    from learner.model.policy import PolicyModel
    from learner.model.process_groups import init_parallel
    from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

    init_parallel(ParallelSettings(), rank=0, world_size=1)
    return PolicyModel(prepare(model), ModelSettings(), OptimizerSettings(), ParallelSettings()).export


@contextmanager
def _ways(
    export: Export, manifest: Manifest, num_bytes: int, transport: Transport
) -> Iterator[dict[str, Callable[[], None]]]:
    flat = torch.zeros(num_bytes, dtype=torch.uint8)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def update() -> None:
            transport.update(export(), manifest)

        def raw() -> None:
            transport.broadcast(flat)

        def file() -> None:
            path = Path(folder) / "weights.safetensors"
            save_file({name: tensor.detach().contiguous() for name, tensor in export()}, path)
            for tensor in load_file(path).values():
                tensor.sum()  # mapped memory is read when it is touched

        yield {"update": update, "raw broadcast": raw, "file, saved and loaded": file}


def _timed(way: Callable[[], None], num_bytes: int) -> Slice:
    started = time.perf_counter()
    way()
    seconds = time.perf_counter() - started
    return Slice(num_bytes, seconds, [seconds])


def _other_shapes(options: Options, step: Callable[[str], None]) -> list[Observation]:
    """Updates of engines with models of other sizes."""
    from launch.models import prepare

    observed = []
    for layers, heads in SHAPES:
        with model_of_shape(prepare(options.model), layers, heads) as folder:
            weights = weights_of(folder)
            manifest = manifest_of(weights)
            update = Update(len(manifest), sum(spec.num_bytes for spec in manifest))
            small = replace(options, model=str(folder), runs=1)
            phases = asyncio.run(_engine(small, lambda weights=weights: iter(weights), manifest, step))  # type: ignore[misc]
            observed += [Observation(update, found) for found in phases]
    return observed


async def _engine(
    options: Options, export: Export, manifest: Manifest, step: Callable[[str], None]
) -> list[dict[str, float]]:
    """Seconds by phase of each update of an engine that generates."""
    from actors.engine.async_engine import AsyncEngine
    from actors.engine.generation import Sampling
    from actors.settings import EngineSettings
    from launch.models import prepare

    settings = EngineSettings(dtype="bfloat16", max_model_len=1024, max_num_seqs=REQUESTS, kv_cache_gib=0.5, threads=1)
    engine = AsyncEngine(prepare(options.model), settings)
    sender = WeightSender()
    await engine.start()
    running: set[asyncio.Task[Any]] = set()
    try:
        spec = sender.open(1 + engine.num_workers)
        await asyncio.gather(engine.join(spec, 1), asyncio.to_thread(sender.connect))
        sampling = Sampling(max_tokens=900, temperature=1.0)
        running = {asyncio.create_task(_generate(engine, sampling, number)) for number in range(REQUESTS)}
        found = []
        draw = random.Random(0)
        for version in range(1, UPDATES * options.runs + 2):
            if version % UPDATES == 1:
                step("an engine that generates")
            before = engine.stats()["tokens_generated"]
            while (
                engine.stats()["tokens_generated"] < before + REQUESTS
            ):  # it generates: an update interrupts something
                await asyncio.sleep(0.01)
            await asyncio.sleep(draw.uniform(0.0, MOMENTS_S))
            send = asyncio.to_thread(sender.send, export(), manifest)
            engine_s, _ = await asyncio.gather(engine.update_weights(manifest, version), send)
            phases = {"ready_s": engine_s["start_s"] + engine_s["finish_s"], "prepare_s": sender.timings["prepare_s"]}
            phases |= {key: engine_s[key] for key in ("pause_s", "transfer_s", "load_s", "resume_s")}
            found.append(phases)
        return found[1:]  # an engine's first steps are slow
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        sender.close()
        await engine.close()


async def _generate(engine: Any, sampling: Any, number: int) -> None:
    """One request after another, until cancelled."""
    count = 0
    while True:
        await engine.generate([1 + number, 2, 3], sampling, f"bench-{number}-{count}")
        count += 1


def _report_engine(report: Report, found: list[dict[str, float]], num_bytes: int) -> None:
    for phase in ENGINE_PHASES:
        sample = Samples(f"engine: {phase}", "bytes")
        for phases in found:
            seconds = max(phases[f"{phase}_s"], 1e-9)
            sample.add(Slice(num_bytes, seconds, [seconds]))
            sample.end_run()
        report.rows.append(sample.row())
    # What a transfer takes, whichever end does the work: from the first byte asked for to the last one in place.
    report.ratio(
        "pause_over_transfer",
        [phases["pause_s"] / (phases["transfer_s"] + phases["load_s"]) for phases in found],
        PAUSE_GOAL,
    )
    still = [sum(phases[f"{phase}_s"] for phase in ENGINE_PHASES if phase != "prepare") for phases in found]
    report.notes["engine"] = (
        f"generation of {REQUESTS} requests stood still for {statistics.median(still):.2f} s an update (median of "
        f"{len(still)})"
    )
