"""Programs that write the data files that ship: `python -m launch.shipped.heldout_tasks` and `...sft_examples`."""
