"""`azr study`: runs that differ in named settings, made one after another or as SLURM jobs, and judged by a margin that
was written down before."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.arguments import add_overrides, new_command, overrides_of, whole
from launch.study.arms import NAMES

if TYPE_CHECKING:
    from launch.study.definition import Study
    from launch.study.folder import StudyFolder
    from launch.study.new import Request

_EXAMPLES = """\
examples:
  azr study staleness smollm2-cpu-small                       K = 0, 1, 2, 4, 8 with three seeds, the recipe's steps
  azr study staleness smollm2-cpu --staleness 0,2,8 --seeds 0,1,2,3,4 --margin 0.05
  azr study arms smollm2-cpu ablations --tokens 200000        the paper's ablations, on equal trained tokens
  azr study resume runs/study-staleness-smollm2-cpu           go on after Ctrl-C, a kill or a power cut
  azr study report runs/study-staleness-smollm2-cpu           write the page from the results there are

A study folder has study.toml (what is asked, and how it is judged: written before the first run, and not to be changed
after), recipe.toml (every setting, resolved), runs/ (an ordinary run folder for each run), results/ (a small JSON file
for each run that is over), report.md and its curves. docs/studies.md says how to read it.
"""

_ABOUT_RUNS = """\
Every run is `azr train` with a folder of its own, and all have equal budgets. Runs are interleaved: each arm once with
the first seed, then each with the second, backwards, and so on. Ctrl-C saves the run under way. A run that fails is
reported, left out of the figures, and made again only by `azr study resume FOLDER --retry`."""

_EXIT_CODES = """\
exit codes: 0 all runs that were asked for are over, 1 runs fail, 2 the command or a file is wrong, 75 or 130 stopped"""

_STALENESS = f"""\
examples:
  azr study staleness smollm2-cpu-small
  azr study staleness smollm2-cpu --staleness 0,1,4 --corrections clip,tis --seeds 0,1,2,3,4
  azr study staleness smollm2-cpu --minutes 30                equal time in place of equal steps
  azr study staleness smollm2-cpu learner.optimizer.lr=2e-5   other settings, the same in all arms
  azr study staleness smollm2-cpu --dry-run                   write the study file, look at it, change it; then
  azr study resume runs/study-staleness-smollm2-cpu           ... make its runs
  azr study staleness smollm2-cpu --limit 2                   two runs now; the same command makes the others later
  azr study staleness my-recipe.toml --slurm slurm.time=4:00:00      each run as a SLURM job

{_ABOUT_RUNS}

The verdict compares an arm with K = 0 of the same correction: non-inferior if the whole interval of the difference in
held-out accuracy lies above -margin, inferior if all of it lies below, otherwise `cannot tell`.

{_EXIT_CODES}
"""

_ARMS = f"""\
examples:
  azr study arms smollm2-cpu ablations --tokens 200000        full method, deduction only, no induction, no references,
                                                              solver only: three seeds each, equal trained tokens
  azr study arms smollm2-cpu reference --tokens 200000        the reference implementation's rewards beside ours
  azr study arms smollm2-cpu-learn alone --minutes 12 selfplay.heldout_every=4   one recipe, beside the initial model
  azr study arms smollm2-cpu my-arms.toml --minutes 12 --seeds 0,1,2,3,4 --baseline plain
  azr study arms smollm2-cpu ablations selfplay.heldout_samples=4   other settings, the same in all arms
  azr study arms smollm2-cpu ablations --dry-run              write the study file, look at it, change it; then
  azr study resume runs/study-arms-ablations-smollm2-cpu      ... make its runs

ARMS is a TOML file, or the name of one that ships ({", ".join(NAMES)}). It has a table for each arm,
of settings as in a recipe, on top of RECIPE; the first arm is the one that the others are compared with, unless
--baseline names one:

  [arms.plain]

  [arms.slow]
  learner.optimizer.lr = 1e-5

{_ABOUT_RUNS}

The page has accuracy on held-out tasks by kind and in the mean, as a difference to the baseline with its intervals over
seeds and over programs, what was learned for each token, and how diverse tasks and answers were at the end. The verdict
is by the margin: an arm is inferior if the whole interval over seeds lies below -margin.

{_EXIT_CODES}
"""


def register(commands: Any) -> None:
    """Add `azr study` to argparse's subcommands."""
    study = new_command(
        commands,
        "study",
        "compare settings over several seeds, by a margin that is fixed before",
        "Make several runs that differ in named settings, and judge them by held-out accuracy and a non-inferiority "
        "margin that is written down before the first run.",
        _EXAMPLES,
    )
    kinds = study.add_subparsers(required=True, metavar="WHAT")
    _add_staleness(kinds)
    _add_arms(kinds)
    resume = new_command(
        kinds, "resume", "go on with a study", "Make the runs of a study that are left, and write its page.", _EXAMPLES
    )
    resume.add_argument("folder", type=Path, metavar="FOLDER", help="the study's folder")
    _add_making(resume)
    resume.set_defaults(run=_resume)
    report = new_command(
        kinds,
        "report",
        "write the page of a study",
        "Write report.md and its curves from the result files alone, after collecting the runs whose SLURM jobs have "
        "ended. It may be called at any time.",
        _EXAMPLES,
    )
    report.add_argument("folder", type=Path, metavar="FOLDER", help="the study's folder")
    report.set_defaults(run=_report)


