"""Arguments of aten calls by name, as their schemas have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch._ops import OpOverload


def op_name(node: fx.Node) -> str:
    """`"add.Tensor"` for a node that calls `torch.ops.aten.add.Tensor`."""
    return str(node.target).removeprefix("aten.")


def bind(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by schema name, with those left out at their defaults.

    Raises:
        TypeError: too many arguments, an unknown one, one given twice, or a missing one.
    """
    schema = overload._schema.arguments
    positional = [a for a in schema if not a.kwarg_only]
    if len(args) > len(positional):
        raise TypeError(f"takes {len(positional)} positional arguments, {len(args)} are given")
    bound = {argument.name: value for argument, value in zip(positional, args, strict=False)}
    for name, value in kwargs.items():
        if name in bound or name not in {a.name for a in schema}:
            raise TypeError(f"argument '{name}' is {'given twice' if name in bound else 'unknown'}")
        bound[name] = value
    for argument in schema:
        if argument.name not in bound and not argument.has_default_value():
            raise TypeError(f"argument '{argument.name}' is missing")
    return {a.name: bound.get(a.name, a.default_value) for a in schema}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node that calls an aten overload, by schema name, with defaults filled in."""
    assert isinstance(node.target, OpOverload), f"{node.name} calls no aten overload"
    return bind(node.target, node.args, node.kwargs)


def shortest(overload: OpOverload, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The one way to write a call: positional where possible, without trailing or keyword defaults."""
    positional = [a for a in overload._schema.arguments if not a.kwarg_only]
    while positional and _is_default(positional[-1], bound[positional[-1].name]):
        positional.pop()
    keywords = [a for a in overload._schema.arguments if a.kwarg_only]
    return (
        tuple(bound[a.name] for a in positional),
        {a.name: bound[a.name] for a in keywords if not _is_default(a, bound[a.name])},
    )


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value():
        return False
    if isinstance(value, (list, tuple)):
        return isinstance(argument.default_value, (list, tuple)) and list(value) == list(argument.default_value)
    # True == 1 in Python, but not in a schema
    return type(value) is type(argument.default_value) and bool(value == argument.default_value)
