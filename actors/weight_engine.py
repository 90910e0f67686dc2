"""The receiving end of the weight broadcast inside vLLM: an engine for vLLM's weight-transfer factory, and worker
methods.

vLLM loads `register` from the entry point `vllm.general_plugins` in each of its processes. The engine is an adapter
around `learner.weights.transfer`: weights arrive under Hugging Face names and go through vLLM's layerwise reload, as
its NCCL engine does it, because workers repack weights after loading (on a CPU the original tensors are gone by then).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.folder_loader import LOAD_FORMAT, FolderLoader
from actors.fused_experts import repack_after_reload
from actors.running_weights import own_weights, whole_weights
from actors.vllm_log import silence_reload
from actors.worker_memory import remove_names
from executor.signals import end_with_parent
from learner.device import keep_memory
from learner.weights.delta import DeltaDecoder
from learner.weights.group import GroupSpec, WeightSyncError
from learner.weights.local import LocalChannel
from learner.weights.manifest import checksum, manifest_from_json
from learner.weights.transfer import WeightReceiver

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

_LOG = logging.getLogger(__name__)
BACKEND = "azr"
WORKER_EXTENSION = "actors.weight_engine.WorkerExtension"

_PROCESSES = ("EngineCore", "VllmWorker")
"""How the names begin that vLLM gives the processes of an engine: the core, and with tensor parallelism its workers."""

# Warnings of vLLM about what is in order here, as (logger, text). Layers without weights of their own (rotary
# embeddings, a tied head) get none; `receive_weights` checks by itself that nothing is missing. The scheduler is
# vLLM's, extended.
_FALSE_ALARMS = (
    ("vllm.model_executor.model_loader.reload.layerwise", "Failed to load weights"),
    ("vllm.config.scheduler", "Using custom scheduler class"),
)


def register() -> None:
    """Make the engine and the loader of folders known to vLLM. Idempotent: plugins are loaded more than once."""
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.current_process().name.startswith(_PROCESSES):
        # They receive no signal that asks to stop, and would outlive a parent that was killed: a core for good, a
        # worker that waits for weights until its deadline.
        end_with_parent()
        if not parent.is_alive():  # it has ended before
            os.kill(os.getpid(), signal.SIGKILL)
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, AzrWeightTransferEngine.__name__)
        register_model_loader(LOAD_FORMAT)(FolderLoader)
        for name, text in _FALSE_ALARMS:
            logging.getLogger(name).addFilter(_without(text))


def _without(text: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: text not in str(record.msg)


@dataclass
class AzrInitInfo(WeightTransferInitInfo):
    """Which group to join. `rank` is that of the engine's first worker; the others follow it."""

    spec: dict[str, Any]
    rank: int


@dataclass
class AzrUpdateInfo(WeightTransferUpdateInfo):
    """The tensors that will arrive, as `learner.weights.manifest.manifest_to_json` gives them."""

    manifest: list[dict[str, Any]] = field(default_factory=list)


