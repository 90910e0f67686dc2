"""A receiver of weights in a process of its own, for `azr bench weights`: commands on standard input, a JSON line each.

    {"do": "join", "spec": ..., "rank": 1}      join a group
    {"do": "expect", "manifest": ...}           the tensors of the updates that follow
    {"do": "update"}                            take one update, and let go of each tensor: loading is the engine's
    {"do": "raw", "num_bytes": ...}             take as many bytes in one broadcast

Each is answered by a JSON line with its seconds by phase.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from learner.device import keep_memory
from learner.weights.group import GroupSpec
from learner.weights.manifest import Manifest, manifest_from_json
from learner.weights.transfer import WeightReceiver


class _Receiver:
    def __init__(self) -> None:
        self._receiver = WeightReceiver()
        self._manifest: Manifest = []
        self._flat = torch.empty(0, dtype=torch.uint8)

    def join(self, spec: dict[str, Any], rank: int) -> dict[str, float]:
        self._receiver.connect(GroupSpec.from_json(spec), rank)
        return self._receiver.timings

    def expect(self, manifest: list[dict[str, Any]]) -> dict[str, float]:
        self._manifest = manifest_from_json(manifest)
        return {}

    def update(self) -> dict[str, float]:
        for _ in self._receiver.receive(self._manifest):
            pass
        return self._receiver.timings

    def raw(self, num_bytes: int) -> dict[str, float]:
        if len(self._flat) != num_bytes:
            self._flat = torch.zeros(num_bytes, dtype=torch.uint8)
        self._receiver.broadcast(self._flat)
        return {}


def main() -> None:
    """Obey until standard input ends."""
    torch.set_num_threads(1)
    keep_memory()  # as an engine's worker does
    receiver = _Receiver()
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(receiver, command.pop("do"))(**command), allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
