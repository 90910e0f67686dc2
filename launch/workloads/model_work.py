"""What a real run does in its processes: vLLM engines with sandboxes, and a Megatron learner."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from functools import partial
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]
from transformers import AutoTokenizer

from actors.buffer.task_buffer import Buffer
from actors.engine.async_engine import AsyncEngine
from actors.environment import Environment
from actors.heldout.measure import Heldout
from actors.labelled_examples import Draw
from actors.roles import MakeRoles, model_roles
from actors.time_ledger import TimeLedger
from actors.token_ledger import TokenLedger
from executor.judge import Judge
from executor.pool import SandboxPool
from launch.cluster.engine_failure import explain
from launch.cluster.workload import ActorPlace
from launch.config import Config
from launch.models import prepare
from launch.run.aside import undo_measurements
from launch.run.assemble import make_supervision, make_trainer
from launch.run.folder import work_log
from launch.run.measurements import MEASURING_ACTOR, keep_in, newest

_LOG = logging.getLogger(__name__)


class ModelActorWork:
    """Sandboxes and a vLLM engine."""

    def __init__(self, config: Config, place: ActorPlace) -> None:
        self._config = config
        self._place = place
        self._pool = SandboxPool(config.executor)
        # vLLM's sockets. On this machine the folder is within the run's scratch folder, by TMPDIR.
        self._sockets = tempfile.TemporaryDirectory(prefix="azr-")
        os.environ["VLLM_RPC_BASE_PATH"] = self._sockets.name
        self.tokens, self.time_ledger = TokenLedger(), TimeLedger()
        self.engine = AsyncEngine(
            prepare(config.model.path),
            config.engine,
            seed=place.seed(config.run.seed),
            tokens=self.tokens,
            time_ledger=self.time_ledger,
        )
        record = work_log(place.folder, place.actor_id, config.executor.record_work)
        judge = Judge(self._pool, config.executor, rules=config.selfplay.rules)
        self._environment = Environment(judge, record, self.time_ledger)
        self.heldout: Heldout | None = None
        if place.index == MEASURING_ACTOR and config.selfplay.heldout_every:
            self.heldout = Heldout(
                self.engine,
                self._environment,
                config.selfplay,
                config.engine.max_num_seqs,
                keep=keep_in(place.folder),
                forget=partial(undo_measurements, place.folder),
            )
            self.heldout.measured = newest(place.folder)

    async def start(self) -> None:
        """See `ActorWork`. Raises EngineStartFailed for an engine that cannot start with these settings."""
        _LOG.info("starting %d sandboxes", self._config.executor.workers)
        await self._pool.start()
        _LOG.info("starting the engine with %s", self._config.model.path)
        began, written = time.monotonic(), self._place.log.stat().st_size
        try:
            await self.engine.start()
        except Exception as error:
            raise explain(error, self._place.log, written) from error
        _LOG.info("the engine is ready after %.1f s", time.monotonic() - began)

    def roles(self, buffer: Buffer) -> MakeRoles:
        """See `ActorWork`."""
        return model_roles(self.engine, self._environment, buffer, self._config.selfplay)

    def sandbox_pids(self) -> list[int]:
        """See `ActorWork`."""
        return [pid for pid in self._pool.pids if pid is not None]

    async def close(self) -> None:
        """See `ActorWork`."""
        await self.engine.close()
        await self._pool.close()
        self._sockets.cleanup()


class ModelLearnerWork:
    """A trainer with its policy, and the model's tokenizer."""

    def __init__(self, config: Config, rank: int, store: Store | None) -> None:
        model_dir = prepare(config.model.path)
        _LOG.info("loading the model %s", model_dir)
        self._config = config
        self.trainer = make_trainer(config, model_dir, rank, store)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(model_dir))

    def supervise(self, draw: Draw) -> None:
        """See `LearnerWork`."""
        self.trainer.supervision = make_supervision(self._config, self.tokenizer, draw)
