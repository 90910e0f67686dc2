"""The tuner: a simulator of a self-play run, and the search for settings that uses it.

| module | content |
| --- | --- |
| `calibration.py` | the calibration file: every measured number, with its uncertainty and its source |
| `records.py`, `calibrate.py`, `fit.py` | a calibration from run folders |
| `scenario.py` | what is simulated: a recipe on devices |
| `machine.py`, `engine_model.py`, `actor_model.py`, `learner_model.py`, `workload.py` | the parts of the simulator |
| `simulation.py` | one simulated run, and what it predicts |
| `closed_form.py` | the estimate without a simulation |
| `search.py`, `advice.py`, `report.py` | candidates, the choice, the reasons in words |
| `live.py` | advice for a run that goes on |
| `validate.py`, `trial.py` | predictions beside runs that were really made |
| `scale.py` | what becomes the limit with many devices |

Gate, turns, queue and concurrency controller are not models: the simulator imports those of a run.
"""
