"""Operate: configuration, the `azr` command, one run, the cluster it runs on, benchmarks.

- `cli.py`, `config.py`: the entry point, and every setting
- `commands/`: one file a command
- `run/`: one run: assembly, recording, the console, serial mode
- `cluster/`: Ray: placement, supervision, the three kinds of actors
- `sft/`: supervised fine-tuning
- `bench/`: `azr bench`, one file a subject
- `recipes/`: configurations that ship
- `shipped/`: programs that write the data files that ship
"""
