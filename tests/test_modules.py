"""The modules of the quantized graph: values, gradients, and the width that flows instead of being kept."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mbqc import numerics
from mbqc.ir.modules import (
    ActivationQuantizer,
    MomentCorrection,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
    WidthBatchNorm,
    quantized_layer,
)
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.widths import FLOAT, Widths

every_width = pytest.mark.parametrize("bits", ALL_BITS)
every_ladder = pytest.mark.parametrize("ladder", ["round", "shift"])


def at(bits: int) -> Widths:
    return Widths((("conv", bits),))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_quantizer(scale: Tensor, ladder: Ladder = "round") -> WeightQuantizer:
    quantizer = WeightQuantizer("conv", len(scale), ladder).to(scale.dtype)
    quantizer.scale.data = scale.clone()
    return quantizer


def activation_quantizer(
    grids: dict[int, tuple[float, int]], layers: tuple[str, ...] = ("conv",)
) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(layers, tuple(grids))
    quantizer.scale.data = torch.tensor([scale for scale, _ in grids.values()])
    quantizer.zero_point.copy_(torch.tensor([float(zero) for _, zero in grids.values()]))
    return quantizer


def leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


GRIDS = {8: (0.02, 100), 4: (0.3, 7), 2: (1.2, 1)}

# Weights: u = W / s lies inside the range in most elements and on both sides of it in some


def weights() -> tuple[Tensor, Tensor, Tensor]:
    """Weights [3, 2, 5], scales [3], and W / s."""
    weight, scale = 2 * normal(3, 2, 5), torch.tensor([0.02, 0.025, 0.5], dtype=torch.float64)
    u = weight / scale[:, None, None]
    assert bool((u < -128).any())
    assert bool((u > 127).any())
    return weight, scale, u


@every_ladder
@every_width
def test_weights_are_what_their_narrowed_codes_stand_for(bits: int, ladder: Ladder) -> None:
    weight, scale, _ = weights()
    stored = numerics.quantize_weight(weight, scale)
    expected = numerics.code_values(numerics.narrow(stored, bits, ladder), bits, ladder) * scale[:, None, None]
    quantizer = weight_quantizer(scale, ladder)
    # the module multiplies by 1 / s: the last bits of float64 differ
    torch.testing.assert_close(quantizer(weight, at(bits)), expected, rtol=1e-12, atol=0)
    assert quantizer.codes(weight).dtype == torch.int8
    assert torch.equal(quantizer.codes(weight).double(), stored)


@every_ladder
@every_width
def test_weight_gradients_are_those_of_lsq(bits: int, ladder: Ladder) -> None:
    """dW passes inside the range, not outside; d/ds is value - u inside, the bound's value outside."""
    weight, scale, u = weights()
    quantizer, given, upstream = weight_quantizer(scale, ladder), leaf(weight), normal(3, 2, 5, seed=1)
    quantizer(given, at(bits)).backward(upstream)
    inside = (u >= -128) & (u <= 127)
    value = numerics.code_values(numerics.narrow(numerics.quantize_weight(weight, scale), bits, ladder), bits, ladder)
    expected = upstream * (value - torch.where(inside, u, 0.0))
    # float64 throughout, with 1 / s rounded first in the module
    torch.testing.assert_close(given.grad, upstream * inside, rtol=1e-12, atol=0)
    torch.testing.assert_close(quantizer.scale.grad, expected.sum((1, 2)), rtol=1e-10, atol=1e-10)


def test_the_scale_gradient_at_eight_bits_is_the_formula_of_the_paper() -> None:
    """round(u) - u inside, -128 below, 127 above."""
    for u, expected in [(3.25, -0.25), (3.75, 0.25), (-5.4, 0.4), (-128.75, -128.0), (127.25, 127.0), (500.0, 127.0)]:
        quantizer = weight_quantizer(torch.tensor([0.5], dtype=torch.float64))
        quantizer(torch.tensor([[u * 0.5]], dtype=torch.float64), at(8)).sum().backward()
        assert quantizer.scale.grad.tolist() == pytest.approx([expected])


# Activations


@every_width
def test_activations_are_on_the_grid_of_the_width(bits: int) -> None:
    quantizer, x = activation_quantizer(GRIDS), normal(4, 50).float()
    scale, zero = numerics.interpolate_grids(GRIDS)[bits]
    codes = torch.round(x / scale + zero).clamp(0, 2**bits - 1)
    # float32: x / s against x * (1 / s) may round a tie another way, this seed has none
    torch.testing.assert_close(quantizer(x, at(bits)), (codes - zero) * scale, rtol=1e-6, atol=0)
    assert quantizer.grids()[bits] == (pytest.approx(scale, rel=1e-6), zero)


