"""The shape of the source tree: packages that a built wheel holds completely."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[2]
PACKAGES = ("executor", "actors", "learner", "launch")
ONLY_IN_A_CHECKOUT = [Path("launch/setup_cpu.sh")]
"""`make setup` runs it before there is a package."""
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files_of(package: str) -> list[Path]:
    """The package's files, by their path from the root; caches left out."""
    found = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(ROOT) for path in found)


SOURCES = [path for package in PACKAGES for path in files_of(package) if path.suffix == ".py"]


def test_every_folder_with_source_is_a_package_that_setuptools_finds() -> None:
    found = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
    assert set(found) == {".".join(path.parent.parts) for path in SOURCES}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_is_package_data(package: str) -> None:
    """What is no Python source is named in `tool.setuptools.package-data`, or a built wheel lacks it."""
    patterns = SETUPTOOLS["package-data"]
    data = [path for path in files_of(package) if path.suffix != ".py" and path not in ONLY_IN_A_CHECKOUT]
    missing = [
        str(path)
        for path in data
        if not any(fnmatch(path.name, pattern) for pattern in patterns.get(".".join(path.parent.parts), []))
    ]
    assert missing == []


def test_every_pattern_of_package_data_names_a_file() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: {pattern}"
