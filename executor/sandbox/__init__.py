"""One sandbox: the processes that run a program, and the wall around them.

Open `sandbox.py` first (starts and uses a sandbox), then `zygote.py` (its fork server) and `child.py` (runs a program).
`keeper.py` starts the fork server; `request.py`, `frames.py` and `pipes.py` carry requests and values; `namespaces.py`,
`jail.py` and `cgroup.py` build the wall from its layers (`executor/layers.py`); `deadline.py` says when a child must
end.
"""
