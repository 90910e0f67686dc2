"""Every layer of the wall by itself: with it alone an attempt fails that succeeds with none at all.

The policy is off, and so is every other layer. These are the only sandboxes in the project that a program could leave;
the programs are the tests' own and do no harm.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from executor.layers import ALL, NAMESPACES, Layer, Tier, tier_of
from executor.literals import parse_literal
from executor.outcomes import InfrastructureError, Limits, Outcome, Status
from executor.pool import SandboxPool
from executor.sandbox.sandbox import Sandbox
from executor.settings import ExecutorSettings

ROOT = Path(__file__).resolve().parents[4]
BY_THE_MACHINE = NAMESPACES | {Layer.LANDLOCK, Layer.CGROUP}
"""What a kernel or a container may not permit; nothing that could be installed helps."""
UNSAFE = ExecutorSettings(allow_unsafe=True, timeout_s=5, memory_mb=64)
_C = "import ctypes\nlibc = ctypes.CDLL(None)\n"


def run(program: str, layers: Collection[Layer]) -> Outcome:
    """What a sandbox of these layers says of `f(1)`; skips where the machine does not have one of them."""
    sandbox = Sandbox(UNSAFE, 1, gate=False, layers=frozenset(layers))
    sandbox.start()
    try:
        for layer in layers:
            if sandbox.layers[layer] and layer in BY_THE_MACHINE:
                pytest.skip(f"this machine has no {layer}: {sandbox.layers[layer]}")
            assert not sandbox.layers[layer]
        return sandbox.execute(program, ["1"])[0]
    finally:
        sandbox.close()


def value(outcome: Outcome) -> Any:
    assert outcome.status is Status.OK, outcome
    return parse_literal(outcome.value)


# layer: (others that it needs, program, what it gives without, what it gives with)
ALONE: dict[Layer, tuple[set[Layer], str, Callable[[Outcome], bool], Callable[[Outcome], bool]]] = {
    Layer.SECCOMP: (
        {Layer.NO_NEW_PRIVS},
        _C + "def f(x): return libc.socket(1, 1, 0) >= 0",
        lambda outcome: value(outcome) is True,
        lambda outcome: outcome.status is Status.UNSAFE,
    ),
    Layer.LANDLOCK: (
        {Layer.NO_NEW_PRIVS},
        "def f(x): return open('/proc/self/status').read(5)",
        lambda outcome: value(outcome) == "Name:",
        lambda outcome: outcome.detail == "PermissionError",
    ),
    Layer.NO_NEW_PRIVS: (
        set(),
        _C + "def f(x): return libc.prctl(39, 0, 0, 0, 0)",
        lambda outcome: value(outcome) == 0 or "NoNewPrivs:\t1" in Path("/proc/self/status").read_text(),  # inherited
        lambda outcome: value(outcome) == 1,
    ),
    Layer.RLIMITS: (
        set(),
        "def f(x): return len(bytearray(1 << 28))",
        lambda outcome: value(outcome) == 1 << 28,
        lambda outcome: outcome.status is Status.MEMORY,
    ),
    Layer.MOUNT_NAMESPACE: (
        {Layer.USER_NAMESPACE},
        "import os\ndef f(x): return len(os.listdir('/'))",
        lambda outcome: value(outcome) > 0,
        lambda outcome: value(outcome) == 0,
    ),
    Layer.UNPRIVILEGED: (
        set(),
        "def f(x):\n status = open('/proc/self/status').read()\n return int(status.split('CapEff:')[1].split()[0], 16)",
        lambda outcome: value(outcome) > 0 or os.geteuid() != 0,
        lambda outcome: value(outcome) == 0,
    ),
    Layer.CGROUP: (
        set(),
        "def f(x): return 'azr-sandbox' in open('/proc/self/cgroup').read()",
        lambda outcome: value(outcome) is False,
        lambda outcome: value(outcome) is True,
    ),
}
for _layer in sorted(
    NAMESPACES - {Layer.MOUNT_NAMESPACE}
):  # in one order: parallel workers compare what they collected
    _name = _layer.removesuffix("_namespace")
    _own = os.readlink(f"/proc/self/ns/{_name}")
    ALONE[_layer] = (
        {Layer.USER_NAMESPACE, Layer.UNPRIVILEGED},  # root makes a user namespace when it becomes nobody
        f"import os\ndef f(x): return os.readlink('/proc/self/ns/{_name}')",
        lambda outcome, own=_own: value(outcome) == own,  # type: ignore[misc]
        lambda outcome, own=_own: value(outcome) != own,  # type: ignore[misc]
    )


@pytest.mark.parametrize("layer", ALONE)
def test_layer_alone(layer: Layer) -> None:
    needed, program, without, with_it = ALONE[layer]
    assert without(run(program, set())), "it fails without any layer, so it shows nothing"
    assert with_it(run(program, {layer, *needed}))


def test_descriptors_and_environment_need_no_layer() -> None:
    """They are how a sandbox is started: its own pipe and the null device are open, and no variable is set."""
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    os.environ["AZR_TEST_SECRET"] = "1"
    try:
        program = (
            "import os\ndef f(x):\n found = {}\n for n in os.listdir('/proc/self/fd'):\n"
            "  try: found[int(n)] = os.readlink('/proc/self/fd/' + n)\n"
            "  except FileNotFoundError: pass  # that of listdir itself\n return found"
        )
        opened = value(run(program, set()))
        assert [opened.pop(fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
        (left,) = opened.values()
        assert left.startswith("pipe:")
        environment = value(run("import os\ndef f(x): return dict(os.environ)", set()))
        assert set(environment) <= {"PYTHONHASHSEED", "LC_CTYPE"}
    finally:
        os.close(secret)
        del os.environ["AZR_TEST_SECRET"]


def test_every_layer_is_covered() -> None:
    assert set(ALONE) | {Layer.DESCRIPTORS, Layer.ENVIRONMENT} == ALL


def test_tiers() -> None:
    assert tier_of(ALL) is Tier.A
    assert tier_of(ALL - {Layer.CGROUP, Layer.USER_NAMESPACE, Layer.UTS_NAMESPACE}) is Tier.A
    assert tier_of(ALL - {Layer.PID_NAMESPACE}) is Tier.B
    assert tier_of(ALL - {Layer.LANDLOCK}) is Tier.C
    assert tier_of(ALL - {Layer.SECCOMP}) is Tier.D


def test_a_weak_wall_is_refused_unless_allowed_and_then_marked() -> None:
    with pytest.raises(InfrastructureError, match="allow_unsafe"):
        Sandbox(ExecutorSettings(), 1, layers=ALL - {Layer.SECCOMP}).start()
    assert not run("def f(x): return x", ALL - {Layer.SECCOMP, Layer.CGROUP} - NAMESPACES).isolated
    assert run("def f(x): return x", {Layer.SECCOMP, Layer.NO_NEW_PRIVS, Layer.RLIMITS}).isolated


def test_a_required_layer_that_is_missing_is_named() -> None:
    settings = ExecutorSettings(require=(Layer.SECCOMP, Layer.LANDLOCK))
    sandbox = Sandbox(settings, 1, layers=ALL - {Layer.LANDLOCK})
    with pytest.raises(InfrastructureError, match=r"landlock: switched off.*azr doctor"):
        sandbox.start()
    assert sandbox.pid is None


def test_limits_of_a_request() -> None:
    async def statuses() -> list[Status]:
        pool = SandboxPool(ExecutorSettings(timeout_s=5, memory_mb=128, output_bytes=1000))
        await pool.start()
        try:
            loop = "def f(x):\n while x: pass\n return [0] * x"
            tight = Limits(timeout_s=0.1, memory_mb=32, output_bytes=64)
            found = [
                await pool.execute(loop, ["1"], limits=tight),
                await pool.execute("def f(x): return len(bytearray(x))", [str(64 << 20)], limits=tight),
                await pool.execute("def f(x): return [0] * x", ["100"], limits=tight),
                await pool.execute("def f(x): return len(bytearray(x))", [str(64 << 20)]),
                await pool.execute("def f(x): return [0] * x", ["100"]),
            ]
            with pytest.raises(ValueError, match=r"executor\.memory_mb = 128"):
                await pool.execute(loop, ["0"], limits=Limits(1, 256, 64))
            return [outcomes[0].status for outcomes in found]
        finally:
            await pool.close()

    assert asyncio.run(statuses()) == [Status.TIMEOUT, Status.MEMORY, Status.OUTPUT_TOO_LARGE, Status.OK, Status.OK]


def test_a_user_without_privileges_gets_a_wall_too() -> None:
    """Without capabilities, and with none to be had by exec, root is an ordinary user who can read root's files."""
    program = """
import ctypes, struct
libc = ctypes.CDLL(None)
if libc.prctl(28, 3, 0, 0, 0) == 0:  # SECBIT_NOROOT, locked; refused to whoever is an ordinary user already
    assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
from executor.sandbox.sandbox import Sandbox
from executor.settings import ExecutorSettings
sandbox = Sandbox(ExecutorSettings(), 1)
sandbox.start()
print(sandbox.tier, sandbox.execute("def f(x): return x + 1", ["1"])[0].value)
sandbox.close()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["A", "2"], ["B", "2"])  # B where user namespaces are switched off
