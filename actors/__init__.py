"""Play: kinds of tasks, prompts, the task buffer, self-play episodes, the inference engine, the rollout actor.

Open `rollout.py` first (the actor's main loop), then `episodes.py` (what becomes of the slots of one episode),
`propose.py` and `solve.py` (the two roles), `kinds/kind.py` (all that a kind of task is asked for), `rewards.py` (the
whole reward table).

- `kinds/`: one module for each kind of task
- `buffer/`: the task buffer
- `engine/`: vLLM, as a rollout actor uses it (`weight_engine.py` is the receiving end of the weights inside vLLM)
"""
