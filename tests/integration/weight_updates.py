"""Both ends of a weight broadcast in one process: a sender, and an engine that receives."""

from __future__ import annotations

import asyncio

import torch

from actors.engine.async_engine import AsyncEngine
from learner.weights.manifest import manifest_of
from learner.weights.transfer import WeightSender

Weights = dict[str, torch.Tensor]


async def connect(engine: AsyncEngine, sender: WeightSender) -> None:
    """Open a group of the sender and the engine's workers."""
    spec = sender.open(1 + engine.num_workers)
    await asyncio.gather(engine.join(spec, 1), asyncio.to_thread(sender.connect))


async def broadcast(engine: AsyncEngine, sender: WeightSender, weights: Weights, version: int) -> dict[str, float]:
    """Send `weights` as `version`; returns what `update_weights` does."""
    manifest = manifest_of(weights.items())
    sending = asyncio.create_task(asyncio.to_thread(sender.send, weights.items(), manifest))
    try:
        return await engine.update_weights(manifest, version)
    finally:
        await asyncio.wait([sending])
