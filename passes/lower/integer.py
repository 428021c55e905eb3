"""The integer form of each kind of node; None where this node has none and runs in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mbqc.errors import PassError
from mbqc.ir.modules import ActivationQuantizer, QuantConv1d, QuantConv2d, QuantLinear, WidthBatchNorm
from mbqc.ir.quantized import weight_quantizer_of
from mbqc.ir.types import type_of
from mbqc.ir.vocabulary import AVERAGE_POOLS, BATCH_NORMS, CLAMPS, MAX_POOLS, PADS, UNARY, is_aten, is_module, module_of
from mbqc.numerics import moments
from mbqc.passes.lower.builder import program_dims
from mbqc.passes.lower.floats import elementwise_form, plain_argument
from mbqc.passes.lower.geometry import (
    average_window,
    clamp_bounds,
    convolution_geometry,
    pad_of,
    permutation,
    pool_window,
)
from mbqc.passes.lower.states import Joined, Number, Parameter, Pending, Several, State, Stored, Table
from mbqc.passes.lower.walk import Walk, argument_node
from mbqc.program.operations import AnyOperation, AtenCall, AveragePool, Conv, Epilogue, Linear, MaxPool, Weight

Form = Callable[[Walk, fx.Node, Any], State | None]


def integer_form(walk: Walk, node: fx.Node) -> State | None:
    """The node's state in integer arithmetic, emitting operations where they are due."""
    module = module_of(node)
    if module is not None:
        form = next((form for classes, form in _MODULE_FORMS if isinstance(module, classes)), None)
        return form(walk, node, module) if form is not None else None
    if is_aten(node, "reshape.default"):
        return walk.builder.reshape(node.name, walk.stored(argument_node(node)), type_of(node).dims)
    if is_aten(node, "permute.default"):
        return walk.builder.permute(node.name, walk.stored(argument_node(node)), permutation(node))
    if is_aten(node, "add.Tensor"):
        return _add(walk, node)
    return _concat(walk, node) if is_aten(node, "cat.default") else None


def _quantizer(walk: Walk, node: fx.Node, module: ActivationQuantizer) -> State:
    state = walk.state(node)
    if isinstance(state, Parameter | Number | Several):
        raise PassError("a quantizer reads something that is no tensor")
    grid = walk.builder.grid(str(node.target), module)
    return walk.builder.quantize(node.name, state, grid, _wants_channels_last(node))


def _layer(walk: Walk, node: fx.Node, module: QuantConv1d | QuantConv2d | QuantLinear) -> State:
    source = walk.state(node)
    if not isinstance(source, Stored) or not source.codes:
        raise PassError("a quantized layer reads float values", hint="its input needs an activation quantizer")
    weight = _weight(walk, node)
    shift = None if module.bias is None else module.bias.detach().to(torch.float64)
    dims = type_of(node).dims
    if isinstance(module, QuantLinear):
        plain = walk.builder.torch_order(source)

        def linear(output: str, epilogue: Epilogue) -> AnyOperation:
            return Linear(plain.name, output, weight, epilogue)

        return Pending(linear, dims, channels_last=False, shift=shift)
    last = walk.builder.channels_last(source)
    stride, padding, dilation = convolution_geometry(module, source.padding)

    def conv(output: str, epilogue: Epilogue) -> AnyOperation:
        return Conv(last.name, output, weight, stride, padding, dilation, module.groups, epilogue)

    return Pending(conv, dims, channels_last=True, shift=shift)


def _weight(walk: Walk, node: fx.Node) -> Weight:
    layer = str(node.target)
    quantizer, correction, tensor = weight_quantizer_of(node)
    codes = quantizer.codes(tensor)
    if codes.dim() > 2:  # [out, in, kernel...] to [out, kernel height, kernel width, in]
        codes = codes.movedim(1, -1)
        codes = codes if codes.dim() == 4 else codes.unsqueeze(1)
    mean, std = moments(tensor.detach())
    store = walk.builder.tensor
    return Weight(
        layer,
        store(f"{layer}.codes", codes),
        store(f"{layer}.scale", quantizer.scale),
        store(f"{layer}.mean", mean) if correction else None,
        store(f"{layer}.std", std) if correction and correction.moments == "both" else None,
    )


