"""A Program as text, for people: one line an operation."""

from __future__ import annotations

import msgspec

from mbqc.ir.types import format_dims
from mbqc.program.float_operations import Arithmetic, MatMul
from mbqc.program.operations import (
    AnyOperation,
    Argument,
    Aten,
    AtenCall,
    BatchMultiple,
    Concat,
    Constant,
    DTypeArgument,
    Epilogue,
    EpilogueOperation,
    ListArgument,
    Lookup,
    Program,
    Reference,
    Value,
    Weight,
    outputs_of,
)


def print_program(program: Program) -> str:
    """The listing in order, with types, grids and layers."""
    listing = program.listing
    lines = [f"program {{ ladder={listing.ladder}"]
    lines += [f"  %{name} = input : {format_value_type(listing.values[name])}" for name in listing.inputs]
    for operation in listing.operations:
        names = ", ".join(f"%{name}" for name in outputs_of(operation))
        types = ", ".join(format_value_type(listing.values[name]) for name in outputs_of(operation))
        lines.append(f"  {names} = {format_operation(operation)} : {types}")
    lines.append(f"  return {', '.join('%' + name for name in listing.outputs)}")
    lines.append("}")
    for name, grid in listing.grids.items():
        width = f"width of {', '.join(grid.layers)}" if grid.layers else "8 bits"
        lines.append(f"grid {name}: {width}")
    return "\n".join(lines) + "\n"


def format_value_type(value: Value) -> str:
    """`u8[Nx8x8x16] @grid`."""
    return f"{value.dtype}[{format_dims(value.shape)}]" + (f" @{value.grid}" if value.grid else "")


def format_operation(operation: AnyOperation) -> str:
    """`conv(%x, conv1.codes) {stride=1:1,padding=1:1:1:1}`."""
    if isinstance(operation, Aten):
        return _format_call(operation.call)
    kind = operation.__struct_config__.tag
    inputs = operation.inputs if isinstance(operation, Concat) else (operation.input,)
    if isinstance(operation, Arithmetic | MatMul) and operation.other is not None:
        inputs = (operation.input, operation.other)
    sources = [f"%{name}" for name in inputs]
    options: list[str] = []
    for field in msgspec.structs.fields(operation):
        value = getattr(operation, field.name)
        if field.name in ("input", "inputs", "other", "output", "epilogue"):
            continue
        if isinstance(value, Weight):
            sources.append(_format_weight(value))
        elif isinstance(operation, Lookup):
            options += [_format_call(call) for call in value]
        elif value is not None:
            options.append(f"{field.name}={_format_option(value)}")
    if isinstance(operation, EpilogueOperation):
        options += _format_epilogue(operation.epilogue)
    text = f"{kind}({', '.join(sources)})"
    return f"{text} {{{','.join(options)}}}" if options else text


def _format_weight(weight: Weight) -> str:
    corrected = "" if weight.mean is None else " corrected mean" + (" and spread" if weight.std else "")
    return f"{weight.codes}{corrected}"


def _format_epilogue(epilogue: Epilogue) -> list[str]:
    parts = [f"{key}={value}" for key in ("gain", "shift") if (value := getattr(epilogue, key)) is not None]
    parts += [f"residual=%{epilogue.residual}"] if epilogue.residual is not None else []
    parts += [f"{key}={value}" for key in ("low", "high") if (value := getattr(epilogue, key)) is not None]
    parts += [f"before={_format_option(epilogue.before)}"] if epilogue.before else []
    return parts


def _format_option(value: object) -> str:
    if isinstance(value, tuple):
        return ":".join(str(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _format_call(call: AtenCall) -> str:
    arguments = [_format_argument(a) for a in call.args]
    arguments += [f"{key}={_format_argument(value)}" for key, value in call.kwargs.items()]
    return f"aten.{call.name}({', '.join(arguments)})"


def _format_argument(argument: Argument) -> str:
    match argument:
        case Reference(name):
            return f"%{name}"
        case Constant(name) | DTypeArgument(name):
            return name
        case BatchMultiple(factor):
            return "N" if factor == 1 else f"{factor}N"
        case ListArgument(items):
            return f"[{', '.join(_format_argument(item) for item in items)}]"
        case _:
            return repr(argument)
