"""Which kernels the learner takes in these tests: on a GPU its own, on a CPU those of a GPU, uncompiled."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import flex_attention

from learner.model import policy
from learner.model.attention import TreePlan, plan_attention
from tests.gpu.shapes import ON_GPU


def take_gpu_kernels(patch: pytest.MonkeyPatch) -> None:
    """Let policies on a CPU attend as those on a GPU do, for as long as `patch` lasts. On a GPU this changes
    nothing."""

    def plan(*args: Any, **kwargs: Any) -> TreePlan:
        return plan_attention(*args, **kwargs | {"cpu_kernels": False})

    if not ON_GPU:
        patch.setattr(policy, "plan_attention", plan)
        # Uncompiled, FlexAttention has gradients on a CPU. It refuses, since no kernel of it has.
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)
