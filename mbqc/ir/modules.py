"""The modules of the quantized graph: quantizers, moment correction, and layers that take their weight as a value.

Each reads its width from the `widths` value that flows through the graph; none keeps a width of its own. Under
`widths.FLOAT` they all pass their input unchanged, so a quantized graph contains its float model. They are
differentiable: rounding passes gradients straight through inside the range (Double Rounding, arXiv 2502.01199,
section 3; LSQ's scale gradient follows from the product rule).
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mbqc import numerics
from mbqc.fused import functions as fused
from mbqc.numerics import Ladder
from mbqc.widths import Widths

QuantModule = TypeVar("QuantModule", "QuantConv1d", "QuantConv2d", "QuantLinear")


class WeightQuantizer(nn.Module):
    """Weights as the numbers that their codes of the layer's width stand for (Double Rounding).

    Args:
        layer: whose width applies.
        channels: output channels, the first dimension of the weight.
        ladder: how lower widths are derived from the stored 8-bit code.

    Attributes:
        scale: float32 [channels], real size of one stored code, shared by all widths.
    """

    def __init__(self, layer: str, channels: int, ladder: Ladder) -> None:
        super().__init__()
        self.layer, self.channels, self.ladder = layer, channels, ladder
        self.scale = nn.Parameter(torch.ones(channels, dtype=torch.float32))

    def forward(self, weight: Tensor, widths: Widths) -> Tensor:
        """`weight` [channels, ...] on the grid of the layer's width."""
        if widths.is_float:
            return weight
        return fused.quantize_weight(weight, self.scale, widths.by_layer[self.layer], self.ladder)

    def codes(self, weight: Tensor) -> Tensor:
        """The stored codes, int8, in the shape of `weight`."""
        return numerics.quantize_weight(weight.detach(), self.scale.detach()).to(torch.int8)


class MomentCorrection(nn.Module):
    """Gives each channel of a quantized weight the mean, or mean and spread, of the float one (EMQNet).

    `numerics.correct_moments` of the weight's codes. The stored width needs none: `numerics.quantize_weight` keeps the
    mean, and the spread is that of the weights already.

    Args:
        layer: whose width applies.
        moments: `mean` or `both`.
        ladder: of the quantizer.
        gradient: `detached`, what gradients see is the gain alone; or `through` the statistics.
    """

    def __init__(self, layer: str, moments: str, ladder: Ladder, gradient: str = "detached") -> None:
        super().__init__()
        self.layer, self.moments, self.ladder, self.gradient = layer, moments, ladder, gradient

    def forward(self, quantized: Tensor, weight: Tensor, scale: Tensor, widths: Widths) -> Tensor:
        """`quantized` with the moments of `weight`; both [channels, ...], `scale` of the quantizer [channels]."""
        if widths.is_float or (bits := widths.by_layer[self.layer]) == numerics.STORED_BITS:
            return quantized
        both, through = self.moments == "both", self.gradient == "through"
        return fused.correct_moments(quantized, weight, scale, bits, self.ladder, both=both, through=through)


