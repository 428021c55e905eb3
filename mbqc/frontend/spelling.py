"""Python spellings of tensor operations, translated to aten overloads.

`torch.flatten(x, 1)`, `x.flatten(1)` and `x.flatten(start_dim=1)` are three spellings of
`aten.flatten.using_ints(x, 1)`. FUNCTIONS lists the names that mean the aten operation of the same name; which of its
overloads a call means follows from the schemas. What is not listed goes through `torch.export`, which knows them all.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import fx
from torch._ops import OpOverload

from mbqc.frontend.overloads import UnknownSpelling, find_overload, named_arguments
from mbqc.ir.graph import is_int, replace_call, replace_value

FUNCTIONS = frozenset(
    """
    add sub mul div neg pow exp log sqrt rsqrt abs matmul bmm clamp clamp_min maximum minimum
    add_ sub_ mul_ div_ clamp_
    relu relu6 hardtanh hardswish silu gelu sigmoid hardsigmoid tanh leaky_relu elu softplus mish softmax
    relu_ hardtanh_ hardswish_ silu_ sigmoid_ hardsigmoid_ tanh_ leaky_relu_ elu_ mish_
    conv1d conv2d conv3d linear batch_norm layer_norm group_norm
    max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
    pad mean sum cat stack chunk split unbind flatten unflatten view reshape squeeze unsqueeze
    permute transpose expand repeat contiguous clone detach
    dropout feature_dropout scaled_dot_product_attention
    """.split()  # noqa: SIM905
)
"""Python names that mean the aten operation of this name."""

RENAMED = {
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "itruediv": "div_",
    "truediv": "div",
    "concat": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "dropout2d": "feature_dropout",
    "dropout3d": "feature_dropout",
}
"""Python names that mean an aten operation of another name."""

_NAMESPACES = (torch, F, operator)
_VARIADIC = frozenset({"view", "reshape", "permute", "expand", "repeat"})


def spell_as_aten(graph: fx.Graph) -> None:
    """Make every function and method call of a symbolically traced graph an aten call, in place.

    Raises:
        UnknownSpelling: a call is not in the table, or its arguments fit no overload.
    """
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or is_int(node) or _is_shape(node):
            continue
        if node.target is operator.getitem:
            _spell_getitem(node)
        else:
            target, args, kwargs = _spelled(node)
            replace_call(node, "call_function", target, args, kwargs)
    for node in [n for n in graph.nodes if _is_shape(n)]:
        if node.users:
            raise UnknownSpelling("a shape used as a whole")
        graph.erase_node(node)


def _spelled(node: fx.Node) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any]]:
    """Target and arguments of the aten call that a Python call means."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if node.op == "call_method" and node.target == "size":
        return find_overload("sym_size", args, kwargs)
    name = _name(node)
    if name in _VARIADIC and len(args) > 1 and not isinstance(args[1], (list, tuple)):
        args = [args[0], args[1:]]
    if len(args) == 2 and not isinstance(args[0], (fx.Node, list, tuple)):
        name, args = _node_first(name, args)
    if node.op == "call_function":
        args, kwargs = named_arguments(node.target, args, kwargs)
        name += "_" * bool(kwargs.pop("inplace", False))
    return find_overload(name, args, kwargs)


def _name(node: fx.Node) -> str:
    """The aten name that a call means."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_function" and not any(getattr(ns, name, None) is node.target for ns in _NAMESPACES):
        raise UnknownSpelling(f"function {name}")
    name = RENAMED.get(name, name)
    if name not in FUNCTIONS:
        raise UnknownSpelling(f"function {name}")
    return name


def _node_first(name: str, args: Sequence[Any]) -> tuple[str, list[Any]]:
    """`2 * x` as `x * 2`: aten operators take the tensor first."""
    mirrored = {"add": "add", "mul": "mul", "sub": "rsub"}
    if name not in mirrored:
        raise UnknownSpelling(f"{name} of a number and a tensor")
    return mirrored[name], [args[1], args[0]]


def _is_shape(node: Any) -> bool:
    """Whether a node is `x.shape` or `x.size()`."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is builtins.getattr and node.args[1] == "shape"


def _spell_getitem(node: fx.Node) -> None:
    source, index = node.args
    assert isinstance(source, fx.Node)
    if _is_shape(source):
        if not isinstance(index, int):
            raise UnknownSpelling("a part of a shape")
        replace_call(node, "call_function", torch.ops.aten.sym_size.int, (source.args[0], index))
    elif not _is_tuple(source):
        _spell_indexing(node, source, index if isinstance(index, tuple) else (index,))


def _is_tuple(node: fx.Node) -> bool:
    """Whether an aten call returns several tensors."""
    if not isinstance(node.target, OpOverload):
        return False
    returns = node.target._schema.returns
    return len(returns) > 1 or "List" in str(returns[0].type)


def _spell_indexing(node: fx.Node, source: fx.Node, items: tuple[Any, ...]) -> None:
    """`x[:, 0, None]` as a chain of aten.slice, aten.select and aten.unsqueeze."""
    aten, value, dim = torch.ops.aten, source, 0

    def emit(target: OpOverload, *args: Any) -> fx.Node:
        with node.graph.inserting_before(node):
            new = node.graph.call_function(target, (value, dim, *args))
        new.meta = dict(node.meta)
        return new

    for item in items:
        if item is None:
            value, dim = emit(aten.unsqueeze.default), dim + 1
        elif isinstance(item, slice):
            if item != slice(None):
                value = emit(aten.slice.Tensor, item.start, item.stop, 1 if item.step is None else item.step)
            dim += 1
        elif type(item) is int or (isinstance(item, fx.Node) and is_int(item)):
            value = emit(aten.select.int, item)
        else:
            raise UnknownSpelling("indexing by a tensor or an ellipsis")
    replace_value(node, value)
