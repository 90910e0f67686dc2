"""Operate: configuration, the `azr` command, Ray placement and supervision, serial mode, what a run shows and leaves.

Open `cli.py` for the commands, `cluster.py` for the distributed run, `config.py` for every setting.
"""
