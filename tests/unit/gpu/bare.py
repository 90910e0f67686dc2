"""A Python environment like that of a bare GPU machine: torch, transformers and what they need, and nothing else.

Made of links into the environment that runs the tests, so that a package which is not linked is not there, for the
processes that a test starts, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.gpu.wheels import CARRIED, EXPECTED


def environment(folder: Path) -> tuple[Path, Path]:
    """Build one in `folder`. Returns its Python, and a folder for PYTHONPATH with the packages that are carried."""
    venv, packages = folder / "venv", folder / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    packages.mkdir()
    _link(_with_requirements(EXPECTED), site)
    _link([package for each in CARRIED.values() for package in each], packages)
    return venv / "bin" / "python", packages


def variables() -> dict[str, str]:
    """The variables of a user's shell there. This process has more of them, which change what torch does: an engine
    that another test started in this process turns torch.compile off."""
    names = ("HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH", "TMPDIR", "USER")
    return {name: os.environ[name] for name in names if name in os.environ}


def _with_requirements(names: Iterable[str]) -> set[str]:
    """`names` and all that they require, as far as it is installed here, by the names of distributions."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = distribution(name).requires or ()
        except PackageNotFoundError:  # requirements-cpu.lock leaves out what nothing imports
            continue
        found.add(name)
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name.lower())
    return found


def _link(names: Iterable[str], site: Path) -> None:
    """Link each of the files and folders that the distributions `names` have at the top of site-packages."""
    source = Path(sysconfig.get_paths()["purelib"])
    for name in names:
        for top in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(source / top)
