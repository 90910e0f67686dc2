"""The reference of metrics in Markdown (docs/metrics.md), written from the catalogue.

`python -m launch.metric_reference` prints the page; `make docs` writes it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable

from launch.metric_catalogue import METRICS, SFT_METRICS
from learner.metrics.catalogue import Combine, Metric, Section

WIDTH = 120

_INTRODUCTION = """\
<!-- Written by `make docs` from the catalogue of metrics. Change the entries there, not this file. -->

# Metrics

Every metric of `azr train` and `azr sft`. A run writes one JSON object a step into `metrics.jsonl`, and the same
numbers into TensorBoard. A number without occasion is absent, never 0. `metrics.jsonl` and `events.jsonl` are strict
JSON: a value that is NaN or infinite is written as `null`, and `not_finite` lists the names of these values.

In a name, `{kind}` is a kind of task, `{role}` is `propose` or `solve`, and `{cell}` is `{kind}/{role}`.

**Kinds.** A *counter* counts since the run began. It does not fall when actors come and go, nor when the learner starts
again; only those of the ledger and of the task buffer go back to the checkpoint. A *gauge* is the value of one moment
or one step, a *share* a part from 0 to 1, a *duration* time spent.

**Actors.** What several actors report is combined as the column says: *sum* adds up; *mean* and *max* are over the
connected actors, each under a name of its own; *newest* takes the actor that measured the newest version. A unit of
*actor-s* is seconds of actors added up, which may be more than the seconds that passed; *s* is seconds of one process.

**Over the run.** The totals of `totals.json` count everything that was done, also steps that a restart of the learner
undid and that are in no row: `time_s` and `tokens_generated` of the last row are those of the whole run, while the sum
over rows is that of the steps that remain.
"""
_SFT = "## Supervised fine-tuning\n\nOf one step of `azr sft`."


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *map(_section, METRICS.sections), f"{_SFT}\n\n{_table(SFT_METRICS)}\n"])


def _section(section: Section) -> str:
    about = textwrap.fill(section.about, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(part for part in (f"## {section.title}", about, _table(section.metrics)) if part) + "\n"


def _table(metrics: Iterable[Metric]) -> str:
    head = (
        "| name | kind | unit | of | several actors | meaning | healthy |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *map(_row, metrics)])


def _row(metric: Metric) -> str:
    names = ", ".join(f"`{name}`" for name in metric.recorded)
    ways = ", ".join(way.value for way in metric.combined if way is not Combine.SUM) or "sum" * bool(metric.combined)
    cells = [names, metric.kind.value, metric.unit, metric.whose.value, ways, metric.meaning, metric.healthy]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
