"""Edits a canonical graph into a quantized one, following a plan that was decided and calibrated before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mbqc.ir.annotations import Pinned, annotate
from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer, quantized_layer
from mbqc.ir.types import TensorType
from mbqc.ir.vocabulary import module_of
from mbqc.numerics import Ladder
from mbqc.passes.quant.plan import QuantizerPlan


@dataclass(frozen=True)
class WeightPlan:
    """One layer module: all its calls, and the scale of its weight, float32 [out]."""

    layer: str
    calls: tuple[fx.Node, ...]
    scale: Tensor
    pinned: int | None


Grids = dict[int, tuple[float, int]]


def insert(
    graph: fx.GraphModule, weights: list[WeightPlan], quantizers: list[tuple[QuantizerPlan, Grids]], ladder: Ladder
) -> None:
    """Adds the input `widths`, activation quantizers and weight quantizers, and turns layers into quantized layers."""
    last = list(graph.graph.find_nodes(op="placeholder"))[-1]
    with graph.graph.inserting_after(last):
        widths = graph.graph.placeholder("widths")
    _insert_activation_quantizers(graph, quantizers, widths)
    for plan in weights:
        _insert_weight_quantizer(graph, plan, ladder, widths)
    graph.graph.lint()
    graph.recompile()


def _insert_activation_quantizers(
    graph: fx.GraphModule, quantizers: list[tuple[QuantizerPlan, Grids]], widths: fx.Node
) -> None:
    quantized: dict[fx.Node, fx.Node] = {}
    for plan, grids in quantizers:
        source = quantized.get(plan.tensor, plan.tensor)
        suffix = "requantizer" if plan.tensor is not plan.observed or plan.tensor in quantized else "quantizer"
        name = _free_name(graph, f"{plan.tensor.name}_{suffix}")
        module = ActivationQuantizer(plan.layers, tuple(grids))
        with torch.no_grad():
            module.scale.copy_(torch.tensor([scale for scale, _ in grids.values()]))
            module.zero_point.copy_(torch.tensor([float(zero) for _, zero in grids.values()]))
        graph.add_submodule(name, module.eval())
        after = source if source.op != "placeholder" else widths
        with graph.graph.inserting_after(after):
            node = graph.graph.call_module(name, (source, widths))
        node.meta["type"] = source.meta["type"]
        for reader in plan.readers:
            reader.replace_input_with(source, node)
        quantized.setdefault(plan.tensor, node)


def _insert_weight_quantizer(graph: fx.GraphModule, plan: WeightPlan, ladder: Ladder, widths: fx.Node) -> None:
    layer = module_of(plan.calls[0])
    assert layer is not None
    quantized = quantized_layer(layer)
    graph.set_submodule(plan.layer, quantized)
    quantizer = WeightQuantizer(plan.layer, quantized.weight.shape[0], ladder)
    with torch.no_grad():
        quantizer.scale.copy_(plan.scale)
    base = _free_name(graph, plan.layer.replace(".", "_") + "_weight_quantizer")
    graph.add_submodule(base, quantizer.eval())
    weight_type = TensorType(quantized.weight.dtype, tuple(quantized.weight.shape))
    with graph.graph.inserting_before(plan.calls[0]):
        weight = graph.graph.get_attr(f"{plan.layer}.weight")
        node = graph.graph.call_module(base, (weight, widths))
    weight.meta["type"] = node.meta["type"] = weight_type
    for call in plan.calls:
        call.args = (*call.args, node)
        if plan.pinned is not None:
            annotate(call, Pinned(plan.pinned))


def _free_name(graph: fx.GraphModule, name: str) -> str:
    taken = {n for n, _ in graph.named_modules()} | {n for n, _ in graph.named_parameters()}
    while name in taken:
        name += "_"
    return name
