"""One sandbox: the processes that run a program, and the wall around them.

Open `sandbox.py` first (a sandbox as its owner sees it), then `zygote.py` (its fork server) and `child.py` (what runs a
program). `keeper.py` starts both; `request.py`, `frames.py` and `pipes.py` carry requests and values; `namespaces.py`,
`jail.py` and `cgroup.py` are the wall, layer by layer (`executor/layers.py`); `deadline.py` ends a child.
"""
