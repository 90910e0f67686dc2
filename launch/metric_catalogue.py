"""The catalogue of everything that a run records, put together from the parts of all packages."""

from __future__ import annotations

from actors.metric_catalogue import ACTOR_SECTIONS
from learner.metrics.catalogue import SECONDS, Catalogue, Kind, Metric, Section, Whose
from learner.metrics.entries import LEARNER_SECTIONS
from learner.sft.metric_catalogue import SFT
from learner.stream.reports import ACTORS

TIME_S = Metric(
    name="time_s",
    kind=Kind.DURATION,
    unit=SECONDS,
    whose=Whose.RUN,
    meaning="time since the run began to train: all attempts, with the steps that a restart undid; without the time "
    "between the end of `azr train` and its `--resume`",
)

RUN = Section(
    "The run",
    "A step's time is the time since the row before, whatever it was spent on.",
    (
        TIME_S,
        Metric(name="step_s", kind=Kind.DURATION, unit=SECONDS, whose=Whose.RUN, meaning="time since the row before"),
        Metric(
            name="tokens_generated_step",
            kind=Kind.GAUGE,
            unit="tokens",
            whose=Whose.ACTORS,
            meaning="tokens that the engines generated in that time",
        ),
        Metric(
            name="generate_tokens_per_s",
            kind=Kind.GAUGE,
            unit="tokens/s",
            whose=Whose.ACTORS,
            meaning="`tokens_generated_step` / `step_s`",
        ),
        Metric(
            name="wait_for_batch_share",
            kind=Kind.SHARE,
            whose=Whose.LEARNER,
            meaning="`wait_for_batch_s` / `step_s`: the learner's time spent waiting for rollouts",
            healthy="small, where learner and actors have machines of their own",
        ),
        Metric(
            name="wait_for_policy_share",
            kind=Kind.SHARE,
            whose=Whose.ACTORS,
            meaning="`wait_for_policy_actor_s` / `connected_actor_s`, both in this step: the actors' time without "
            "anything granted to play",
            healthy="small",
        ),
    ),
)

METRICS = Catalogue([RUN, *LEARNER_SECTIONS, ACTORS, *ACTOR_SECTIONS])
"""The metrics of `azr train`."""
SFT_METRICS = Catalogue([Section("", "", (TIME_S, *SFT.metrics))])
"""The metrics of `azr sft`."""
