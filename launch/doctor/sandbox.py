"""The section of `azr doctor` about the sandbox: its layers, and attempts that must fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

from executor.layers import NAMESPACES, PURPOSE, TIER_MEANING, Layer, Tier
from executor.outcomes import InfrastructureError, Status
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from launch.config import Config
from launch.doctor.report import Check, CheckState, Section

_C = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
_KILLED: tuple[str, ...] = ()
_REFUSED = ("PermissionError", "FileNotFoundError", "OSError")
_ATTEMPTS = {
    "open a socket": (_C + "def f(x): return libc.socket(2, 1, 0)", _KILLED),
    "start a process": (_C + "def f(x): return os.fork() and 1", _KILLED),
    "start a thread": ("import _thread\ndef f(x): return _thread.start_new_thread(int, ())", _KILLED),
    "signal its server": ("import os\ndef f(x): return os.kill(os.getppid(), 0)", _KILLED),
    "read a file": ("def f(x): return open('/etc/passwd').read(1)", _REFUSED),
    "write a file": ("import os\ndef f(x): return os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", _REFUSED),
    "list processes": ("import os\ndef f(x): return os.listdir('/proc')", _REFUSED),
}
"""Attempts that an intact sandbox stops: the program, and the exceptions that stop it (none: the program is killed).
All are harmless where they are not stopped."""


def sandbox(config: Config) -> Section:
    """The layers of the sandbox, and whether it holds."""
    required = config.executor.require
    # Whatever is missing shall be listed here, not stop the start.
    settings = config.executor.model_copy(update={"workers": 2, "require": (), "allow_unsafe": True})
    try:
        return asyncio.run(_sandbox(settings, required))
    except InfrastructureError as error:
        failed = Check(
            "start", CheckState.FAILED, str(error), "a sandbox that starts, and passes its own test", "see why"
        )
        return Section("sandbox", (failed,), "does not start")


async def _sandbox(settings: ExecutorSettings, required: tuple[Layer, ...]) -> Section:
    pool = SerialPool(settings, gate=False)  # the wall alone: the policy would refuse what is tried below
    await pool.start()
    try:
        checks = [_layer(layer, pool.layers.get(layer, "not reported"), layer in required) for layer in Layer]
        tier = pool.tier
        checks += [await _attempt(pool, name, *attempt) for name, attempt in _ATTEMPTS.items()]
        checks.append(await _determinism(pool))
    finally:
        await pool.close()
    if tier is Tier.D:
        checks.append(Check("tier", CheckState.FAILED, f"D: {TIER_MEANING[tier]}", mend=_mend(Layer.SECCOMP)))
    return Section("sandbox", tuple(checks), f"tier {tier}, {TIER_MEANING[tier]}", {"tier": tier.value})


def _layer(layer: Layer, missing: str, required: bool) -> Check:
    if not missing:
        return Check(layer, CheckState.ON, "", f"stops {PURPOSE[layer]}")
    why = f"{missing}; executor.require asks for it" if required else missing
    state = CheckState.FAILED if required else CheckState.OFF
    return Check(layer, state, why, f"would stop {PURPOSE[layer]}", _mend(layer))


async def _attempt(pool: SerialPool, name: str, program: str, stopped_by: tuple[str, ...]) -> Check:
    """Try a program that the sandbox must stop, and check how it was stopped: an error can have other causes."""
    (outcome,) = await pool.execute(program, ["1"], 0)
    detail = f"{outcome.status}{f': {outcome.detail}' if outcome.detail else ''}"
    killed = stopped_by is _KILLED and outcome.status is Status.UNSAFE
    if killed or (outcome.status is Status.ERROR and outcome.detail in stopped_by):
        return Check(f"cannot {name}", CheckState.ON, f"tried: {detail}")
    return Check(f"cannot {name}", CheckState.FAILED, f"tried, and not stopped: {detail}", mend="mend the layers above")


async def _determinism(pool: SerialPool) -> Check:
    """Check that two sandboxes differ where a program must not depend on it, and agree elsewhere."""
    hashes, sums = [
        [(await pool.execute(program, ["1"], worker))[0].value for worker in (0, 1)]
        for program in ("def f(x): return hash('a')", "def f(x): return x + 1")
    ]
    holds = hashes[0] != hashes[1] and sums == ["2", "2"]
    purpose = "finds programs that depend on hash order or addresses: two sandboxes differ in their hash seed"
    return Check(
        "determinism", CheckState.ON if holds else CheckState.FAILED, "" if holds else f"{hashes}, {sums}", purpose
    )


_SWITCHES = {
    "user.max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=15000"),
    "kernel.unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "kernel.apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this Python",
    ),
}
"""Switches of the kernel that forbid namespaces to ordinary users: the value that does, and the mend."""
_CONTAINER = (
    "in a container: --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --cap-add SYS_ADMIN"
)
_MENDS = {
    Layer.SECCOMP: "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64; in a container or a service, a profile "
    "that permits it (--security-opt seccomp=unconfined)",
    Layer.LANDLOCK: "a kernel >= 5.13 with CONFIG_SECURITY_LANDLOCK and landlock in its lsm= list (`cat "
    "/sys/kernel/security/lsm`); in a container, a runtime whose profile permits landlock_*, or --security-opt "
    "seccomp=unconfined",
    Layer.UNPRIVILEGED: "run azr as an ordinary user; as root in a container, one that keeps CAP_SETUID and CAP_SETGID",
    Layer.CGROUP: "cgroup v2 with a delegated group: systemd-run --user --scope -p Delegate=yes azr ...; in a "
    "container, /sys/fs/cgroup mounted writable; under SLURM, proctrack/cgroup with delegation",
}


def _mend(layer: Layer, switches: Path = Path("/proc/sys")) -> str:
    """Instructions for getting a missing layer, as precise as the machine's own switches allow."""
    if layer not in NAMESPACES:
        return _MENDS.get(layer, "every Linux has it: please report this as a defect of azr, with this report")
    closed = []
    for name, (bad, mend) in _SWITCHES.items():
        path = switches / name.replace(".", "/")
        if path.is_file() and path.read_text().strip() == bad:
            closed.append(f"{mend} (as root; it is {bad} now)")
    return "; ".join([*closed, _CONTAINER])
