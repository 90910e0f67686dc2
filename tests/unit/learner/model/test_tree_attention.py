"""Attention over shared prompts: the CPU's kernels and FlexAttention beside plain scaled dot products, for any trees.

FlexAttention runs uncompiled on a CPU, and compiled on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from learner.batching.packing import MicroBatch, pack
from learner.model import attention, compiled, cpu_attention, kernels, logprobs
from learner.model.block_mask import BLOCK, padded_rows, tree_block_mask

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HEADS, GROUPS = 6, 2


@st.composite
def micro_batches(draw: st.DrawFn, longest: int = 150) -> MicroBatch:
    """Shared prompts and lone sequences, of one block of rows to several."""
    lengths = st.integers(1, longest)
    groups = draw(st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=3))
    batch = [
        (np.full(prompt, number), np.zeros(response, dtype=np.int64))
        for number, (prompt, responses) in enumerate(groups)
        for response in responses
    ]
    (micro,) = pack(batch, 1 << 20)
    return micro


def visible_pairs(micro: MicroBatch) -> Tensor:
    """[T, T], read off the segments: a row sees its prompt, and its own response, up to itself."""
    seen = torch.zeros(micro.num_tokens, micro.num_tokens, dtype=torch.bool)
    for segment in micro.segments:
        row = segment.start + segment.prompt_len
        prompt = slice(segment.start, row)
        seen[prompt, prompt] = True
        for length in segment.response_lens:
            own = slice(row, row + length - 1)
            seen[own, prompt] = seen[own, own] = True
            row += length - 1
    return seen.tril()


def inputs_of(micro: MicroBatch, head_dim: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and a gradient of the output."""
    torch.manual_seed(micro.num_tokens)
    shapes = [(micro.num_tokens, 1, heads, head_dim) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return inputs, torch.randn(micro.num_tokens, 1, HEADS * head_dim, dtype=dtype)


def attend(micro: MicroBatch, inputs: list[Tensor], grad: Tensor, device: str, cpu_kernels: bool) -> list[Tensor]:
    """The output and the gradients of the inputs, on the CPU."""
    frequencies = torch.linspace(1.0, 0.01, inputs[0].shape[-1] // 2, device=device)
    there = [x.detach().to(device).requires_grad_() for x in inputs]
    plan = attention.plan_attention(micro, frequencies, grad.dtype, cpu_kernels, compile_kernels=device == "cuda")
    out = attention.TreeAttention(None)(*there, None, packed_seq_params=plan)
    return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, there, grad.to(device)))]


