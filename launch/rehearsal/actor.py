"""What a rehearsed rollout actor does in its process: an engine and roles that take time, and no sandboxes."""

from __future__ import annotations

from actors.buffer.task_buffer import Buffer
from actors.roles import MakeRoles
from actors.time_ledger import TimeLedger
from actors.token_ledger import TokenLedger
from launch.cluster.workload import ActorPlace
from launch.config import Config
from launch.rehearsal.engine import RehearsedEngine
from launch.rehearsal.lengths import lengths_of
from launch.rehearsal.receiver_process import ReceiverProcess, SharedReceivers
from launch.rehearsal.receivers import OwnReceivers
from launch.rehearsal.roles import rehearsed_roles


class RehearsedActorWork:
    """See `launch.cluster.workload.ActorWork`. Held-out tasks are not rehearsed: they are few, and one actor's."""

    heldout = None

    def __init__(self, config: Config, place: ActorPlace, receivers: ReceiverProcess | None) -> None:
        """`receivers`: the process that receives weights for the actors of this one; None: this one does."""
        self._config = config
        self._seed = place.seed(config.run.seed)
        self._lengths = lengths_of(config)
        # A rehearsed engine enters nothing: it samples no tokens, and has no steps.
        self.tokens, self.time_ledger = TokenLedger(), TimeLedger()
        workers = config.engine.tensor_parallel
        life = f"{place.actor_id}.{place.incarnation}"
        own = SharedReceivers(receivers, life, workers) if receivers is not None else OwnReceivers(workers)
        self.engine = RehearsedEngine(config.rehearsal, config.engine.max_num_seqs, workers, own)

    async def start(self) -> None:
        """See `ActorWork`."""
        await self.engine.start()

    def roles(self, buffer: Buffer) -> MakeRoles:
        """See `ActorWork`."""
        config = self._config
        return rehearsed_roles(self.engine, buffer, config.selfplay, config.rehearsal, self._lengths, self._seed)

    def sandbox_pids(self) -> list[int]:
        """See `ActorWork`: there are none."""
        return []

    async def close(self) -> None:
        """See `ActorWork`."""
        await self.engine.close()
