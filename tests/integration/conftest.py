"""The folder in which the tests of a module make their runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that goes with its module, unless a test of it failed. pytest alone would keep it until the session's
    end, and each checkpoint of the 135M model is 1.8 GB."""
    failed = request.session.testsfailed
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    yield folder
    if request.session.testsfailed == failed:
        # A test that kills a driver may leave processes that still write there.
        shutil.rmtree(folder, ignore_errors=True)
