"""The rollout actor's main loop.

    consumes     grants from the learner's stream, tasks from the buffer
    gated by     grants: nothing is sampled without a slot (time without one is reported as wait_for_policy_actor_s)
    unblocks     the learner: every finished rollout goes out at once; new weights come in under running requests

Episodes run concurrently, as many as were granted; the engine batches their requests. Before it greets the learner, the
actor has the buffer seeded (`seeding.py`), where that is asked for.

An episode that fails (an engine, a sandbox, the buffer: never the model) is no reward: its open slots go back to the
learner, which counts them as dropped and grants their places again. An actor whose episodes all fail would repeat that
without end. It therefore reports failures later and later, and ends at last (`Patience`); its supervisor starts it
again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from actors.buffer.task_buffer import Buffer
from actors.concurrency import ConcurrencyController, Load
from actors.engine.generation import Engine, WeightUpdateFailed
from actors.episodes import Player
from actors.heldout.course import Course, Measure
from actors.roles import MakeRoles
from actors.sampler import Identity
from actors.seeding import seed_buffer
from actors.settings import SelfPlaySettings
from actors.time_ledger import Activity, TimeLedger
from actors.token_ledger import TokenLedger
from executor.outcomes import InfrastructureError
from learner.lineage import split_label
from learner.resident_memory import MemoryReading
from learner.staleness import Grant
from learner.stream.client import StreamClient
from learner.stream.wire import grant_from_message
from learner.weights.group import GroupSpec
from learner.weights.manifest import Manifest, manifest_from_json

_LOG = logging.getLogger(__name__)


MAX_LOAD_FAILURES = 5
"""Weight groups and updates that fail in a row before an actor ends: its next life starts with a new engine."""


class RolloutBroken(RuntimeError):
    """Every episode of this actor fails; a restart may help. The message has the last failure."""


class Patience:
    """Decides when an actor whose episodes fail gives up, and how long it delays each report. Pure: time is passed in.

    The k-th failure in a row is reported after 0.1 s * 2^(k - 2), at most `longest_s` seconds; the first at once. The
    actor gives up at a failure that is at least the `most`-th in a row and comes `spell_s` seconds or more after the
    first. Episodes that are in flight together often fail together; that alone does not end an actor.
    """

    def __init__(self, most: int = 8, spell_s: float = 30.0, longest_s: float = 5.0) -> None:
        self._most = most
        self._spell_s = spell_s
        self._longest_s = longest_s
        self._since = 0.0
        self.in_a_row = 0
        """Failures since an episode was last played to its end."""

    def played(self) -> None:
        """Note that an episode was played to its end."""
        self.in_a_row = 0

    def failed(self, now: float) -> float | None:
        """Count a failure at `now` (seconds). Returns the seconds to delay its report, or None to give up."""
        if not self.in_a_row:
            self._since = now
        self.in_a_row += 1
        if self.in_a_row >= self._most and now - self._since >= self._spell_s:
            return None
        return min(0.1 * 2.0 ** min(self.in_a_row - 2, 60), self._longest_s) if self.in_a_row > 1 else 0.0


@dataclass
class RolloutStats:
    """The numbers of a heartbeat (`learner.stream.reports.ACTORS`); counters since the actor started."""

    rollouts: int = 0
    episodes: int = 0
    failures: int = 0
    seeded: int = 0
    """Proposals of the seeding phase."""
    wait_for_policy_s: float = 0.0
    """Seconds that the actor had nothing to play, without the present spell."""
    ready_since: float = field(default_factory=time.monotonic)
    """Time at which the actor was ready to play, in monotonic seconds."""
    idle_since: float | None = field(default_factory=time.monotonic)
    paused: bool = False
    """The learner starts no new rollouts for now."""

    def numbers(self) -> dict[str, float]:
        """The numbers as a flat map, the present idle spell included."""
        now = time.monotonic()
        idle = now - self.idle_since if self.idle_since is not None else 0.0
        return {
            "rollouts": self.rollouts,
            "episodes": self.episodes,
            "failures": self.failures,
            "seeded": self.seeded,
            "wait_for_policy_actor_s": self.wait_for_policy_s + idle,
            "connected_actor_s": now - self.ready_since,
            "paused": float(self.paused),
        }


class Rollout:
    """One actor: an engine, two roles and a stream client, playing what is granted."""

    def __init__(
        self,
        engine: Engine,
        roles: MakeRoles,
        buffer: Buffer,
        client: StreamClient,
        settings: SelfPlaySettings,
        heldout: Measure | None = None,
        concurrency: ConcurrencyController | None = None,
        seed: int | None = None,
        patience: Patience | None = None,
        tokens: TokenLedger | None = None,
        time_ledger: TimeLedger | None = None,
    ) -> None:
        """`engine`: the one that `roles` sample with. `heldout`: what to measure after new weights, beside the
        episodes. All actors run the same weights, so one of them is given it. `concurrency`: what adapts the slots of
        this actor; None leaves them as the client has them.
        `seed`: as for `Player`; with one, episodes also wait for a measurement that is going on, as in serial mode.
        `tokens`, `time_ledger`: the ledgers in which the work of `engine` and `roles` is entered."""
        self._engine = engine
        self._roles = roles
        self._buffer = buffer
        self._client = client
        self._settings = settings
        self._course = Course(heldout)
        self._concurrency = concurrency
        self._seed = seed
        self._patience = patience or Patience()
        self._tokens = tokens or TokenLedger()
        self._time = time_ledger or TimeLedger()
        self._memory = MemoryReading("memory/actor_mib")
        self._executed: int | None = None
        """Executions of the sandboxes at the last failure, if that was a sandbox's. Until there are more, the sandboxes
        count as broken, even while episodes succeed that need none (those of malformed proposals, which would then be
        all that is trained on)."""
        self._broken: Exception | None = None
        """The error after which this actor cannot go on."""
        self._breaks = asyncio.Event()
        self._playing: dict[asyncio.Task[None], set[int]] = {}
        """Episodes in play, and the slots of each that are not answered yet."""
        self._updates: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._player: Player | None = None
        self.stats = RolloutStats()

    async def run(self, connect_timeout_s: float = 300.0) -> None:
        """Play until the learner says shutdown. Raises RolloutBroken where nothing can be played, EngineDead,
        LearnerLost, SeedingFailed."""
        who = Identity("", self._client.actor_id, self._client.incarnation)
        self.stats.seeded = await seed_buffer(self._roles, self._buffer, self._settings, who, self._seed, _say_seeding)
        await self._course.base(self._settings)
        self.stats.idle_since = self.stats.ready_since = time.monotonic()
        self._time.restart()
        # The engine gets the label of this version with its weights; until then its own says that they are the base's.
        version = await self._client.connect(connect_timeout_s, self._heartbeat)
        self._course.goes_on_from(split_label(version)[0])
        identity = Identity(self._client.run_id, self._client.actor_id, self._client.incarnation)
        player = self._player = Player(self._roles, self._buffer, identity, seed=self._seed)
        updating = asyncio.create_task(self._update_weights())
        listening = asyncio.create_task(self._listen(player))
        breaking = asyncio.create_task(self._breaks.wait())
        dying = asyncio.create_task(self._engine.died())
        try:
            done, _ = await asyncio.wait({listening, updating, breaking, dying}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken is not None and listening not in done:
                raise self._broken
            for ended in done:
                ended.result()
        finally:
            tasks = (listening, updating, breaking, dying, self._course.running, *self._playing)
            background = [task for task in tasks if task is not None]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    async def _listen(self, player: Player) -> None:
        """Act on the learner's messages until `shutdown`."""
        async for message in self._client.messages():
            match message["type"]:
                case "grant":
                    self._start(player, grant_from_message(message))
                case "manifest" | "join" | "weights" | "measure":
                    self._updates.put_nowait(message)
                case "cancel":
                    self._cancel(set(message["slots"]))
                case "pause" | "resume":
                    self.stats.paused = message["type"] == "pause"
                case "shutdown":
                    return

    def _heartbeat(self) -> dict[str, float]:
        """Return the numbers of a heartbeat, and adapt the actor's capacity to the engine's load."""
        played = self._player.counts() if self._player else {}
        engine = self._engine.stats()
        if self._concurrency is not None:
            load = Load(len(self._client.held), engine["kv_usage"], engine["waiting"], engine["preempted"])
            self._client.capacity = self._concurrency.observe(load)
        own = {
            "capacity": float(self._client.capacity),
            **self._memory.numbers(),
            **{f"actor_time/{part}_actor_s": seconds for part, seconds in self._time.seconds().items()},
        }
        if self._player is not None:
            own["executions"] = float(self._player.executed())
        return self.stats.numbers() | engine | own | played | self._course.numbers()

    def _start(self, player: Player, grant: Grant) -> None:
        stats = self.stats
        if stats.idle_since is not None:
            stats.wait_for_policy_s += time.monotonic() - stats.idle_since
            stats.idle_since = None
        open_slots = set(grant.slots)
        task = asyncio.create_task(self._play(player, grant, open_slots))
        self._playing[task] = open_slots
        task.add_done_callback(self._finished)

    def _cancel(self, slots: set[int]) -> None:
        """Stop episodes all of whose open slots the learner cancelled."""
        for task, open_slots in self._playing.items():
            if open_slots & slots:
                open_slots -= slots
                if not open_slots:
                    task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._playing[task]
        if not self._playing:
            self.stats.idle_since = time.monotonic()
        # Nobody would ever answer its slots: better no actor than one that holds them.
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._broken = error
            self._breaks.set()

    async def _play(self, player: Player, grant: Grant, open_slots: set[int]) -> None:
        """Play one episode. After an error, which says nothing about the model, report its open slots as failed."""

        async def emit(trajectory: Any) -> None:
            taken = await self._client.send_trajectory(trajectory)
            self._tokens.sent(trajectory.slot, len(trajectory.response_ids), taken)
            open_slots.discard(trajectory.slot)
            self.stats.rollouts += 1

        async def give_back(slots: Any) -> None:
            open_slots.difference_update(slots)
            self._tokens.returned(slots)
            await self._client.send_returned(slots)

        failed = False
        if self._seed is not None and self._course.running is not None:
            await asyncio.wait({self._course.running})
        try:
            with self._time.during(Activity.EPISODE):
                await player.play(grant, emit, give_back)
            self.stats.episodes += 1
            if self._executed is None or player.executed() > self._executed:
                self._executed = None
                self._patience.played()
        except Exception as error:  # whatever it is, the learner has to know that these slots will not be filled
            failed = True
            self.stats.failures += 1
            self._executed = player.executed() if isinstance(error, InfrastructureError) else None
            why = f"{type(error).__name__}: {error}"
            _LOG.warning("an episode failed, with %d open slots: %s", len(open_slots), why)
            wait_s = self._patience.failed(time.monotonic())
            await asyncio.sleep(wait_s or 0.0)
            await self._client.send_failed(sorted(open_slots), why)
            if wait_s is None:
                raise RolloutBroken(
                    f"the last {self._patience.in_a_row} episodes have failed, the last with {why}"
                ) from error
        finally:
            self._tokens.ended(grant.slots, failed)

    async def _update_weights(self) -> None:
        """Join groups and load weights, one message after the other, while episodes go on."""
        manifest: Manifest = []
        group, failures = 0, 0
        while True:
            message = await self._updates.get()
            try:
                match message["type"]:
                    case "manifest":
                        manifest = manifest_from_json(message["manifest"])
                    case "join":
                        spec = GroupSpec.from_json(message["spec"])
                        group = spec.group_id
                        await self._engine.join(spec, int(message["rank"]))
                    case "measure":
                        self._course.last(int(message["version"]))
                    case _:
                        label = int(message["version"])
                        timings = await self._engine.update_weights(manifest, label)
                        self._course.loaded(label)  # before the learner hears of it, and grants
                        await self._client.send_loaded(label, timings)
                        _LOG.debug("version %d of the learner's life %d is loaded", *split_label(label))
                        failures = 0
            except Exception as error:  # the learner decides what a failed update means
                why = f"{type(error).__name__}: {error}"
                _LOG.warning("%s in weight group %d failed: %s", message["type"], group, why)
                # A group that does not come together names the missing ranks at the learner's end.
                broke = isinstance(error, WeightUpdateFailed) and error.interrupted
                interrupted = message["type"] == "join" or broke
                await self._client.send_load_failed(group, why, interrupted)
                failures += 1
                if failures == MAX_LOAD_FAILURES:
                    raise RolloutBroken(
                        f"the last {failures} weight updates have failed, the last with {why}"
                    ) from error


def _say_seeding(have: int, target: int) -> None:
    _LOG.info("seeding: %d of %d triplets", have, target)
