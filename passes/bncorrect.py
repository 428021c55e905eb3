"""The `bncorrect` pass: what lets one BatchNorm serve every width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from mbqc.errors import PassError, PipelineError
from mbqc.ir.modules import MomentCorrection, QuantLinear, WidthBatchNorm
from mbqc.ir.quantized import QUANT_LAYERS, layer_nodes, quantized_layers, weight_quantizer_of, widths_node
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import BATCH_NORMS, is_module, module_of
from mbqc.numerics import ALL_BITS
from mbqc.pipeline import Context, Pass, Property
from mbqc.properties import CORRECTED, QUANTIZED
from mbqc.widths import resolve


@dataclass(frozen=True)
class BnCorrect(Pass):
    """Corrects the shift and stretch that quantization gives each channel's weights, so that one BatchNorm serves all.

    Options:
        moments: what is restored of each output channel's weights: `mean`, `both` (mean and spread), or `none`.
        statistics: `shared` keeps the model's BatchNorm statistics; `width` re-estimates them for each width on the
            calibration data (same speed when deployed; the artifact grows by 56 bytes a channel).

    Source: EMQNet, arXiv 2510.20673; the exact form is `mbqc.numerics.correct_moments`.
    """

    moments: Literal["none", "mean", "both"] = "both"
    statistics: Literal["shared", "width"] = "shared"

    name: ClassVar[str] = "bncorrect"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED,)
    sets: ClassVar[tuple[Property, ...]] = (CORRECTED,)

    def __post_init__(self) -> None:
        if self.moments == "none" and self.statistics == "shared":
            raise PipelineError("moments=none with statistics=shared corrects nothing: leave the pass out")

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The corrected graph.

        Raises:
            PassError: statistics=width, but no BatchNorm follows a quantized layer.
        """
        norms = self._norms(graph, context) if self.statistics == "width" else []
        if self.moments != "none":
            _insert_corrections(graph, self.moments)
        if norms:
            _insert_width_norms(graph, norms)
            _estimate_statistics(graph, context)
        return graph

    def _norms(self, graph: fx.GraphModule, context: Context) -> list[tuple[fx.Node, str]]:
        """Calls of BatchNorms that fold into one quantized layer, with that layer's name."""
        calls: dict[str, list[fx.Node]] = {}
        for node in graph.graph.nodes:
            if is_module(node, BATCH_NORMS):
                calls.setdefault(str(node.target), []).append(node)
        found: list[tuple[fx.Node, str]] = []
        for norm, nodes in calls.items():
            layers = [_layer_before(node) for node in nodes]
            if layers[0] is not None and len(set(layers)) == 1:
                found += [(node, layers[0]) for node in nodes]
            else:
                message = "keeps the statistics that all widths share: it does not follow one quantized layer alone"
                context.report.add(self.name, "warning", norm, message)
        if not found:
            raise PassError("statistics=width, but no BatchNorm follows a quantized layer", hint="leave the option out")
        return found


def _layer_before(norm: fx.Node) -> str | None:
    """The quantized layer whose epilogue takes the BatchNorm: nobody else reads it, both count channels alike."""
    source = norm.args[0]
    if not isinstance(source, fx.Node) or not is_module(source, QUANT_LAYERS) or len(source.users) > 1:
        return None
    channels_differ = is_module(source, (QuantLinear,)) and len(type_of(source).dims) > 2
    return None if channels_differ else str(source.target)


def _insert_corrections(graph: fx.GraphModule, moments: str) -> None:
    widths = widths_node(graph)
    corrected: dict[fx.Node, fx.Node] = {}
    for layer in layer_nodes(graph):
        quantized = layer.args[1]
        assert isinstance(quantized, fx.Node)
        if quantized not in corrected:
            name = str(quantized.target).removesuffix("_weight_quantizer") + "_weight_correction"
            quantizer = weight_quantizer_of(layer)[0]
            graph.add_submodule(name, MomentCorrection(str(layer.target), moments, quantizer.ladder).eval())
            with graph.graph.inserting_after(quantized):
                scale = graph.graph.get_attr(f"{quantized.target}.scale")
            scale.meta["type"] = TensorType(torch.float32, (quantizer.channels,))
            with graph.graph.inserting_after(scale):
                corrected[quantized] = graph.graph.call_module(name, (quantized, quantized.args[0], scale, widths))
            corrected[quantized].meta["type"] = quantized.meta["type"]
        layer.update_arg(1, corrected[quantized])
    graph.recompile()


def _insert_width_norms(graph: fx.GraphModule, norms: list[tuple[fx.Node, str]]) -> None:
    widths = widths_node(graph)
    for node, layer in norms:
        norm = module_of(node)
        if not isinstance(norm, WidthBatchNorm):  # a shared module was replaced at its first call
            graph.set_submodule(str(node.target), _width_norm(norm, layer))
        node.args = (node.args[0], widths)
    graph.recompile()


def _width_norm(norm: Any, layer: str) -> WidthBatchNorm:
    made = WidthBatchNorm(layer, norm.num_features, norm.eps).eval()
    with torch.no_grad():
        if norm.affine:
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
        made.running_mean.copy_(norm.running_mean)
        made.running_var.copy_(norm.running_var)
    return made


class _Estimator(fx.Interpreter):
    """Runs a graph; each BatchNorm normalizes with its input's own moments, as in training, and sums them up."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sums: dict[WidthBatchNorm, Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, WidthBatchNorm):
            return super().call_module(target, args, kwargs)
        values = args[0].movedim(1, 0).flatten(1).to(torch.float64)
        count = torch.full((values.shape[0],), float(values.shape[1]), dtype=torch.float64)
        sums = torch.stack([count, values.sum(1), values.square().sum(1)])
        self.sums[module] = self.sums[module] + sums if module in self.sums else sums
        return torch.nn.functional.batch_norm(args[0], None, None, module.weight, module.bias, True, eps=module.eps)


def _estimate_statistics(graph: fx.GraphModule, context: Context) -> None:
    """Mean and variance of every BatchNorm's input over the calibration data: one sweep for each width."""
    batches = context.calibration_batches()
    layers = quantized_layers(graph)
    with context.progress("re-estimating BatchNorm", len(ALL_BITS)) as advance, torch.no_grad():
        for bits in ALL_BITS:
            widths = resolve(bits, layers)
            estimator = _Estimator(graph)
            for batch in batches:
                estimator.run(*batch, widths)
            for norm, (count, total, squares) in estimator.sums.items():
                if widths.by_layer[norm.layer] == bits:
                    mean = total / count
                    norm.running_mean[bits] = mean
                    norm.running_var[bits] = (squares / count - mean.square()).clamp(min=0)
            advance()
