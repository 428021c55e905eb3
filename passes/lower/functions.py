"""Float functions that a Program has operations of its own for."""

from __future__ import annotations

from torch import Tensor, fx, nn

from mbqc.float_functions import Function
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import module_of
from mbqc.passes.lower.builder import DTYPES
from mbqc.passes.lower.states import Stored
from mbqc.passes.lower.walk import Walk, argument_node
from mbqc.program.float_operations import Activation, Embedding, FloatOperation, LayerNorm, Softmax

GELU: dict[str, Function] = {"none": "gelu", "tanh": "gelu_tanh"}


def function_form(walk: Walk, node: fx.Node) -> Stored | None:
    """The node as an operation on floats; None where there is none for it: then torch runs it."""
    module = module_of(node)
    if module is None or not _fits(module, type_of(argument_node(node)), type_of(node)):
        return None
    source = walk.float_value(argument_node(node)).name
    dims = type_of(node).dims
    result = Stored(walk.builder.define(node.name, "f32", dims), dims, channels_last=False, codes=False)
    walk.builder.operations.append(_operation(walk, node, module, source, result.name))
    return result


def _fits(module: nn.Module, source: TensorType, result: TensorType) -> bool:
    dtype = "i64" if isinstance(module, nn.Embedding) else "f32"
    if (DTYPES.get(source.dtype), DTYPES.get(result.dtype)) != (dtype, "f32"):
        return False
    rank = len(source.dims)
    match module:
        case nn.LayerNorm():
            return min(source.dims[-len(module.normalized_shape) :]) > 0
        case nn.Softmax():
            return module.dim in (-1, rank - 1) and rank > 0 and source.dims[-1] > 0
        case nn.Embedding():
            return module.max_norm is None
        case nn.SiLU():
            return True
        case nn.GELU():
            return module.approximate in GELU
        case _:
            return False


def _operation(walk: Walk, node: fx.Node, module: nn.Module, source: str, output: str) -> FloatOperation:
    def tensor(name: str) -> str | None:
        value = getattr(module, name)
        return walk.builder.tensor(f"{node.target}.{name}", value) if isinstance(value, Tensor) else None

    match module:
        case nn.LayerNorm():
            dims = len(module.normalized_shape)
            return LayerNorm(source, output, dims, tensor("weight"), tensor("bias"), module.eps)
        case nn.Embedding():
            return Embedding(source, output, str(tensor("weight")))
        case nn.GELU():
            return Activation(source, output, GELU[module.approximate])
        case nn.SiLU():
            return Activation(source, output, "silu")
        case _:
            return Softmax(source, output)
