"""One self-play run: how its parts are put together, what it records and shows, and serial mode.

Open `assemble.py` first (the learner's parts from a configuration), then `folder.py` (what a run leaves on disk) and
`serial.py` (the whole run in one process).
"""
