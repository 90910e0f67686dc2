"""Peers that the executor is compared with, each a process of its own that measures itself or is measured from here.

    fork        F: os.fork, os._exit, waitpid, in a process with the fork server's modules and a frozen collector
    python      a fresh `python -I` for every execution
    bubblewrap  the same inside `bwrap --unshare-all`, where it is installed and works
    pebble      a warm pebble pool that runs programs in process, without isolation: the public reference's way

None of these but bubblewrap protects anything. They run the benchmark's own program, and recorded work that `mix.py`
found fit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from executor.sandbox.jail import die_with_parent
from executor.user_error import UserError
from launch.bench.report import Slice

ANSWER_TIMEOUT_S = 30.0
"""Seconds that a peer may take to start, or to answer beyond the time that it was told to measure."""

ROOT = str(Path(__file__).resolve().parents[2])

# The interpreter, the modules, the state and the frozen collector of the fork server, but no wall: see zygote.main.
_FORK = """
import sys
sys.path.append(sys.argv[1])
from executor.policy import facades
from executor.sandbox import keeper
from executor.sandbox import zygote
sys.path.pop()
import gc, json, os, time
facades.load_codecs()
server = zygote.Zygote(True, frozenset())
gc.collect()
gc.freeze()
gc.disable()
print("{}", flush=True)
for line in sys.stdin:
    seconds = json.loads(line)["seconds"]
    latencies = []
    started = now = time.perf_counter()
    while not latencies or now - started < seconds:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        done = time.perf_counter()
        latencies.append(done - now)
        now = done
    print(json.dumps({"seconds": now - started, "latencies_s": latencies}, allow_nan=False), flush=True)
"""

_ONCE = """
import ast, sys
program, text = sys.stdin.read().split("\\0")
namespace = {}
exec(program, namespace)
print(repr(namespace["f"](*ast.literal_eval("(" + text + ",)"))))
"""

_REFERENCE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from launch.bench import reference; reference.main()"
)


class PeerError(UserError):
    """A peer that cannot be had here; the text says what would mend it."""

    exit_code = 1


class LineProcess:
    """A child process that answers one JSON line with one JSON line, in a process group of its own.

    It says a line when it is ready. Raises PeerError where it does not start.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its peers
            preexec_fn=die_with_parent,  # noqa: PLW1509 (it calls one function of the kernel)
        )
        self._buffer = b""
        try:
            self._read(ANSWER_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def ask(self, message: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """Send a message and wait for the answer, `seconds` longer than a peer may take anyhow. Raises PeerError."""
        self.tell(message)
        return self.answer(seconds)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; `answer` is due next. Raises PeerError."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message, allow_nan=False).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self._name} died") from None

    def answer(self, seconds: float = 0.0) -> dict[str, Any]:
        """Wait for the answer to what was told. Raises PeerError."""
        answer = self._read(seconds + ANSWER_TIMEOUT_S)
        if "error" in answer:
            raise PeerError(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it and all that it started, and reap it."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PeerError(f"{self._name} did not answer within {timeout_s:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 20)
            if not part:
                raise PeerError(f"{self._name} died (exit code {self._process.wait()})")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class Fork(LineProcess):
    """F, the limit that the executor is compared with."""

    def __init__(self) -> None:
        super().__init__(
            "the fork peer",
            [sys.executable, "-P", "-s", "-S", "-B", "-c", _FORK, ROOT],
            {"PYTHONHASHSEED": "1"},
        )

    def measure(self, seconds: float) -> Slice:
        """Fork for `seconds`."""
        answer = self.ask({"seconds": seconds}, seconds)
        return Slice(len(answer["latencies_s"]), answer["seconds"], answer["latencies_s"])


class Reference(LineProcess):
    """The pebble pool and its driver; see `reference.py`."""

    def __init__(self, workers: int, timeout_s: float, memory_mb: int) -> None:
        if importlib.util.find_spec("pebble") is None:
            raise PeerError("pebble is not installed; pip install 'azr[bench]'")
        super().__init__(
            "the reference's way", [sys.executable, "-P", "-c", _REFERENCE, json.dumps(sys.path, allow_nan=False)]
        )
        try:
            self.ask({"op": "start", "workers": workers, "timeout_s": timeout_s, "memory_mb": memory_mb})
        except BaseException:
            self.close()
            raise

    def measure(self, program: str, seconds: float) -> Slice:
        """Single executions of `program` on one integer, one after another, for `seconds`."""
        answer = self.ask({"op": "single", "program": program, "seconds": seconds}, seconds)
        return Slice(len(answer["latencies_s"]), answer["seconds"], answer["latencies_s"])

    def load(self, path: Path) -> int:
        """Read a mix; returns the number of its items."""
        return int(self.ask({"op": "load", "path": str(path)})["items"])

    def judge(self, allowed_s: float, in_flight: int | None = None) -> tuple[float, list[list[str]]]:
        """Judge the mix once: the seconds that it took, and the findings of every item, in order.

        `in_flight` items at a time; None: one execution after another, as published.
        """
        operation = {"op": "judge", "in_flight": in_flight} if in_flight else {"op": "judge_as_published"}
        answer = self.ask(operation, allowed_s)
        return float(answer["seconds"]), answer["findings"]


def fresh_python(program: str, text: str, wrapper: tuple[str, ...] = ()) -> str:
    """Evaluate `f(text)` of `program` in a new interpreter; returns the `repr` of the value. Raises PeerError."""
    command = [*wrapper, sys.executable, "-I", "-c", _ONCE]
    try:
        done = subprocess.run(
            command, input=f"{program}\0{text}", capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise PeerError(f"{command[0]} failed with exit code {done.returncode}: {''.join(last)}")
    return done.stdout.strip()


def bubblewrap() -> tuple[str, ...]:
    """The command that wraps another in namespaces of its own, tried once. Raises PeerError where there is none."""
    found = shutil.which("bwrap")
    if found is None:
        raise PeerError("bwrap is not installed; it is in the package bubblewrap of most distributions")
    wrapper = (found, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    try:
        fresh_python("def f(x):\n    return x", "1", wrapper)
    except PeerError as error:
        raise PeerError(f"bwrap is installed but does not work here: {error}") from None
    return wrapper
