"""Play: prompts, the task buffer, self-play episodes, the inference engine, the rollout actor.

Open `rollout.py` first (the actor's main loop), then `episodes.py` (propose, validate, solve, reward).
"""
