"""Fixtures of clusters for tests of `launch/slurm`: `loopback`, `ordinary` and `hosts`.

A cluster starts once a session, in two seconds; after each test its jobs are ended and lost nodes are there again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Loopback, missing_programs
from tests.slurm.hosts import Hosts, HostsRefused

HERE = Path(__file__).parent
ORDINARY_USER = "games"
"""An account that every Debian has, and that owns nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder. Without SLURM they are skipped; in CI, where it is to be installed, they fail."""
    missing = missing_programs()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if missing and not os.environ.get("CI"):
                reason = f"no {', '.join(missing)} here: install them with tests/slurm/install.sh"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def loopback_session() -> Iterator[Loopback]:
    yield from _started(Loopback())


@pytest.fixture(scope="session")
def ordinary_session() -> Iterator[Loopback]:
    if os.getuid():
        yield from _started(Loopback())
        return
    cluster = Loopback(ORDINARY_USER)
    readable = subprocess.run(cluster.inside("login", ["cat", __file__]), capture_output=True, check=False)
    if readable.returncode:
        pytest.skip(f"{ORDINARY_USER} cannot read {HERE}: {readable.stderr.decode().strip()}")
    yield from _started(cluster)


@pytest.fixture(scope="session")
def hosts_session() -> Iterator[Hosts]:
    if os.getuid():
        pytest.skip("hosts of their own need root")
    yield from _started(Hosts())


@pytest.fixture
def loopback(loopback_session: Loopback) -> Iterator[Loopback]:
    """Two nodes on this host, of the user who runs the tests."""
    yield loopback_session
    loopback_session.clear()


@pytest.fixture
def ordinary(ordinary_session: Loopback) -> Iterator[Loopback]:
    """Two nodes on this host, of a user who is not root."""
    yield ordinary_session
    ordinary_session.clear()


@pytest.fixture
def hosts(hosts_session: Hosts) -> Iterator[Hosts]:
    """A login host and two nodes with networks, names, files and processes of their own."""
    yield hosts_session
    hosts_session.clear()


def _started(cluster: Cluster) -> Iterator[Cluster]:
    try:
        try:
            cluster.start()
        except HostsRefused as refused:
            pytest.skip(str(refused))
        yield cluster
    finally:
        cluster.stop()
