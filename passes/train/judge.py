"""How good the graph is at each width, on the user's evaluation data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from mbqc.devices import CPU, moved
from mbqc.ir.quantized import quantized_layers
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.pipeline import Context
from mbqc.pipeline.data import Batch, require_target
from mbqc.pipeline.objective import each_tensor, join, metric_of
from mbqc.widths import FLOAT, Widths, resolve

WHAT = "evaluation data"
ALONE = Ranks()


def all_metrics(graph: fx.GraphModule, context: Context, ranks: Ranks = ALONE) -> tuple[float | None, dict[int, float]]:
    """The metric of the float model inside the graph, None without evaluation data; and that of every uniform width.

    Raises:
        DataError: as `metrics`.
    """
    layers = quantized_layers(graph)
    found = _metrics(graph, {0: FLOAT} | {b: resolve(b, layers) for b in ALL_BITS}, context, ranks)
    return found.pop(0, None), found


def metrics(graph: fx.GraphModule, bits: Iterable[int], context: Context, ranks: Ranks = ALONE) -> dict[int, float]:
    """The metric at each of the uniform widths `bits`; empty without evaluation data.

    Raises:
        DataError: the data has no targets, or the metric fails.
    """
    layers = quantized_layers(graph)
    return _metrics(graph, {b: resolve(b, layers) for b in bits}, context, ranks)


def _metrics(graph: fx.GraphModule, asked: dict[int, Widths], context: Context, ranks: Ranks) -> dict[int, float]:
    """Each rank runs its share, of whole batches, so outputs are those of one process; all ranks call it together."""
    if context.evaluation is None:
        return {}
    outputs: dict[int, list[Tensor]] = {bits: [] for bits in asked}
    targets = []
    like = next(graph.parameters())
    with in_eval_mode(graph), torch.no_grad():
        for index, (inputs, target) in enumerate(context.checked(context.evaluation, WHAT)):
            known = require_target(target, WHAT)
            if index % ranks.world != ranks.rank:
                continue
            targets.append(_copied(known))
            ready = prepared(moved(inputs, like.device), like.dtype)
            for bits, widths in asked.items():
                outputs[bits].append(each_tensor(graph(*ready, widths), _copied))
    own, target = metric_of(context.metric), torch.cat(ranks.interleaved(targets))
    return {bits: own(join(ranks.interleaved(found)), target) for bits, found in outputs.items()}


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: a part of a larger tensor would be sent with all of it."""
    return tensor.to(CPU, copy=True)


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
