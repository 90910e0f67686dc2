"""A sandbox as the supervisor uses it: start its fork server, send it requests, replace it when it is dead or hung.

Everything here blocks. A `Sandbox` belongs to the thread that starts it: the kernel kills the fork server when that
thread ends, so that nothing outlives the pool. `pool.py` gives every sandbox a thread of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.layers import ALL, Layer, Tier, tier_of
from executor.outcomes import DeadError, InfrastructureError, Limits, Outcome, Status
from executor.sandbox.cgroup import Cgroup
from executor.sandbox.pipes import Pipes
from executor.sandbox.request import Exchange, Operation, Request
from executor.settings import ExecutorSettings

START_TIMEOUT_S = 60.0
"""Seconds for the start of a fork server. They allow for a cold interpreter on a slow file system."""
_STOP_TIMEOUT_S = 5.0
_SERVER_BYTES = 128 << 20
"""Memory in a control group for the fork server and its keeper, besides that for two executions."""
# -P -s -S: nothing but the standard library on the path. Not -I, which would ignore the hash seed.
_BOOT = "import sys, json; sys.path.append(sys.argv[1]); from executor.sandbox import keeper; sys.path.pop(); \
keeper.main(int(sys.argv[2]), json.loads(sys.argv[3]))"


def failed_twice(error: DeadError) -> InfrastructureError:
    """The error for a request on which two fork servers failed, the second with `error`."""
    return InfrastructureError(f"the sandbox failed twice on one request: {error}")


class Sandbox:
    """Runs requests on a fork server with one hash seed. Not thread-safe, except for `abort`.

    `gate=False` switches the policy off, which leaves the wall alone; `layers` are the layers to build, by default all.
    Both are for tests and measurements. The attribute `layers` says which are missing. Without a layer of
    `settings.require`, or without seccomp unless `settings.allow_unsafe`, it does not start.
    """

    def __init__(
        self, settings: ExecutorSettings, hash_seed: int, gate: bool = True, layers: frozenset[Layer] = ALL
    ) -> None:
        self._settings = settings
        self._limits = Limits.of(settings)
        self.hash_seed = hash_seed
        self._gate = gate
        self._wanted = layers
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Cgroup | None = None
        self._values: int | None = None
        self._aborted = False
        self._isolated = True
        self.layers: dict[Layer, str] = {}
        """Every layer with "" if it is active, or else the reason why not. Empty before the first start."""
        self.pipes: Pipes | None = None
        """The pipes to the fork server while it runs."""
        self.pid: int | None = None
        """The fork server's process id while it runs."""
        self.starts = 0
        """Number of fork servers started so far."""
        self.executions = 0
        """Number of children that were to run a program."""

    @property
    def tier(self) -> Tier:
        """The tier that the active layers amount to."""
        return tier_of([layer for layer, why in self.layers.items() if not why])

    def start(self) -> None:
        """Start the fork server. Raises InfrastructureError if that fails, or a layer is missing that is required."""
        missing = {layer: "switched off" for layer in Layer if layer not in self._wanted}
        if Layer.CGROUP in self._wanted:
            try:
                self._cgroup = Cgroup.create(2 * (self._limits.memory_mb << 20) + _SERVER_BYTES)
            except OSError as error:
                missing[Layer.CGROUP] = error.strerror or str(error)
        try:
            missing |= self._launch()
        except DeadError as error:
            code = self._process.poll() if self._process else None
            self.stop()
            raise InfrastructureError(f"the sandbox did not start: {error} (exit code {code})") from None
        self.layers = {layer: missing.get(layer, "") for layer in Layer}
        self._isolated = self.tier is not Tier.D
        self.starts += 1
        try:
            self._check_layers()
        except InfrastructureError:
            self.stop()
            raise

    def _launch(self) -> dict[Layer, str]:
        """Start the processes and wait until the wall is built. Returns the layers that it lacks, with the reasons."""
        self._values, values_end = os.pipe()
        config = {
            "gate": self._gate,
            "layers": sorted(self._wanted),
            "pin": self._settings.pin_cpus,
            "values": values_end,
            "cgroup": [str(folder) for folder in self._cgroup.folders] if self._cgroup else [],
        }
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, root, str(os.getpid()), json.dumps(config)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                # LD_BIND_NOW: no child has to look up symbols for itself.
                env={"PYTHONHASHSEED": str(self.hash_seed), "LD_BIND_NOW": "1"},
                cwd="/",
                start_new_session=True,
                pass_fds=(values_end,),
            )
        except OSError as error:
            self.stop()
            raise InfrastructureError(f"the sandbox's interpreter could not be started: {error}") from error
        finally:
            os.close(values_end)
        assert self._process.stdin and self._process.stdout
        pipes = Pipes(self._process.stdin.fileno(), self._process.stdout.fileno(), self._values)
        deadline = time.monotonic() + START_TIMEOUT_S
        # The keeper and the fork server both write here, in any order, and each in one piece.
        found: dict[str, Any] = {}
        while not found.keys() >= {"zygote", "missing"} and "error" not in found:
            found |= pipes.report(deadline)
        if "error" in found:
            self.stop()
            raise InfrastructureError(f"the wall could not be built, so no program is run: {found['error']}")
        self.pid, self.pipes = found["zygote"], pipes
        return {Layer(name): why for name, why in found["missing"].items()}

    def _check_layers(self) -> None:
        lacking = [layer for layer in self._settings.require if self.layers[layer]]
        if lacking:
            reasons = "; ".join(f"{layer}: {self.layers[layer]}" for layer in lacking)
            raise InfrastructureError(
                f"executor.require asks for layers that this machine lacks ({reasons}). `azr doctor` says what helps."
            )
        if self.tier is Tier.D and not self._settings.allow_unsafe:
            raise InfrastructureError(
                "the wall is too weak to run model-written programs: "
                + "; ".join(f"{layer}: {why}" for layer, why in self.layers.items() if why)
                + ". `azr doctor` says what helps; executor.allow_unsafe=true runs them all the same."
            )

    def execute(
        self,
        program: str,
        inputs: Sequence[str],
        limits: Limits | None = None,
        *,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """Run `f` of `program` on every input (the text between the parentheses of a call, literals only).

        Returns one outcome per input, aligned; with `fail_fast` those up to the first that is not ok. Every input has a
        child of its own. Raises values.CodecError for an input that is not literals, ValueError for a memory limit
        above the settings', InfrastructureError if the fork server fails twice.
        """
        limits = limits.within(self._limits) if limits else self._limits
        outcomes: list[Outcome] = []
        for given in inputs:
            outcomes += self.answer(Request.run(program, given, limits))
            if outcomes[-1].status is not Status.OK and fail_fast:
                return outcomes
        return outcomes

    def probe(
        self, program: str, inputs: Sequence[str], limits: Limits | None = None, *, stop_at_difference: bool = False
    ) -> list[Outcome]:
        """Run `f` of `program` on as many of `inputs` as one child has time for, see `Pool.probe`."""
        limits = limits.within(self._limits) if limits else self._limits
        return self.answer(Request.probe(program, inputs, limits, stop_at_difference)) if inputs else []

    def answer(self, request: Request) -> list[Outcome]:
        """Carry out `request`, on a second fork server if the first fails. Raises InfrastructureError."""
        for attempt in (1, 2):
            if self._aborted:
                break
            try:
                if self.pipes is None:
                    self.start()
                assert self.pipes
                exchange = self.exchange(request)
                self.pipes.exchange(exchange, request.timeout_s)
                return exchange.outcomes()
            except DeadError as error:
                self.stop()
                if attempt == 2 and not self._aborted:
                    raise failed_twice(error) from None
        raise InfrastructureError("the pool was closed")

    def exchange(self, request: Request) -> Exchange:
        """A new attempt at `request` on the running fork server."""
        self.executions += request.operation is Operation.RUN
        return Exchange(request, self._isolated)

    def abort(self) -> None:
        """Make a request that is under way in another thread fail soon. Only `close` may follow."""
        self._aborted = True
        process = self._process
        if process:
            process.terminate()

    def close(self) -> None:
        """End and reap the fork server; its children die with it."""
        self._aborted = True
        self.stop()

    def stop(self) -> None:
        """End and reap the fork server. It can be started again."""
        self.pid = self.pipes = None
        if self._values is not None:
            os.close(self._values)
            self._values = None
        if process := self._process:
            self._process = None
            # The keeper kills the fork server, and ends when every process inside has ended.
            process.terminate()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # the kernel then kills the rest
                process.wait()
        if self._cgroup:
            self._cgroup.remove()
            self._cgroup = None
