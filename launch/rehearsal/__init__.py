"""Rehearsals: a run whose control plane is real and whose engines and learner only take time (`run.mode = "rehearse"`).

Real are Ray, supervision and placement, the stream, the gate and its ledger, episodes, the task buffer, the weight
group and its broadcast, the recorder and the checkpoints. What a model would do takes its time instead: `engine.py`
samples tokens of no meaning, `roles.py` draws what a proposal or an answer is worth, `trainer.py` waits for a step.
Lengths and rates come from a run (`lengths.py`). `workload.py` gives these to the processes of an ordinary run.

    recipe --> workload.py --> engine.py, roles.py (each rollout actor), trainer.py (each learner rank)

docs/rehearsal.md: how to rehearse a launch, and what a rehearsal cannot show.
"""
