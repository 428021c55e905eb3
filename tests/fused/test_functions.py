"""The fused operations: native code against torch, and gradients against autograd of their smooth parts in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mbqc import numerics
from mbqc.errors import BackendError
from mbqc.fused import functions, kernels, native
from mbqc.fused.kernels import kernels_for
from mbqc.numerics import ALL_BITS, Ladder

built = pytest.mark.skipif(kernels_for(torch.zeros(1)) is None, reason="no C++ compiler at install time")

Function = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(function: Function, inputs: tuple[Tensor, ...], *, torch_alone: bool) -> tuple[Tensor, list[Tensor | None]]:
    """Output, and gradients at all inputs for a gradient that is the same each time."""
    leaves = [values.detach().clone().requires_grad_() for values in inputs]
    chosen = (lambda *_, **__: None) if torch_alone else kernels_for
    with mock.patch.object(functions, "kernels_for", chosen):
        output = function(*leaves)
        output.backward(normal(*output.shape, seed=1).to(output.dtype))
    return output.detach(), [leaf.grad for leaf in leaves]


def assert_native_is_torch(function: Function, *inputs: Tensor) -> None:
    """Values bit for bit, in the layout of the first input; gradients but for the rounding of float32 sums."""
    (found, gradients), (expected, defined) = (run(function, inputs, torch_alone=alone) for alone in (False, True))
    assert kernels_for(*inputs) is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == inputs[0].stride()
    for gradient, definition, of in zip(gradients, defined, inputs, strict=True):
        # terms are float32 in both, sums float64: their order may change the last bit
        torch.testing.assert_close(gradient, definition, rtol=2.0**-22 if of.dim() < 2 else 0, atol=0, equal_nan=True)


# Activations

SHAPES = [(1,), (15,), (16,), (513,), (3, 7), (2, 3, 5, 7), (4, 16, 32, 20)]
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@built
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_activations_are_those_of_torch(shape: tuple[int, ...], bits: int, rectify: bool) -> None:
    x, scale, zero = 3 * normal(*shape), torch.tensor(5 / 2**bits), torch.tensor(float(2**bits // 3))
    x.flatten()[::7] = 0  # where a ReLU passes nothing
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)

    def function(x: Tensor, scale: Tensor) -> Tensor:
        return functions.quantize_activation(x, scale, zero, bits, rectify=rectify)

    assert_native_is_torch(function, x, scale)


@built
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(0, 255),
    st.sampled_from(ALL_BITS),
    st.booleans(),
)
def test_native_activations_are_those_of_torch_for_every_float(
    values: list[float], scale: float, zero: int, bits: int, rectify: bool
) -> None:
    """Infinite ones and those that are not a number too; ties are among those next to a whole code."""
    x, step = torch.tensor(values), torch.tensor(scale)
    x = torch.cat([x, (torch.arange(-600, 600) / 2) * step])

    def function(x: Tensor, scale: Tensor) -> Tensor:
        return functions.quantize_activation(x, scale, torch.tensor(float(zero)), bits, rectify=rectify)

    # the scale's gradient is a sum, which huge numbers make infinite
    found, (at_x, _) = run(function, (x, step), torch_alone=False)
    expected, (defined, _) = run(function, (x, step), torch_alone=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(at_x, defined, rtol=0, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_rectifying_is_a_relu_before(bits: int) -> None:
    """Outputs and gradients, the one at zero included."""
    x, scale, zero = normal(500), torch.tensor(2 / 2**bits), torch.tensor(1.0)
    x[::5] = 0

    def fused(x: Tensor, scale: Tensor) -> Tensor:
        return functions.quantize_activation(x, scale, zero, bits, rectify=True)

    def apart(x: Tensor, scale: Tensor) -> Tensor:
        return functions.quantize_activation(x.relu(), scale, zero, bits)

    (found, gradients), (expected, defined) = (run(each, (x, scale), torch_alone=False) for each in (fused, apart))
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, defined, strict=True))


@built
def test_gradients_and_inputs_of_any_layout_are_read_right() -> None:
    scale, zero = torch.tensor(0.1), torch.tensor(3.0)
    for x in (normal(2, 3, 4, 5), normal(2, 3, 4, 10)[..., ::2]):
        given = x.detach().requires_grad_()
        functions.quantize_activation(given, scale, zero, 8).mul(2).transpose(1, 3).sum().backward()
        inside = (x * scale.reciprocal() + zero >= 0) & (x * scale.reciprocal() + zero <= 255)
        assert torch.equal(given.grad, 2.0 * inside)


@given(st.integers(0, 1 << 30), st.sampled_from(ALL_BITS), st.booleans())
def test_activation_gradients_are_those_of_the_smooth_part(seed: int, bits: int, rectify: bool) -> None:
    """Rounding errors and bounds held fixed, autograd differentiates what is left, in float64."""
    x, upstream = 2 * normal(50, seed=seed).double(), normal(50, seed=seed + 1).double()
    scale, zero = torch.tensor(3 / 2**bits, dtype=torch.float64), torch.tensor(2.0 ** (bits - 1) // 2)
    low, high = numerics.activation_range(bits)
    leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    functions.quantize_activation(*leaves, zero, bits, rectify=rectify).backward(upstream)
    smooth_x, smooth_scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    real = (smooth_x.relu() if rectify else smooth_x) / smooth_scale + zero
    codes = numerics.quantize(x.relu() if rectify else x, scale, zero, low, high)
    inside = (real >= low) & (real <= high)
    ((torch.where(inside, real + (codes - real).detach(), codes) - zero) * smooth_scale).backward(upstream)
    torch.testing.assert_close(leaves[0].grad, smooth_x.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(leaves[1].grad, smooth_scale.grad, rtol=1e-10, atol=1e-10)


# Weights


def weights(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Ordinary ones; a large mean; all the same; many equal remainders, so that their order decides; clipped ones."""
    weight = normal(*shape)
    return {
        "normal": weight,
        "offset": weight + 2,
        "constant": torch.full(shape, 0.305),
        "equal": torch.round(4 * weight) / 8 + 0.02,
        "clipped": 20 * weight,
    }[kind]


