"""Plan, check, calibrate, insert."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from mbqc.errors import PassError, PipelineError
from mbqc.ir.annotations import Skipped, annotate
from mbqc.ir.graph import first_layers, last_layers
from mbqc.ir.vocabulary import module_of
from mbqc.numerics import ALL_BITS, Ladder
from mbqc.passes.quant.calibrate import Histogram, Method, activation_grid, observe
from mbqc.passes.quant.insert import Grids, WeightPlan, insert
from mbqc.passes.quant.plan import QuantizerPlan, plan
from mbqc.passes.quant.roles import Role, roles
from mbqc.passes.quant.scales import joint_scale
from mbqc.pipeline import Context, Pass, Property
from mbqc.properties import CANONICAL, QUANTIZED
from mbqc.widths import FULL_BITS


@dataclass(frozen=True)
class Quant(Pass):
    """Inserts quantize nodes for the weights and activations of every layer, calibrated in one sweep over the data.

    A layer reads its input at its own width. Tensors that only residual sums, pooling or tables read stay at 8 bits.

    Options:
        bits: widths that get activation scales of their own and count in the search for weight scales, with 8 bits for
            pinned layers; the others are interpolated between them.
        ladder: how a lower width is derived from the stored 8-bit code. `round` (half up) is the default, because
            without training it loses less at 4 and 3 bits; at 2 bits that depends on the network, and trained both are
            equal within 0.3 points (examples/fashion_mnist/RESULTS.md). `shift` takes the top bits alone.
        calibration: activation ranges by `minmax`, `percentile`, least squared error (`mse`), or squared error weighted
            by the effect on the model's output (`gauss_newton`). The last is the default: on MobileNetV2 at 8 bits it
            gives logits of 22.3 dB where `percentile` gives 19.8 and `mse` 18.8; it needs a backward pass, no labels.
        percentile: share of values that `percentile` keeps inside the range.
        skip: layers that stay float, by name, pattern (`layer1.*`) or class (`Conv1d`).
        pin_ends: keep the first and the last layers at 8 bits unless a width is asked for by their name.

    Source: Double Rounding, arXiv 2502.01199, section 3.
    """

    bits: tuple[int, ...] = (8, 4, 2)
    ladder: Ladder = "round"
    calibration: Method = "gauss_newton"
    percentile: float = 0.9999
    skip: tuple[str, ...] = ()
    pin_ends: bool = True

    name: ClassVar[str] = "quant"
    requires: ClassVar[tuple[Property, ...]] = (CANONICAL,)
    sets: ClassVar[tuple[Property, ...]] = (QUANTIZED,)
    clears: ClassVar[tuple[Property, ...]] = (CANONICAL,)

    def __post_init__(self) -> None:
        if not self.bits or any(b not in ALL_BITS for b in self.bits) or len(set(self.bits)) != len(self.bits):
            raise PipelineError(f"bits={self.bits} must be different widths from 1 to 8", where="pass quant")
        if not 0.5 < self.percentile <= 1:
            raise PipelineError(f"percentile={self.percentile} must lie in (0.5, 1]", where="pass quant")

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The quantized graph.

        Raises:
            PassError: no layer can be quantized, or a skip pattern matches nothing.
            DataError: calibration data is empty or not finite.
        """
        found, reasons = roles(graph, self.skip)
        self._check(graph, found, reasons, context)
        quantizers = plan(graph, found)
        observed = list(dict.fromkeys(q.observed for q in quantizers))
        histograms = observe(graph, observed, self.calibration, context)
        self._report(graph, found, reasons, histograms, context)
        weights = self._weight_plans(graph, found)
        pinned = {plan.layer for plan in weights if plan.pinned is not None}
        insert(graph, weights, [(q, self._grids(q, histograms[q.observed], pinned)) for q in quantizers], self.ladder)
        return graph

    def _grids(self, quantizer: QuantizerPlan, histogram: Histogram, pinned: Set[str]) -> Grids:
        widths = self._widths(not pinned.isdisjoint(quantizer.layers)) if quantizer.layers else (FULL_BITS,)
        return {b: activation_grid(histogram, b, self.calibration, self.percentile) for b in widths}

    def _widths(self, pinned: bool) -> tuple[int, ...]:
        """What to calibrate; where a pinned layer computes at 8 bits, not without them: 2 bits clip far more."""
        return self.bits if FULL_BITS in self.bits or not pinned else (FULL_BITS, *self.bits)

    def _weight_plans(self, graph: fx.GraphModule, found: dict[fx.Node, Role]) -> list[WeightPlan]:
        calls: dict[str, list[fx.Node]] = {}
        for node, role in found.items():
            if role is Role.LAYER:
                calls.setdefault(str(node.target), []).append(node)
        ends = {str(n.target) for n in [*first_layers(graph), *last_layers(graph)]} if self.pin_ends else set()
        plans = []
        for layer, nodes in calls.items():
            module = module_of(nodes[0])
            assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
            scale = joint_scale(module.weight, self._widths(layer in ends), self.ladder)
            plans.append(WeightPlan(layer, tuple(nodes), scale, FULL_BITS if layer in ends else None))
        return plans

    def _check(
        self, graph: fx.GraphModule, found: dict[fx.Node, Role], reasons: dict[fx.Node, str], context: Context
    ) -> None:
        for pattern in self.skip:
            if not any(reason.endswith(f"skip={pattern}") for reason in reasons.values()):
                raise PassError(f"skip={pattern} matches no layer", hint="names are those that `mbqc inspect` prints")
        if Role.LAYER not in found.values():
            listed = "; ".join(f"{node.target}: {reason}" for node, reason in reasons.items())
            raise PassError(
                "no layer can be quantized" + (f" ({listed})" if listed else ": the model has no Conv or Linear layer"),
                hint="give the model and its inputs as .float()" if "not in float32" in listed else None,
            )

    def _report(
        self,
        graph: fx.GraphModule,
        found: dict[fx.Node, Role],
        reasons: dict[fx.Node, str],
        histograms: dict[fx.Node, Histogram],
        context: Context,
    ) -> None:
        for node, reason in reasons.items():
            context.report.add(self.name, "skip", str(node.target), reason)
            annotate(node, Skipped(reason))
        if context.calibration is None:
            context.report.add(
                self.name, "warning", "", "no calibration data: the example inputs alone set every activation range"
            )
        for node, histogram in histograms.items():
            if histogram.low == histogram.high == 0:
                context.report.add(self.name, "warning", node.name, "is zero on all calibration data")
