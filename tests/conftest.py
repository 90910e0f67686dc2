"""What holds for every test: few threads, hypothesis without deadlines, one worker for all tests of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

import tests.examples  # noqa: F401  (registers the profiles)

settings.load_profile("fast")

# Before torch is imported. Test models are tiny: more threads cost more than they give, and threads that spin at a
# barrier take the core from the one that they wait for. What needs more sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(tryfirst=True)  # before the plugin of the workers reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, the tests of one file share one, and with it the file's fixtures. The longest files come first."""

    def cost(path: Path) -> int:
        """0 for the files that take longest: whole runs, then ranks of Megatron, then all others, each in their order."""
        return 0 if path.parent.name == "integration" else 1 if path.parent.name == "model" else 2

    items.sort(key=lambda item: cost(item.path))
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
