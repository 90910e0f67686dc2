"""The environment: run programs that a model wrote, safely, and say what is true about them.

This package knows nothing of language models, training, networks or kinds of tasks, and imports nothing else of the
project. It answers two questions: is a program sound for its inputs, and what does it return (`Judge.validate`); and is
an answer right (`Judge.check_values`, `check_inputs`, `check_programs`)? What a kind of task makes of that is in
`actors/kinds/`.

Open `judge.py` first: it is the whole environment in terms of the other files. Then `tasks.py` (the nouns), `pool.py`
(many sandboxes), `values.py` (what a value is), `literals.py` (reading one) and `codec.py` (sending one).

- `sandbox/`: one sandbox: its processes, and the wall around them (seccomp, Landlock, namespaces, limits)
- `policy/`: what a program may use, and what it finds when it runs
"""
