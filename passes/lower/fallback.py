"""The fallback of a node: one aten call on float32 values, which torch runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from mbqc.errors import PassError
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import module_of
from mbqc.passes.lower.builder import DTYPES
from mbqc.passes.lower.floats import Attribute, Input, float_form, plain_argument
from mbqc.passes.lower.states import Number, Parameter, Several, State, Stored
from mbqc.passes.lower.walk import Walk, argument_node
from mbqc.program.aten import ALLOWED
from mbqc.program.operations import (
    Argument,
    Aten,
    AtenCall,
    BatchMultiple,
    Constant,
    DTypeArgument,
    ListArgument,
    Reference,
)


def fallback_form(walk: Walk, node: fx.Node) -> State:
    """Emits the node as a float operation.

    Raises:
        PassError: it has no allowed float form.
    """
    module = module_of(node)
    call = _function_call(walk, node) if module is None else _module_call(walk, node, module)
    kind = node.meta.get("type")
    if isinstance(kind, TensorType):
        (result,) = _emit(walk, node, call, (kind,))
        return result
    return Several(_emit(walk, node, call, kind if isinstance(kind, tuple) else ()))


def _emit(walk: Walk, node: fx.Node, call: AtenCall, kinds: tuple[TensorType, ...]) -> tuple[Stored, ...]:
    if not kinds or any(kind.dtype not in DTYPES for kind in kinds):
        raise PassError(f"a result of type {', '.join(map(str, kinds)) or 'unknown'} has no form in a Program")
    parts = tuple(
        Stored(walk.builder.define(node.name, DTYPES[kind.dtype], kind.dims), kind.dims, False, codes=False)
        for kind in kinds
    )
    walk.builder.operations.append(Aten(call, tuple(part.name for part in parts)))
    return parts


def _module_call(walk: Walk, node: fx.Node, module: nn.Module) -> AtenCall:
    source = argument_node(node)
    form = float_form(module, type_of(node).dims[2:])
    arguments: list[Argument] = []
    for argument in form.arguments:
        if isinstance(argument, Input):
            arguments.append(Reference(walk.float_value(source).name))
        elif isinstance(argument, Attribute):
            tensor = getattr(module, argument.name)
            name = f"{node.target}.{argument.name}"
            arguments.append(None if tensor is None else Constant(walk.builder.tensor(name, tensor)))
        else:
            arguments.append(plain_argument(argument))
    return AtenCall(form.name, tuple(arguments), {key: plain_argument(value) for key, value in form.keywords})


def _function_call(walk: Walk, node: fx.Node) -> AtenCall:
    name = str(node.target).removeprefix("aten.")
    if name not in ALLOWED:
        raise PassError(
            f"{node.target} has neither an integer form nor an allowed float form",
            hint="rewrite it with common tensor functions, or leave it outside the compiled model",
        )
    keywords = {key: _argument(walk, value) for key, value in node.kwargs.items()}
    return AtenCall(name, tuple(_argument(walk, a) for a in node.args), keywords)


def _argument(walk: Walk, value: Any) -> Argument:
    if isinstance(value, fx.Node):
        state = walk.states[value]
        if isinstance(state, Number):
            return BatchMultiple(-state.value) if state.value < 0 else state.value
        if isinstance(state, Parameter):
            return Constant(walk.builder.tensor(state.name, state.tensor))
        return Reference(walk.float_value(value).name)
    if isinstance(value, list | tuple):
        return ListArgument(tuple(_argument(walk, item) for item in value))
    if isinstance(value, torch.dtype):
        return DTypeArgument(str(value).removeprefix("torch."))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PassError(f"an argument of type {type(value).__name__} has no form in a Program")