@pytest.mark.parametrize("bits", GRIDS)
def test_activation_gradients_are_those_of_lsq(bits: int) -> None:
    """With v = x / s: dx passes inside, not outside; d/ds is round(v) - v inside, bound - zero-point outside."""
    quantizer, x, upstream = activation_quantizer(GRIDS).double(), leaf(3 * normal(40)), normal(40, seed=1)
    scale, zero = quantizer.scale.detach()[list(GRIDS).index(bits)], GRIDS[bits][1]
    quantizer(x, at(bits)).backward(upstream)
    v, top = x.detach() / scale, 2**bits - 1
    inside = (v + zero >= 0) & (v + zero <= top)
    assert 0 < int(inside.sum()) < 40
    by_scale = torch.where(inside, torch.round(v) - v, torch.where(v + zero < 0, 0.0, float(top)) - zero)
    expected = torch.zeros(3, dtype=torch.float64)
    expected[list(GRIDS).index(bits)] = (upstream * by_scale).sum()  # the scales of other widths learn nothing
    torch.testing.assert_close(x.grad, upstream * inside, rtol=1e-12, atol=0)
    torch.testing.assert_close(quantizer.scale.grad, expected, rtol=1e-10, atol=1e-10)


def test_an_interpolated_width_passes_gradients_to_its_input_alone() -> None:
    quantizer, x = activation_quantizer(GRIDS), leaf(normal(10).float())
    quantizer(x, at(6)).sum().backward()
    assert bool(x.grad.any())
    assert quantizer.scale.grad is None


@pytest.mark.parametrize(
    ("layers", "bits"), [((), 8), (("a",), 2), (("b",), 4), (("a", "b"), 4), (("b", "a"), 4), (("c", "a"), 8)]
)
def test_the_widest_reader_gives_an_activation_its_width_and_no_reader_eight_bits(
    layers: tuple[str, ...], bits: int
) -> None:
    x, widths = normal(100).float(), Widths((("a", 2), ("b", 4), ("c", 8)))
    alone = activation_quantizer(GRIDS)(x, at(bits))
    assert torch.equal(activation_quantizer(GRIDS, layers)(x, widths), alone)


# Moments: the laws of the correction are those of `numerics.correct_moments`; here, that the module applies it

few_and_many_inputs = pytest.mark.parametrize("shape", [(5, 16), (5, 3, 3, 3), (5, 300), (5, 40, 3, 3), (5, 120, 3, 3)])


def corrected(weight: Tensor, bits: int, moments: str = "both", ladder: Ladder = "round") -> tuple[Tensor, Tensor]:
    """Weights of a width before and after their correction, at a scale of 0.04, which clips none."""
    quantizer = weight_quantizer(torch.full((len(weight),), 0.04, dtype=weight.dtype), ladder)
    quantized = quantizer(weight, at(bits))
    return quantized, MomentCorrection("conv", moments, ladder)(quantized, weight, quantizer.scale, at(bits))