KINDS = ("normal", "offset", "constant", "equal", "clipped")
WEIGHT_SHAPES = [
    (4, 1),
    (10, 300),
    (6, 20, 3),
    (7, 1, 3, 3),
    (8, 3, 3, 3),
    (8, 40, 3, 3),
    (8, 24, 1, 1),
    (4, 255, 1, 1),
    (3, 640, 1),
    (3, 641, 1),
]
"""Of every shift granularity, and with an offset."""

every_weight = pytest.mark.parametrize("shape", WEIGHT_SHAPES)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_ladder = pytest.mark.parametrize("ladder", ["round", "shift"])


@built
@layouts
@every_ladder
@every_kind
@every_weight
def test_native_weights_are_those_of_torch(
    shape: tuple[int, ...], kind: str, ladder: Ladder, layout: torch.memory_format
) -> None:
    weight = weights(kind, shape)
    weight = weight.contiguous(memory_format=layout) if weight.dim() == 4 else weight
    scale = torch.linspace(0.01, 0.05, len(weight))
    for bits in ALL_BITS:

        def quantize(weight: Tensor, scale: Tensor, bits: int = bits) -> Tensor:
            return functions.quantize_weight(weight, scale, bits, ladder)

        assert_native_is_torch(quantize, weight, scale)


@built
@layouts
@every_ladder
@every_kind
@every_weight
def test_native_moments_are_those_of_torch(
    shape: tuple[int, ...], kind: str, ladder: Ladder, layout: torch.memory_format
) -> None:
    weight = weights(kind, shape)
    weight = weight.contiguous(memory_format=layout) if weight.dim() == 4 else weight
    scale = torch.linspace(0.01, 0.05, len(weight))
    for bits in ALL_BITS[:-1]:
        for both in (False, True):

            def correct(quantized: Tensor, bits: int = bits, both: bool = both) -> Tensor:
                return functions.correct_moments(quantized, weight, scale, bits, ladder, both=both)

            assert_native_is_torch(correct, functions.quantize_weight(weight, scale, bits, ladder))


@built
def test_weights_that_are_not_a_number_stay_so() -> None:
    weight, scale = normal(3, 8), torch.full((3,), 0.02)
    weight[1, 2] = torch.nan
    assert_native_is_torch(lambda w, s: functions.quantize_weight(w, s, 4, "round"), weight, scale)
    quantized = functions.quantize_weight(weight, scale, 4, "round")
    assert quantized.isnan().nonzero().tolist() == [[1, 2]]
    corrected = functions.correct_moments(quantized, weight, scale, 4, "round", both=True)
    assert corrected.isnan().any(1).tolist() == [False, True, False]


