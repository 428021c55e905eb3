"""The pass: walks a quantized graph in order and writes a Program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mbqc.errors import PassError
from mbqc.ir.annotations import Sensitivity, find_annotation
from mbqc.ir.constants import constants
from mbqc.ir.modules import WeightQuantizer
from mbqc.ir.quantized import layer_nodes, quantized_layers, weight_quantizer_of
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import AVERAGE_POOLS, MAX_POOLS, is_module, module_of
from mbqc.numerics import Ladder
from mbqc.passes.lower.arithmetic import arithmetic_form
from mbqc.passes.lower.builder import DTYPES, Builder
from mbqc.passes.lower.fallback import fallback_form
from mbqc.passes.lower.functions import function_form
from mbqc.passes.lower.integer import integer_form
from mbqc.passes.lower.states import State, Stored
from mbqc.passes.lower.walk import Walk, is_read_through_layer, structural_form
from mbqc.pipeline import Context, Pass, Property
from mbqc.program.operations import Aten, LayerInfo, Program
from mbqc.program.verify import verify_program
from mbqc.properties import QUANTIZED


@dataclass(frozen=True)
class Lower(Pass):
    """Turns the quantized graph into a Program: integer operations with fused epilogues.

    BatchNorm, correction, residual addition, activation and requantization become one epilogue of the layer before
    them; other activations become tables. What depends on no input is computed here and stored. What has no integer
    form runs in float: what attention is made of, embedding, LayerNorm and sums as operations of the Program, the rest
    by torch, which is reported.
    """

    name: ClassVar[str] = "lower"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED,)

    def run(self, graph: fx.GraphModule, context: Context) -> Program:
        """The Program.

        Raises:
            PassError: an operation has neither an integer nor an allowed float form.
            VerifyError: the Program breaks a rule, for instance an accumulator that could overflow.
        """
        builder = Builder(_ladder(graph))
        walk = Walk(constants(graph), builder)
        inputs = []
        for node in graph.graph.nodes:
            if node.op == "placeholder" and node.target != "widths":
                inputs.append(_input(walk, node))
            elif node.op not in ("placeholder", "output") and not is_read_through_layer(node):
                if isinstance(walk.constants.get(node), tuple | list):
                    continue  # its parts are constants too
                _visit(walk, node)
        outputs = [walk.float_value(node).name for node in _results(graph)]
        program = builder.program(inputs, outputs, _layer_infos(graph))
        verify_program(program)
        for operation in program.listing.operations:
            if isinstance(operation, Aten):
                subject = operation.outputs[0]
                context.report.add(self.name, "fallback", subject, f"aten.{operation.call.name} runs in float")
        return program


def _input(walk: Walk, node: fx.Node) -> str:
    kind = type_of(node)
    if kind.dtype not in DTYPES or kind.dims[:1] != (-1,):
        raise PassError(f"an input of type {kind} has no form in a Program", where=f"node {node.name}")
    name = walk.builder.define(node.name, DTYPES[kind.dtype], kind.dims)
    walk.states[node] = Stored(name, kind.dims, channels_last=False, codes=False)
    return name


def _visit(walk: Walk, node: fx.Node) -> None:
    """Gives the node a state: structure, else integer arithmetic, else an operation on floats, else a fallback."""
    forms: list[Callable[[Walk, fx.Node], State | None]] = [structural_form]
    if not any(_pairs_samples(each) for each in (node, *node.all_input_nodes)):  # torch alone has memory for them
        forms += [integer_form, function_form, arithmetic_form]
    try:
        _require_channels(walk, node)
        state = next((state for form in forms if (state := form(walk, node)) is not None), None)
        walk.states[node] = state if state is not None else fallback_form(walk, node)
    except PassError as error:
        source = node.meta.get("source")
        error.where = f"node {node.name}" + (f" ({source})" if source else "")
        raise


def _require_channels(walk: Walk, node: fx.Node) -> None:
    """Torch takes images without channels for one image without a batch; here the first dimension is the batch."""
    if node in walk.constants or not is_module(node, (*MAX_POOLS, *AVERAGE_POOLS)):
        return
    name, dims = type(module_of(node)).__name__, type_of(node).dims
    if len(dims) != (3 if name.endswith("1d") else 4):
        raise PassError(
            f"{name} of a tensor with {len(dims)} dimensions has no form in a Program",
            hint="x.unsqueeze(1) before it and .squeeze(1) behind it, for batch and channels",
        )


def _pairs_samples(node: fx.Node) -> bool:
    """Whether a node's value grows with the square of the batch."""
    kind = node.meta.get("type")
    return isinstance(kind, TensorType) and sum(dim < 0 for dim in kind.dims) > 1


def _ladder(graph: fx.GraphModule) -> Ladder:
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, WeightQuantizer):
            return module.ladder
    raise PassError("no layer is quantized")


def _layer_infos(graph: fx.GraphModule) -> dict[str, LayerInfo]:
    nodes = {str(node.target): node for node in layer_nodes(graph)}
    return {layer: _layer_info(nodes[layer], pinned) for layer, pinned in quantized_layers(graph).items()}


def _layer_info(node: fx.Node, pinned: int | None) -> LayerInfo:
    trace = find_annotation(node, Sensitivity)
    if trace is None:
        return LayerInfo(pinned)
    _, _, weight = weight_quantizer_of(node)
    return LayerInfo(pinned, trace.per_parameter, trace.stderr / weight.numel())


def _results(graph: fx.GraphModule) -> list[fx.Node]:
    (output,) = graph.graph.find_nodes(op="output")
    result = output.args[0]
    return [result] if isinstance(result, fx.Node) else list(result)
