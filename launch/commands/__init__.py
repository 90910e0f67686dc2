"""The commands of `azr`, a file each. `launch/cli.py` collects them."""