@given(st.integers(0, 1 << 30), st.sampled_from(ALL_BITS), st.sampled_from(["round", "shift"]))
def test_weight_gradients_are_those_of_the_smooth_part(seed: int, bits: int, ladder: Ladder) -> None:
    """Rounding and narrowing add a constant to the clamped number; autograd differentiates the rest, in float64."""
    weight, upstream = normal(3, 40, seed=seed).double(), normal(3, 40, seed=seed + 1).double()
    scale = torch.tensor([0.005, 0.01, 0.1], dtype=torch.float64)
    leaves = [weight.clone().requires_grad_(), scale.clone().requires_grad_()]
    found = functions.quantize_weight(*leaves, bits, ladder)
    found.backward(upstream)
    smooth, smooth_scale = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    real = (smooth / smooth_scale[:, None]).clamp(-128, 127)
    error = (found / scale[:, None] - real).detach()
    ((real + error) * smooth_scale[:, None]).backward(upstream)
    torch.testing.assert_close(leaves[0].grad, smooth.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(leaves[1].grad, smooth_scale.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inputs", [40, 300])
def test_correction_gradients_are_the_gain_alone(inputs: int) -> None:
    """Statistics detached: of `slope * codes`, where quantized = scale * codes; in float64."""
    weight, scale = normal(4, inputs).double().requires_grad_(), torch.full((4,), 0.02, dtype=torch.float64)
    scale.requires_grad_()
    quantized = functions.quantize_weight(weight, scale, 3, "round").detach().requires_grad_()
    upstream = normal(4, inputs, seed=1).double()
    functions.correct_moments(quantized, weight, scale, 3, "round", both=True).backward(upstream)
    codes = torch.round(quantized.detach() / scale[:, None] - numerics.ladder_offset(3, "round"))
    found = numerics.correct_moments(codes, scale, *numerics.moments(weight), int(inputs == 40))
    torch.testing.assert_close(quantized.grad, upstream * (found.slope / scale)[:, None], rtol=1e-12, atol=0)
    assert weight.grad is None
    assert scale.grad is None


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("inputs", [40, 300])
def test_gradients_through_the_moments_are_those_of_the_formula(inputs: int, both: bool) -> None:
    """`std / std_q (q - mean_q) + mean`, or the means alone, by autograd in float64; a constant channel has gain 1."""
    weight, scale = normal(4, inputs).double(), torch.full((4,), 0.02, dtype=torch.float64)
    weight[3] = 0.5
    quantized = functions.quantize_weight(weight, scale, 3, "round").detach()
    upstream = normal(4, inputs, seed=1).double()
    ours = [quantized.clone().requires_grad_(), weight.clone().requires_grad_()]
    functions.correct_moments(*ours, scale, 3, "round", both=both, through=True).backward(upstream)
    q, w = quantized.clone().requires_grad_(), weight.clone().requires_grad_()
    gain = (w[:3].std(1, correction=0) / q[:3].std(1, correction=0))[:, None] if both else torch.ones(3, 1)
    (gain * (q[:3] - q[:3].mean(1, keepdim=True)) + w[:3].mean(1, keepdim=True)).backward(upstream[:3])
    torch.testing.assert_close(ours[0].grad[:3], q.grad[:3], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1].grad[:3], w.grad[:3], rtol=1e-9, atol=1e-12)
    level = upstream[3].mean()
    torch.testing.assert_close(ours[0].grad[3], upstream[3] - level)
    torch.testing.assert_close(ours[1].grad[3], level.expand(inputs))


# Which one runs


@pytest.mark.parametrize("tensor", [torch.zeros(2).double(), torch.zeros(4)[::2], torch.zeros(2, device="meta")])
def test_torch_runs_what_native_code_cannot(tensor: Tensor) -> None:
    assert kernels_for(tensor) is None


def test_without_the_library_torch_runs(tmp_path: Path) -> None:
    assert native.library_in(tmp_path) is None


def test_without_triton_torch_runs_on_a_gpu() -> None:
    installed = kernels._on_gpu.__wrapped__  # not what an earlier call found
    with mock.patch.multiple(kernels, find_spec=lambda _: None, _on_gpu=installed), FakeTensorMode():
        x, scalar = torch.empty(4, 9, device="cuda"), torch.empty((), device="cuda")
        assert kernels_for(x, scalar) is None
        assert functions.quantize_activation(x, scalar, scalar, 4).device == x.device


def test_torch_stays_on_the_device_of_its_tensors() -> None:
    """And asks for no number, which there is none of here."""
    with FakeTensorMode():
        shapes = (4, 30, 3, 3), (4,), ()
        weight, scale, scalar = (torch.empty(shape, device="meta").requires_grad_() for shape in shapes)
        quantized = functions.quantize_weight(weight, scale, 4, "round")
        functions.correct_moments(quantized, weight, scale, 4, "round", both=True, through=True).sum().backward()
        functions.quantize_activation(weight, scalar, scalar.detach(), 4).sum().backward()
    assert {leaf.grad.device.type for leaf in (weight, scale, scalar)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_activations_of_16_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    """And rounded at the end; the scale keeps a gradient of float32."""
    x, scale, zero = normal(500).to(dtype), torch.tensor(0.0123), torch.tensor(128.0)

    def quantize(x: Tensor, scale: Tensor) -> Tensor:
        return functions.quantize_activation(x, scale, zero, 8, rectify=True)

    found, (at_x, at_scale) = run(quantize, (x, scale), torch_alone=False)
    expected, (defined, _) = run(quantize, (x.float(), scale), torch_alone=True)
    assert torch.equal(found, expected.to(dtype))
    assert torch.equal(at_x, defined.to(dtype))
    assert (at_x.dtype, at_scale.dtype) == (dtype, torch.float32)


def test_a_broken_library_is_an_error_and_no_reason_to_run_torch(tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="cannot be loaded"):
        native.library_in(tmp_path)
