"""Prints a graph as text; `mbqc.ir.parse` reads it back. Weights are not in the text, only their names.

    graph [canonical] {
      %x = input x                                 : f32[Nx3x32x32]
      %conv1 = call conv1(%x)                      : f32[Nx16x32x32] @pinned{bits=8}
      %add = aten.add.Tensor(%conv1, %x, alpha=1)  : f32[Nx16x32x32]
      %pos = parameter pos_embedding
      return %add
    }
    modules {
      conv1 = Conv2d{in_channels=3,out_channels=16,kernel_size=3:3,padding=1:1}
    }

A graph that is not canonical prints too, since that is when one wants to look at it: a function or value
without a text form stands in angle brackets, which the parser refuses.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from mbqc.ir.annotations import annotations_of
from mbqc.ir.construct import format_module, tensor_at
from mbqc.ir.types import TensorType
from mbqc.spec import format_dataclass
from mbqc.values import format_value, quote

OPERATORS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {f.__name__: f for f in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv)}
)
"""Functions beside aten: parts of a multiple result, and arithmetic on sizes."""

BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A module or tensor name that needs no quotes."""

WIDTHS = "widths"
"""Name of the input through which a quantized graph is given its widths; its value is no tensor."""

_WIDEST_COLUMN = 80


def print_graph(gm: fx.GraphModule) -> str:
    """The graph as text, with its properties, types, annotations and the modules it calls."""
    rows = [(_statement(node, gm), _facts(node)) for node in gm.graph.nodes]
    column = max((len(left) for left, facts in rows if facts and len(left) <= _WIDEST_COLUMN), default=0)
    body = "\n".join(f"  {left:{column}}  {facts}" if facts else f"  {left}" for left, facts in rows)
    properties = ", ".join(sorted(gm.meta.get("properties", ())))
    text = f"graph {f'[{properties}] ' if properties else ''}{{\n{body}\n}}\n"
    called = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    modules = [f"  {format_name(name)} = {format_module(gm.get_submodule(name))}\n" for name in called]
    return f"{text}modules {{\n{''.join(modules)}}}\n" if modules else text


def graph_tensors(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that `parse_graph` needs: the state dict, and plain attributes that the graph reads."""
    tensors: dict[str, Tensor] = dict(gm.state_dict())
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.target not in tensors:
            tensors[str(node.target)] = tensor_at(gm, str(node.target))
    return tensors


def format_name(name: str) -> str:
    """A module or tensor name, quoted where it has to be."""
    return name if BARE_NAME.fullmatch(name) else quote(name)


def _statement(node: fx.Node, gm: fx.GraphModule) -> str:
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    if node.op == "placeholder":
        default = f" default {_value(node.args[0])}" if node.args else ""
        return f"%{node.name} = input {node.target}{default}"
    if node.op == "get_attr":
        kind = "parameter" if isinstance(tensor_at(gm, str(node.target)), nn.Parameter) else "tensor"
        return f"%{node.name} = {kind} {format_name(str(node.target))}"
    arguments = [_value(value) for value in node.args]
    arguments += [f"{key}={_value(value)}" for key, value in node.kwargs.items()]
    return f"%{node.name} = {_callee(node)}({', '.join(arguments)})"


def _callee(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"call {format_name(str(node.target))}"
    if isinstance(node.target, OpOverload):
        return str(node.target)
    if isinstance(node.target, str):
        return f"<method {node.target}>"
    name = str(getattr(node.target, "__name__", node.target))
    return name if OPERATORS.get(name) is node.target else f"<{name}>"


def _value(value: object) -> str:
    match value:
        case fx.Node():
            return f"%{value.name}"
        case str():
            return quote(value)  # always: a bare word would read as a keyword
        case None | bool() | int() | float():
            return format_value(value)
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case tuple():
            return f"({', '.join(map(_value, value))}{',' if len(value) == 1 else ''})"
        case dict():
            return f"{{{', '.join(f'{quote(str(key))}: {_value(item)}' for key, item in value.items())}}}"
        case torch.device():
            return f"device({quote(str(value))})"
        case torch.dtype() | torch.layout() | torch.memory_format():
            return str(value)
    return f"<{' '.join(repr(value).split())}>"


def _facts(node: fx.Node) -> str:
    """What stands after a statement: its type and its annotations."""
    kind = _type(node.meta.get("type"))
    if not kind and node.op == "placeholder" and node.target == WIDTHS:
        kind = WIDTHS
    named = sorted((cls.__name__.lower(), value) for cls, value in annotations_of(node).items())
    facts = [f": {kind}"] if kind else []
    return " ".join(facts + [f"@{format_dataclass(value, name)}" for name, value in named])


def _type(kind: object) -> str:
    if isinstance(kind, TensorType):
        return str(kind)
    if isinstance(kind, tuple):
        return f"({', '.join(map(_type, kind))}{',' if len(kind) == 1 else ''})"
    return ""
