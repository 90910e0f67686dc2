"""The task buffer: every valid task, with who proposed it and how its solutions went.

Open `task_buffer.py` first. `file.py` is its SQLite file, `labels.py` its labelled programs, `remote.py` its client in
a rollout actor, `ordered_ids.py` the index that tasks are drawn from.
"""