@few_and_many_inputs
@every_ladder
@pytest.mark.parametrize("bits", [b for b in ALL_BITS if b < 8])
@pytest.mark.parametrize("moments", ["mean", "both"])
def test_correction_restores_the_moments_it_names(
    bits: int, moments: str, ladder: Ladder, shape: tuple[int, ...]
) -> None:
    """In whole codes the mean to half a step of a sum, more where some shift alike, and the spread to half a step."""
    weight = normal(*shape)
    quantized, found = corrected(weight, bits, moments, ladder)
    (mean, std), (found_mean, found_std) = numerics.moments(weight), numerics.moments(found)
    before = numerics.moments(quantized)[1]
    assert bool((before > 0).all())
    spread, count = std if moments == "both" else before, weight[0].numel()
    alike = numerics.shift_granularity(shape, bits)
    step = 0.04 * spread / before if alike else torch.zeros(())
    # float64
    assert bool(((found_mean - mean).abs() <= (alike // 2 + 0.5) * step / count + 1e-12).all())
    assert bool(((found_std - spread).abs() <= step / 2 + 1e-12).all())


def test_the_codes_that_get_one_more_are_the_first_by_rows_then_columns_then_inputs() -> None:
    """All codes of zero, and a mean for 7 of 12 ones."""
    inputs, rows, columns = 2, 2, 3
    expected = torch.zeros(1, inputs, rows, columns, dtype=torch.float64)
    for y, x, i in list(product(range(rows), range(columns), range(inputs)))[:7]:
        expected[0, i, y, x] = 1
    weight = torch.full_like(expected, 7 / 12)
    zeros = torch.full_like(expected, numerics.ladder_offset(4, "round"))  # what codes of zero stand for
    one = torch.ones(1, dtype=torch.float64)
    assert torch.equal(MomentCorrection("conv", "both", "round")(zeros, weight, one, at(4)), expected)


@few_and_many_inputs
def test_the_stored_width_needs_no_correction(shape: tuple[int, ...]) -> None:
    quantized, found = corrected(normal(*shape), 8)
    assert found is quantized


@few_and_many_inputs
@every_ladder
@pytest.mark.parametrize("bits", [b for b in ALL_BITS if b < 8])
def test_correction_of_a_constant_channel_only_shifts_it(bits: int, ladder: Ladder, shape: tuple[int, ...]) -> None:
    """To a whole code, 0.04, or exactly; 2.2 are 55 of them, and zero is zero."""
    weight = torch.full(shape, 2.2)
    weight[0] = 0
    quantized, found = corrected(weight, bits, ladder=ladder)
    assert not torch.allclose(quantized, weight, atol=1e-3)
    torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-6)  # float32


@few_and_many_inputs
def test_next_to_no_spread_around_a_large_mean_is_not_gained_where_codes_hold_the_mean(shape: tuple[int, ...]) -> None:
    """Around 71.5 codes, where two codes of 4 bits meet: the gain of 1/32 would ask for codes of 2 300."""
    weight = 0.04 * 71.5 + 0.01 * normal(*shape)
    quantized, found = corrected(weight, 4)
    (mean, std), (found_mean, found_std) = numerics.moments(weight), numerics.moments(found)
    before, count = numerics.moments(quantized)[1], weight[0].numel()
    assert bool((before > 10 * std).all())
    alike = numerics.shift_granularity(shape, 4)
    spread, step = (before, 0.04) if alike else (std, 0.0)
    assert bool(((found_mean - mean).abs() <= (alike // 2 + 0.5) * step / count + 1e-12).all())
    assert bool(((found_std - spread).abs() <= step / 2 + 1e-12).all())


@few_and_many_inputs
def test_correction_treats_its_statistics_as_constants(shape: tuple[int, ...]) -> None:
    """The gradient of each weight is the channel's gain; nothing flows to the float weights or to the scale."""
    quantizer, weight = weight_quantizer(torch.full((5,), 0.04, dtype=torch.float64)), leaf(normal(*shape))
    quantized, upstream = leaf(quantizer(weight, at(3)).detach()), normal(*shape, seed=1)
    MomentCorrection("conv", "both", "round")(quantized, weight, quantizer.scale, at(3)).backward(upstream)
    gain = numerics.moments(weight.detach())[1] / numerics.moments(quantized.detach())[1]
    assert weight.grad is None
    assert quantizer.scale.grad is None
    torch.testing.assert_close(quantized.grad, upstream * gain.reshape(-1, *[1] * (len(shape) - 1)))


# BatchNorm with statistics a width


def test_width_batch_norm_reads_the_row_of_its_width_and_row_zero_for_the_float_model() -> None:
    norm, x = WidthBatchNorm("conv", 3, 1e-3).eval(), normal(2, 3, 4, 4).float()
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias)
    norm.running_mean.copy_(normal(9, 3))
    norm.running_var.copy_(normal(9, 3).square())
    for row, widths in enumerate([FLOAT, *map(at, ALL_BITS)]):
        numbers = (norm.running_mean[row], (norm.running_var[row] + 1e-3).sqrt(), norm.weight, norm.bias)
        mean, deviation, gain, bias = (t.detach().reshape(3, 1, 1) for t in numbers)
        expected = (x - mean) / deviation * gain + bias
        torch.testing.assert_close(norm(x, widths), expected, rtol=1e-5, atol=1e-5)  # float32, another order


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("affine", ["shared", "width"])
def test_in_train_mode_each_row_is_a_batch_norm_of_its_own(
    affine: Literal["shared", "width"], momentum: float | None
) -> None:
    """Three batches at each of two widths: outputs, statistics and gradients; the other rows do not move."""
    norm = WidthBatchNorm("conv", 3, 1e-3, momentum, affine).double()
    nn.init.uniform_(norm.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(2))
    before = copy.deepcopy(norm)
    alone = {bits: nn.BatchNorm2d(3, 1e-3, momentum).double() for bits in (8, 2)}
    for bits, single in alone.items():
        single.weight.data.copy_(norm.line(bits)[0])
        single.bias.data.copy_(norm.line(bits)[1])
    for step, bits in product(range(3), alone):
        x, upstream = 2 * normal(4, 3, 5, 5, seed=step) + bits, normal(4, 3, 5, 5, seed=9)
        found, expected = norm(x, at(bits)), alone[bits](x)
        assert torch.equal(found, expected)
        found.backward(upstream)
        expected.backward(upstream)
    for row in range(9):
        single = alone.get(row)
        like = (
            (single.running_mean, single.running_var) if single else (before.running_mean[row], before.running_var[row])
        )
        assert torch.equal(norm.running_mean[row], like[0])
        assert torch.equal(norm.running_var[row], like[1])
        assert int(norm.num_batches_tracked[row]) == (3 if single else 0)
    if affine == "width":
        assert norm.weight.grad[[b for b in range(9) if b not in alone]].count_nonzero() == 0
        assert all(torch.allclose(norm.weight.grad[b], alone[b].weight.grad) for b in alone)
    else:
        torch.testing.assert_close(norm.weight.grad, alone[8].weight.grad + alone[2].weight.grad)


def test_a_row_a_pair_goes_by_the_widest_layer_before_too() -> None:
    norm = WidthBatchNorm("c", 3, 1e-3, affine="width", before=("a", "b"))
    assert norm.running_mean.shape == norm.weight.shape == (65, 3)
    pairs = [(before, bits) for before in ALL_BITS for bits in ALL_BITS]
    rows = [norm.row(Widths((("a", before), ("b", 1), ("c", bits)))) for before, bits in pairs]
    assert [norm.row(FLOAT), *rows] == list(range(65))
    assert norm.row(Widths((("a", 2), ("b", 7), ("c", 4)))) == norm.row(Widths((("a", 7), ("b", 3), ("c", 4))))


def test_an_affine_part_is_shared_or_by_width() -> None:
    with pytest.raises(ValueError, match="affine is 'both'"):
        WidthBatchNorm("conv", 3, 1e-3, affine="both")


# Float mode, layers, threads


def test_float_mode_is_the_identity_to_the_last_bit() -> None:
    weight, x = normal(2, 3, 3).float(), normal(2, 3).float()
    assert weight_quantizer(torch.ones(2))(weight, FLOAT) is weight
    assert activation_quantizer(GRIDS)(x, FLOAT) is x
    assert MomentCorrection("conv", "both", "round")(weight, normal(2, 3, 3).float(), torch.ones(2), FLOAT) is weight


LAYERS = [
    (nn.Conv1d(4, 6, 3, 2, padding=1, dilation=2, groups=2), QuantConv1d, (2, 4, 9)),
    (nn.Conv2d(4, 6, (1, 3), padding="same", bias=False), QuantConv2d, (2, 4, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), QuantConv2d, (2, 2, 5, 5)),
    (nn.Linear(5, 4), QuantLinear, (2, 3, 5)),
    (nn.Linear(5, 4, bias=False), QuantLinear, (2, 5)),
]


@pytest.mark.parametrize(("layer", "cls", "shape"), LAYERS)
def test_a_quantized_layer_is_the_layer_with_its_weight_as_an_input(
    layer: nn.Module, cls: type[nn.Module], shape: tuple[int, ...]
) -> None:
    quantized, x = quantized_layer(layer), normal(*shape).float()
    assert type(quantized) is cls
    assert (quantized.weight, quantized.bias) == (layer.weight, layer.bias)  # the same parameters
    assert torch.equal(quantized(x, layer.weight), layer(x))
    assert torch.equal(quantized(x, 2 * layer.weight), 2 * layer(x)) == (layer.bias is None)


def test_a_quantized_layer_keeps_what_else_its_layer_holds() -> None:
    """The graph may read it."""
    layer = nn.Linear(5, 4)
    layer.register_parameter("extra", nn.Parameter(torch.ones(4)))
    layer.register_buffer("kept", torch.ones(3))
    layer.plain, layer.child = torch.ones(2), nn.ReLU()
    quantized = quantized_layer(layer)
    for name in ("extra", "kept", "plain", "child"):
        assert getattr(quantized, name) is getattr(layer, name)


def test_two_threads_run_one_module_at_two_widths() -> None:
    """The width is an argument: what one call is given never shows in another."""
    weight, x = normal(8, 200).float(), normal(8, 200).float()
    quantize, quantize_activation = weight_quantizer(torch.full((8,), 0.02)), activation_quantizer(GRIDS)
    correct = MomentCorrection("conv", "both", "round")

    def run(bits: int) -> Tensor:
        corrected = correct(quantize(weight, at(bits)), weight, quantize.scale, at(bits))
        return corrected + quantize_activation(x, at(bits))

    expected = {bits: run(bits) for bits in (8, 2)}
    assert not torch.equal(expected[8], expected[2])
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda bits: (bits, run(bits)), [8, 2] * 100)
    assert all(torch.equal(values, expected[bits]) for bits, values in found)
