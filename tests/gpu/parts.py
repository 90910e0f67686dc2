"""The parts of the suite: the command of each, and for how long it may run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXECUTOR = tuple(f"tests/unit/executor/test_{name}.py" for name in ("judge", "determinism", "azr_traps", "pool"))
BENCH_S = 125
"""Seconds after which the learner's benchmark begins no further measurement."""

Command = Callable[[Path, Path, bool], list[str]]
"""(file for the findings, folder for temporary files, whether this is a dry run) -> command line."""


@dataclass(frozen=True)
class Part:
    """A process of the suite."""

    name: str
    about: str
    limit_s: float
    """Seconds after which it is stopped."""
    command: Command
    bench: bool = False
    """Whether it measures speed, and so runs alone, after the tests. Its findings are a report of `azr bench`."""
    dry_within: str = ""
    """The part that does its work in a dry run: fewer processes, which take longer to start than to do it."""


def pytest_on(*selection: str, dry: tuple[str, ...] = (), conftest: str = "") -> Command:
    """Return the command that runs pytest on `selection`, or in a dry run on `dry` if it is given.

    Neither a configuration nor a plugin has a say in it, nor a conftest.py, but for those in the folder `conftest`:
    that of tests/ needs packages that a bare machine lacks.
    """

    def command(findings: Path, folder: Path, is_dry: bool) -> list[str]:
        return [
            sys.executable, "-m", "pytest", "-v", "-c", "/dev/null", f"--rootdir={ROOT}", "--import-mode=importlib",
            "-W", "ignore", "-p", "no:cacheprovider", "-p", "tests.gpu.findings", f"--findings={findings}",
            f"--basetemp={folder / 'tmp'}", f"--confcutdir={ROOT / conftest}" if conftest else "--noconftest",
            *((is_dry and dry) or selection),
        ]  # fmt: skip

    return command


def bench_learner(findings: Path, folder: Path, is_dry: bool) -> list[str]:
    """Return the command of the learner's benchmark."""
    suite = ("--suite", "tiny") if is_dry else ("--suite", "gpu", "--seconds", str(BENCH_S))
    return [sys.executable, "-m", "launch.cli", "bench", "learner", *suite, "--json", str(findings)]


LEARNER = "tests/gpu/test_learner.py"
ATTENTION = "tests/unit/learner/model/test_tree_attention.py"
SANDBOX = "tests/gpu/test_executor.py"
PARTS = (
    # The longest first: of the tests only some run at once.
    Part(
        "weights",
        "the broadcast over NCCL; a rank killed or stopped in the middle",
        140,  # six tests may wait for a deadline of 8 s
        pytest_on("tests/gpu/test_weights.py"),
    ),
    Part(
        "qwen3",
        "a Qwen3 against transformers: float32, bfloat16, a step; packed sequences against each alone",
        100,
        pytest_on(LEARNER, "-k", "qwen3 or packed", dry=(LEARNER,)),
    ),
    Part("llama", "a Llama against transformers", 75, pytest_on(LEARNER, "-k", "llama"), dry_within="qwen3"),
    Part("qwen2", "a Qwen2 against transformers", 75, pytest_on(LEARNER, "-k", "qwen2"), dry_within="qwen3"),
    Part(
        "attention",
        "attention over shared prompts, compiled, against the CPU's kernels",
        60,
        # On a GPU without the property tests: a kernel would be compiled for each of their examples. `make check` has
        # those of the CPU.
        pytest_on(ATTENTION, "-k", "real_models or (compiled and cuda)", dry=(ATTENTION, "-k", "few_numbers_of_rows")),
    ),
    Part("devices", "losses, steps and checkpoints against the CPU's", 75, pytest_on("tests/gpu/test_devices.py")),
    Part(
        "executor",
        "the sandbox and its judge on this kernel",
        60,
        pytest_on(SANDBOX, *EXECUTOR, dry=(SANDBOX,), conftest="tests/unit/executor"),
    ),
    Part("learner-bench", "the learner's speed beside transformers", BENCH_S + 60, bench_learner, bench=True),
)
"""Even if every one of them hangs, the suite takes less than six minutes."""
