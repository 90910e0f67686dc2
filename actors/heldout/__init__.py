"""Held-out tasks: a fixed set that no run trains on, and its measurement.

    tasks.py        the set, and which tasks are in it
    measure.py      solves it with the policy of one engine
    course.py       when, over the course of a run
    measurement.py  what was solved, as a file and as metrics
    intervals.py    95% intervals, over programs

`launch.shipped.heldout_tasks` writes the set.
"""