class AzrWeightTransferEngine(WeightTransferEngine[AzrInitInfo, AzrUpdateInfo]):
    """Receives one update after another, each between `start_weight_update` and `finish_weight_update`."""

    init_info_cls = AzrInitInfo
    update_info_cls = AzrUpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        silence_reload(bool(getattr(vllm_config.model_config.hf_config, "tie_word_embeddings", False)))
        if device.type == "cpu":
            keep_memory()
            repack_after_reload(model)
        if self.parallel_config.world_size > 1:
            remove_names()
        self.timings: dict[str, float] = {}
        self.dirty = False
        """Some weights of an update have gone in, but not all: the model is no policy that anybody trained."""
        self.failure: BaseException | None = None
        """The error of the last update or of joining a group; None if it succeeded or is under way."""
        self._receiver: WeightReceiver | LocalChannel | None = None
        self._decoder = DeltaDecoder()  # whatever the group, an update changes what the last one brought
        self._expected: set[str] = set()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="azr-weights")
        self._joining: Future[WeightReceiver] | None = None

    def init_transfer_engine(self, init_info: AzrInitInfo) -> None:
        """Begin to join a weight group, leaving the one before. A group may be long in coming together, and
        this call holds up generation: so a thread waits for it, and `joined` tells."""
        self.shutdown()
        if self._joining is not None and not self._joining.cancel():
            self._joining.add_done_callback(_leave)
        self._joining = None
        spec = GroupSpec.from_json(init_info.spec)
        rank = init_info.rank + self.parallel_config.rank
        if spec.backend == "local":
            self._receiver = LocalChannel.find(spec.host)
        else:
            self._joining = self._executor.submit(self._connect, spec, rank)

    def joined(self) -> bool:
        """Whether the group is complete. Raises the error of joining it."""
        if self._joining is not None and self._joining.done():
            joining, self._joining = self._joining, None
            self.failure = joining.exception()
            self._receiver = joining.result()
        return self._joining is None

    def start_weight_update(self) -> None:
        """Get ready to load: layers are rebuilt one by one as their weights arrive."""
        self.failure = None
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: AzrUpdateInfo) -> None:
        """Load one broadcast. An error leaves every layer runnable, and `dirty` where some are of the new policy."""
        load_weights: Any = self.model.load_weights
        started = time.monotonic()
        try:
            receiver = self._receiver
            if receiver is None:
                raise WeightSyncError("the engine has joined no group", group_id=0, phase="transfer", rank=-1)
            loaded = load_weights(self._loading(receiver.receive(manifest_from_json(update_info.manifest))))
            if missing := self._expected - loaded:
                raise RuntimeError(
                    f"the update leaves {len(missing)} parameters as they were: {sorted(missing)[:3]} ..."
                )
        except BaseException as error:
            self.failure = error
            self.abandon()
            raise
        transfer_s = receiver.timings["transfer_s"]
        self.timings = {"transfer_s": transfer_s, "load_s": time.monotonic() - started - transfer_s}

    def finish_weight_update(self) -> None:
        """Put the last layers in place."""
        try:
            finalize_layerwise_reload(self.model, self.model_config)
            self._repack_tied_heads()
        except BaseException as error:
            self.failure = error
            raise
        self.dirty = False

    def abandon(self) -> None:
        """Give layers that are not complete their former weights back, so that the next update finds a whole model."""
        dirty, self.dirty = self.dirty, True
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        finalize_layerwise_reload(self.model, self.model_config)
        self.dirty = dirty

    def shutdown(self) -> None:
        """Leave the group."""
        if self._receiver is not None:
            if isinstance(self._receiver, WeightReceiver):
                self._receiver.close()
            self._receiver = None

    def _connect(self, spec: GroupSpec, rank: int) -> WeightReceiver:
        receiver = WeightReceiver(self.device, self._decoder)
        receiver.connect(spec, rank)
        return receiver

    def _loading(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            self.dirty = True
            yield name, tensor

    def _repack_tied_heads(self) -> None:
        """An output head tied to the embedding gets no weights of its own, so reloading passes it by. On a CPU it
        multiplies by a packed copy, which would otherwise stay that of the first policy."""
        embeddings = {id(m.weight) for m in self.model.modules() if type(m) is VocabParallelEmbedding}
        module: Any
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings:
                module.quant_method.process_weights_after_loading(module)


def _leave(joining: Future[WeightReceiver]) -> None:
    """Leave a group that was given up before it was whole."""
    if joining.exception() is None:
        joining.result().close()


class WorkerExtension:
    """Methods that vLLM adds to its workers, for `collective_rpc`. Names begin with `azr_` so that none collides."""

    _weight_update_active: bool  # the worker's own
    rank: int

    def azr_attempt(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Call a method of this worker. Returns its `result`, or as `error` what it raised.

        Where a worker raises, vLLM's executor leaves the answers of those after it unread, and takes them for the
        answers to its next call.
        """
        try:
            return {"result": getattr(self, method)(*args, **kwargs)}
        except Exception as error:
            if not isinstance(error, WeightSyncError):  # which says itself who waited for whom
                _LOG.exception("%s failed", method)
            return {"error": f"{type(error).__name__}: {error}"}

    def azr_joined(self) -> bool:
        """Whether the weight group that was last joined is whole."""
        engine: AzrWeightTransferEngine = self.weight_transfer_engine  # type: ignore[attr-defined]
        return engine.joined()

    def azr_update_state(self) -> dict[str, float]:
        """Timings of the last update, and as 0.0 or 1.0: `dirty`; `interrupted`, where the broadcast broke; `faulty`,
        where this worker could not load what arrived."""
        engine: AzrWeightTransferEngine = self.weight_transfer_engine  # type: ignore[attr-defined]
        interrupted = isinstance(engine.failure, WeightSyncError)
        faulty = engine.failure is not None and not interrupted
        return {
            **engine.timings,
            "dirty": float(engine.dirty),
            "interrupted": float(interrupted),
            "faulty": float(faulty),
        }

    def azr_abandon_update(self) -> dict[str, float]:
        """End an update that failed in any phase, so that another can start. Returns `azr_update_state`."""
        engine: AzrWeightTransferEngine = self.weight_transfer_engine  # type: ignore[attr-defined]
        if self._weight_update_active:
            self._weight_update_active = False
            engine.abandon()
        return self.azr_update_state()

    def azr_checksums(self) -> dict[str, str]:
        """`learner.weights.manifest.checksum` of the weights in use, as whole tensors; all workers at the same time."""
        return checksum(whole_weights(self.get_model()))  # type: ignore[attr-defined]

    def azr_save_weights(self, folder: str) -> None:
        """Write this worker's shards of the weights in use to `<rank>.safetensors`."""
        path = Path(folder) / f"{self.rank}.safetensors"
        save_file({name: w.cpu().contiguous() for name, w in own_weights(self.get_model())}, path)  # type: ignore[attr-defined]
