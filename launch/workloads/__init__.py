"""The workloads of a run: what its learner ranks and rollout actors do (`launch/cluster/workload.py`).

`choose.py` takes one by `run.mode`: `model.py` is that of a real run, `launch/rehearsal/workload.py` that of a
rehearsal.
"""
