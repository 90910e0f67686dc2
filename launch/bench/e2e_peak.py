"""Measures the matrix peak of a learner rank's device: `python -m launch.bench.e2e_peak ORDER`.

ORDER is JSON: `model` (a folder), `cpus` (cores; none: all), `threads` (0: as many as cores), `beside` (cores of the
actors; none: leave that out). Prints JSON, in floating-point operations a second of the best bfloat16 product, those of
the model's own shapes among them: `alone`, and `beside`, while each of the actors' cores multiplies, too. Two virtual
cores can be two threads of one real core: then `beside` is far less than `alone`.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

PEAK_ROWS = 2048
_ON_GPU = 8192
"""Rows, inner size and columns of the product on a GPU."""
_LOAD = 1024
"""Rows, inner size and columns of the product on the actors' cores."""


def main() -> None:
    """Measure as the command line says, and print the result."""
    import torch

    from executor.cpus import allowed_cpus, pin
    from launch.bench.learner_side import peak_gflops
    from learner.model.architecture import Architecture

    order = json.loads(sys.argv[1])
    if torch.cuda.is_available():
        print(json.dumps({"alone": _on_gpu()}, allow_nan=False))
        return
    pin(order["cpus"])
    torch.set_num_threads(order["threads"] or allowed_cpus())
    shape = Architecture.read(Path(order["model"]))
    found = {"alone": 1e9 * peak_gflops(shape, PEAK_ROWS)[0]}
    if order["beside"]:
        with _busy(order["beside"]):
            found["beside"] = 1e9 * peak_gflops(shape, PEAK_ROWS)[0]
    print(json.dumps(found, allow_nan=False))


@contextmanager
def _busy(cpus: Sequence[int]) -> Iterator[None]:
    """While the block runs, a process on each of `cpus` multiplies matrices."""
    context = multiprocessing.get_context("spawn")
    begun = [context.Event() for _ in cpus]
    processes = [
        context.Process(target=_multiply, args=(cpu, event), daemon=True)
        for cpu, event in zip(cpus, begun, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        for event in begun:
            if not event.wait(60.0):
                raise RuntimeError("no process came up on the actors' cores")
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _multiply(cpu: int, begun: Event) -> None:
    import torch

    from executor.cpus import pin

    pin([cpu])
    torch.set_num_threads(1)
    left, right = (torch.randn(_LOAD, _LOAD, dtype=torch.bfloat16) for _ in range(2))
    while True:
        torch.mm(left, right)
        begun.set()


def _on_gpu() -> float:
    import torch

    left, right = (torch.randn(_ON_GPU, _ON_GPU, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(left, right)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * _ON_GPU**3 / best


if __name__ == "__main__":
    main()
