"""The policy: what a program may use, and what it finds when it runs.

`safety.py` reads a program before it runs (the gate). `rewriting.py` and `guards.py` check attributes whose names only the
run knows. `facades.py` and `library.py` make the builtins and modules that a program gets.
"""
