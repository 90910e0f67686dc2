"""Supervised fine-tuning of the policy before self-play. Open `trainer.py` first, then `data.py`."""
