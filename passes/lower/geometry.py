"""Kernel, stride, padding and dilation of modules as the Program counts them: two dimensions, four sides."""

from __future__ import annotations

from torch import fx, nn

from mbqc.ir.modules import QuantConv1d, QuantConv2d
from mbqc.ir.types import Dims, type_of

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def convolution_geometry(module: QuantConv1d | QuantConv2d, extra: Sides) -> tuple[Pair, Sides, Pair]:
    """Stride, padding (with `extra` zeros around the input) and dilation."""
    top, left = _pair(module.padding, 0)
    sides = (top, top, left, left)
    summed = tuple(a + b for a, b in zip(sides, extra, strict=True))
    return _pair(module.stride, 1), (summed[0], summed[1], summed[2], summed[3]), _pair(module.dilation, 1)


def average_window(module: nn.Module, before: Dims, after: Dims) -> tuple[Pair, Pair, Sides]:
    """Kernel, stride and padding of an average pooling from `before` to `after`."""
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        rank = len(before) - 2
        top, left = _pair(module.padding, 0, rank)
        return _pair(module.kernel_size, 1, rank), _pair(module.stride, 1, rank), (top, top, left, left)
    window = _pair(tuple(b // a for b, a in zip(before[2:], after[2:], strict=True)), 1)
    return window, window, (0, 0, 0, 0)


def pool_window(module: nn.Module) -> tuple[Pair, Pair, Sides, Pair]:
    """Kernel, stride, padding and dilation of a max pooling."""
    assert isinstance(module, nn.MaxPool1d | nn.MaxPool2d)
    rank = 1 if isinstance(module, nn.MaxPool1d) else 2
    top, left = _pair(module.padding, 0, rank)
    return (
        _pair(module.kernel_size, 1, rank),
        _pair(module.stride, 1, rank),
        (top, top, left, left),
        _pair(module.dilation, 1, rank),
    )


def pad_of(module: nn.Module) -> Sides:
    """Sides (top, bottom, left, right) of a padding module; torch counts from the last dimension."""
    assert isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d)
    left, right, *rows = module.padding
    top, bottom = rows if rows else (0, 0)
    return top, bottom, left, right


def clamp_bounds(module: nn.Module) -> tuple[float | None, float | None]:
    """Lower and upper bound of ReLU, ReLU6 or Hardtanh; None for none."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return 0.0, None


def permutation(node: fx.Node) -> tuple[int, ...]:
    """The order of dimensions that an aten permute gives."""
    source, order = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(order, list | tuple)
    rank = len(type_of(source).dims)
    return tuple(int(d) % rank for d in order)  # type: ignore[arg-type]


def _pair(value: int | str | tuple[int, ...], missing: int, rank: int = 2) -> Pair:
    """A size as two numbers; `missing` stands for the height of a one-dimensional operation."""
    assert not isinstance(value, str), "normalize writes padding as numbers"
    given = value if isinstance(value, tuple) else (value,) * rank
    return (missing, given[0]) if len(given) == 1 else (given[0], given[1])
