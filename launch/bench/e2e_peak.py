"""Measures the matrix peak of a learner rank's device: `python -m launch.bench.e2e_peak ORDER`.

ORDER is JSON: `model` (a folder), `cpus` (cores; none: all), `threads` (0: as many as cores). Prints floating-point
operations a second of the best bfloat16 product, those of the model's own shapes among them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PEAK_ROWS = 2048
_ON_GPU = 8192
"""Rows, inner size and columns of the product on a GPU."""


def main() -> None:
    """Measure as the command line says, and print the result."""
    import torch

    from executor.cpus import allowed_cpus, pin
    from launch.bench.learner_side import peak_gflops
    from learner.model.architecture import Architecture

    order = json.loads(sys.argv[1])
    if torch.cuda.is_available():
        print(_on_gpu())
        return
    pin(order["cpus"])
    torch.set_num_threads(order["threads"] or allowed_cpus())
    print(1e9 * peak_gflops(Architecture.read(Path(order["model"])), PEAK_ROWS)[0])


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
