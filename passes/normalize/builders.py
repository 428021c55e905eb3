"""Modules that do what aten calls do: one table from aten overload to the module it means.

A builder gets the arguments of the call by schema name, with parameters and buffers as tensors, and the shape of the
call's input. It returns a module whose tensors are still on the meta device, or None where no module means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mbqc.ir.types import Dims

Arguments = dict[str, Any]
Builder = Callable[[Arguments, Dims], nn.Module | None]


def _convolution(cls: type[nn.Module]) -> Builder:
    def build(a: Arguments, dims: Dims) -> nn.Module | None:
        weight, rank = a["weight"], a["weight"].dim() - 2
        return cls(
            weight.shape[1] * a["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_each(a["stride"], rank),
            padding=a["padding"] if isinstance(a["padding"], str) else _each(a["padding"], rank),
            dilation=_each(a["dilation"], rank),
            groups=a["groups"],
            bias=a["bias"] is not None,
            device="meta",
        )

    return build


def _transposed_convolution(cls: type[nn.Module]) -> Builder:
    def build(a: Arguments, dims: Dims) -> nn.Module | None:
        weight, rank = a["weight"], a["weight"].dim() - 2
        geometry = {key: _each(a[key], rank) for key in ("stride", "padding", "output_padding", "dilation")}
        channels = weight.shape[0], weight.shape[1] * a["groups"]
        kernel = tuple(weight.shape[2:])
        return cls(*channels, kernel, **geometry, groups=a["groups"], bias=a["bias"] is not None, device="meta")

    return build


def _linear(a: Arguments, dims: Dims) -> nn.Module | None:
    if a["weight"].dim() != 2:
        return None
    return nn.Linear(a["weight"].shape[1], a["weight"].shape[0], bias=a["bias"] is not None, device="meta")


def _batch_norm(a: Arguments, dims: Dims) -> nn.Module | None:
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(dims))
    if cls is None or a["running_mean"] is None or (a["weight"] is None) != (a["bias"] is None):
        return None
    affine = a["weight"] is not None
    return cls(dims[1], eps=a["eps"], momentum=a["momentum"], affine=affine, device="meta")


def _layer_norm(a: Arguments, dims: Dims) -> nn.Module | None:
    affine, bias = a["weight"] is not None, a["bias"] is not None
    if bias and not affine:
        return None
    return nn.LayerNorm(list(a["normalized_shape"]), a["eps"], elementwise_affine=affine, bias=bias, device="meta")


def _group_norm(a: Arguments, dims: Dims) -> nn.Module | None:
    if (a["weight"] is None) != (a["bias"] is None):
        return None
    return nn.GroupNorm(a["num_groups"], dims[1], a["eps"], affine=a["weight"] is not None, device="meta")


def _embedding(a: Arguments, dims: Dims) -> nn.Module | None:
    count, size = a["weight"].shape
    # only training reads padding_idx, and aten writes "none" as -1
    return nn.Embedding(count, size, padding_idx=a["padding_idx"] if a["padding_idx"] >= 0 else None, device="meta")


def _max_pool(cls: type[nn.Module], rank: int) -> Builder:
    def build(a: Arguments, dims: Dims) -> nn.Module | None:
        kernel = _each(a["kernel_size"], rank)
        stride = _each(a["stride"] or kernel, rank)
        rest = _each(a["padding"], rank), _each(a["dilation"], rank)
        return cls(kernel, stride, *rest, ceil_mode=a["ceil_mode"])

    return build


def _average_pool(cls: type[nn.Module], rank: int) -> Builder:
    def build(a: Arguments, dims: Dims) -> nn.Module | None:
        kernel = _each(a["kernel_size"], rank)
        stride = _each(a["stride"] or kernel, rank)
        options = {key: a[key] for key in ("ceil_mode", "count_include_pad", "divisor_override") if key in a}
        return cls(kernel, stride, _each(a["padding"], rank), **options)

    return build


def _adaptive_pool(cls: type[nn.Module], rank: int) -> Builder:
    return lambda a, dims: cls(_each(a["output_size"], rank) if rank > 1 else a["output_size"][0])


def _pad(a: Arguments, dims: Dims) -> nn.Module | None:
    """Constant padding of positions, (left, right) or (left, right, top, bottom); padding of channels has no module."""
    rank = len(dims) - 2
    pads = [*a["pad"], *[0] * (2 * rank - len(a["pad"]))]
    if rank not in (1, 2) or len(pads) > 2 * rank or a.get("mode", "constant") != "constant":
        return None
    cls = nn.ConstantPad1d if rank == 1 else nn.ConstantPad2d
    return cls(tuple(pads), float(a["value"] or 0.0))


def _hardtanh(a: Arguments, dims: Dims) -> nn.Module | None:
    low, high = a["min_val"], a["max_val"]
    if low >= high:  # legal for aten.clamp, which then returns `high` everywhere
        return None
    return nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(float(low), float(high))


def _clamp(a: Arguments, dims: Dims) -> nn.Module | None:
    if a["max"] is None:
        return nn.ReLU() if a["min"] == 0 else None
    return None if a["min"] is None else _hardtanh({"min_val": a["min"], "max_val": a["max"]}, dims)


def _elu(a: Arguments, dims: Dims) -> nn.Module | None:
    return nn.ELU(a["alpha"]) if (a["scale"], a["input_scale"]) == (1, 1) else None


def _softmax(a: Arguments, dims: Dims) -> nn.Module | None:
    return None if a["dtype"] is not None else nn.Softmax(a["dim"])


def _each(values: Sequence[int], rank: int) -> tuple[int, ...]:
    """One number per dimension, where aten takes a single one for all."""
    return tuple(values) * rank if len(values) == 1 else tuple(values)


def _plain(cls: type[nn.Module]) -> Builder:
    return lambda a, dims: cls()


BUILDERS: dict[str, Builder] = {
    "conv1d.default": _convolution(nn.Conv1d),
    "conv1d.padding": _convolution(nn.Conv1d),
    "conv2d.default": _convolution(nn.Conv2d),
    "conv2d.padding": _convolution(nn.Conv2d),
    "conv3d.default": _convolution(nn.Conv3d),
    "conv3d.padding": _convolution(nn.Conv3d),
    "conv_transpose1d.default": _transposed_convolution(nn.ConvTranspose1d),
    "conv_transpose2d.input": _transposed_convolution(nn.ConvTranspose2d),
    "linear.default": _linear,
    "batch_norm.default": _batch_norm,
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    "embedding.default": _embedding,
    "prelu.default": lambda a, dims: nn.PReLU(a["weight"].numel(), device="meta"),
    "max_pool1d.default": _max_pool(nn.MaxPool1d, 1),
    "max_pool2d.default": _max_pool(nn.MaxPool2d, 2),
    "avg_pool1d.default": _average_pool(nn.AvgPool1d, 1),
    "avg_pool2d.default": _average_pool(nn.AvgPool2d, 2),
    "adaptive_avg_pool1d.default": _adaptive_pool(nn.AdaptiveAvgPool1d, 1),
    "adaptive_avg_pool2d.default": _adaptive_pool(nn.AdaptiveAvgPool2d, 2),
    "pad.default": _pad,
    "constant_pad_nd.default": _pad,
    "relu.default": _plain(nn.ReLU),
    "relu6.default": _plain(nn.ReLU6),
    "hardtanh.default": _hardtanh,
    "clamp.default": _clamp,
    "clamp_min.default": lambda a, dims: nn.ReLU() if a["min"] == 0 else None,
    "hardswish.default": _plain(nn.Hardswish),
    "hardsigmoid.default": _plain(nn.Hardsigmoid),
    "silu.default": _plain(nn.SiLU),
    "gelu.default": lambda a, dims: nn.GELU(a["approximate"]),
    "sigmoid.default": _plain(nn.Sigmoid),
    "tanh.default": _plain(nn.Tanh),
    "leaky_relu.default": lambda a, dims: nn.LeakyReLU(float(a["negative_slope"])),
    "elu.default": _elu,
    "softplus.default": lambda a, dims: nn.Softplus(float(a["beta"]), float(a["threshold"])),
    "mish.default": _plain(nn.Mish),
    "softmax.int": _softmax,
}

TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Arguments that become tensors of the module."""


def build(name: str, bound: Arguments, dims: Dims) -> nn.Module | None:
    """The module in eval mode that aten call `name` means, holding the very tensors in `bound`; None without one.

    Args:
        name: `"conv2d.default"`.
        bound: arguments by schema name, numbers and tensors.
        dims: shape of the input.
    """
    module = BUILDERS[name](bound, dims) if name in BUILDERS else None
    if module is None:
        return None
    for key in TENSORS:
        tensor = bound.get(key)
        if isinstance(tensor, Tensor):
            _adopt(module, key, tensor)
    return module.eval()


def _adopt(module: nn.Module, key: str, tensor: Tensor) -> None:
    if key in module._buffers:
        module._buffers[key] = tensor
        # the counter has no place in an aten call and means nothing in eval mode
        module._buffers["num_batches_tracked"] = tensor.new_zeros((), dtype=torch.long)
    else:
        module._parameters[key] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
