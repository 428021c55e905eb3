"""The properties of graphs, each with its check. A check is the specification of its stage."""

from __future__ import annotations

from torch import fx

from mbqc.errors import VerifyError
from mbqc.ir.annotations import Sensitivity, Switching, find_annotation
from mbqc.ir.modules import ActivationQuantizer, MomentCorrection, WeightQuantizer, WidthBatchNorm
from mbqc.ir.quantized import layer_nodes, quantized_layers, weight_quantizer_of, widths_node
from mbqc.ir.verify import check_canonical, check_well_formed
from mbqc.ir.vocabulary import MAX_POOLS, PADS, is_aten, is_module, module_of
from mbqc.pipeline.passes import Property


def _check_quantized(graph: fx.GraphModule) -> None:
    """Layers read their weight through a quantizer and their input through one; every width names a layer."""
    check_well_formed(graph)
    widths = widths_node(graph)
    layers = quantized_layers(graph)
    if not layers:
        raise VerifyError("no layer is quantized")
    for node in layer_nodes(graph):
        weight_quantizer_of(node)
        if not _reads_codes(node):
            raise VerifyError("the layer does not read its input through a quantizer", where=f"node {node.name}")
        if node.args[-1] is widths:
            raise VerifyError("a layer takes no widths", where=f"node {node.name}")
    for node in graph.graph.nodes:
        module = module_of(node)
        named: tuple[str, ...] = ()
        if isinstance(module, ActivationQuantizer):
            named = module.layers
        elif isinstance(module, WeightQuantizer | MomentCorrection):
            named = (module.layer,)
        elif isinstance(module, WidthBatchNorm):
            named = (module.layer, *module.before)
        for name in named:
            if name not in layers:
                raise VerifyError(
                    f"the width of {name!r} is asked for, which is no quantized layer", where=f"node {node.name}"
                )


def _reads_codes(layer: fx.Node) -> bool:
    """Whether the layer's input comes from an activation quantizer, at most moved about on the way."""
    source = layer.args[0]
    while isinstance(source, fx.Node):
        if not is_module(source, (*MAX_POOLS, *PADS)) and not is_aten(source, "reshape.default", "permute.default"):
            return is_module(source, (ActivationQuantizer,))
        source = source.args[0]
    return False


def _check_corrected(graph: fx.GraphModule) -> None:
    """The weight of every layer passes a moment correction, or BatchNorms hold statistics for each width."""
    if any(is_module(node, (WidthBatchNorm,)) for node in graph.graph.nodes):
        return
    for node in layer_nodes(graph):
        if weight_quantizer_of(node)[1] is None:
            raise VerifyError(
                "the weight is not corrected, and no BatchNorm holds statistics for each width",
                where=f"node {node.name}",
            )


def _check_sensitivity(graph: fx.GraphModule) -> None:
    """Every quantized layer has a Hessian trace with its standard error, and a switching distribution."""
    for node in layer_nodes(graph):
        if find_annotation(node, Sensitivity) is None or find_annotation(node, Switching) is None:
            raise VerifyError("the layer has no sensitivity", where=f"node {node.name}")


CANONICAL = Property("canonical", "modules and aten functions only, shapes known", check_canonical)
QUANTIZED = Property("quantized", "layers compute with codes of a width given at the call", _check_quantized)
CORRECTED = Property("corrected", "one BatchNorm serves every width", _check_corrected)
SENSITIVITY = Property("sensitivity", "Hessian trace of every layer", _check_sensitivity)

ALL = (CANONICAL, QUANTIZED, CORRECTED, SENSITIVITY)
