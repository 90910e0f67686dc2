"""Programs run by hand in the sandbox (`azr exec`). Open `programs.py` first, then `lines.py` (a file of programs)."""
