"""Triton's kernels against torch: compiled where there is a GPU, else in Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mbqc.fused import functions, kernels
from mbqc.numerics import ALL_BITS, SHIFTED, Ladder

pytest.importorskip("triton")
gpu = importlib.import_module("mbqc.fused.gpu")

# the interpreter's numpy warns where a kernel divides by zero or overflows on purpose
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Function = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(chosen: kernels.Kernels | None, function: Function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, and gradients at all inputs for a gradient that is the same each time."""
    leaves = [values.detach().to(DEVICE).requires_grad_() for values in inputs]
    with mock.patch.object(functions, "kernels_for", return_value=chosen):
        output = function(*leaves)
        output.backward(normal(*output.shape, seed=1).to(output))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_triton_is_torch(function: Function, *inputs: Tensor) -> None:
    """Values bit for bit, in the layout of the first input; gradients but for the rounding of float32 sums."""
    (found, *gradients), (expected, *defined) = (run(each, function, inputs) for each in (gpu.in_triton(), None))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == inputs[0].stride()
    for gradient, definition, of in zip(gradients, defined, inputs, strict=True):
        # terms are float32 in both, sums float64: their order may change the last bit
        torch.testing.assert_close(gradient, definition, rtol=2.0**-22 if of.dim() < 2 else 0, atol=0, equal_nan=True)


layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


# Activations


def activations(bits: int, rectify: bool) -> Function:
    zero = torch.tensor(float(2**bits // 3), device=DEVICE)
    return lambda x, scale: functions.quantize_activation(x, scale, zero, bits, rectify=rectify)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_activations(bits: int, rectify: bool) -> None:
    """Several blocks, the last one cut short; where a ReLU passes nothing too."""
    x = (3 * normal(2, 11, 13, 17)).contiguous(memory_format=torch.channels_last)
    x[:, ::7] = 0
    assert_triton_is_torch(activations(bits, rectify), x, torch.tensor(5 / 2**bits))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (1,), (1023,), (1024,), (1025,), (2, 3, 5, 7)])
def test_activations_of_any_size(shape: tuple[int, ...]) -> None:
    assert_triton_is_torch(activations(4, rectify=False), 3 * normal(*shape), torch.tensor(0.3))


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_activations_of_every_kind_of_float(bits: int, rectify: bool) -> None:
    """Random bits: infinite ones, those that are not a number, tiny ones; and ties between two codes."""
    scale = torch.tensor(0.25 + bits / 100)
    x = torch.randint(-(2**31), 2**31, (3000,), dtype=torch.int32, generator=torch.Generator().manual_seed(bits))
    x = torch.cat([x.view(torch.float32), torch.tensor([torch.inf, -torch.inf]), torch.arange(-600, 600) / 2 * scale])
    # the scale's gradient is a sum, which huge numbers make infinite
    found, expected = (run(each, activations(bits, rectify), (x, scale))[:2] for each in (gpu.in_triton(), None))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.half, 0), (torch.bfloat16, 2.0**-7)])
def test_activations_of_16_bits_are_computed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    """And rounded once; the interpreter cuts bfloat16 off instead, which is the next lower number."""
    x, scale = (3 * normal(5000)).to(dtype), torch.tensor(0.0123)
    function = activations(8, rectify=True)
    (found, *gradients), defined = (run(each, function, (x, scale)) for each in (gpu.in_triton(), None))
    wide = run(None, function, (x.float(), scale))[0]
    assert torch.equal(defined[0], wide.to(dtype))
    torch.testing.assert_close(found, defined[0], rtol=tolerance if DEVICE == "cpu" else 0, atol=0)
    assert torch.equal(gradients[0], defined[1])
    torch.testing.assert_close(gradients[1], defined[2], rtol=2.0**-22, atol=0)


# Weights