class ActivationQuantizer(nn.Module):
    """Activations on an unsigned grid with a zero-point, one grid a width, per tensor.

    Args:
        layers: the layers that read the tensor; the widest gives the width, 8 bits where there is none.
        bits: the widths that have a scale of their own; the others are interpolated (`numerics.interpolate_grids`).

    Attributes:
        scale: float32 [len(bits)].
        zero_point: float32 [len(bits)], whole numbers.
    """

    zero_point: Tensor

    def __init__(self, layers: tuple[str, ...], bits: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.bits = tuple(layers), tuple(bits)
        self.scale = nn.Parameter(torch.ones(len(bits), dtype=torch.float32))
        self.register_buffer("zero_point", torch.zeros(len(bits), dtype=torch.float32))

    def forward(self, x: Tensor, widths: Widths, rectify: bool = False) -> Tensor:
        """`x`, or `relu(x)` where `rectify` (see `train.rectifiers`), on the grid of its width."""
        if widths.is_float:
            return x.relu() if rectify else x
        bits = widths.governing(self.layers)
        if bits in self.bits:
            index = self.bits.index(bits)
            scale = self.scale[index]
            zero = self.zero_point[index].round().clamp(*numerics.activation_range(bits))
        else:
            scale, zero = map(self.scale.new_tensor, self.grids()[bits])
        return fused.quantize_activation(x, scale, zero, bits, rectify=rectify)

    def grids(self) -> dict[int, tuple[float, int]]:
        """Scale and zero-point of every width from 1 to 8."""
        pairs = zip(self.scale.tolist(), self.zero_point.tolist(), strict=True)
        return numerics.interpolate_grids(dict(zip(self.bits, pairs, strict=True)))


class WidthBatchNorm(nn.Module):
    """BatchNorm with running statistics of their own for every width of the layer whose output it reads.

    Or for every pair of widths, of that layer and of the layers before: a transitional BatchNorm (Bit-Mixer, arXiv
    2103.17267). In train mode it normalizes with the batch and moves the row, as `torch.nn.BatchNorm2d` does.

    Args:
        layer: whose width chooses the row.
        num_features, eps, momentum: as in `torch.nn.BatchNorm2d`.
        affine: one affine part for all rows (`shared`), or one for each (`width`: switchable BatchNorm).
        before: the layers whose widest makes the pair; without them the width of `layer` alone chooses.

    Attributes:
        weight, bias: float32 [num_features], or [rows, num_features].
        running_mean, running_var: float32 [rows, num_features]; of 9 rows b is that of width b, of 65 rows
            8 (a - 1) + b that of width b behind a, and row 0 that of the float model.
        num_batches_tracked: int64 [rows], how often a row moved; momentum=None needs it.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        layer: str,
        num_features: int,
        eps: float,
        momentum: float | None = 0.1,
        affine: Literal["shared", "width"] = "shared",
        before: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if affine not in ("shared", "width"):
            raise ValueError(f"affine is {affine!r}, expected 'shared' or 'width'")
        self.layer, self.num_features, self.eps = layer, num_features, eps
        self.momentum, self.affine, self.before = momentum, affine, tuple(before)
        rows = 1 + numerics.STORED_BITS ** (2 if before else 1)
        shape = (rows, num_features) if affine == "width" else (num_features,)
        self.weight = nn.Parameter(torch.ones(shape, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("running_mean", torch.zeros(rows, num_features, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(rows, num_features, dtype=torch.float32))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.int64))

    def forward(self, x: Tensor, widths: Widths) -> Tensor:
        """`x` [N, num_features, ...] normalized with the batch or the statistics of the widths' row."""
        row, momentum = self.row(widths), self.momentum
        if self.training:
            self.num_batches_tracked[row].add_(1)
            momentum = 1 / int(self.num_batches_tracked[row]) if momentum is None else momentum
        mean, variance = self.running_mean[row], self.running_var[row]
        return nn.functional.batch_norm(x, mean, variance, *self.line(row), self.training, momentum or 0.0, self.eps)

    def row(self, widths: Widths) -> int:
        """The row that holds the numbers of `widths`."""
        return 0 if widths.is_float else 1 + widths.pair(self.layer, self.before)

    def line(self, row: int) -> tuple[Tensor, Tensor]:
        """Weight and bias [num_features] of a row."""
        if self.affine == "shared":
            return self.weight, self.bias
        return self.weight[row], self.bias[row]


class QuantConv1d(nn.Conv1d):
    """Conv1d whose weight is an input."""

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """Convolution of `input` with `weight`."""
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result

    @classmethod
    def of(cls, layer: nn.Conv1d) -> QuantConv1d:
        """The same layer, sharing its parameters."""
        return _share(layer, cls(**_convolution_arguments(layer)))


class QuantConv2d(nn.Conv2d):
    """Conv2d whose weight is an input."""

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """Convolution of `input` with `weight`."""
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result

    @classmethod
    def of(cls, layer: nn.Conv2d) -> QuantConv2d:
        """The same layer, sharing its parameters."""
        return _share(layer, cls(**_convolution_arguments(layer)))


class QuantLinear(nn.Linear):
    """Linear whose weight is an input."""

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """Product of `input` with `weight`."""
        return nn.functional.linear(input, weight, self.bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> QuantLinear:
        """The same layer, sharing its parameters."""
        return _share(layer, cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta"))


QuantLayer = QuantConv1d | QuantConv2d | QuantLinear

QUANTIZED_MODULES: tuple[type[nn.Module], ...] = (
    WeightQuantizer,
    MomentCorrection,
    ActivationQuantizer,
    WidthBatchNorm,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
)


def quantized_layer(layer: nn.Module) -> QuantLayer:
    """The form of a Conv1d, Conv2d or Linear that takes its weight as an input; parameters are shared."""
    match layer:
        case nn.Conv2d():
            return QuantConv2d.of(layer)
        case nn.Conv1d():
            return QuantConv1d.of(layer)
        case nn.Linear():
            return QuantLinear.of(layer)
        case _:
            raise AssertionError(f"{type(layer).__name__} is no layer")


def _convolution_arguments(layer: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None, "device": "meta"}


def _share(source: nn.Conv1d | nn.Conv2d | nn.Linear, target: QuantModule) -> QuantModule:
    # all that it holds: the graph may read more than weight and bias
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    for name, child in source.named_children():
        target.add_module(name, child)
    for name, value in [*source.named_buffers(recurse=False), *vars(source).items()]:
        if isinstance(value, Tensor):
            target.register_buffer(name, value)
    return target.train(source.training)
