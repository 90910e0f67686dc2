"""A fine-tuning run (`azr sft`), from its data to its summary.

One learner rank runs in this process; several run as Ray actors, one each, and this process shows what rank 0 says.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.signals import ignore_signals
from executor.user_error import UserError
from launch.cluster.meeting import Meeting
from launch.config import SftConfig
from launch.inputs import data_files
from launch.logs import close_log, log_to_file
from launch.metric_catalogue import SFT_METRICS
from launch.models import prepare
from launch.run.attempt import Start, adopt, begin, find_origin, finished
from launch.run.configuration import with_absolute_paths
from launch.run.console import REFRESH_S
from launch.run.durations import read_durations
from launch.run.folder import RunFolder, append_event, checkpoint_event, end_at_once, log_to, usable
from launch.run.interrupts import COMPLETE, INTERRUPTED, SAVED, Interrupts
from launch.run.owner import owned
from launch.run.recorder import Recorder
from launch.run.status import Progress, SftStatus, has_unsaved_work
from launch.sft.console import SftConsole
from learner.checkpoint import Checkpoints
from learner.schedule import CheckpointSchedule
from learner.sft.data import Data, Order, load_data

if TYPE_CHECKING:
    from launch.cluster.ray_port import Handle, RayPort

_STATE = "sft.json"
"""A checkpoint's file that says which step it is of, and of which data."""


class SftError(UserError):
    """A fine-tuning run that cannot start or go on; the message says what to do."""


def run(config: SftConfig, start: Start | None = None, interrupts: Interrupts | None = None) -> int:
    """Run to the end; returns the exit code.

    `start`: what to do with a folder that holds a run; None refuses it. `interrupts`: where signals are listened to.
    """
    interrupts = interrupts or Interrupts()
    console = SftConsole(config.run.name)
    folder = RunFolder(config.folder)
    with owned(folder, console.say):
        interrupts.last_acts.append(lambda why: end_at_once(folder, why))
        interrupts.loss = folder.loss
        with usable(folder):
            origin = find_origin(config, folder, start or Start())
        prepare(config.model.path, console.say)
        # What is wrong with the data is said before anything is made or started.
        data, told = _read(config)
        console.say(told)
        if origin.checkpoint is not None:
            _resumed_step(origin.checkpoint, _identity(config, data))
        num_steps = Order(len(data.train), config.sft.batch_size, config.sft.epochs, config.run.seed).num_steps
        if origin.resumes and (done := finished(config, folder, origin, num_steps)):
            console.say(done)
            return 0
        with usable(folder):
            lines = begin(config, folder, origin)
            process = f"sft.{folder.next_log('sft')}"
            log_to_file(folder.logs / f"{process}.log", process, config.run.log_level)
        try:
            for line in [*lines, f"run folder: {folder.path}"]:
                console.say(line)
            if config.learner.parallel.world_size == 1:
                why = _here(config, folder, data, origin.goes_on, console, interrupts)
            else:
                why = _on_ray(config, folder, origin.goes_on, console, interrupts)
            append_event(folder, "run_ended", why=why or COMPLETE)
            code = _summarise(config, folder, why, console)
            return SAVED if interrupts.stopping and why and not code else code
        except RankFailed as error:
            console.say(f"FAILED: {error}")
            append_event(folder, "run_ended", why=f"failed: {error}")
            return 1
        finally:
            close_log()


