"""What each node of a canonical graph can be in an integer program."""

from __future__ import annotations

from collections.abc import Container
from enum import Enum, auto
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from mbqc.ir.aten import arguments
from mbqc.ir.constants import constants
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import (
    AVERAGE_POOLS,
    BATCH_NORMS,
    CLAMPS,
    CONVOLUTIONS,
    LAYERS,
    MAX_POOLS,
    PADS,
    UNARY,
    is_aten,
    is_module,
    module_of,
)


class Role(Enum):
    """How a node takes part in integer arithmetic."""

    INPUT = auto()
    LAYER = auto()
    NORM = auto()
    CLAMP = auto()
    TABLE = auto()
    ADD = auto()
    CONCAT = auto()
    AVERAGE = auto()
    MOVE = auto()
    """Max pooling, zero padding, reshapes: codes pass unchanged."""
    FLOAT = auto()


MOVES = ("reshape.default", "permute.default")


def roles(graph: fx.GraphModule, skip: tuple[str, ...]) -> tuple[dict[fx.Node, Role], dict[fx.Node, str]]:
    """The role of every node, and why layers among the FLOAT ones cannot be quantized.

    Args:
        skip: patterns of layer names or module class names that stay float.
    """
    found: dict[fx.Node, Role] = {}
    reasons: dict[fx.Node, str] = {}
    fixed = constants(graph)
    fixed_layers = {node.target for node in fixed if is_module(node, LAYERS)}
    for node in graph.graph.nodes:
        role, reason = (Role.FLOAT, None) if node in fixed else _role(node, skip, fixed)
        if is_module(node, LAYERS) and node.target in fixed_layers:
            role, reason = Role.FLOAT, "it is called on parameters, which no input of the model reaches"
        found[node] = role
        if reason:
            reasons[node] = reason
    return found, reasons


def _role(node: fx.Node, skip: tuple[str, ...], fixed: Container[fx.Node]) -> tuple[Role, str | None]:
    if not _is_float_tensor(node):
        return Role.FLOAT, _dtype_obstacle(node)
    if node.op == "placeholder":
        return Role.INPUT, None
    if is_module(node, LAYERS):
        reason = _layer_obstacle(node, skip)
        return (Role.FLOAT if reason else Role.LAYER), reason
    for classes, role in ((BATCH_NORMS, Role.NORM), (UNARY, Role.TABLE)):
        if is_module(node, classes):
            return role, None
    if is_module(node, CLAMPS):
        return Role.CLAMP, None
    if is_module(node, AVERAGE_POOLS):
        return (Role.AVERAGE if _is_plain_average(node) else Role.FLOAT), None
    if is_module(node, MAX_POOLS):
        module = module_of(node)
        assert isinstance(module, nn.MaxPool1d | nn.MaxPool2d)
        return (Role.FLOAT if module.ceil_mode or module.return_indices else Role.MOVE), None
    if is_module(node, PADS):
        return (Role.MOVE if _is_padding_of_convolutions(node, skip) else Role.FLOAT), None
    if is_aten(node, *MOVES):
        return Role.MOVE, None
    if is_aten(node, "add.Tensor"):
        return (Role.ADD if _is_plain_addition(node, fixed) else Role.FLOAT), None
    if is_aten(node, "cat.default"):
        constant = any(source in fixed for source in node.all_input_nodes)
        joins_samples = arguments(node)["dim"] % len(node.meta["type"].dims) == 0
        return (Role.FLOAT if constant or joins_samples else Role.CONCAT), None
    return Role.FLOAT, None


def _is_float_tensor(node: fx.Node) -> bool:
    kind = node.meta.get("type")
    return isinstance(kind, TensorType) and kind.dtype == torch.float32


def _dtype_obstacle(node: fx.Node) -> str | None:
    kind = node.meta.get("type")
    if not is_module(node, LAYERS) or not isinstance(kind, TensorType):
        return None
    return f"it computes in {str(kind.dtype).removeprefix('torch.')}, not in float32"


def _layer_obstacle(node: fx.Node, skip: tuple[str, ...]) -> str | None:
    module = module_of(node)
    name = type(module).__name__
    pattern = next((p for p in skip if fnmatchcase(str(node.target), p) or p == name), None)
    if pattern is not None:
        return f"skipped by skip={pattern}"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r} has no integer form"
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    if not bool(torch.isfinite(module.weight).all()):
        return "its weight holds NaN or infinity"
    return None


def _is_plain_average(node: fx.Node) -> bool:
    """Whether every window averages the same number of elements."""
    module = module_of(node)
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        padded = any(_sizes(module.padding))
        override = getattr(module, "divisor_override", None)
        return not module.ceil_mode and override is None and (module.count_include_pad or not padded)
    assert isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["type"].dims, node.meta["type"].dims
    return all(b > 0 and b % a == 0 for b, a in zip(before[2:], after[2:], strict=True))


def _sizes(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_padding_of_convolutions(node: fx.Node, skip: tuple[str, ...]) -> bool:
    """Zeros that only quantized convolutions read: each adds them to its own padding."""
    module = module_of(node)
    assert isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d)
    positive = all(p >= 0 for p in module.padding)
    quantized = all(is_module(u, CONVOLUTIONS) and _layer_obstacle(u, skip) is None for u in node.users)
    return module.value == 0 and positive and quantized


def _is_plain_addition(node: fx.Node, fixed: Container[fx.Node]) -> bool:
    """Two float tensors of one shape, alpha 1; what broadcasts, is constant or whole is left to float arithmetic."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left in fixed or right in fixed:
        return False
    return all(_is_float_tensor(n) and type_of(n).dims == type_of(node).dims for n in (left, right))
