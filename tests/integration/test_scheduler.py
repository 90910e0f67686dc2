"""The scheduler of the engine by itself: which keys and values a request can find, whatever happens in which order.

vLLM's own scheduler and cache of blocks, without a model: the test notes which policies' weights went into the keys and
values of every place of every block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from actors.engine.scheduler import make_scheduler
from launch.models import prepare

BLOCK = 16
NUM_BLOCKS = 14
PROMPTS = [[1] * 20, [1] * 40, [1] * 70, [2] * 33]
"""With beginnings in common."""
TOKEN = 1
"""What is sampled, always: so that replies, too, begin like other prompts."""
STEPS_IN_FLIGHT = 2

pytestmark = pytest.mark.integration

Action = tuple[str, int]


@pytest.fixture(scope="module", params=[False, True], ids=["one step at a time", "asynchronous"])
def new_engine(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    args = EngineArgs(
        model=str(prepare("smollm2-135m-instruct")),
        max_model_len=128,
        max_num_seqs=3,
        max_num_batched_tokens=24,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        async_scheduling=request.param,
        disable_log_stats=True,
    )
    made = args.create_engine_config()
    made.scheduler_config.max_num_batched_tokens = 24
    made.cache_config.num_gpu_blocks = NUM_BLOCKS
    init_none_hash(sha256_cbor)
    return lambda: Engine(made)


class Engine:
    """Steps a scheduler as vLLM's engine core does, and notes the policies behind every place of its blocks."""

    def __init__(self, config: Any) -> None:
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self.scheduler = make_scheduler(
            config,
            kv_cache_config=KVCacheConfig(NUM_BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )
        self.depth = STEPS_IN_FLIGHT if config.scheduler_config.async_scheduling else 1
        self.version = 0
        self.policies: dict[tuple[int, int], frozenset[int]] = {}
        """(block, place in it) -> versions that its keys and values depend on."""
        self.found = self.restarted = 0
        self._hasher = get_request_block_hasher(BLOCK, sha256_cbor)
        self._in_flight: deque[Any] = deque()
        self._submitted = 0

    def submit(self, prompt: int) -> None:
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        name = str(self._submitted)
        self._submitted += 1
        self.scheduler.add_request(Request(name, PROMPTS[prompt], params, None, block_hasher=self._hasher))

    def abort(self, index: int) -> None:
        names = sorted(self.scheduler.requests)
        if names:
            self.scheduler.finish_requests(names[index % len(names)], RequestStatus.FINISHED_ABORTED)

    def update(self) -> None:
        while self._in_flight:
            self._receive()
        prefilling = sum(not request.num_output_tokens for request in self.scheduler.running)
        assert self.scheduler.reset_prefix_cache()
        self.restarted += prefilling
        self.version += 1

    def step(self) -> None:
        output = self.scheduler.schedule()
        begun = {new.req_id for new in output.scheduled_new_reqs} | output.scheduled_cached_reqs.resumed_req_ids
        sampled = []
        for name, count in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            start = request.num_computed_tokens - count
            places = self._places(name, request.num_computed_tokens)
            before = frozenset().union(*(self.policies[place] for place in places[:start]))
            if name in begun and start:
                self.found += 1
                assert before == {self.version}, "it found what another policy has computed"
            for place in places[start:]:
                self.policies[place] = before | {self.version}
            if not request.is_prefill_chunk:
                sampled.append(name)
                if not request.num_output_tokens and request.num_output_placeholders <= 1:
                    assert before | {self.version} == {self.version}, "its first token depends on an older policy"
        self._in_flight.append((output, sampled))
        if len(self._in_flight) >= self.depth:
            self._receive()

    def _places(self, name: str, count: int) -> list[tuple[int, int]]:
        (blocks,) = self.scheduler.kv_cache_manager.get_block_ids(name)
        return [(blocks[index // BLOCK], index % BLOCK) for index in range(count)]

    def _receive(self) -> None:
        output, sampled = self._in_flight.popleft()
        names = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[TOKEN] if name in sampled else [] for name in names],
        )
        self.scheduler.update_from_output(output, result)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(PROMPTS) - 1)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("update"), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 5)),
    ),
    max_size=40,
)


RUNS_ON = [
    ("submit", 0),
    ("step", 3),
    ("update", 0),
    ("step", 16),
    ("submit", 0),
    ("step", 2),
    ("submit", 1),
    ("step", 1),
]
"""The first request fills a block after the update, the second computes what is before it, the third may find both."""


@example(actions=RUNS_ON)
@given(actions=actions)
def test_nobody_finds_what_an_older_policy_computed(new_engine: Callable[[], Engine], actions: list[Action]) -> None:
    engine = new_engine()
    for what, number in actions:
        match what:
            case "submit":
                engine.submit(number)
            case "step":
                for _ in range(number):
                    engine.step()
            case "update":
                engine.update()
            case "abort":
                engine.abort(number)
    for _ in range(400):  # whatever was interrupted ends
        engine.step()
    assert not engine.scheduler.requests


def test_what_the_present_policy_computed_is_found(new_engine: Callable[[], Engine]) -> None:
    """And prompts that are half computed start again: the property holds of more than nothing."""
    engine = new_engine()
    engine.submit(2)
    engine.step()
    engine.update()
    assert engine.restarted == 1
    for _ in range(10):
        engine.step()
    engine.submit(2)
    for _ in range(40):
        engine.step()
    assert engine.found == 1
