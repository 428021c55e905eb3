"""Modules as aten calls, for those that run in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mbqc.errors import PassError
from mbqc.ir.types import Dims
from mbqc.program.operations import Argument, ListArgument

Plain = bool | int | float | str | None | list[int]


@dataclass(frozen=True)
class Attribute:
    """A tensor of the module, by attribute name; None where the module has none."""

    name: str


@dataclass(frozen=True)
class Input:
    """The module's input."""


@dataclass(frozen=True)
class FloatForm:
    """An aten function and its arguments."""

    name: str
    arguments: tuple[Plain | Attribute | Input, ...] = (Input(),)
    keywords: tuple[tuple[str, Plain], ...] = ()


def _form(name: str, *arguments: Plain | Attribute) -> FloatForm:
    return FloatForm(name, (Input(), *arguments))


def plain_argument(value: Plain | Attribute | Input) -> Argument:
    """A plain argument as a Program stores it."""
    assert not isinstance(value, Attribute | Input)
    return ListArgument(tuple(value)) if isinstance(value, list) else value


WEIGHT, BIAS = Attribute("weight"), Attribute("bias")


def elementwise_form(module: nn.Module) -> FloatForm:
    """An element-wise activation as an aten call.

    Raises:
        PassError: it is none that is known.
    """
    match module:
        case nn.ReLU():
            return FloatForm("relu.default")
        case nn.Hardtanh():  # ReLU6 is one
            return _form("hardtanh.default", float(module.min_val), float(module.max_val))
        case nn.Hardswish():
            return FloatForm("hardswish.default")
        case nn.SiLU():
            return FloatForm("silu.default")
        case nn.Sigmoid():
            return FloatForm("sigmoid.default")
        case nn.Hardsigmoid():
            return FloatForm("hardsigmoid.default")
        case nn.Tanh():
            return FloatForm("tanh.default")
        case nn.Mish():
            return FloatForm("mish.default")
        case nn.LeakyReLU():
            return _form("leaky_relu.default", float(module.negative_slope))
        case nn.ELU():
            return _form("elu.default", float(module.alpha))
        case nn.Softplus():
            return _form("softplus.default", float(module.beta), float(module.threshold))
        case nn.GELU():
            return FloatForm("gelu.default", keywords=(("approximate", module.approximate),))
        case _:
            raise PassError(f"{type(module).__name__} has no float form in a Program")


def float_form(module: nn.Module, spatial: Dims) -> FloatForm:
    """Any module of the canonical graph as an aten call.

    Args:
        spatial: dimensions of its result behind N and C.

    Raises:
        PassError: it is none that is known.
    """
    for classes, make in _FORMS:
        if isinstance(module, classes):
            return make(module, spatial)
    return elementwise_form(module)


def _convolution(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if module.padding_mode != "zeros":
        raise PassError(f"padding_mode={module.padding_mode!r} has no form in a Program", hint="pad with zeros")
    dims = len(module.kernel_size)
    padding: Plain = module.padding if isinstance(module.padding, str) else list(module.padding)
    variant = "padding" if isinstance(module.padding, str) else "default"
    rest = (list(module.stride), padding, list(module.dilation), module.groups)
    return _form(f"conv{dims}d.{variant}", WEIGHT, BIAS, *rest)


def _transposed(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
    dims = len(module.kernel_size)
    variant = "default" if dims == 1 else "input"
    padding = [int(p) for p in module.padding]
    rest = (list(module.stride), padding, list(module.output_padding), module.groups, list(module.dilation))
    return _form(f"conv_transpose{dims}d.{variant}", WEIGHT, BIAS, *rest)


def _batch_norm(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    tensors = (WEIGHT, BIAS, Attribute("running_mean"), Attribute("running_var"))
    return _form("batch_norm.default", *tensors, False, 0.0, module.eps, False)


def _layer_norm(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.LayerNorm)
    return _form("layer_norm.default", list(module.normalized_shape), WEIGHT, BIAS, module.eps, False)


def _group_norm(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.GroupNorm)
    return _form("group_norm.default", module.num_groups, WEIGHT, BIAS, module.eps, False)


def _pool(module: nn.Module, spatial: Dims) -> FloatForm:
    def sizes(value: int | tuple[int, ...]) -> list[int]:
        given = value if isinstance(value, tuple) else (value,) * rank
        return [int(v) for v in given]

    rank = len(spatial)
    match module:
        case nn.MaxPool1d() | nn.MaxPool2d():
            geometry = [sizes(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation)]
            return _form(f"max_pool{rank}d.default", *geometry, module.ceil_mode)
        case nn.AvgPool1d() | nn.AvgPool2d():
            geometry = [sizes(v) for v in (module.kernel_size, module.stride, module.padding)]
            divisor = (module.divisor_override,) if isinstance(module, nn.AvgPool2d) else ()
            rest = (module.ceil_mode, module.count_include_pad, *divisor)
            return _form(f"avg_pool{rank}d.default", *geometry, *rest)
        case _:
            assert isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
            return _form(f"adaptive_avg_pool{rank}d.default", list(spatial))  # None stands for the input's size


def _pad(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d)
    return _form("constant_pad_nd.default", list(module.padding), float(module.value))


def _linear(module: nn.Module, spatial: Dims) -> FloatForm:
    return _form("linear.default", WEIGHT, BIAS)


def _embedding(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None:  # it shortens rows of its table when they are looked up
        raise PassError(
            "an Embedding with max_norm changes its table and has no form in a Program",
            hint="shorten the table's rows once, then set max_norm to None",
        )
    return FloatForm("embedding.default", (WEIGHT, Input()))


def _softmax(module: nn.Module, spatial: Dims) -> FloatForm:
    assert isinstance(module, nn.Softmax)
    if module.dim is None:
        raise PassError("Softmax without dim has no form in a Program", hint="give it a dim")
    return _form("softmax.int", module.dim)


def _prelu(module: nn.Module, spatial: Dims) -> FloatForm:
    return _form("prelu.default", WEIGHT)


_FORMS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[nn.Module, Dims], FloatForm]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d), _transposed),
    ((nn.Linear,), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _pool),
    ((nn.ConstantPad1d, nn.ConstantPad2d), _pad),
    ((nn.Embedding,), _embedding),
    ((nn.Softmax,), _softmax),
    ((nn.PReLU,), _prelu),
)
