"""A Ray cluster over two hosts that are really separate: networks, names, /etc/hosts, /tmp and processes of their own.

The hosts are those of `tests/slurm/hosts.py`, without SLURM. /etc/hosts is as Debian installs it, so each host's name
leads to 127.0.1.1. Nothing in them reaches this machine's network, or is reached from it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from launch.cluster.environment import VARIABLES
from launch.models import prepare
from tests.integration.random_model import TOKENIZER, write_random_model
from tests.slurm.hosts import ADDRESSES, ROOT, Hosts

PORT = 6379


class RayHosts(Hosts):
    """The hosts n1 and n2 with a Ray, whose head is on n1. Both are nodes for the learner, in this order."""

    def start(self) -> None:
        """Make the hosts and start Ray on both. Raises HostsRefused."""
        for host in ADDRESSES:
            self._make(host)
        token = self.folder / "token"
        token.write_text(secrets.token_hex())
        token.chmod(0o600)
        self._logs = {host: self.folder / f"ray.{host}" for host in ("n1", "n2")}
        self._ray("n1", 0, "--head", f"--port={PORT}", "--include-dashboard=false")
        self._ray("n2", 1, f"--address={self.address}")
        started = "Ray runtime started"
        self.wait_until(lambda: all(started in log.read_text() for log in self._logs.values()), 300, self._said)

    def stop(self) -> None:
        """End the hosts with all their processes."""
        for host in list(self._hosts):
            self.lose(host)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """The value of `ray.address`."""
        return f"{ADDRESSES['n1']}:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Of Ray and of the commands of `azr`: without what the driver sets for the parts of a run."""
        own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        return {**own, **token, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}

    def azr(self, *arguments: str, host: str = "n1") -> subprocess.CompletedProcess[str]:
        """Run `azr` on a host to its end."""
        command = self.inside(host, [sys.executable, "-m", "launch.cli", *arguments], ROOT)
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )

    def start_azr(self, *arguments: str, host: str, out: IO[str]) -> subprocess.Popen[str]:
        """Start `azr` on a host; its output goes to `out`."""
        command = self.inside(host, [sys.executable, "-m", "launch.cli", *arguments], ROOT)
        return subprocess.Popen(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True)

    def _said(self) -> str:
        return "".join(log.read_text() for log in self._logs.values())

    def _ray(self, host: str, index: int, *options: str) -> None:
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=4", "--temp-dir=/tmp/ray"]
        own = [f"--node-ip-address={ADDRESSES[host]}", f"--labels=role=learner,node_index={index}"]
        with self._logs[host].open("w") as log:
            started = self.inside(host, [*start, *own, *options])
            self._daemons.append(subprocess.Popen(started, env=self.environment, stdout=log, stderr=subprocess.STDOUT))


@contextmanager
def two_hosts() -> Iterator[RayHosts]:
    """Two hosts with a Ray until the block ends. Raises HostsRefused."""
    hosts = RayHosts()
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


def write_small_model(folder: Path) -> Path:
    """Write a random model of one layer, with the tokenizer of SmolLM2; engines and learner can load it."""
    import transformers as tf

    config = tf.AutoConfig.from_pretrained(prepare(TOKENIZER))
    config.hidden_size = config.intermediate_size = 64
    config.num_hidden_layers, config.head_dim = 1, 32
    config.num_attention_heads, config.num_key_value_heads = 2, 1
    config.tie_word_embeddings = True
    return write_random_model(folder, config)
