"""The rules of aten calls in a Program.

Torch trusts the kinds of its arguments (a whole number given as a dtype can end the process) and makes as many results
as it is told to, so both are checked against the function's schema before it is ever called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mbqc.errors import VerifyError
from mbqc.ir.aten import bind
from mbqc.ir.types import at_batch
from mbqc.program import aten
from mbqc.program.operations import (
    TORCH_DTYPES,
    Argument,
    Aten,
    AtenCall,
    BatchMultiple,
    Constant,
    DTypeArgument,
    ListArgument,
    Listing,
    Program,
    Reference,
    Value,
    inputs_of,
    named_in,
)

_DTYPE_NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in TORCH_DTYPES.values())
_KINDS: Mapping[str, tuple[type, ...]] = {
    "Tensor": (Reference, Constant, float, int),
    "int": (int, BatchMultiple),
    "float": (float, int),
    "number": (float, int, bool, BatchMultiple),
    "bool": (bool,),
    "str": (str,),
    "ScalarType": (DTypeArgument,),
}
"""What may stand for each type of a schema; for other types (devices, layouts) nothing but None."""


def check_elementwise(call: AtenCall) -> None:
    """A function of a table: element-wise, with plain numbers beside its input.

    Raises:
        VerifyError: it is not.
    """
    plain = (bool, int, float, str)
    arguments = [*call.args, *call.kwargs.values()]
    if not all(a is None or isinstance(a, plain) for a in arguments):
        raise VerifyError("a table's function takes plain numbers only")
    _check_kinds(AtenCall(call.name, (Reference("x"), *call.args), call.kwargs))
    try:
        result = aten.elementwise(call, torch.zeros(1, dtype=torch.float64))
    except Exception as error:  # torch raises errors of any type
        raise _refusal(call, error) from error
    if not isinstance(result, Tensor) or result.shape != (1,):
        raise VerifyError(f"aten.{call.name} is not element-wise here")


def check_aten(operation: Aten, program: Program) -> None:
    """Runs the function on shapes alone, for two batch sizes, and compares with what is declared.

    Raises:
        VerifyError: the function is not allowed, refuses its arguments, or gives something else.
    """
    call, values = operation.call, program.listing.values
    bound = _check_kinds(call)
    for name in named_in(call, Constant):
        if name not in program.tensors:
            raise VerifyError(f"tensor {name!r} is missing")
    for batch in (2, 3):
        _check_count(operation, bound, program.listing, batch)
        inputs = {name: _meta(values[name], batch) for name in inputs_of(operation)}
        try:
            results = aten.call(call, inputs, _MetaTensors(program.tensors), batch)
        except Exception as error:  # torch raises errors of any type
            raise _refusal(call, error) from error
        found = [(tuple(result.shape), result.dtype) for result in results]
        declared = [values[name] for name in operation.outputs]
        expected = [(at_batch(value.shape, batch), TORCH_DTYPES[value.dtype]) for value in declared]
        if found != expected:
            raise VerifyError(f"aten.{call.name} gives {found}, declared is {expected}")


def _check_kinds(call: AtenCall) -> dict[str, Argument]:
    """The arguments by schema name, after their kinds were checked."""
    overload = aten.overload(call.name)
    try:
        bound: dict[str, Argument] = bind(overload, call.args, call.kwargs)
    except TypeError as error:
        raise _refusal(call, error) from error
    kinds = {argument.name: str(argument.real_type) for argument in overload._schema.arguments}
    given = {*list(kinds)[: len(call.args)], *call.kwargs}
    for name in given:
        if not _fits(bound[name], kinds[name]):
            raise VerifyError(f"aten.{call.name} takes {kinds[name]} as {name}, not {bound[name]!r:.80}")
    return bound


def _fits(argument: Argument, kind: str) -> bool:
    if kind.startswith("Optional["):
        return argument is None or _fits(argument, kind.removeprefix("Optional[")[:-1])
    if kind.startswith("List["):
        item = kind.removeprefix("List[")[:-1]
        return isinstance(argument, ListArgument) and all(_fits(a, item) for a in argument.items)
    if isinstance(argument, bool):  # is an int in Python, but not in a schema
        return bool in _KINDS.get(kind, ())
    if isinstance(argument, DTypeArgument) and argument.name not in _DTYPE_NAMES:
        return False
    return isinstance(argument, _KINDS.get(kind, ()))


def _check_count(operation: Aten, bound: Mapping[str, Argument], listing: Listing, batch: int) -> None:
    """A function that takes a tensor apart must give as many parts as the operation has outputs."""
    name, source = operation.call.name, bound.get("self")
    if name not in ("unbind.int", "split.Tensor", "chunk.default") or not isinstance(source, Reference):
        return
    shape, dim = at_batch(listing.values[source.name].shape, batch), bound["dim"]
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        raise VerifyError(f"aten.{name} has no dimension {dim}")
    size, part = shape[dim], bound.get("split_size", 1)
    if name == "chunk.default":
        chunks = bound["chunks"]
        part = math.ceil(size / chunks) if isinstance(chunks, int) and chunks > 0 else None
    count = math.ceil(size / part) if isinstance(part, int) and part > 0 else 0
    if count != len(operation.outputs):
        raise VerifyError(f"aten.{name} gives {count} parts, declared are {len(operation.outputs)}")


def _meta(value: Value, batch: int) -> Tensor:
    if value.dtype == "u8":
        raise VerifyError("a float operation reads codes")
    return torch.empty(at_batch(value.shape, batch), dtype=TORCH_DTYPES[value.dtype], device="meta")


class _MetaTensors(dict[str, Tensor]):
    """Tensors of a Program as shapes without data."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def __missing__(self, name: str) -> Tensor:
        return self._tensors[name].to("meta")


def _refusal(call: AtenCall, error: Exception) -> VerifyError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return VerifyError(f"aten.{call.name} refuses its arguments: {reason}")
