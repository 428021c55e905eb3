"""Ranges of activations: one sweep over the calibration data serves every quantizer and every width."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, fx

from mbqc import numerics
from mbqc.errors import DataError
from mbqc.pipeline import Context

Method = Literal["minmax", "percentile", "mse"]

BINS = 4096
"""Bins each side of zero: at least 16 for each of the 256 steps of an 8-bit code."""

CANDIDATES = 48
"""Clipping ranges tried by the squared-error search, from the full range down to 1/16 of it."""


class Histogram:
    """Counts of values in bins of one width around zero; the range doubles, and bins merge, when values outgrow it."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Counts all elements of a float tensor."""
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0.0:
            self.limit = self.limit or torch.finfo(torch.float32).tiny
        elif self.limit == 0.0 or not self.counts.any():
            self.limit = largest
        while self.limit < largest:
            self._double()
        counts = torch.histc(values.flatten(), 2 * BINS, -self.limit, self.limit)
        self.counts += counts.to(torch.float64)

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
    """Runs a float graph and adds the values of chosen nodes to their histograms."""

    def __init__(self, graph: fx.GraphModule, histograms: dict[fx.Node, Histogram]) -> None:
        super().__init__(graph)
        self._histograms = histograms

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        histogram = self._histograms.get(n)
        if histogram is not None:
            if not bool(torch.isfinite(value).all()):
                raise DataError("an activation is NaN or infinite on the calibration data", where=f"node {n.name}")
            histogram.add(value)
        return value


def observe(graph: fx.GraphModule, nodes: list[fx.Node], context: Context) -> dict[fx.Node, Histogram]:
    """Histograms of the values of `nodes` over all calibration batches, in one sweep.

    Raises:
        DataError: an activation is not finite.
    """
    histograms = {node: Histogram() for node in nodes}
    observer = _Observer(graph, histograms)
    batches = context.calibration_batches()
    with context.progress("calibrating", len(batches)) as advance, torch.no_grad():
        for batch in batches:
            observer.run(*batch)
            advance()
    return histograms


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
    if method == "mse":
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