def _norm(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    pending = walk.accumulator(argument_node(node), needs_channels=True)
    if pending is None or not pending.takes_affine:
        return None
    gain, shift = _norm_line(module)
    if pending.shift is not None:
        shift = shift + gain * pending.shift
    if pending.gain is not None:
        gain = gain * pending.gain
    before = module.before if isinstance(module, WidthBatchNorm) else pending.before
    return replace(pending, gain=gain, shift=shift, before=before)


def _norm_line(module: nn.Module) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as `gain * x + shift`, float64 [C], or with rows as in `Epilogue`."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | WidthBatchNorm)
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise PassError("BatchNorm without running statistics has no form in a Program")
    by_width = isinstance(module, WidthBatchNorm)

    def exact(tensor: Tensor) -> Tensor:  # row 0 of what has rows is the float model's
        tensor = tensor.detach().to(torch.float64)
        return tensor[1:] if by_width and tensor.dim() == 2 else tensor

    gain = (exact(variance) + module.eps).rsqrt()
    if module.weight is not None:
        gain = gain * exact(module.weight)
    shift = -exact(mean) * gain
    if module.bias is not None:
        shift = shift + exact(module.bias)
    return gain, shift


def _clamp(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    pending = walk.accumulator(argument_node(node), needs_channels=False)
    if pending is None or pending.clamped:
        return None
    low, high = clamp_bounds(module)
    return replace(pending, low=low, high=high)


def _table(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    source = argument_node(node)
    form = elementwise_form(module)
    arguments = tuple(plain_argument(a) for a in form.arguments[1:])
    call = AtenCall(form.name, arguments, {key: plain_argument(value) for key, value in form.keywords})
    state = walk.states[source]
    if isinstance(state, Table) and len(source.users) == 1:
        return Table(state.source, (*state.functions, call))
    codes = walk.codes(source)
    return None if codes is None else Table(codes, (call,))


def _average(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    codes = walk.codes(argument_node(node))
    if codes is None:
        return None
    source, dims = walk.builder.channels_last(codes), type_of(node).dims
    kernel, stride, padding = average_window(module, codes.dims, dims)

    def average(output: str, epilogue: Epilogue) -> AnyOperation:
        return AveragePool(source.name, output, kernel, stride, padding, epilogue)

    return Pending(average, dims, channels_last=True)


def _max_pool(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    codes = walk.codes(argument_node(node))
    if codes is None:
        return None
    source, dims = walk.builder.channels_last(codes), type_of(node).dims
    grid = walk.builder.values[source.name].grid
    name = walk.builder.define(node.name, "u8", program_dims(dims, True), grid)
    walk.builder.operations.append(MaxPool(source.name, name, *pool_window(module)))
    return Stored(name, dims, channels_last=True, codes=True)


def _pad(walk: Walk, node: fx.Node, module: nn.Module) -> State | None:
    codes = walk.codes(argument_node(node))
    if codes is None:
        return None
    return replace(codes, dims=type_of(node).dims, padding=pad_of(module))


def _add(walk: Walk, node: fx.Node) -> State | None:
    """A residual: one operand's codes join the other's accumulator."""
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        return None
    for first, second in ((left, right), (right, left)):
        other = walk.codes(second)
        if other is None or type_of(first).dims != other.dims or type_of(node).dims != other.dims:
            continue
        pending = walk.accumulator(first, needs_channels=False)
        if pending is not None and pending.takes_affine:
            to_layout = walk.builder.channels_last if pending.channels_last else walk.builder.torch_order
            return replace(pending, residual=to_layout(other).name)
    return None


def _concat(walk: Walk, node: fx.Node) -> State | None:
    tensors, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
    assert isinstance(tensors, list | tuple)
    assert isinstance(dim, int)
    stored = [codes for t in tensors if isinstance(t, fx.Node) and (codes := walk.codes(t)) is not None]
    has_grid = all(isinstance(module_of(user), ActivationQuantizer) for user in node.users)
    rank = len(type_of(node).dims)
    if not has_grid or len(stored) != len(tensors) or dim % rank == 0:  # torch alone joins samples
        return None
    if rank in (3, 4) and all(s.channels_last for s in stored):
        order = (0, 3, 2) if rank == 3 else (0, 3, 1, 2)
        return Joined(tuple(stored), type_of(node).dims, order[dim % rank])
    return Joined(tuple(walk.builder.torch_order(s) for s in stored), type_of(node).dims, dim % rank)


def _wants_channels_last(node: fx.Node) -> bool:
    """Images always, N x C x L where a convolution, a pooling or a BatchNorm reads it."""
    rank = len(type_of(node).dims)
    readers: tuple[type[nn.Module], ...] = (
        QuantConv1d,
        *AVERAGE_POOLS,
        *MAX_POOLS,
        *BATCH_NORMS,
        WidthBatchNorm,
        *PADS,
    )
    return rank == 4 or (rank == 3 and any(is_module(user, readers) for user in node.users))


_MODULE_FORMS: tuple[tuple[tuple[type[nn.Module], ...], Form], ...] = (
    ((ActivationQuantizer,), _quantizer),
    ((QuantConv1d, QuantConv2d, QuantLinear), _layer),
    ((*BATCH_NORMS, WidthBatchNorm), _norm),
    (CLAMPS, _clamp),
    (UNARY, _table),
    (AVERAGE_POOLS, _average),
    (MAX_POOLS, _max_pool),
    (PADS, _pad),
)
