"""What must be equal on all nodes of a job: versions, code, clocks, and the run folder."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("executor", "actors", "learner", "launch")
CLOCK_S = 5.0
"""Largest difference between two nodes' clocks. Deadlines, the run's owner and merged logs compare times of several."""


@dataclass(frozen=True)
class Facts:
    """What an agent says of its node when it joins."""

    index: int
    node: str
    nonce: str
    """As the folder of the attempt has it on that node."""
    versions: dict[str, str]
    """What is compared -> its version there."""
    clock: float
    """Seconds since the epoch when the agent sent this."""

    def to_message(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Facts:
        """Read what `to_message` gave. Raises ValueError."""
        try:
            return cls(
                index=int(message["index"]),
                node=str(message["node"]),
                nonce=str(message["nonce"]),
                versions={str(name): str(value) for name, value in dict(message["versions"]).items()},
                clock=float(message["clock"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no facts of a node: {error}") from None


def own_facts(index: int, node: str, nonce: str, versions: dict[str, str]) -> Facts:
    """The facts of this node at this moment; `versions`: `own_versions()`, which takes a while."""
    return Facts(index, node, nonce, versions, time.time())


def own_versions() -> dict[str, str]:
    """The versions on this node of what must be equal on all. Imports none of it."""
    return {
        "Python": platform.python_version(),
        "azr": f"{_version('azr')}, code {code_digest()}",
        "Ray": _version("ray"),
        "torch": _version("torch"),
    }


def code_digest() -> str:
    """A digest of this project's source files, as they are on this node: installations of one version may differ."""
    root = Path(__file__).parents[2]
    digest = hashlib.blake2b(digest_size=4)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def differences(head: Facts, other: Facts, clock_ahead_s: float, uncertain_s: float) -> Iterable[str]:
    """What keeps `other` from joining a job whose first node is `head`, one sentence each.

    `clock_ahead_s`: how far its clock is ahead, known to within `uncertain_s` seconds.
    """
    if other.nonce != head.nonce:
        yield f"{other.node} sees another folder of this attempt than {head.node}: the run folder is not shared by them"
    for name, here in head.versions.items():
        there = other.versions.get(name, "none")
        if there != here:
            yield f"{other.node} has {name} {there}, and {head.node} has {here}: install the same on all nodes"
    if abs(clock_ahead_s) - uncertain_s > CLOCK_S:
        way = "ahead of" if clock_ahead_s > 0 else "behind"
        yield (
            f"the clock of {other.node} is {abs(clock_ahead_s):.0f} s {way} that of {head.node}: set them by NTP "
            f"(at most {CLOCK_S:.0f} s are accepted)"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
