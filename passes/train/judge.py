"""How good the graph is at each width, on the user's evaluation data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from mbqc.devices import CPU, moved
from mbqc.ir.quantized import quantized_layers
from mbqc.numerics import ALL_BITS
from mbqc.pipeline import Context
from mbqc.pipeline.data import Batch, join_targets, require_target, told
from mbqc.pipeline.objective import each_tensor, join, metric_of
from mbqc.widths import FLOAT, Widths, resolve

WHAT = "evaluation data"


def all_metrics(graph: fx.GraphModule, context: Context) -> tuple[float | None, dict[int, float]]:
    """The metric of the float model inside the graph, None without evaluation data; and that of every uniform width.

    Raises:
        DataError: as `metrics`.
    """
    layers = quantized_layers(graph)
    found = _metrics(graph, {0: FLOAT} | {b: resolve(b, layers) for b in ALL_BITS}, context)
    return found.pop(0, None), found


def metrics(graph: fx.GraphModule, bits: Iterable[int], context: Context) -> dict[int, float]:
    """The metric at each of the uniform widths `bits`; empty without evaluation data.

    Raises:
        DataError: the data raises (names the user's line) or has no targets, or the metric fails.
    """
    layers = quantized_layers(graph)
    return _metrics(graph, {b: resolve(b, layers) for b in bits}, context)


def _metrics(graph: fx.GraphModule, asked: dict[int, Widths], context: Context) -> dict[int, float]:
    if context.evaluation is None or not asked:
        return {}
    outputs: dict[int, list[Tensor]] = {bits: [] for bits in asked}
    targets = []
    like = next(graph.parameters())
    with in_eval_mode(graph), torch.no_grad():
        for inputs, target in context.checked(told(context.evaluation, WHAT), WHAT):
            targets.append(require_target(target, WHAT).to(CPU))
            ready = prepared(moved(inputs, like.device), like.dtype)
            for bits, widths in asked.items():
                outputs[bits].append(each_tensor(graph(*ready, widths), Tensor.cpu))
    own = metric_of(context.metric)
    joined = join_targets(targets, WHAT)
    return {bits: own(join(found), joined) for bits, found in outputs.items()}


@contextmanager
def in_eval_mode(graph: fx.GraphModule) -> Iterator[None]:
    """The graph in eval mode; afterwards every module is in the mode in which it was."""
    modes = {module: module.training for module in graph.modules()}
    graph.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def prepared(inputs: Batch, dtype: torch.dtype) -> Batch:
    """Float inputs in the precision of the model, images channels last: a ResNet-20's step takes 0.75 of the time."""
    floats = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in floats)
