"""Float functions: their accuracy against float64, the order of their sums, and what happens to special numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mbqc.errors import BackendError
from mbqc.float_functions import (
    EXP_LIMIT,
    GATES,
    LANES,
    Function,
    activate,
    calculate,
    embed,
    exponential,
    layer_norm,
    matmul,
    mean,
    softmax,
    sum_rows,
)

INF, NAN = math.inf, math.nan


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(found: Tensor, exact: Tensor) -> Tensor:
    """The error in units in the last place of the exact float64 result."""
    unit = np.spacing(exact.abs().to(torch.float32).numpy()).astype(np.float64)
    return (found.double() - exact).abs() / torch.from_numpy(unit)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


# The exponential


def test_the_exponential_is_off_by_at_most_one_unit_in_the_last_place() -> None:
    x = torch.linspace(-87, EXP_LIMIT, 2_000_001)
    assert float(units(exponential(x), x.double().exp()).max()) <= 1
    near = normal(1_000_000) * 1e-3
    assert float(units(exponential(near), near.double().exp()).max()) <= 1


def test_the_exponential_at_its_ends() -> None:
    x = torch.tensor([-INF, -1e30, -88.0, -0.0, 0.0, 88.0, 1e30, INF, NAN])
    top = exponential(torch.tensor(88.0)).item()
    assert exponential(x)[:-1].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, top, top, top]
    assert exponential(x)[-1].isnan()
    assert math.isfinite(top)


@given(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32))
def test_the_exponential_never_falls_by_more_than_its_error(a: float, b: float) -> None:
    low, high = exponential(torch.tensor(sorted((a, b)))).tolist()
    assert low <= high * (1 + 2**-22)


# Sums


@given(st.integers(1, 70), st.integers(0, 3))
def test_the_order_of_a_sum(count: int, seed: int) -> None:
    """The definition, one number at a time."""
    x = normal(2, count, seed=seed) * 10.0 ** normal(2, count, seed=seed + 9)
    for row, found in zip(x.numpy(), sum_rows(x).numpy(), strict=True):
        parts = [np.float32(0)] * LANES
        for i, value in enumerate(row):
            parts[i % LANES] += value
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [a + b for a, b in zip(parts[:half], parts[half:], strict=True)]
        assert found.tobytes() == parts[0].tobytes()


@given(st.integers(1, 2000), st.integers(0, 3))
def test_the_error_of_a_sum(count: int, seed: int) -> None:
    x = normal(count, seed=seed)
    error = abs(float(sum_rows(x)) - float(x.double().sum()))
    assert error <= (count / LANES + 4) * 2**-24 * float(x.double().abs().sum())


def test_a_sum_of_negative_zeros_is_positive() -> None:
    assert same(sum_rows(torch.full((1, 20), -0.0)), torch.zeros(1))


# LayerNorm


@pytest.mark.parametrize("shape", [(7, 1), (9, 16), (5, 33), (2, 3, 768), (1, 5000)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm_against_float64(shape: tuple[int, ...], offset: float) -> None:
    """Off by 2e-6; where the mean is a hundred deviations, by as much more as its rounding."""
    x = normal(*shape) * 3 + offset
    gain, bias = normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    exact = torch.nn.functional.layer_norm(x.double(), shape[-1:], gain.double(), bias.double(), 1e-5)
    error = (layer_norm(x, 1, gain, bias, 1e-5).double() - exact).abs().max()
    assert float(error) <= 2e-6 * (1 + offset) * float(gain.abs().max())


def test_layer_norm_over_several_dimensions_is_over_one_row() -> None:
    x, gain = normal(3, 4, 5), normal(4, 5, seed=1)
    flat = layer_norm(x.flatten(1), 1, gain.flatten(), None, 1e-5)
    assert same(layer_norm(x, 2, gain, None, 1e-5), flat.view(3, 4, 5))


@pytest.mark.parametrize("special", [NAN, INF, -INF, 3e38])
def test_layer_norm_of_a_row_without_a_finite_variance_is_no_number(special: float) -> None:
    x = normal(2, 20)
    x[1, 7] = special
    found = layer_norm(x, 1, None, torch.ones(20), 1e-5)
    assert bool(found[0].isfinite().all())
    assert bool(found[1].isnan().all())


# Softmax


@pytest.mark.parametrize("shape", [(7, 1), (9, 16), (5, 33), (2, 3, 197), (1, 5000)])
def test_softmax_against_float64(shape: tuple[int, ...]) -> None:
    """To 2e-6 of itself: the difference to the largest, up to 20 here, is rounded, and the sum is."""
    x = normal(*shape) * 3
    assert float((softmax(x).double() / x.double().softmax(-1) - 1).abs().max()) <= 2e-6


def test_softmax_leaves_out_what_is_masked() -> None:
    x = torch.tensor([[1.0, -INF, 2.0, -1e30]])
    assert softmax(x)[0, 1::2].tolist() == [0.0, 0.0]
    assert same(softmax(x)[:, ::2], softmax(x[:, ::2]))


@pytest.mark.parametrize("row", [[NAN, 1.0, 2.0], [1.0, 2.0, NAN], [INF, 1.0, 2.0], [-INF, -INF, -INF]])
def test_softmax_of_what_has_none_is_no_number(row: list[float]) -> None:
    assert bool(softmax(torch.tensor([row])).isnan().all())


# Activations

EXACT: dict[Function, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


@pytest.mark.parametrize(
    ("function", "absolute", "relative"), [("gelu", 1e-7, 2), ("gelu_tanh", 1e-7, 2), ("silu", 0, 3)]
)
def test_activations_against_float64(function: Function, absolute: float, relative: float) -> None:
    """`relative` counts units in the last place."""
    x = torch.cat([torch.linspace(-12, 12, 500_001), torch.linspace(-87, 87, 100_001), normal(100_000) * 1e-3])
    exact = EXACT[function](x.double())
    unit = torch.from_numpy(np.spacing(exact.abs().to(torch.float32).numpy()).astype(np.float64))
    error = (activate(x, function).double() - exact).abs()
    assert float((error - relative * unit).max()) <= absolute


@pytest.mark.parametrize("function", GATES)
def test_activations_at_the_ends_of_the_float_range(function: Function) -> None:
    found = activate(torch.tensor([-INF, -1e30, -0.0, 0.0, 1e30, INF, NAN]), function)
    assert same(found[2:6], torch.tensor([-0.0, 0.0, 1e30, INF]))
    assert found[6].isnan()
    assert bool(((found[:2] < 0) & (found[:2] > -1e-9)).all())


# Sums, products and means


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 70, 5), (2, 768, 4)])
def test_the_order_of_a_product(m: int, k: int, n: int) -> None:
    """The definition, one number at a time."""
    a, b = normal(m, k), normal(k, n, seed=1)
    found = matmul(a, b).numpy()
    for row, column in np.ndindex(m, n):
        total = np.float32(0)
        for x, y in zip(a.numpy()[row], b.numpy()[:, column], strict=True):
            total = total + x * y
        assert found[row, column].tobytes() == total.tobytes()
    error = (matmul(a, b).double() - a.double() @ b.double()).abs()
    assert bool((error <= k * 2**-23 * (a.double().abs() @ b.double().abs())).all())


def test_the_order_of_a_mean() -> None:
    x = normal(2, 50, 3)
    total = np.zeros((2, 3), np.float32)
    for part in range(50):
        total = total + x.numpy()[:, part]
    assert same(mean(x, 1), torch.from_numpy(total / np.float32(50)))
    assert same(mean(x.transpose(1, 2).contiguous(), 2), mean(x, 1))


def test_arithmetic_is_that_of_torch_and_knows_one_that_is_no_number() -> None:
    x, y = torch.tensor([1.0, INF, -NAN, 0.0]), torch.tensor([3.0, INF, 1.0, 0.0])
    assert same(calculate(x, "sub", y), torch.tensor([-2.0, NAN, NAN, 0.0]))
    assert same(calculate(x, "div", y), torch.tensor([1 / 3, NAN, NAN, NAN]))
    assert same(calculate(x[:2], "mul", torch.tensor(2.0)), torch.tensor([2.0, INF]))
    assert same(calculate(x[:2], "add", y[:2]), torch.tensor([4.0, INF]))
    assert same(matmul(torch.tensor([[INF, -NAN]]), torch.tensor([[0.0], [1.0]])), torch.tensor([[NAN]]))


# Embedding


def test_embedding_gives_rows() -> None:
    table, indices = normal(5, 3), torch.tensor([[4, 0], [0, 2]])
    assert same(embed(indices, table), torch.stack([table[[4, 0]], table[[0, 2]]]))
    assert embed(torch.zeros(0, 2, dtype=torch.int64), table).shape == (0, 2, 3)


@pytest.mark.parametrize("index", [-1, 5, 1 << 40])
def test_an_index_outside_the_table_is_refused(index: int) -> None:
    with pytest.raises(BackendError, match="outside the 5 rows"):
        embed(torch.tensor([0, index]), normal(5, 3))
