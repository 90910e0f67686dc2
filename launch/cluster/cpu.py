"""CPU seconds of this process, by what its threads do."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_BY_NAME = {"ZMQbg": "sockets", "pt_gloo": "broadcast", "gloo": "broadcast", "pt_tcpstore": "broadcast"}
"""Start of the name that a library gives its threads -> what they do."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> dict[str, float]:
    """CPU seconds since the process started: `process` in all, `stream` of the stream's thread, `sockets` of ZeroMQ's
    own, `broadcast` of the weight group's. Threads that have ended count in `process` alone."""
    found = {"stream": 0.0, "sockets": 0.0, "broadcast": 0.0}
    streams = {thread.native_id for thread in threading.enumerate() if thread.name == "azr-stream"}
    for thread in Path("/proc/self/task").glob("*"):
        try:
            name = (thread / "comm").read_text().strip()
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        what = "stream" if int(thread.name) in streams else None
        what = what or next((kind for start, kind in _BY_NAME.items() if name.startswith(start)), None)
        if what is not None:
            found[what] += (int(fields[11]) + int(fields[12])) * _TICK_S
    times = os.times()
    return {"process": times.user + times.system, **found}
