"""The sending end of `azr bench stream`, in a process of its own: one way to send, commands on standard input.

    python -m launch.bench.stream_sender azr ENDPOINT          an actor of the stream: plays what it is granted, at once
    python -m launch.bench.stream_sender zmq ENDPOINT          the same frames over bare ZeroMQ, nothing looked at

Commands are JSON lines: `{"tokens": T}` makes the trajectories that follow T tokens long (half prompt, half response);
for `zmq`, `{"tokens": T, "count": N, "gap_s": S}` sends N of them, S seconds apart. A line `{}` says that the process
is ready, and then that a command was carried out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import zmq

from learner.trajectory import Cell, Role, Trajectory, VersionSpan, encode

CAPACITY = 1024
"""Slots of the actor."""


def trajectory(tokens: int, sent_at: float = 0.0) -> Trajectory:
    """One that is `tokens` long, half of them prompt."""
    half = max(1, tokens // 2)
    return Trajectory(
        run_id="bench",
        actor_id="bench",
        incarnation=0,
        slot=0,
        episode_id="episode-0",
        cell=Cell("deduction", Role.SOLVE),
        prompt_ids=np.arange(half, dtype=np.int32),
        response_ids=np.arange(half, dtype=np.int32),
        logprobs=np.full(half, -1.5, dtype=np.float32),
        versions=(VersionSpan(0, 0, half),),
        reward=1.0,
        reward_parts={"correct": 1.0},
        outcome="correct",
        timings={"queue_s": 0.01, "generate_s": 1.0, "execute_s": 0.01, "sent_at": sent_at},
    )


def raw(endpoint: str) -> None:
    """Send the frames of a trajectory, made once, as ZeroMQ carries them."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(endpoint)
    for line in sys.stdin:
        command = json.loads(line)
        frames = encode(trajectory(command["tokens"]))
        for _ in range(command["count"]):
            if command["gap_s"]:
                time.sleep(command["gap_s"])
                frames = encode(trajectory(command["tokens"], sent_at=time.monotonic()))
            socket.send_multipart(frames)
        print("{}", flush=True)
    socket.close()
    context.term()


class _Length:
    """Tokens of what is sent, as the commands say."""

    def __init__(self) -> None:
        self.tokens = 200
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self.tokens = json.loads(line)["tokens"]
            print("{}", flush=True)


async def play(endpoint: str) -> None:
    """Answer every granted slot with a trajectory."""
    from learner.stream.client import StreamClient

    client = StreamClient(endpoint, "bench", 0, CAPACITY)
    length = _Length()
    sample = trajectory(length.tokens)
    await client.connect(30.0)
    try:
        async for message in client.messages():
            if message["type"] == "weights":
                await client.send_loaded(message["version"], {})
            elif message["type"] == "grant":
                if sample.num_tokens != length.tokens:
                    sample = trajectory(length.tokens)
                for slot in (*message["propose"], *message["solve"]):
                    made = replace(
                        sample, slot=slot, run_id=client.run_id, timings=sample.timings | {"sent_at": time.monotonic()}
                    )
                    await client.send_trajectory(made)
            elif message["type"] == "shutdown":
                return
    finally:
        client.close()


def main(arguments: Sequence[str]) -> None:
    """See the head of this file."""
    way, endpoint = arguments
    print("{}", flush=True)
    if way == "zmq":
        raw(endpoint)
    else:
        asyncio.run(play(endpoint))


if __name__ == "__main__":
    main(sys.argv[1:])
