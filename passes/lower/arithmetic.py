"""Calls of aten functions on floats that a Program has operations of its own for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mbqc.float_functions import Sign
from mbqc.ir.aten import arguments
from mbqc.ir.types import Dims, TensorType, type_of
from mbqc.ir.vocabulary import is_aten
from mbqc.passes.lower.states import Number, Parameter, Stored
from mbqc.passes.lower.walk import Walk
from mbqc.program.float_operations import Arithmetic, FloatOperation, MatMul, Mean, Select, Softmax

SIGNS: dict[str, Sign] = {"add.Tensor": "add", "sub.Tensor": "sub", "mul.Tensor": "mul", "div.Tensor": "div"}
COMMUTATIVE: tuple[Sign, ...] = ("add", "mul")


def arithmetic_form(walk: Walk, node: fx.Node) -> Stored | None:
    """The node as operations on floats; None where there are none for it: then torch runs it."""
    kind = node.meta.get("type")
    if not is_aten(node) or not isinstance(kind, TensorType) or kind.dtype != torch.float32:
        return None
    bound = arguments(node)
    if is_aten(node, *SIGNS):
        return _calculate(walk, node, SIGNS[str(node.target).removeprefix("aten.")], bound)
    if is_aten(node, "matmul.default", "bmm.default"):
        return _matmul(walk, node, bound["self"], bound.get("other", bound.get("mat2")))
    if is_aten(node, "scaled_dot_product_attention.default"):
        return _attention(walk, node, bound)
    if is_aten(node, "select.int"):
        return _select(walk, node, bound)
    return _mean(walk, node, bound) if is_aten(node, "mean.dim") else None


def _is_float(walk: Walk, value: Any) -> bool:
    """Whether an argument is a float32 tensor that was computed."""
    computed = isinstance(value, fx.Node) and not isinstance(walk.states[value], Parameter | Number)
    kind = value.meta.get("type") if computed else None
    return isinstance(kind, TensorType) and kind.dtype == torch.float32


def _calculate(walk: Walk, node: fx.Node, sign: Sign, bound: dict[str, Any]) -> Stored | None:
    left, right = bound["self"], bound["other"]
    if bound.get("alpha", 1) != 1:
        return None
    if sign in COMMUTATIVE and (not _is_float(walk, left) or type_of(left).dims != type_of(node).dims):
        left, right = right, left
    if not _is_float(walk, left) or type_of(left).dims != type_of(node).dims:
        return None
    dims = type_of(left).dims
    if _is_float(walk, right):
        if not _are_last(type_of(right).dims, dims):
            return None
        source, other = walk.float_value(left).name, walk.float_value(right).name
        return _emit(walk, node.name, dims, lambda output: Arithmetic(source, output, sign, other, None))
    constant = _constant(walk, node, right, dims)
    if constant is None:
        return None
    source = walk.float_value(left).name
    return _emit(walk, node.name, dims, lambda output: Arithmetic(source, output, sign, None, constant))


def _constant(walk: Walk, node: fx.Node, value: Any, dims: Dims) -> str | None:
    """A tensor of the Program for a number or a parameter that repeats along `dims`; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = torch.tensor(float(value), dtype=torch.float32)
        return walk.builder.tensor(f"{node.name}.number", number) if bool(number.isfinite()) else None
    state = walk.states.get(value) if isinstance(value, fx.Node) else None
    if not isinstance(state, Parameter):
        return None
    tensor = state.tensor
    shape = tuple(tensor.shape)
    while shape[:1] == (1,):  # broadcast as if it were not there
        shape = shape[1:]
    if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()) or not _are_last(shape, dims):
        return None
    name = state.name if shape == tensor.shape else f"{state.name}.last"
    return walk.builder.tensor(name, tensor.reshape(shape))


def _are_last(part: Dims, dims: Dims) -> bool:
    return part == dims[len(dims) - len(part) :] and 0 not in part


def _matmul(walk: Walk, node: fx.Node, left: Any, right: Any) -> Stored | None:
    if (
        not _is_float(walk, left)
        or not _is_float(walk, right)
        or not _multiply(type_of(left).dims, type_of(right).dims)
    ):
        return None
    return _product(walk, node.name, walk.float_value(left), walk.float_value(right))


def _multiply(left: Dims, right: Dims) -> bool:
    return min(len(left), len(right)) > 1 and left[:-2] == right[:-2] and min(*left[-2:], *right[-2:]) > 0


def _attention(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Stored | None:
    """Softmax of the scaled products of queries and keys, times the values."""
    query, key, value = (bound[name] for name in ("query", "key", "value"))
    plain = (
        bound["attn_mask"] is None and not bound["is_causal"] and not bound["dropout_p"] and not bound.get("enable_gqa")
    )
    if not plain or not all(_is_float(walk, n) for n in (query, key, value)):
        return None
    dims = [type_of(n).dims for n in (query, key, value)]
    rank = len(dims[1])
    turned = (*dims[1][:-2], *dims[1][:-3:-1])
    if rank < 2 or not _multiply(dims[0], turned) or not _multiply((*dims[0][:-1], turned[-1]), dims[2]):
        return None
    name, scale = node.name, bound["scale"]
    scale = torch.tensor(1 / math.sqrt(dims[0][-1]) if scale is None else float(scale), dtype=torch.float32)
    if not bool(scale.isfinite()):
        return None
    number = walk.builder.tensor(f"{name}.scale", scale)
    source = walk.float_value(query).name
    scaled = _emit(walk, f"{name}_scaled", dims[0], lambda out: Arithmetic(source, out, "mul", None, number))
    keys = walk.builder.permute(f"{name}_keys", walk.float_value(key), (*range(rank - 2), rank - 1, rank - 2))
    scores = _product(walk, f"{name}_scores", scaled, keys)
    shares = _emit(walk, f"{name}_shares", scores.dims, lambda out: Softmax(scores.name, out))
    return _product(walk, name, shares, walk.float_value(value))


def _select(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Stored | None:
    source, index = bound["self"], bound["index"]
    if not _is_float(walk, source) or not isinstance(index, int):
        return None
    dims = type_of(source).dims
    dim = bound["dim"] % len(dims)
    if dims[dim] < 1:
        return None
    name = walk.float_value(source).name
    return _emit(walk, node.name, type_of(node).dims, lambda out: Select(name, out, dim, index % dims[dim]))


def _mean(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Stored | None:
    """Over one dimension; as a dimension of size 1 it comes back by a reshape."""
    source, dims = bound["self"], bound["dim"]
    if not _is_float(walk, source) or not isinstance(dims, list | tuple) or bound["dtype"] is not None:
        return None
    shape = type_of(source).dims
    if len(dims) != 1 or not shape:
        return None
    dim = dims[0] % len(shape)
    if shape[dim] < 1:
        return None
    name, rest = walk.float_value(source).name, shape[:dim] + shape[dim + 1 :]
    result = _emit(walk, node.name, rest, lambda out: Mean(name, out, dim))
    return walk.builder.reshape(f"{node.name}_kept", result, type_of(node).dims) if bound["keepdim"] else result


def _product(walk: Walk, name: str, left: Stored, right: Stored) -> Stored:
    dims = (*left.dims[:-1], right.dims[-1])
    return _emit(walk, name, dims, lambda out: MatMul(left.name, right.name, out))


def _emit(walk: Walk, name: str, dims: Dims, make: Callable[[str], FloatOperation]) -> Stored:
    result = Stored(walk.builder.define(name, "f32", dims), dims, channels_last=False, codes=False)
    walk.builder.operations.append(make(result.name))
    return result