class SftRank:
    """One learner rank of a fine-tuning run. Rank 0 also writes the run's files."""

    def __init__(
        self,
        config: SftConfig,
        folder: RunFolder,
        rank: int = 0,
        log_number: int | None = None,
        data: Data | None = None,
    ) -> None:
        """`log_number`: of the log that the rank's output goes to; None for the only rank, which runs in the driver.
        `data`: where it has been read already."""
        self._config = config
        self._folder = folder
        self._rank = rank
        self._meeting = Meeting()
        self._data = data
        self._progress = Progress(read_durations(self._folder))
        self._num_steps = 0
        self._validation: dict[str, float] = {}
        if log_number is not None:
            ignore_signals()
            log_to(self._folder, f"learner{rank}", log_number, config.run.log_level)

    def rendezvous(self) -> str:
        """Serve the store where the ranks meet; returns its address, `tcp://host:port`. Rank 0 only, under Ray."""
        from launch.cluster.environment import own_address

        return self._meeting.serve(own_address())

    def run(self, resume: bool, store: str | None = None) -> None:
        """The rank's whole life. `store`: rank 0's address where several ranks meet."""
        from launch.run.assemble import make_policy
        from launch.run.hooks import make_interrupted
        from learner.model.process_groups import data_rank
        from learner.sft.trainer import SftHooks, SftTrainer, fine_tune

        if store is not None:
            from launch.cluster.environment import prepare_part

            prepare_part(self._config)
        config, progress = self._config, self._progress
        data = self._data or _read(config)[0]
        timeout_s = config.learner.rank_timeout_s
        model_dir, meeting = prepare(config.model.path), self._meeting.store(store, timeout_s)
        policy, ranks = make_policy(config, model_dir, self._rank, meeting, timeout_s)
        trainer = SftTrainer(policy, data, config.sft, config.learner, ranks, config.run.seed, data_rank())
        self._num_steps = trainer.num_steps
        checkpoints = Checkpoints(
            self._folder.checkpoints,
            config.learner.keep_checkpoints,
            checkpoint_event(self._folder, progress.measured.checkpoint),
            self._folder.check_owner,
        )
        identity = _identity(config, data)
        latest = checkpoints.latest() if resume else None
        if latest is not None:
            trainer.step = _resumed_step(latest, identity)
            policy.load_checkpoint(latest / "model")
        ranks.barrier()  # every rank has loaded: the run goes on with these settings
        recorder = None
        if ranks.is_main:
            # The row of step 0 is written again as well, where the run begins at step 1.
            recorder = Recorder(self._folder, None, False, trainer.step or -1, catalogue=SFT_METRICS)
            adopt(self._folder)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            if recorder is None:
                return
            recorder.step({"step": step, "version": step, **metrics}, [])
            if step:
                progress.last = recorder.last
            if "validation_loss" in metrics:
                self._validation = recorder.last

        def write(folder: Path) -> None:
            policy.save_checkpoint(folder / "model")
            if ranks.share(lambda: not progress.is_hurried() or trainer.step == trainer.num_steps):
                policy.save_hf(folder / "hf")
            if ranks.is_main:
                (folder / _STATE).write_text(json.dumps({"step": trainer.step, **identity}, allow_nan=False))

        def save() -> None:
            checkpoints.save(trainer.step, ranks, write)
            checkpoints.wait()
            exported = Path("checkpoints") / f"step_{trainer.step:08d}" / "hf"
            if ranks.is_main and (self._folder.path / exported).exists():
                _link(self._folder.path / "hf", exported)

        hooks = SftHooks(make_interrupted(config.run, progress, recorder), on_step, save, progress.enter)
        try:
            learner = config.learner
            schedule = CheckpointSchedule(learner.checkpoint_every, learner.checkpoint_minutes, ranks, trainer.step)
            fine_tune(trainer, config.sft.validate_every, schedule, hooks)
        finally:
            if recorder is not None:
                recorder.close()

    def status(self) -> SftStatus:
        """The state of the run, for the console."""
        progress = self._progress
        return SftStatus(**progress.fields(), num_steps=self._num_steps, validation=self._validation)

    def stop(self, why: str, save_in_s: float | None) -> None:
        """Stop before the next step, and save; see `Progress.ask_to_stop`."""
        self._progress.ask_to_stop(why, save_in_s)


class RankFailed(UserError):
    """A learner rank ended by an error; the message names its log."""

    exit_code = 1


def _here(
    config: SftConfig, folder: RunFolder, data: Data, resume: bool, console: SftConsole, interrupts: Interrupts
) -> str:
    """Run the only rank in this process; returns why it stopped early, or ""."""
    rank = SftRank(config, folder, data=data)

    def stop() -> bool:
        unsaved = has_unsaved_work(rank.status())
        if unsaved:
            rank.stop(INTERRUPTED, _save_in_s(interrupts, rank.status()))
        return unsaved

    console.stop_by = interrupts.limits.stop_by
    with interrupts.running(stop, console.say, lambda: rank.status().durations.stop_s), console.following(rank.status):
        rank.run(resume)
        interrupts.saved()
    return rank.status().stop


def _on_ray(config: SftConfig, folder: RunFolder, resume: bool, console: SftConsole, interrupts: Interrupts) -> str:
    """Run every rank in an actor of its own; the same otherwise. Raises RankFailed."""
    from launch.cluster.node_check import NodeError, check_nodes
    from launch.cluster.placement import PlacementError, place_ranks
    from launch.cluster.places import beside_others
    from launch.cluster.ray_port import Ray
    from launch.cluster.ray_session import ray_session
    from launch.run.scratch import remove, scratch

    config = with_absolute_paths(config)  # ranks have working directories of their own
    world = config.learner.parallel.world_size
    with scratch(folder.path) as private:
        interrupts.last_acts.append(lambda why: remove(private))
        with ray_session(config.ray.address, world, private, console.say, interrupts):
            port = Ray()
            try:
                nodes, learner = port.nodes(), config.learner
                assignments = beside_others(port, lambda taken: place_ranks(learner.parallel, nodes, taken))
                if config.ray.address is not None:
                    check_nodes(config, folder, port, {each.node for each in assignments}, learner.rank_timeout_s)
            except (PlacementError, NodeError) as error:
                raise RankFailed(str(error)) from None
            number = max(folder.next_log(f"learner{each.index}") for each in assignments)
            # One call runs the rank, another one asks it for its status.
            ranks = [
                port.start(each, SftRank, config, folder.absolute(), each.index, number, max_concurrency=4)
                for each in assignments
            ]
            try:
                return _follow(port, ranks, folder, number, resume, console, interrupts)
            finally:
                for rank in ranks:
                    port.kill(rank)


