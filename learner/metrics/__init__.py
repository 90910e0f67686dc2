"""Metrics: what each name means and how values of many actors are combined, and the learner's own.

catalogue.py   `Metric`, `Section`, `Catalogue`: unit, kind, owner, combination, meaning
entries.py     the metrics that the learner records
batch.py       functions that describe a batch: ages, advantages

Actors' entries are in `learner/stream/reports.py` and `actors/metric_catalogue.py`, those of a run in
`launch/metric_catalogue.py`. `make docs` writes docs/metrics.md from all of them.
"""
