"""Train: the algorithm, readable from top to bottom, and its five subpackages.

Open `loop.py` first (the main loop), then `trainer.py` (one step), `advantages.py`, `losses.py`, `staleness.py` (what
may start) and `ledger.py` (where it is).

- `stream/`: trajectories from actors to the learner, over ZeroMQ
- `weights/`: the broadcast of new weights to the actors' engines
- `batching/`: a batch becomes micro-batches of equal cost
- `model/`: the policy in Megatron-Core
- `sft/`: supervised fine-tuning before self-play
"""
