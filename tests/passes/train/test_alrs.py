"""ALRS: each rule against a slow direct reading of its formula (Double Rounding, arXiv 2502.01199, section 3.3)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbqc.passes.train.alrs import Rule, rates, width_factor

ETA = {8: 1.0, 7: 0.5, 6: 0.1, 5: 0.05, 4: 0.01, 3: 0.005, 2: 0.001, 1: 0.0005}
"""The paper's eta by width, written out."""

gradients = st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=5), min_size=1, max_size=4)
rules = st.sampled_from(("paper", "layer", "channel"))


def slow(rule: Rule, rate: float, bits: int, tensors: list[list[float]]) -> list[float]:
    """The rate of each scale, number by number."""
    clipped = []
    for tensor in tensors:
        norm = math.sqrt(sum(g * g for g in tensor))
        clipped.append([g / norm if norm > 1 else g for g in tensor])
    largest = [min(max(abs(g) for g in tensor), 1.0) for tensor in clipped]
    mean = sum(largest) / len(largest)
    found = []
    for index, tensor in enumerate(clipped):
        for g in tensor:
            size = {"paper": mean, "layer": largest[index], "channel": min(abs(g), 1.0)}[rule]
            found.append(max(ETA[bits] * (rate - size), 0.0))
    return found


def flat(tensors: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """All numbers, and which tensor each is from."""
    owners = [index for index, tensor in enumerate(tensors) for _ in tensor]
    return torch.tensor([g for tensor in tensors for g in tensor], dtype=torch.float64), torch.tensor(owners)


@pytest.mark.parametrize("bits", ETA)
def test_the_factor_of_a_width_is_the_papers(bits: int) -> None:
    assert width_factor(bits) == pytest.approx(ETA[bits], rel=1e-15)


@given(rules, st.floats(1e-6, 2), st.sampled_from(sorted(ETA)), gradients)
def test_every_rate_is_that_of_the_formula(rule: Rule, rate: float, bits: int, tensors: list[list[float]]) -> None:
    gradient, owners = flat(tensors)
    found, clamped = rates(rule, rate, bits, gradient, owners, len(tensors))
    expected = torch.tensor(slow(rule, rate, bits, tensors), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)
    moving = found[gradient != 0]
    assert clamped == (float((moving == 0).double().mean()) if len(moving) else 0.0)


def test_with_the_learning_rate_as_lambda_nearly_all_rates_are_clamped() -> None:
    """Why `off` is the default: the paper does not say what lambda is."""
    gradient, owners = flat([[0.3, -0.2], [0.4]])
    found, clamped = rates("paper", 1e-3, 8, gradient, owners, 2)
    assert found.tolist() == [0.0, 0.0, 0.0]
    assert clamped == 1.0


def test_off_gives_every_scale_the_rate_itself() -> None:
    gradient, owners = flat([[0.3, -5.0], [0.0]])
    found, clamped = rates("off", 0.1, 2, gradient, owners, 2)
    assert found.tolist() == [0.1] * 3
    assert clamped == 0.0