@pytest.fixture(scope="module")
def flex_backward_on_cpu() -> Iterator[None]:
    """Uncompiled, FlexAttention has gradients on a CPU. It refuses, since no kernel of it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)
        yield


@given(micro=micro_batches(longest=300))
@settings(max_examples=12)
def test_the_block_mask_is_the_one_that_torch_finds_by_looking_at_every_pair(micro: MicroBatch) -> None:
    found = tree_block_mask(micro, torch.device("cpu"))
    rows, padded = micro.num_tokens, padded_rows(micro.num_tokens)
    index = torch.arange(padded)
    pairs = found.mask_mod(index, index, index[:, None], index)
    assert torch.equal(pairs[:rows, :rows], visible_pairs(micro))
    assert torch.equal(pairs[rows:], torch.eye(padded, dtype=torch.bool)[rows:]), "padding sees itself alone"
    assert not pairs[:rows, rows:].any()
    expected = flex_attention.create_block_mask(found.mask_mod, None, None, padded, padded, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(found, f"{kind}_num_blocks")
        assert torch.equal(counts, getattr(expected, f"{kind}_num_blocks"))
        used = torch.arange(counts.shape[-1]) < counts[..., None]
        ours, theirs = (getattr(mask, f"{kind}_indices") for mask in (found, expected))
        assert ours.dtype == theirs.dtype and torch.equal(ours[used], theirs[used])
    assert found.shape == expected.shape == (1, 1, padded, padded)


@given(rows=st.integers(1, 1 << 21))
def test_few_numbers_of_rows_are_compiled_for_and_little_is_padding(rows: int) -> None:
    padded = padded_rows(rows)
    assert rows <= padded and padded % BLOCK == 0
    assert padded < max(1.25 * rows, rows + BLOCK)
    blocks = padded // BLOCK
    while blocks > 8:
        assert blocks % 2 == 0
        blocks //= 2


@pytest.mark.parametrize("device", DEVICES)
@given(micro=micro_batches(), head_dim=st.sampled_from([8, 16]))
@settings(max_examples=8)
@pytest.mark.usefixtures("flex_backward_on_cpu")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_cpu_kernels(device: str, micro: MicroBatch, head_dim: int) -> None:
    inputs, grad = inputs_of(micro, head_dim, torch.float32)
    expected = attend(micro, inputs, grad, "cpu", cpu_kernels=True)
    found = attend(micro, inputs, grad, device, cpu_kernels=False)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flex_attention_at_the_sizes_of_real_models(head_dim: int, dtype: torch.dtype) -> None:
    lengths = ((700, (900, 300, 300)), (150, (2000,)))
    prompts = [np.full(prompt, number) for number, (prompt, _) in enumerate(lengths)]
    batch = [(prompt, np.zeros(n, int)) for prompt, (_, group) in zip(prompts, lengths, strict=True) for n in group]
    (micro,) = pack(batch, 1 << 20)
    inputs, grad = inputs_of(micro, head_dim, dtype)
    expected = attend(micro, [x.float() for x in inputs], grad.float(), "cpu", cpu_kernels=True)
    found = attend(micro, inputs, grad, "cuda", cpu_kernels=False)
    errors = [float((x.float() - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True)]
    # In bfloat16 the angles, the probabilities and the results are rounded, by 0.2 to 0.4% each.
    assert max(errors) < (1e-4 if dtype is torch.float32 else 0.03), errors


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_is_compiled_once_for_a_number_of_padded_rows(device: str) -> None:
    """Whatever the trees. On a CPU forward alone: no kernel of it has a backward pass."""
    stats = torch._dynamo.utils.counters["stats"]
    before, graphs = stats["unique_graphs"], []
    for prompt, responses in ((100, (60, 30)), (40, (50, 90, 20)), (3, (210,))):
        batch = [(np.zeros(prompt, int), np.zeros(length, int)) for length in responses]
        (micro,) = pack(batch, 1 << 20)
        assert padded_rows(micro.num_tokens) == 2 * BLOCK
        inputs, _ = inputs_of(micro, 16, torch.float32)
        outputs = []
        for where, cpu_kernels in ((device, False), ("cpu", True)):
            frequencies = torch.linspace(1.0, 0.01, 8, device=where)
            plan = attention.plan_attention(micro, frequencies, torch.float32, cpu_kernels, compile_kernels=True)
            with torch.no_grad():
                there = (x.to(where) for x in inputs)
                outputs.append(attention.TreeAttention(None)(*there, None, packed_seq_params=plan).cpu())
        torch.testing.assert_close(*outputs, atol=2e-5, rtol=2e-5)
        graphs.append(stats["unique_graphs"])
    assert before < graphs[0] == graphs[-1]


@pytest.mark.parametrize("dense_waste", [0, 3, 100], ids=["parts", "some dense", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(micro=micro_batches(longest=40))
@settings(max_examples=6)
def test_the_cpu_kernels_are_scaled_dot_products(dtype: torch.dtype, dense_waste: int, micro: MicroBatch) -> None:
    """Cut into small chunks."""
    inputs, grad = inputs_of(micro, 16, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "SCORES", 300)
        patch.setattr(cpu_attention, "DENSE_WASTE", dense_waste)
        found = attend(micro, inputs, grad, "cpu", cpu_kernels=True)
    positions = torch.from_numpy(micro.position_ids).float()
    angles = torch.outer(positions, torch.linspace(1.0, 0.01, 8))[:, None]
    rotated = [kernels.Rotate.apply(x.squeeze(1), angles.cos().to(dtype), angles.sin().to(dtype)) for x in inputs[:2]]
    q, k, v = (x.transpose(0, 1)[None] for x in (*rotated, inputs[2].squeeze(1)))
    out = scaled_dot_product_attention(q, k, v, attn_mask=visible_pairs(micro), enable_gqa=True)
    out = out[0].transpose(0, 1).flatten(1)[:, None]
    expected = [out.detach(), *torch.autograd.grad(out, inputs, grad)]
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_functions_are_those_of_the_cpu(device: str) -> None:
    """In float32, forward and backward; once for any number of rows."""
    stats = torch._dynamo.utils.counters["stats"]
    graphs = []
    for rows in (40, 57, 130):
        x, weight = torch.randn(rows, 1, 64, requires_grad=True), torch.randn(64, requires_grad=True)
        angles, heads = torch.rand(rows, 1, 8), x.unflatten(-1, (4, 16)).squeeze(1)
        cases = [
            (kernels._RmsNorm.apply, compiled.rms_norm, (x, weight), (1e-5,)),
            (kernels._SwiGlu.apply, compiled.swiglu, (x,), ()),
            (kernels.Rotate.apply, compiled.rotate, (heads,), (angles.cos(), angles.sin())),
        ]
        for plain, fast, inputs, constants in cases:
            expected = plain(*inputs, *constants)
            grad = torch.randn_like(expected)
            there = [one.detach().to(device).requires_grad_() for one in inputs]
            found = fast(*there, *(one.to(device) if isinstance(one, Tensor) else one for one in constants))
            ours = [found, *torch.autograd.grad(found, there, grad.to(device))]
            theirs = [expected, *torch.autograd.grad(expected, inputs, grad)]
            torch.testing.assert_close([one.cpu() for one in ours], theirs, atol=1e-5, rtol=1e-5)
        logits, picked = 3.0 * torch.randn(rows, 500), torch.randint(0, 500, (rows,))
        expected = logprobs.token_statistics(logits.clone(), picked, 0.7)
        found = compiled.token_statistics(logits.to(device), picked.to(device), 0.7)
        torch.testing.assert_close([one.cpu() for one in found], list(expected), atol=1e-5, rtol=1e-5)
        graphs.append(stats["unique_graphs"])
    assert graphs[0] == graphs[-1]
