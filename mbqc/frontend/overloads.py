"""Which aten overload a call means, and its arguments in the order of the schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import fx
from torch._ops import OpOverload

from mbqc.ir.aten import bind, shortest
from mbqc.ir.graph import is_int


class UnknownSpelling(Exception):  # noqa: N818 (never reaches the user: the model goes through torch.export then)
    """A call that the tables do not translate."""


# torch.nn.functional dispatches these on `return_indices`; the plain ones carry the signature
_PLAIN: dict[Any, Callable[..., Any]] = {
    F.max_pool1d: getattr(F, "_max_pool1d"),  # noqa: B009 (the stubs lack it)
    F.max_pool2d: getattr(F, "_max_pool2d"),  # noqa: B009
}

# arguments of Python functions that no schema has, with the one value they may take
_PYTHON_ONLY = {"_stacklevel": 3, "return_indices": False}

# arguments of schemas that no Python function has
_SCHEMA_ONLY = {"cudnn_enabled": False, "cudnn_enable": False}

# operations where a number may stand for the second tensor: x + 1 is aten.add.Tensor(x, 1), as in torch.export
_TAKE_NUMBERS = frozenset({"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"})

_INVALID = object()


def named_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call of a torch function under the names that aten uses.

    Only the Python functions of torch.nn.functional have an order and arguments of their own; all others take their
    arguments as the schema has them, and these come back as they are.
    """
    function = _PLAIN.get(function, function)
    if not inspect.isfunction(function) or function.__module__ != F.__name__:
        return list(args), dict(kwargs)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for name, allowed in _PYTHON_ONLY.items():
        if named.pop(name, allowed) != allowed:
            raise UnknownSpelling(f"argument {name}")
    first = named.pop(next(iter(named)))
    if "dropout" in function.__name__:
        named["train"] = named.pop("training")
    return [first], named


def find_overload(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any]]:
    """The first overload of `aten.<name>` whose schema these arguments fit, and its arguments, shortest way.

    Raises:
        UnknownSpelling: no overload fits.
    """
    packet = getattr(torch.ops.aten, name, None)
    for overload_name in packet.overloads() if packet is not None else ():
        overload = getattr(packet, overload_name)
        known = {a.name for a in overload._schema.arguments}
        extra = {key: value for key, value in _SCHEMA_ONLY.items() if key in known}
        try:
            bound = bind(overload, args, {**extra, **kwargs})
        except TypeError:
            continue
        fitted = {a.name: _fit(a, bound[a.name], name) for a in overload._schema.arguments}
        if not any(value is _INVALID for value in fitted.values()):
            return overload, *shortest(overload, fitted)
    raise UnknownSpelling(f"arguments of {name}")


def _fit(argument: Any, value: Any, name: str) -> Any:
    """`value` as the schema's argument takes it, _INVALID where the types differ."""
    kind = str(argument.type)
    if kind.startswith("Optional["):
        if value is None:
            return None
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if argument.has_default_value() and value is None:
        return argument.default_value
    if kind.startswith("List["):
        return _fit_list(kind.removeprefix("List[").removesuffix("]"), value)
    if kind == "Tensor" and argument.name == "other" and name in _TAKE_NUMBERS and type(value) in (int, float):
        return value
    return value if _is_a(kind, value) else _INVALID


def _fit_list(kind: str, value: Any) -> Any:
    if kind == "int" and _is_a("int", value):
        return [value]
    if isinstance(value, (list, tuple)) and all(_is_a(kind, v) for v in value):
        return list(value)
    return _INVALID


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, fx.Node):
        return kind in ("int", "number") if is_int(value) else kind == "Tensor"
    accepted: dict[str, tuple[type, ...]] = {
        "int": (int, torch.dtype),
        "float": (int, float),
        "number": (int, float),
        "bool": (bool,),
        "str": (str,),
    }
    return type(value) in accepted.get(kind, ())
