"""Batching: one batch of trajectories becomes micro-batches of equal cost for every data-parallel rank. No torch.

Open `packing.py` first (rows with shared prompts), then `balance.py` (their cost) and `minibatches.py` (PPO's parts).
"""
