"""The `bncorrect` pass: what lets one BatchNorm serve every width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from mbqc.errors import PassError, PipelineError
from mbqc.ir.modules import MomentCorrection
from mbqc.ir.norms import estimate, nearest_rows, split_by_width, width_norms
from mbqc.ir.quantized import layer_nodes, quantized_layers, weight_quantizer_of, widths_node
from mbqc.ir.types import TensorType
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
            calibration data (same speed when deployed; the artifact grows by 56 bytes a channel). `pair` keeps them for
            each pair of widths, of the layer and of the widest layer that leads to it (504 bytes a channel), which
            `train{switch=...}` tells apart; until then a pair has those of its own layer's width.
        affine: of BatchNorms with statistics for each width or pair: `shared`, or one for each `width` or `pair`, which
            training tells apart. `moments=none,statistics=width,affine=width` is switchable BatchNorm, and with `pair`
            it is transitional BatchNorm (Bit-Mixer, arXiv 2103.17267).
        gradient: in training, of the corrected weights: with the moments `detached`, or `through` them.

    Source: EMQNet, arXiv 2510.20673; the exact form is `mbqc.numerics.correct_moments`.
    """

    moments: Literal["none", "mean", "both"] = "both"
    statistics: Literal["shared", "width", "pair"] = "shared"
    affine: Literal["shared", "width", "pair"] = "shared"
    gradient: Literal["detached", "through"] = "detached"

    name: ClassVar[str] = "bncorrect"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED,)
    sets: ClassVar[tuple[Property, ...]] = (CORRECTED,)

    def __post_init__(self) -> None:
        if self.moments == "none" and self.statistics == "shared":
            raise PipelineError("moments=none with statistics=shared corrects nothing: leave the pass out")
        if self.affine not in ("shared", self.statistics):
            raise PipelineError(f"affine={self.affine} needs statistics={self.affine}: both have the same rows")
        if self.gradient == "through" and self.moments == "none":
            raise PipelineError("gradient=through goes through the moments, but moments=none")

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The corrected graph.

        Raises:
            PassError: statistics for widths or pairs, but no BatchNorm follows a quantized layer.
        """
        if self.statistics != "shared":
            self._split_norms(graph, context)
        if self.moments != "none":
            _insert_corrections(graph, self.moments, self.gradient)
        if self.statistics != "shared":
            layers = quantized_layers(graph)
            every_width = [resolve(bits, layers) for bits in ALL_BITS]
            estimate(graph, context.calibration_batches(), every_width, per_width=True, progress=context.progress)
        if self.statistics == "pair":
            norms = width_norms(graph).items()
            nearest_rows(graph, {name: {0, *(norm.row(widths) for widths in every_width)} for name, norm in norms})
        return graph

    def _split_norms(self, graph: fx.GraphModule, context: Context) -> None:
        affine: Literal["shared", "width"] = "shared" if self.affine == "shared" else "width"
        split, left = split_by_width(graph, affine, pairs=self.statistics == "pair")
        if not split:
            message = f"statistics={self.statistics}, but no BatchNorm follows a quantized layer"
            raise PassError(message, hint="leave the option out")
        for norm in left:
            message = "keeps the statistics that all widths share: it does not follow one quantized layer alone"
            context.report.add(self.name, "warning", norm, message)


def _insert_corrections(graph: fx.GraphModule, moments: str, gradient: str) -> None:
    widths = widths_node(graph)
    corrected: dict[fx.Node, fx.Node] = {}
    for layer in layer_nodes(graph):
        quantized = layer.args[1]
        assert isinstance(quantized, fx.Node)
        if quantized not in corrected:
            name = str(quantized.target).removesuffix("_weight_quantizer") + "_weight_correction"
            quantizer = weight_quantizer_of(layer)[0]
            module = MomentCorrection(str(layer.target), moments, quantizer.ladder, gradient)
            graph.add_submodule(name, module.eval())
            with graph.graph.inserting_after(quantized):
                scale = graph.graph.get_attr(f"{quantized.target}.scale")
            scale.meta["type"] = TensorType(torch.float32, (quantizer.channels,))
            with graph.graph.inserting_after(scale):
                corrected[quantized] = graph.graph.call_module(name, (quantized, quantized.args[0], scale, widths))
            corrected[quantized].meta["type"] = quantized.meta["type"]
        layer.update_arg(1, corrected[quantized])
    graph.recompile()
