"""Nothing that an agent started outlives it."""

from __future__ import annotations

import json
import subprocess
import sys

AGENT = """
import json, os, subprocess, psutil
from launch.slurm.processes import become_subreaper, end_descendants, reap
become_subreaper()
# Two that lose their parent, in a session of their own; one of them ignores what can be ignored.
subprocess.run(["sh", "-c", "trap '' TERM INT HUP; setsid sleep 600 & setsid sleep 601 &"])
mine = psutil.Process().children(recursive=True)
ended = subprocess.Popen(["true"])
while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
    pass
reap({ended.pid})
left = end_descendants()
print(json.dumps([len(mine), ended.wait(), left, [process.is_running() for process in mine]]))
"""


def test_processes_that_lost_their_parent_end_with_the_agent_and_its_own_are_not_reaped() -> None:
    done = subprocess.run([sys.executable, "-c", AGENT], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [2, 0, [], [False, False]]