def _follow(
    port: RayPort,
    ranks: list[Handle],
    folder: RunFolder,
    number: int,
    resume: bool,
    console: SftConsole,
    interrupts: Interrupts,
) -> str:
    """Run the ranks and show what rank 0 says; returns why they stopped early, or "". Raises RankFailed.

    `number`: of the ranks' logs.
    """
    from launch.cluster.ray_port import CallFailed

    status = SftStatus()
    store = port.call(ranks[0], "rendezvous")  # Ray passes rank 0's answer on to the others
    running = {port.call(rank, "run", resume, store): index for index, rank in enumerate(ranks)}
    stopping, killed_at = False, None
    console.stop_by = interrupts.limits.stop_by
    with (
        interrupts.running(lambda: has_unsaved_work(status), console.say, lambda: status.durations.stop_s),
        console.open(),
    ):
        while running:
            folder.check_owner()
            for run in port.finished(list(running), REFRESH_S):
                index = running.pop(run)
                try:
                    port.result(run)
                except CallFailed as error:
                    log = folder.logs / f"learner{index}.{number}.log"
                    raise RankFailed(f"learner rank {index}: {error}\nIts log: {log}") from None
            if interrupts.stopping and (not stopping or interrupts.killed_at != killed_at):
                stopping, killed_at = True, interrupts.killed_at
                # `Ranks.share` spreads rank 0's decision to stop.
                port.call(ranks[0], "stop", INTERRUPTED, _save_in_s(interrupts, status))
            with contextlib.suppress(CallFailed):  # it just died, which `finished` says next
                status = port.result(port.call(ranks[0], "status"))
            console.show(status)
        interrupts.saved()
    return status.stop


def _save_in_s(interrupts: Interrupts, status: SftStatus) -> float | None:
    """Seconds until a run that was asked to stop has to begin to save; None: any time."""
    left_s = interrupts.left_s()
    return None if left_s is None else left_s - status.durations.save_s


def _read(config: SftConfig) -> tuple[Data, str]:
    """The data, and a line about it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(prepare(config.model.path)))
    sft = config.sft
    data = load_data(*data_files(config), tokenizer, sft, config.run.seed)
    told = f"{len(data.train)} examples to learn, {len(data.validation)} to measure"
    skipped = f"; {data.num_skipped} skipped, longer than sft.max_tokens = {sft.max_tokens}" if data.num_skipped else ""
    return data, told + skipped


def _identity(config: SftConfig, data: Data) -> dict[str, Any]:
    """Everything that the order of the examples depends on."""
    return {"data": data.digest, "batch_size": config.sft.batch_size, "seed": config.run.seed}


def _resumed_step(checkpoint: Path, identity: dict[str, Any]) -> int:
    """The step of a checkpoint; raises SftError if its order of the examples was another."""
    state = json.loads((checkpoint / _STATE).read_text())
    names = {"data": "sft.data, or how it is split or cut", "batch_size": "sft.batch_size", "seed": "run.seed"}
    changed = [names[key] for key, value in identity.items() if state[key] != value]
    if changed:
        raise SftError(
            f"{checkpoint} was written with another {' and another '.join(changed)}: the order of the examples would "
            f"not go on. Set it back, or start a new run from there: model.path={checkpoint / 'hf'}"
        )
    return int(state["step"])


def _link(link: Path, target: Path) -> None:
    """Point `link` at `target`, in one step."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _summarise(config: SftConfig, folder: RunFolder, why: str, console: SftConsole) -> int:
    """The closing lines; returns the exit code."""
    rows = folder.read_metrics()
    measured = [row for row in rows if "validation_loss" in row]
    if why:
        console.say(f"stopped: {why}")
    if not any(folder.checkpoints.glob("step_*")):
        console.say("nothing was learned")
        return 1
    if measured:
        first, last = measured[0], measured[-1]
        console.say(
            f"validation loss {first['validation_loss']:.4f} before step {first['step'] + 1}, "
            f"{last['validation_loss']:.4f} after step {last['step']} (perplexity {first['validation_perplexity']:.2f} "
            f"-> {last['validation_perplexity']:.2f})"
        )
    if why:
        console.say(f"go on: azr sft --resume {shlex.quote(str(folder.path))}")
    if not (folder.path / "hf").exists():
        console.say("there is no hf/ yet, because time was short; the next checkpoint has one")
        return 0
    recipe = "smollm2-cpu" if config.model.path == "smollm2-135m-instruct" else "RECIPE"
    console.say("self-play from here:")
    model = shlex.quote(str(folder.path / "hf"))
    print(f"azr train {recipe} model.path={model}")
    return 0
