"""A micro-batch of real lengths: 32,768 rows with responses of 8,192 tokens, trained on with memory linear in its rows.

In a process of its own, whose greatest resident memory tells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.learner.tiny import SHAPE

PROMPT, RESPONSE, COUNT = 512, 8192, 4
SMALL = SHAPE | {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16}
BYTES_A_ROW = 6 << 10
FIXED_BYTES = 128 << 20
"""Buffers whose size does not depend on the rows: scores that the backward pass holds at once, in several forms. All
scores of the responses, or a mask, would be 512 MiB; those of all rows 4 GiB a head."""

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from learner.batching.packing import pack
from learner.model.process_groups import init_parallel
from learner.settings import ParallelSettings
from tests.unit.learner.tiny import build

def peak():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10

torch.set_num_threads(1)
init_parallel(ParallelSettings(), rank=0, world_size=1)
policy = build(Path(sys.argv[1]))
prompt_len, response_len, count = json.loads(sys.argv[2])
prompt = np.arange(prompt_len) % 131
found = []
for length in (1, response_len):
    (micro,) = pack([(prompt, np.arange(length) * (index + 2) % 131) for index in range(count)], 1 << 20)
    policy.zero_grad()
    losses = []
    policy.forward_backward([micro], lambda _, micro, logprobs, entropy: losses.append(-logprobs.mean()) or losses[-1])
    norm, updated = policy.step(1e-3)
    assert updated and norm > 0, norm
    found.append({"rows": micro.num_tokens, "peak": peak(), "loss": float(losses[0])})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_micro_batch_of_long_responses_needs_memory_linear_in_its_rows(tmp_path: Path) -> None:
    import transformers as tf

    tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=True)).save_pretrained(tmp_path)
    sizes = json.dumps([PROMPT, RESPONSE, COUNT])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout.splitlines()[-1])
    assert long["rows"] == PROMPT + COUNT * (RESPONSE - 1)
    assert 0 < long["loss"] < 20
    growth = long["peak"] - short["peak"]
    print(f"{growth / 2**20:.0f} MiB more for {long['rows']} rows")
    assert growth < BYTES_A_ROW * long["rows"] + FIXED_BYTES
