"""A run of many processes: Ray places them, the supervisor watches them.

Open `driver.py` first (the loop of `azr train`), then `supervisor.py` (which failure leads to what). Three files run
inside Ray's actors: `learner_actor.py`, `rollout_actor.py`, `buffer_actor.py`. The others run in the driver. Pure,
without Ray: `lives.py` (what happens to a rollout actor), `placement.py` (which process runs where), `budget.py` (how
often one may fail).
"""
