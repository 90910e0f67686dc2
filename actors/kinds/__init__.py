"""Kinds of tasks. A kind is one module with one class, a `TaskKind` (`kind.py`), and is registered as an entry point
(`registry.py`).

    deduction    program and input are given; the output is asked for
    abduction    program and output are given; an input is asked for
    induction    pairs of input and output and a message are given; a program is asked for

`triplet.py` is what deduction and abduction share. `docs/extending.md` adds a fourth kind.
"""
