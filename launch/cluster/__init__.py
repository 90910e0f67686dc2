"""A run of many processes: Ray places them, the supervisor watches them.

Open `driver.py` first (the loop of `azr train`), then `supervisor.py` (what is started again, and when) and the three Ray
actors: `learner_actor.py`, `rollout_actor.py`, `buffer_actor.py`.
"""
