"""The metrics that actors report, and how those of many actors become one row. Pure: no clocks, no I/O, no threads.

  M1  A counter's total is the sum, over every life of every actor that ever reported, of the last value it reported.
      It never falls: not when an actor leaves, dies, comes back, or is replaced by its next incarnation.
  M2  What is no counter is combined over the connected actors only, in the ways of its entry below.

The learner's own counters of the stream begin at 0 with each of its lives. They come in here as well, under the name of
a holder of their own (`Reports.report`), so M1 holds for them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from learner.metrics.catalogue import ACTOR_SECONDS, Catalogue, Combine, Entries, Kind, Section, Whose
from learner.metrics.entries import STREAM
from learner.places import Holder

_SUMMED = Entries(Whose.ACTORS, (Combine.SUM,))
_SPREAD = Entries(Whose.ACTORS, (Combine.MEAN, Combine.MAX))
_NEWEST = Entries(Whose.ACTORS, (Combine.NEWEST,))
_count = _SUMMED.counter

ACTORS = Section(
    "Rollout actors",
    "Reported with every heartbeat. Counters are those of all actors that ever took part, in all attempts of the run; "
    "the rest is of the actors that are connected.",
    (
        _count("tokens_generated", "tokens that the engines generated", "tokens"),
        _count("tokens_sent", "those of them that were sent in trajectories", "tokens"),
        _count("tokens_without_slot", "those that no slot was granted for (`token_ledger/without_slot`)", "tokens"),
        _count(
            "tokens_heldout",
            "those of measurements on held-out tasks, which train nothing, also of measurements that were given up",
            "tokens",
        ),
        _SUMMED.gauge("tokens_held", "tokens", "those that are being generated, or wait to be judged"),
        _count("tokens_dropped/{reason}", "those that the actor dropped (`token_ledger/dropped_...`)", "tokens", "few"),
        _count("tokens_prompt", "prompt tokens of finished requests", "tokens"),
        _count("tokens_cached", "those of them that were in the engine's prefix cache", "tokens"),
        _count(
            "waited_over_update",
            "requests that were submitted under one version and have their first token from another",
            "requests",
        ),
        _count("preempted", "sequences thrown out of the key/value cache and computed again", "sequences", "few"),
        _count("rollouts", "rollouts that were sent to the learner", "rollouts"),
        _count("episodes", "episodes that were played to their end", "episodes"),
        _count("failures", "episodes that failed: engine, sandbox or buffer, never the model", "episodes", "0"),
        _count("seeded", "proposals of the seeding phase, most of them invalid", "proposals"),
        _count("heldout_failures", "held-out measurements that failed", healthy="0"),
        _count("prompts_too_long", "prompts that did not fit `selfplay.max_prompt_tokens`", "prompts"),
        _count("references_left_out", "references left out of a prompt because they did not fit", "references"),
        _count("tasks_too_long", "tasks that no prompt has room for", "tasks"),
        _count(
            "tasks_held_out",
            "valid proposals that are held-out tasks: neither stored, solved nor trained; their slots are returned",
            "proposals",
            "few",
        ),
        _count(
            "tasks_completed",
            "tasks whose program a proposer wrote, and whose input the executor found (`selfplay.complete_inputs`)",
            "tasks",
        ),
        _count("labels_failed", "programs that are not labelled because the sandbox failed", "programs", "0"),
        _count(
            "wait_for_policy_actor_s",
            "time in which an actor had nothing granted to play",
            ACTOR_SECONDS,
            "a small part of `connected_actor_s`: else the learner is slow",
        ),
        _count(
            "connected_actor_s",
            "time since actors were ready to play",
            ACTOR_SECONDS,
        ),
        _count("executions", "executions of programs in the sandboxes", "executions"),
        *(
            _count(f"actor_time/{part}_actor_s", meaning, ACTOR_SECONDS)
            for part, meaning in (
                ("engine", "the engine has requests, and no weights are loaded; of it, the next three:"),
                ("prefill", "engine steps: their part for prompts, by rows"),
                ("decode", "engine steps: their part for sampled tokens"),
                ("between", "between two steps"),
                ("executor", "the engine has no request, and programs run"),
                ("other", "neither, and episodes are in play: prompts, the task buffer"),
                ("wait_for_grants", "nothing is granted"),
                ("paused", "the engine stands still, and waits for the bytes of new weights"),
                ("loading", "the engine puts new weights in place"),
            )
        ),
        _SUMMED.gauge("running", "requests", "requests that the engines decode now"),
        _SUMMED.gauge(
            "waiting", "requests", "requests that the engines have not begun", "0, or the engine is the limit"
        ),
        _SPREAD.share("kv_usage", "key/value cache in use", "below 0.95"),
        _SPREAD.gauge(
            "memory/actor_mib",
            "MiB",
            "resident memory of an actor with its engine and sandboxes, read every 30 s; shared pages count for each "
            "process",
            "flat after the first minutes",
        ),
        _SUMMED.gauge("capacity", "slots", "present limit on slots in flight (`actors.adapt`)"),
        _SUMMED.gauge("paused", "actors", "actors that are told to start no rollout", "0"),
        _SUMMED.gauge("stream/actors_unacknowledged", "messages", "messages sent and not acknowledged yet"),
        _count("stream/actors_{event}", "what the actors' ends of the stream counted", "messages", "few"),
        _SPREAD.seconds("engine_weights/pause_s", "the last update's pause: waiting until the engine holds still"),
        _SPREAD.seconds("engine_weights/start_s", "getting ready to load"),
        _SPREAD.seconds("engine_weights/transfer_s", "waiting for bytes"),
        _SPREAD.seconds("engine_weights/load_s", "putting weights in place"),
        _SPREAD.seconds("engine_weights/finish_s", "finishing the last layers"),
        _SPREAD.seconds("engine_weights/resume_s", "going on"),
        _NEWEST.gauge("heldout/version", "versions", "the version that was measured"),
        _NEWEST.gauge(
            "heldout/version_newest",
            "versions",
            "the newest version that sampled for it: above `heldout/version` where new weights came in meanwhile",
        ),
        _NEWEST.share("heldout/mean", "held-out solutions that are correct, mean over the kinds", "rises"),
        _NEWEST.share("heldout/mean_low", "lower end of its 95% interval (`actors/heldout/intervals.py`)"),
        _NEWEST.share("heldout/mean_high", "upper end of it"),
        _NEWEST.gauge("heldout/set", "", "number of the set of held-out tasks; those of two sets are not compared"),
        _NEWEST.gauge("heldout/tasks", "tasks", "number of held-out tasks that were asked"),
        _NEWEST.gauge("heldout/skipped", "tasks", "those of them that do not fit a prompt; in no rate"),
        _NEWEST.gauge("heldout/samples", "samples", "solutions for each task"),
        _NEWEST.gauge("heldout/temperature", "", "their sampling temperature"),
        _NEWEST.seconds("heldout/time_s", "time that the measurement took"),
        _NEWEST.gauge("heldout/tokens", "tokens", "response tokens that it took; in `token_ledger/without_slot`"),
        _NEWEST.share("heldout/difficulty_{n}", "correct, of one difficulty"),
        _NEWEST.share("heldout/{kind}_low", "lower end of the 95% interval of `heldout/{kind}`"),
        _NEWEST.share("heldout/{kind}_high", "upper end of it"),
        _NEWEST.share(
            "heldout/{kind}_copies",
            "answers that repeat what the prompt shows: of deduction, the input, which is never right",
            "below 0.3",
        ),
        _NEWEST.share("heldout/{kind}_distinct_answers", "different answers / answers, over all tasks"),
        _NEWEST.share("heldout/{kind}", "correct, of one kind; recorded once for each measurement"),
    ),
)


class Reports:
    """The numbers that actors reported, of every life of every actor."""

    def __init__(self) -> None:
        self._counters: dict[Holder, dict[str, float]] = {}
        """The newest life of each actor that reported -> its counters."""
        self._newest_lives: dict[str, Holder] = {}
        """Actor -> its life in `_counters`."""
        self._ended: dict[str, float] = {}
        """Counters of all earlier lives, added up."""
        self._values: dict[Holder, dict[str, float]] = {}
        """Connected actor -> what it reported that is no counter."""
        self._newest: dict[str, dict[str, float]] = {}
        """Group of names -> the numbers of the highest `<group>/version`."""

    def report(self, holder: Holder, numbers: Mapping[str, float]) -> None:
        """Take in what `holder` reports now; what it does not name stays as it was.

        Names that are not listed are left out, since nothing says how they are combined (`UnlistedMetric`).
        """
        newest = self._newest_lives.get(holder.actor_id)
        if newest is not None and newest > holder:
            return
        if newest is not None and newest != holder:
            self._end(newest)
        self._newest_lives[holder.actor_id] = holder
        counters = self._counters.setdefault(holder, {})
        values = self._values.setdefault(holder, {})
        groups: dict[str, dict[str, float]] = {}
        unlisted = []
        for name, value in numbers.items():
            metric = _REPORTED.find(name)
            if metric is None:
                unlisted.append(name)
            elif metric.kind is Kind.COUNTER:
                if name not in counters or value > counters[name]:
                    counters[name] = max(value, 0.0)
            elif Combine.NEWEST in metric.combined:
                groups.setdefault(name.split("/")[0], {})[name] = value
            else:
                values[name] = value
        if unlisted:
            _REPORTED.check(unlisted)
        for group, found in groups.items():
            version = f"{group}/version"
            if found.get(version, -1.0) >= self._newest.get(group, {}).get(version, -1.0):
                self._newest[group] = found

    def leave(self, holder: Holder) -> None:
        """`holder` is no longer connected; its counters stay."""
        self._values.pop(holder, None)

    def combined(self) -> dict[str, float]:
        """All numbers, by the name under which they are recorded."""
        row = dict(self._ended)
        for counters in self._counters.values():
            for name, value in counters.items():
                row[name] = row.get(name, 0.0) + value
        by_name: dict[str, list[float]] = defaultdict(list)
        for values in self._values.values():
            for name, value in values.items():
                by_name[name].append(value)
        for name, found in by_name.items():
            metric = _REPORTED.find(name)
            assert metric is not None  # `report` left out what is not listed
            for way in metric.combined:
                match way:
                    case Combine.MEAN:
                        row[f"{name}/{way}"] = sum(found) / len(found)
                    case Combine.MAX:
                        row[f"{name}/{way}"] = max(found)
                    case _:
                        row[name] = sum(found)
        for numbers in self._newest.values():
            row |= numbers
        return row

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` restores: the counters, by life."""
        lives = [[*holder, dict(counters)] for holder, counters in self._counters.items()]
        return {"ended": dict(self._ended), "lives": lives}

    def load_state_dict(self, state: Mapping[str, Any], actors_live: bool) -> None:
        """Restore the counters. `actors_live`: the actors may be those that were, as after a restart of the learner
        alone; else all of them have ended, and their names begin anew."""
        self._ended = dict(state["ended"])
        self._counters = {Holder(actor, life): dict(counters) for actor, life, counters in state["lives"]}
        self._newest_lives = {holder.actor_id: holder for holder in sorted(self._counters)}
        if not actors_live:
            for holder in list(self._counters):
                self._end(holder)

    def _end(self, holder: Holder) -> None:
        """A life that cannot come back: its counters are kept as a sum only."""
        self.leave(holder)
        self._newest_lives.pop(holder.actor_id, None)
        for name, value in self._counters.pop(holder).items():
            self._ended[name] = self._ended.get(name, 0.0) + value


_REPORTED = Catalogue([ACTORS, STREAM], by_reported_name=True)