def weights(kind: str, *shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Ordinary ones; a large mean; all the same; many equal remainders, so that their order decides; clipped ones."""
    weight = normal(*shape)
    weight = {
        "normal": weight,
        "offset": weight + 2,
        "constant": torch.full(shape, 0.305),
        "equal": torch.round(4 * weight) / 8 + 0.02,
        "clipped": 20 * weight,
    }[kind]
    return weight.contiguous(memory_format=layout) if weight.dim() == 4 else weight


def scales(weight: Tensor) -> Tensor:
    return torch.linspace(0.01, 0.05, len(weight))


def quantized(bits: int, ladder: Ladder) -> Function:
    return lambda weight, scale: functions.quantize_weight(weight, scale, bits, ladder)


@pytest.mark.parametrize("ladder", ["round", "shift"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_weights_of_every_width(bits: int, ladder: Ladder) -> None:
    """Their sum is zero, so nearest codes have it."""
    half = normal(2, 700)
    weight = torch.cat([half, -half], 1)
    assert_triton_is_torch(quantized(bits, ladder), weight, scales(weight))


@layouts
@pytest.mark.parametrize("kind", ["normal", "offset", "constant", "equal", "clipped"])
def test_weights_keep_their_sums(kind: str, layout: torch.memory_format) -> None:
    """The codes that are rounded the other way are the same ones."""
    weight = weights(kind, 2, 6, 3, 3, layout=layout)
    assert_triton_is_torch(quantized(8, "round"), weight, scales(weight))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (2, 1025), (2, 9, 5), (1, 120, 3, 3)])
def test_weights_of_any_size(shape: tuple[int, ...]) -> None:
    weight = weights("offset", *shape, layout=torch.channels_last)
    assert_triton_is_torch(quantized(3, "round"), weight, scales(weight))


def test_weights_that_are_not_a_number_stay_so() -> None:
    weight = normal(2, 8)
    weight[1, 2] = torch.nan
    assert_triton_is_torch(quantized(4, "round"), weight, scales(weight))


# Moments


def assert_moments_are_those_of_torch(weight: Tensor, bits: int, ladder: Ladder, both: bool) -> None:
    scale = scales(weight)
    codes = functions.quantize_weight(weight, scale, bits, ladder)
    weight, scale = weight.to(DEVICE), scale.to(DEVICE)
    assert_triton_is_torch(lambda q: functions.correct_moments(q, weight, scale, bits, ladder, both=both), codes)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ladder", ["round", "shift"])
@pytest.mark.parametrize("bits", ALL_BITS[:-1])
def test_moments_of_every_width(bits: int, ladder: Ladder, both: bool) -> None:
    assert_moments_are_those_of_torch(weights("normal", 2, 4, 3, 3), bits, ladder, both)
    assert_moments_are_those_of_torch(weights("normal", 2, 300), bits, ladder, both)


@layouts
@pytest.mark.parametrize("kind", ["offset", "constant", "equal", "clipped"])
def test_moments_of_few_inputs(kind: str, layout: torch.memory_format) -> None:
    """The mean goes into the codes, by their order; where they cannot take it, the slope stays theirs."""
    weight = weights(kind, 3, 6, 3, 3, layout=layout)
    assert_moments_are_those_of_torch(weight, 3, "round", both=True)


@pytest.mark.parametrize("kind", ["offset", "constant", "equal", "clipped"])
def test_moments_of_many_inputs(kind: str) -> None:
    """The mean becomes an offset."""
    assert_moments_are_those_of_torch(weights(kind, 3, 120, 3, 3, layout=torch.channels_last), 3, "round", both=True)


@pytest.mark.parametrize("kernel", [(), (1,)])
@pytest.mark.parametrize("most", [most for _, most in SHIFTED])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_moments_of_any_size(most: int, more: int, kernel: tuple[int, ...]) -> None:
    """The last group of codes may be smaller, and the last size has an offset."""
    weight = weights("normal", 3, most + more, *kernel)
    assert_moments_are_those_of_torch(weight, 4, "shift", both=True)


def test_moments_of_one_input() -> None:
    assert_moments_are_those_of_torch(weights("normal", 3, 1), 4, "shift", both=True)


def test_codes_at_both_ends_of_the_range_stay_there() -> None:
    """A channel for each mean, up to what no shift can give."""
    scale = torch.full((24,), 0.02)
    codes = torch.randint(-64, 64, (24, 9), generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    weight = 0.02 * (60 * normal(24, 9) + torch.linspace(-130, 130, 24)[:, None])
    for both in (False, True):

        def correct(q: Tensor, both: bool = both) -> Tensor:
            return functions.correct_moments(q, weight.to(DEVICE), scale.to(DEVICE), 7, "shift", both=both)

        assert_triton_is_torch(correct, codes * scale[:, None])


@pytest.mark.parametrize("inputs", [9, 300])
@pytest.mark.parametrize("codes_too", [False, True])
def test_moments_of_what_is_not_a_number(inputs: int, codes_too: bool) -> None:
    """Outputs alone: the gain of such a channel means nothing."""
    clean, scale = normal(2, inputs), torch.full((2,), 0.02)
    weight = clean.clone()
    weight[1, 2] = torch.nan
    codes = functions.quantize_weight(weight if codes_too else clean, scale, 4, "round")

    def correct(codes: Tensor) -> Tensor:
        return functions.correct_moments(codes, weight.to(DEVICE), scale.to(DEVICE), 4, "round", both=True)

    found, expected = (run(each, correct, (codes,))[0] for each in (gpu.in_triton(), None))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert not found[0].isnan().any()


# What a GPU gets


def test_compiled_code_rounds_every_operation_and_needs_no_order_of_programs(tmp_path: Path) -> None:
    """No fused, approximate or atomic operation, in none of the kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.fused.compile_kernels"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assembly: dict[str, str] = json.loads(found.stdout)
    assert {name.split()[0] for name in assembly} == {
        "quantize_activations",
        "activation_gradients",
        "quantize_weights",
        "weight_gradients",
        "correct_with_offset",
        "correct_with_shift",
    }
    # an addition that says how it rounds is never fused with a multiplication
    unwanted = re.compile(r"\b(?:fma|atom|red)\.\S+|\.(?:approx|full)\b|\b(?:add|sub|mul|div)\.f\d+")
    for name, code in assembly.items():
        assert unwanted.findall(code) == [], name
    assert any("cvt.rn.bf16" in code for code in assembly.values())


def test_tensors_on_a_gpu_get_triton() -> None:
    assert kernels._on_gpu() is not None
    with FakeTensorMode():
        x, scalar = torch.empty(4, 4, device="cuda"), torch.empty((), device="cuda")
        assert kernels.kernels_for(x, scalar) is kernels._on_gpu()
        assert kernels.kernels_for(x.bfloat16(), scalar, half=True) is kernels._on_gpu()
        for others in (x.bfloat16(), x.double(), torch.empty_strided((4, 4), (8, 2), device="cuda")):
            assert kernels.kernels_for(others, scalar) is None
        assert kernels.kernels_for(x, torch.empty(())) is None
        assert kernels.kernels_for(x, scalar.double()) is None
