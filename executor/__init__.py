"""The environment: run programs that a model wrote, safely, and say what is true about them.

This package knows nothing of language models, training, networks or kinds of tasks, and imports nothing else of the
project. It answers two questions: is a program sound for its inputs, and what does it return (`Judge.validate`); and is
an answer right (`Judge.check_values`, `check_inputs`, `check_programs`)? What a kind of task makes of that is in
`actors/kinds/`.

Open `judge.py` first: it is the whole environment in terms of the other files. Then `tasks.py` (the nouns), `pool.py`
(many sandboxes), `sandbox.py` (one sandbox, seen from outside), `zygote.py` (its fork server), `child.py` (what runs a
program), `jail.py` (the wall: seccomp, Landlock, limits), `safety.py` (the gate), `facades.py` (what programs find),
`values.py` (what a value is), `literals.py` (reading one) and `codec.py` (sending one).
"""
