"""Ranges of activations: one sweep over the calibration data serves every quantizer and every width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, fx

from mbqc import numerics
from mbqc.errors import DataError
from mbqc.pipeline import Context
from mbqc.pipeline.data import Batch

Method = Literal["minmax", "percentile", "mse", "gauss_newton"]

BINS = 4096
"""Bins each side of zero: at least 16 for each of the 256 steps of an 8-bit code."""

DRAWS = 2
"""Random sign vectors for each batch under `gauss_newton`."""

CANDIDATES = 48
"""Clipping ranges tried by the squared-error search, from the full range down to 1/16 of it."""


class Histogram:
    """Counts of values in bins of one width around zero; the range doubles, and bins merge, when values outgrow it."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Counts all elements of a float tensor, each with its weight, or with 1."""
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0.0:
            self.limit = self.limit or torch.finfo(torch.float32).tiny
        elif self.limit == 0.0 or not self.counts.any():
            self.limit = largest
        while self.limit < largest:
            self._double()
        if weights is None:
            self.counts += torch.histc(values.flatten(), 2 * BINS, -self.limit, self.limit).to(torch.float64)
            return
        bins = ((values.flatten() / self.limit + 1) * BINS).to(torch.int64).clamp(max=2 * BINS - 1)
        self.counts += torch.bincount(bins, weights.flatten().to(torch.float64), 2 * BINS)

    def _double(self) -> None:
        merged = torch.zeros_like(self.counts)
        merged[BINS // 2 : BINS + BINS // 2] = self.counts.reshape(-1, 2).sum(1)
        self.counts, self.limit = merged, 2 * self.limit

    def centres(self) -> Tensor:
        """The middle of each bin, float64."""
        step = self.limit / BINS
        return (torch.arange(2 * BINS, dtype=torch.float64) + 0.5) * step - self.limit

    def percentile(self, share: float) -> tuple[float, float]:
        """The range that leaves out `1 - share` of the values, half of it at each end that is not zero."""
        ends = (self.low < 0) + (self.high > 0)
        tail = (1 - share) * float(self.counts.sum()) / max(ends, 1)
        centres = self.centres()
        cumulated = self.counts.cumsum(0)
        low = float(centres[int((cumulated > tail).nonzero()[0])]) if self.low < 0 else 0.0
        above = self.counts.flip(0).cumsum(0)
        high = float(centres.flip(0)[int((above > tail).nonzero()[0])]) if self.high > 0 else 0.0
        return min(low, 0.0), max(high, 0.0)


class _Observer(fx.Interpreter):
    """Runs a float graph and keeps the values of chosen nodes."""

    def __init__(self, graph: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
        super().__init__(graph)
        self._nodes = set(nodes)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._nodes:
            if not bool(torch.isfinite(value.detach()).all()):
                raise DataError("an activation is NaN or infinite on the calibration data", where=f"node {n.name}")
            if torch.is_grad_enabled() and not value.requires_grad:  # behind whole numbers and a frozen table
                value = value.detach().requires_grad_()
            self.values[n] = value
        return value


def observe(graph: fx.GraphModule, nodes: list[fx.Node], method: Method, context: Context) -> dict[fx.Node, Histogram]:
    """Histograms of the values of `nodes` over all calibration batches, in one sweep.

    Under `gauss_newton` each value counts with the square of its effect on the model's output: `(v^T dy/dx)^2` with
    random signs v has the diagonal of the Gauss-Newton matrix as its mean. Where no output has a gradient, as behind an
    argmax, all values of a node count alike, which is `mse`; the report says so.

    Raises:
        DataError: an activation is not finite.
    """
    histograms = {node: Histogram() for node in nodes}
    generator = torch.Generator().manual_seed(context.seed)
    batches = context.calibration_batches()
    unweighted: dict[fx.Node, None] = {}
    with context.progress("calibrating", len(batches)) as advance:
        for batch in batches:
            observer = _Observer(graph, nodes)
            if method == "gauss_newton":
                unweighted.update(dict.fromkeys(_add_weighted(observer, batch, histograms, generator)))
            else:
                with torch.no_grad():
                    observer.run(*batch)
                for node, value in observer.values.items():
                    histograms[node].add(value)
            advance()
    for node in unweighted:
        message = "no output has a gradient for it: its range is that of calibration=mse, not gauss_newton"
        context.report.add("quant", "warning", node.name, message)
    return histograms


def _add_weighted(
    observer: _Observer, batch: Batch, histograms: dict[fx.Node, Histogram], generator: torch.Generator
) -> list[fx.Node]:
    """Counts values by their effect on the outputs; the nodes without a gradient, whose values count alike."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in batch]
        output = observer.run(*inputs)
        outputs = [o for o in (output if isinstance(output, tuple) else (output,)) if o.requires_grad]
        nodes = [node for node, value in observer.values.items() if value.requires_grad]
        unweighted: list[fx.Node] = []
        for draw in range(DRAWS):
            signs = [torch.randint(0, 2, o.shape, generator=generator).to(o.dtype) * 2 - 1 for o in outputs]
            gradients = torch.autograd.grad(
                outputs, [observer.values[n] for n in nodes], signs, retain_graph=draw + 1 < DRAWS, allow_unused=True
            )
            for node, gradient in zip(nodes, gradients, strict=True):
                histograms[node].add(observer.values[node].detach(), None if gradient is None else gradient.square())
            unweighted = [node for node, gradient in zip(nodes, gradients, strict=True) if gradient is None]
    return unweighted


def activation_grid(histogram: Histogram, bits: int, method: Method, percentile: float) -> tuple[float, int]:
    """Scale and zero-point of an unsigned grid of `bits` bits whose range contains 0.

    Args:
        percentile: share of values kept inside the range, for `percentile`.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if high - low < torch.finfo(torch.float32).tiny:
        return 1.0, 0  # nothing but zeros was seen: a dead activation
    if method == "percentile":
        low, high = histogram.percentile(percentile)
    if method in ("mse", "gauss_newton"):
        low, high = _least_squared_error(histogram, bits, low, high)
    return grid_of_range(low, high, bits)


def grid_of_range(low: float, high: float, bits: int) -> tuple[float, int]:
    """The grid of `bits` bits that covers [low, high], with low <= 0 <= high and a zero-point on the grid."""
    top = numerics.activation_range(bits)[1]
    scale = max((high - low) / top, torch.finfo(torch.float32).tiny)
    return scale, min(max(round(-low / scale), 0), top)


def _least_squared_error(histogram: Histogram, bits: int, low: float, high: float) -> tuple[float, float]:
    """The clipping range, shrunk on both sides alike, with the least squared error on the histogram."""
    centres, counts = histogram.centres(), histogram.counts
    used = counts > 0
    centres, counts = centres[used], counts[used]
    best, best_error = (low, high), float("inf")
    for share in torch.logspace(0, -4, CANDIDATES, base=2.0).tolist():
        scale, zero = grid_of_range(share * low, share * high, bits)
        codes = numerics.quantize(
            centres, torch.tensor(scale, dtype=torch.float64), zero, *numerics.activation_range(bits)
        )
        error = float((counts * (centres - (codes - zero) * scale).square()).sum())
        if error < best_error:
            best, best_error = (share * low, share * high), error
    return best
