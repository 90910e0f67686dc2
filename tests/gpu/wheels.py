"""The packages that a bare machine lacks: collected as wheels where there is a package index, installed where there is
none.

The versions are those of requirements-cpu.lock. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "gpu-wheels"
"""The folder that travels with the tree. Git ignores it."""
PYTHON = "3.12"
"""The Python that the wheels are for by default."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
"""Kinds of Linux whose wheels fit: pip takes a name as it is, and no older one for it."""
CARRIED = {
    "megatron.core": ("megatron-core",),
    # In one: their versions belong together.
    "pydantic": ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    "msgpack": ("msgpack",),
    "tomli_w": ("tomli_w",),
    "psutil": ("psutil",),
    "rich": ("rich", "markdown-it-py", "mdurl", "Pygments"),
    "hypothesis": ("hypothesis", "sortedcontainers"),
}
"""Modules that the parts import, and the packages that bring each. They are installed where the module is missing."""
EXPECTED = ("torch", "transformers", "safetensors", "numpy", "pytest")
"""Modules that the machine has to have: too large to carry, or the very ones to be tested."""


class WheelError(Exception):
    """Packages that are missing; the message says what to do."""


def missing(modules: Sequence[str]) -> list[str]:
    """Return those of `modules` that this Python cannot import."""
    return [name for name in modules if not _found(name)]


def register_azr(target: Path) -> None:
    """Make the tree count as an installed package: write its entry points, such as the kinds of tasks, into `target`,
    a folder of PYTHONPATH."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = target / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [[f"[{name}]", *(f"{key} = {value}" for key, value in group.items())] for name, group in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(line for group in lines for line in group) + "\n")


def install(target: Path) -> list[str]:
    """Install what this machine lacks into the folder `target`, which is to lead PYTHONPATH; returns the packages.

    Raises WheelError where a package is neither here nor carried.
    """
    if absent := missing(EXPECTED):
        raise WheelError(f"this Python ({sys.executable}) lacks {', '.join(absent)}: run the Python that has torch")
    packages = [package for module in missing(list(CARRIED)) for package in CARRIED[module]]
    wheels = {package: _wheel(package) for package in packages}
    if absent := [package for package, wheel in wheels.items() if wheel is None]:
        raise WheelError(
            f"this Python ({sys.executable}) lacks {', '.join(absent)}. On a machine with a package index run "
            f"tests/gpu/pack, then bring {WHEELS.relative_to(ROOT)} here with the tree"
        )
    if packages:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(target)]
        done = subprocess.run([*command, *map(str, wheels.values())], capture_output=True, text=True, check=False)
        if done.returncode:
            raise WheelError(f"pip could not install {', '.join(packages)}:\n{done.stderr.strip()}")
    return packages


def pack(python: str = PYTHON, folder: Path = WHEELS) -> list[Path]:
    """Download the wheels of all carried packages for `python` into `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--implementation", "cp", "--python-version", python]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = subprocess.run([*command, "--dest", str(folder), *pins()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"pip could not download the wheels:\n{done.stderr.strip()}")
    return sorted(folder.glob("*.whl"))


def pins() -> list[str]:
    """Return NAME==VERSION of every carried package, as requirements-cpu.lock has it."""
    lock = (ROOT / "requirements-cpu.lock").read_text()
    names = [package for packages in CARRIED.values() for package in packages]
    found = {name: re.search(rf"(?im)^{re.escape(name)}==\S+", lock) for name in names}
    if absent := [name for name, match in found.items() if not match]:
        raise WheelError(f"requirements-cpu.lock has no {', '.join(absent)}")
    return [match.group() for match in found.values() if match]


def main(argv: Sequence[str] | None = None) -> int:
    """`tests/gpu/pack`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tests/gpu/pack",
        description="Collect the wheels that tests/gpu/run installs on a machine without a package index. Run it where "
        f"there is one, then bring the tree with {WHEELS.relative_to(ROOT)} there.",
    )
    parser.add_argument("--python", default=PYTHON, metavar="X.Y", help="the Python there (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        files = pack(arguments.python)
    except WheelError as error:
        print(f"tests/gpu/pack: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file.stat().st_size / 1e6:6.1f} MB  {file.relative_to(ROOT)}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:6.1f} MB  together")
    return 0


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent is missing
        return False


def _wheel(package: str) -> Path | None:
    stem = re.sub(r"[-_.]+", "_", package).lower()
    found = [file for file in WHEELS.glob("*.whl") if file.name.lower().startswith(f"{stem}-")]
    return found[-1] if found else None