def _add_staleness(kinds: Any) -> None:
    command = new_command(
        kinds,
        "staleness",
        "how old may data be: learner.max_staleness and corrections",
        "Compare values of learner.max_staleness (K), and of learner.loss.correction, with K = 0.",
        _STALENESS,
    )
    command.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    add_overrides(command, "settings on top, in all arms")
    command.add_argument(
        "--staleness", default="0,1,2,4,8", metavar="K,K,...", help="bounds, 0 among them (default %(default)s)"
    )
    command.add_argument(
        "--corrections", metavar="NAME,...", help="of clip, decoupled, tis, none (default: the recipe's)"
    )
    _add_definition(command)
    command.set_defaults(run=_staleness)


def _add_arms(kinds: Any) -> None:
    command = new_command(
        kinds,
        "arms",
        "any named sets of settings, such as the paper's ablations",
        "Compare named sets of settings (arms) on one recipe, with equal budgets.",
        _ARMS,
    )
    command.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    command.add_argument("arms", metavar="ARMS", help=f"a TOML file of arms, or one that ships: {', '.join(NAMES)}")
    add_overrides(command, "settings on top of the recipe, in all arms; an arm's own come last")
    command.add_argument(
        "--baseline", metavar="NAME", help="arm that the others are compared with (default: the first)"
    )
    _add_definition(command)
    command.set_defaults(run=_arms)


def _add_definition(command: argparse.ArgumentParser) -> None:
    """Add what every kind of study is asked for, and how its runs are made."""
    command.add_argument(
        "--seeds",
        default="0,1,2",
        metavar="S,S,...",
        help="values of run.seed, one run an arm and seed (default %(default)s: three runs an arm)",
    )
    budget = command.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, metavar="N", help="steps of each run (default: the recipe's)")
    budget.add_argument("--tokens", type=int, metavar="N", help="trained tokens of each run, in place of steps")
    budget.add_argument("--minutes", type=float, metavar="M", help="minutes of training of each run, in place of steps")
    command.add_argument(
        "--margin",
        type=float,
        default=0.03,
        help="loss of held-out accuracy that is accepted, as a share (default %(default)s: 3 points)",
    )
    command.add_argument(
        "--alpha",
        type=float,
        default=0.05,
        help="error probability of a one-sided test (default %(default)s: a 90%% interval)",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="(default: runs/study-KIND-RECIPE, of arms runs/study-arms-ARMS-RECIPE)",
    )
    _add_making(command)
    command.add_argument(
        "--dry-run", action="store_true", help="write the study file and stop: `azr study resume` makes the runs"
    )


def _add_making(command: argparse.ArgumentParser) -> None:
    """Add how runs are made."""
    command.add_argument("--limit", type=whole(1), metavar="N", help="make at most N runs this time")
    command.add_argument("--retry", action="store_true", help="go on with failed runs, too")
    command.add_argument("--slurm", action="store_true", help="submit the runs as SLURM jobs, one each, and return")


def _staleness(arguments: argparse.Namespace) -> int:
    from launch.study.new import Request, parse_names, parse_numbers
    from launch.study.staleness import KEYS, arms, default_corrections, question

    overrides = tuple(overrides_of(arguments))
    bounds = parse_numbers(arguments.staleness, "--staleness")
    if arguments.corrections is None:
        corrections = default_corrections(arguments.recipe, overrides)
    else:
        corrections = parse_names(arguments.corrections, "--corrections")
    request = Request(
        kind="staleness",
        question=question(Path(arguments.recipe).stem, bounds, corrections),
        recipe=arguments.recipe,
        overrides=overrides,
        arms=arms(bounds, corrections),
        varied=KEYS,
        seeds=parse_numbers(arguments.seeds, "--seeds"),
        budget=_budget(arguments),
        margin=arguments.margin,
        alpha=arguments.alpha,
        here=not arguments.slurm,
    )
    return _begin(request, "staleness", arguments)


def _arms(arguments: argparse.Namespace) -> int:
    from launch.study.arms_file import find_arms, question, read_arms
    from launch.study.new import Request, parse_numbers, stem_of

    path = find_arms(arguments.arms)
    arms = read_arms(path, arguments.baseline)
    request = Request(
        kind="arms",
        question=question(Path(arguments.recipe).stem, arms),
        recipe=arguments.recipe,
        overrides=tuple(overrides_of(arguments)),
        arms=arms,
        varied={},
        seeds=parse_numbers(arguments.seeds, "--seeds"),
        budget=_budget(arguments),
        margin=arguments.margin,
        alpha=arguments.alpha,
        here=not arguments.slurm,
    )
    return _begin(request, f"arms-{stem_of(path)}", arguments)


