"""Train: the stream of trajectories, staleness and its ledger, advantages, the loss, Megatron, the weight broadcast.

Open `loop.py` first (the main loop), then `trainer.py` (one step), `staleness.py` (what may start), `ledger.py` (where it
is) and `stream.py`.
"""
