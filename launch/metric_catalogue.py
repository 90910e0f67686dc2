"""The catalogue of everything that a run records, put together from the parts of all packages."""

from __future__ import annotations

from actors.metric_catalogue import ACTOR_SECTIONS
from learner.metrics.catalogue import ACTOR_SECONDS, Catalogue, Entries, Section, Whose
from learner.metrics.entries import LEARNER_SECTIONS
from learner.sft.metric_catalogue import SFT
from learner.stream.reports import ACTORS

_OF_RUN, _OF_LEARNER, _OF_ACTORS = Entries(Whose.RUN), Entries(Whose.LEARNER), Entries(Whose.ACTORS)

TIME_S = _OF_RUN.seconds(
    "time_s",
    "time since the run began to train: all attempts, with the steps that a restart undid; without the time between "
    "the end of `azr train` and its `--resume`",
)

RUN = Section(
    "The run",
    "A step's time is the time since the row before, whatever it was spent on.",
    (
        TIME_S,
        _OF_RUN.seconds("step_s", "time since the row before"),
        _OF_ACTORS.gauge("tokens_generated_step", "tokens", "tokens that the engines generated in that time"),
        _OF_ACTORS.gauge("generate_tokens_per_s", "tokens/s", "`tokens_generated_step` / `step_s`"),
        _OF_LEARNER.share(
            "wait_for_batch_share",
            "`wait_for_batch_s` / `step_s`: the learner's time spent waiting for rollouts",
            "small, where learner and actors have machines of their own",
        ),
        _OF_ACTORS.share(
            "wait_for_policy_share",
            "`wait_for_policy_actor_s` / `connected_actor_s`, both in this step: the actors' time without anything "
            "granted to play",
            "small",
        ),
        _OF_ACTORS.gauge(
            "actor_time/unaccounted_actor_s",
            ACTOR_SECONDS,
            "of `connected_actor_s` in this step, what lies in no part of the actors' time (`actor_time/..._actor_s`)",
            "below 2% of it",
        ),
    ),
)

METRICS = Catalogue([RUN, *LEARNER_SECTIONS, ACTORS, *ACTOR_SECTIONS])
"""The metrics of `azr train`."""
SFT_METRICS = Catalogue([Section("", "", (TIME_S, *SFT.metrics))])
"""The metrics of `azr sft`."""
