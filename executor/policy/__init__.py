"""The policy: the modules, builtins and attributes that a program may use, and the stand-ins that it gets for them.

`safety.py` reads a program before it runs (the gate). `rewriting.py` and `guards.py` check attributes whose names are
known only at run time. `facades.py` and `library.py` make the builtins and modules that a program gets.
"""