def _begin(request: Request, name: str, arguments: argparse.Namespace) -> int:
    """Write the study, and make its runs unless it is a dry run; returns the exit code. `name`: of its folder."""
    from launch.study.folder import StudyFolder
    from launch.study.jobs import check
    from launch.study.new import default_folder, make

    if arguments.slurm and request.budget is not None:
        check(request.budget)
    folder = StudyFolder(arguments.out or default_folder(name, arguments.recipe))
    study = make(request, folder, print)
    if arguments.dry_run:
        _expect(folder, study)
        print(f"make its runs: {folder.command_line('resume')}")
        return 0
    return _carry_on(folder, study, arguments)


def _budget(arguments: argparse.Namespace) -> Any:
    from launch.study.definition import Budget, StudyError

    given = {name: getattr(arguments, name) for name in ("steps", "tokens", "minutes")}
    if all(value is None for value in given.values()):
        return None
    if any(value is not None and not 0 < value < math.inf for value in given.values()):
        raise StudyError("--steps, --tokens and --minutes are above 0")
    return Budget(**given)


def _resume(arguments: argparse.Namespace) -> int:
    from launch.study.folder import StudyFolder

    folder = StudyFolder(arguments.folder)
    return _carry_on(folder, _read(folder, here=not arguments.slurm), arguments)


def _read(folder: StudyFolder, here: bool) -> Study:
    """The study of a folder, also checked against its recipe before its first run. `here`: whether this machine makes
    the runs."""
    from launch.study.new import check_edited

    study = folder.read()
    if folder.read_began() is None:
        check_edited(folder, study, here)
    return study


def _carry_on(folder: StudyFolder, study: Study, arguments: argparse.Namespace) -> int:
    """Make the runs that are left, and write the page; returns the exit code."""
    from launch.study.progress import Progress
    from launch.study.runner import carry_on, results_of

    if not results_of(folder, study):
        _expect(folder, study)
    if arguments.slurm:
        return _submit(folder, study, arguments)
    code = 1
    try:
        code = carry_on(folder, study, Progress(study), arguments.limit, retry=arguments.retry)
    finally:
        _write_page(folder, study)
    return code


def _submit(folder: StudyFolder, study: Study, arguments: argparse.Namespace) -> int:
    from launch.study.jobs import submit_runs

    submit_runs(
        folder, study, lambda run, job: print(f"job {job}: {run.name}", flush=True), arguments.limit, arguments.retry
    )
    print(
        f"when jobs have ended: {folder.command_line('report')}; after a failure: {folder.command_line('resume')} "
        "--slurm --retry"
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from launch.study.definition import PUT_BACK, StudyError
    from launch.study.folder import StudyFolder
    from launch.study.jobs import collect_ended

    folder = StudyFolder(arguments.folder)
    study = _read(folder, here=False)
    for run in collect_ended(folder, study):
        print(f"collected: {run.name}")
    if folder.read_began() is not None and not folder.results.is_dir():
        again = f"To take them from {folder.runs} again: {folder.command_line('resume')}"
        mend = again if folder.runs.is_dir() else PUT_BACK
        raise StudyError(f"{folder.results} is gone, with the results of the runs. {mend}")
    _write_page(folder, study)
    return 0


def _write_page(folder: StudyFolder, study: Study) -> None:
    from launch.study.jobs import was_submitted
    from launch.study.page import write_page
    from launch.study.runner import results_of, surplus_of

    results = results_of(folder, study)
    if surplus := surplus_of(folder, study):
        print(f"azr: in no figure, as no run of the study has such a file: {', '.join(surplus)}", file=sys.stderr)
    if not results:
        print("no run is over: there is no page yet")
        return
    for sentence in write_page(folder, study, results):
        print(sentence)
    failed = [name for name, result in results.items() if result.status == "failed"]
    if failed:
        as_jobs = " --slurm" if was_submitted(folder, study) else ""
        print(f"FAILED: {', '.join(failed)}; to go on with them: {folder.command_line('resume')}{as_jobs} --retry")
    print(f"{len(results) - len(failed)} of {len(study.order)} runs are complete; page: {folder.page}")


def _expect(folder: StudyFolder, study: Study) -> None:
    from launch.run.console import counted
    from launch.study.new import expectation

    margin = f"; margin {100 * study.judgement.margin:g} points" if len(study.arms) > 1 else ""
    print(f"{counted(len(study.order), 'run')} of {study.budget}{margin}")
    print(expectation(folder, study))
