"""Questions about a quantized graph."""

from __future__ import annotations

from torch import Tensor, fx

from mbqc.errors import VerifyError
from mbqc.ir.annotations import Pinned, find_annotation
from mbqc.ir.modules import MomentCorrection, QuantConv1d, QuantConv2d, QuantLinear, WeightQuantizer
from mbqc.ir.vocabulary import is_module, module_of

QUANT_LAYERS = (QuantConv1d, QuantConv2d, QuantLinear)


def widths_node(graph: fx.GraphModule) -> fx.Node:
    """The placeholder through which the widths flow.

    Raises:
        VerifyError: the graph has none, so it is not quantized.
    """
    for node in graph.graph.find_nodes(op="placeholder"):
        if node.target == "widths":
            found: fx.Node = node
            return found
    raise VerifyError("the graph has no input 'widths'", hint="run quant first")


def layer_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    """Calls of quantized layers, in order; a shared layer appears once a call."""
    return [node for node in graph.graph.nodes if is_module(node, QUANT_LAYERS)]


def quantized_layers(graph: fx.GraphModule) -> dict[str, int | None]:
    """The quantized layers in order, each with its pinned width or None."""
    layers: dict[str, int | None] = {}
    for node in layer_nodes(graph):
        pinned = find_annotation(node, Pinned)
        layers.setdefault(str(node.target), pinned.bits if pinned else None)
    return layers


def layers_before(graph: fx.GraphModule, layer: str) -> tuple[str, ...]:
    """The quantized layers from which a layer is reached past no other one, in order: several where branches join."""
    waiting = [node.args[0] for node in layer_nodes(graph) if node.target == layer]
    seen, found = set[fx.Node](), set[str]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        if is_module(node, QUANT_LAYERS):
            found.add(str(node.target))
        else:
            waiting += node.all_input_nodes
    return tuple(name for name in quantized_layers(graph) if name in found)


def weight_quantizer_of(node: fx.Node) -> tuple[WeightQuantizer, MomentCorrection | None, Tensor]:
    """Quantizer, correction and float weight of a layer call.

    Raises:
        VerifyError: the layer does not read its weight through a quantizer.
    """
    source = node.args[1] if len(node.args) > 1 else None
    correction = module_of(source) if isinstance(source, fx.Node) else None
    if isinstance(source, fx.Node) and isinstance(correction, MomentCorrection):
        source = source.args[0]
    quantizer = module_of(source) if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node) or not isinstance(quantizer, WeightQuantizer):
        raise VerifyError("the layer does not read its weight through a quantizer", where=f"node {node.name}")
    owner = node.graph.owning_module
    assert owner is not None
    weight = source.args[0]
    assert isinstance(weight, fx.Node)
    tensor = owner.get_parameter(str(weight.target))
    return quantizer, correction if isinstance(correction, MomentCorrection) else None, tensor
