"""What only a GPU can show, in one command: `run` beside this file, documented in docs/gpu.md.

`command.py` is its command line, `suite.py` runs the parts that `parts.py` lists, `wheels.py` brings the packages that
a bare machine lacks. Without a GPU (`run --dry`) the same tests take tiny shapes, and the kernels that GPUs would take,
on the CPU.
"""
