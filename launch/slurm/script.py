"""The batch script of a run: a pure function of the run's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import jinja2
import jinja2.nodes

from executor.user_error import UserError
from launch.config import Config, SftConfig
from launch.slurm.folder import JobFolder
from launch.slurm.quoting import log_path, sbatch, shell
from launch.slurm_settings import SlurmSettings

TEMPLATE = "job.sbatch.j2"
"""The template that ships, in this package's folder."""
WARNING_S = 300
"""Seconds before the time limit at which a run without measurements is told to end."""
WARNING_SPARE_S = 60
"""Seconds of the warning beyond what a stop was measured to take."""
_GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task")
"""Options that ask for GPUs: each in `slurm.extra` replaces `slurm.gpus_per_node`."""


class TemplateError(UserError):
    """A template of a batch script that cannot be used; the message says where."""


def warning_s(settings: SlurmSettings, stop_s: float | None) -> int:
    """Seconds before the time limit at which the run is told to save and end.

    `stop_s`: seconds that a step and a checkpoint of this run took, None where nothing was measured.
    """
    chosen = settings.warning_s
    if chosen is None:
        chosen = WARNING_S if stop_s is None else math.ceil(stop_s) + WARNING_SPARE_S
    limit = settings.limit_s
    return max(1, min(chosen, 65535, int(limit / 2) if limit else chosen))


def options(config: Config | SftConfig, warning: int) -> list[tuple[str, str | None]]:
    """The options of sbatch as (long name, value), None for an option without value. `warning`: see `warning_s`."""
    settings = config.slurm
    chosen = dict(_options(config, warning))
    if any(name in settings.extra for name in _GPUS):
        chosen.pop("gres", None)
    chosen |= {name: value or None for name, value in settings.extra.items()}
    return list(chosen.items())


def _options(config: Config | SftConfig, warning: int) -> Iterator[tuple[str, str | None]]:
    settings, job = config.slurm, JobFolder(config.folder)
    yield "job-name", config.run.name
    yield "nodes", str(settings.nodes)
    yield "ntasks-per-node", "1"
    if settings.cpus_per_task is not None:
        yield "cpus-per-task", str(settings.cpus_per_task)
    if settings.gpus_per_node:
        yield "gres", f"gpu:{settings.gpus_per_node}"
    if settings.exclusive:
        yield "exclusive", None
    if settings.memory is not None or settings.exclusive:
        yield "mem", settings.memory or "0"  # 0: all of the node's
    for name in ("partition", "account", "qos", "time", "constraint", "exclude", "reservation", "dependency"):
        if (value := getattr(settings, name)) is not None:
            yield name, value
    yield "requeue" if settings.requeue else "no-requeue", None
    yield "signal", f"B:USR2@{warning}"
    yield "open-mode", "append"
    yield "output", log_path(job.log)
    yield "chdir", str(job.run)


def script(config: Config | SftConfig, python: str, warning: int) -> str:
    """The text of the batch script. Raises QuotingError, TemplateError.

    `config`: with an absolute `run.dir`. `python`: absolute path of the Python on the nodes, where `slurm.python` names
    none. `warning`: see `warning_s`.
    """
    settings = config.slurm
    name = settings.template or TEMPLATE
    environment = jinja2.Environment(  # the text is a shell script: every value goes through a filter that quotes it
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"shell": shell, "sbatch": sbatch}
    try:
        template = (
            environment.get_template(TEMPLATE)
            if settings.template is None
            else _own_template(environment, Path(settings.template))
        )
        return template.render(
            options=options(config, warning),
            run=str(config.folder),
            name=config.run.name,
            python=settings.python or python,
            nodes=settings.nodes,
            setup=settings.setup,
            environment=settings.environment,
            slurm=settings,
        )
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{name}, line {error.lineno}: {error.message}. Mend the template.") from None
    except jinja2.TemplateError as error:
        raise TemplateError(f"{name} cannot be filled in: {error.message}. Mend the template.") from None
    except UserError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"slurm.template {name} cannot be read: {error}") from None
    except Exception as error:  # whatever an expression of the template raises
        if settings.template is None:
            raise
        told = f"{type(error).__name__}: {error}"
        raise TemplateError(f"{name} cannot be filled in: {told}. Mend the template.") from None


def _own_template(environment: jinja2.Environment, path: Path) -> jinja2.Template:
    """The template in a file of the user's. Raises TemplateError where it replaces a block that the one that ships does
    not have: Jinja would leave that block out, and say nothing.
    """
    text = path.expanduser().read_text()
    tree = environment.parse(text)
    if tree.find(jinja2.nodes.Extends):
        blocks = environment.get_template(TEMPLATE).blocks
        for block in tree.body:
            if isinstance(block, jinja2.nodes.Block) and block.name not in blocks:
                raise TemplateError(
                    f"{path}, line {block.lineno}: {TEMPLATE} has no block {block.name!r}. Replace one of these: "
                    f"{', '.join(sorted(blocks))}."
                )
    return environment.from_string(text)
