"""vLLM's scheduler, which after a weight update finds nothing that an older policy left in the prefix cache.

vLLM resets its prefix cache only while no request holds a block, and azr updates weights under running requests. Here
`reset_prefix_cache` also works then. What becomes of a request depends on how far it is when the weights change:

    waiting     It has no keys and values yet, or lost them to preemption. All of them are computed by the new policy.
    prefilling  It has those of a part of the prompt and no token. It starts again, so that its first token, which will
                be reported as of the new policy, is one of the new policy.
    generating  It goes on under the new policy with the keys and values that it has. Those that it adds depend on
                them, so no other request may find these blocks. If it is preempted later, it computes all of them anew.

`make_scheduler` is what `scheduler_cls` of vLLM's engine arguments names.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request
from vllm.v1.utils import compute_iteration_details

from actors.engine.step_times import STEP_TIMES, StepTimes

SCHEDULER = "actors.engine.scheduler.make_scheduler"


class PolicyScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler whose prefix cache can be reset while requests run, and which measures the engine's steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._times = StepTimes()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step."""
        self._times.begin(time.monotonic())
        return super().schedule(*args, **kwargs)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Process a step's outputs, and send the seconds of all steps so far with them."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        details = compute_iteration_details(scheduler_output)
        rows = details.num_ctx_tokens, details.num_generation_tokens
        self._times.end(time.monotonic(), *rows, more=self.get_num_unfinished_requests() > 0)
        for output in outputs.values():
            if output.scheduler_stats is not None:
                # The one field of vLLM's that carries a map as it is; there is no transfer of keys and values here.
                output.scheduler_stats.kv_connector_stats = {STEP_TIMES: self._times.to_json()}
        return outputs

    def set_pause_state(self, pause_state: Any) -> None:
        """Pause or go on."""
        super().set_pause_state(pause_state)
        if pause_state is not PauseState.UNPAUSED:
            self._times.pause()

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget every cached block. Blocks in use stay in use, but are not found any more. Call it between two steps
        whose outputs have all been processed, as they have while generation is paused."""
        if reset_running_requests or not self.running:
            return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))
        self._start_prefills_again()
        for pool in {manager.block_pool for manager in self.kv_cache_manager.coordinator.single_type_managers}:
            pool.evict_blocks(set(range(pool.num_gpu_blocks)))
        for request in self.running:
            _hide(request)
        return not reset_connector or bool(self.reset_connector_cache())

    def _start_prefills_again(self) -> None:
        # From the last: preemption puts a request at the head of the waiting queue, so they keep their order.
        for request in [request for request in reversed(self.running) if not request.num_output_tokens]:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request.request_id)


class AsyncPolicyScheduler(PolicyScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same for vLLM's asynchronous scheduling, which plans a step while the one before runs."""


def make_scheduler(vllm_config: Any, **arguments: Any) -> PolicyScheduler:
    """Return a scheduler of the kind that vLLM would choose for this configuration."""
    kind = AsyncPolicyScheduler if vllm_config.scheduler_config.async_scheduling else PolicyScheduler
    return kind(vllm_config=vllm_config, **arguments)


def _hide(request: Request) -> None:
    """Give the blocks that `request` fills from now on hashes that no other request has."""
    request.cache_salt = request.request_id
    request.block_hashes = []
    request.update_block_hashes()
