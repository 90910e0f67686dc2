"""`azr sft`: supervised fine-tuning as a run. Open `run.py` first, then `data.py` (`azr sft-data`)."""
