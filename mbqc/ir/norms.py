"""The BatchNorms of a quantized graph: statistics by width, frozen, estimated anew, taken from a neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from types import EllipsisType, UnionType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from mbqc.errors import DataError
from mbqc.ir.modules import QuantLinear, WidthBatchNorm
from mbqc.ir.quantized import QUANT_LAYERS, layers_before, widths_node
from mbqc.ir.types import type_of
from mbqc.ir.vocabulary import BATCH_NORMS, is_module, module_of
from mbqc.numerics import STORED_BITS
from mbqc.pipeline.context import Progress, silent
from mbqc.pipeline.data import Batch
from mbqc.widths import Widths

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | WidthBatchNorm


def batch_norms(graph: fx.GraphModule) -> dict[str, BatchNorm]:
    """The BatchNorms that the graph calls, by name."""
    called = ((str(node.target), module_of(node)) for node in graph.graph.nodes)
    return {name: norm for name, norm in called if isinstance(norm, BatchNorm)}


def width_norms(graph: fx.GraphModule) -> dict[str, WidthBatchNorm]:
    """Those of them that have rows."""
    return {name: norm for name, norm in batch_norms(graph).items() if isinstance(norm, WidthBatchNorm)}


# Statistics for every width


def split_by_width(
    graph: fx.GraphModule, affine: Literal["shared", "width"] = "shared", pairs: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Replaces every BatchNorm that folds into one quantized layer by a WidthBatchNorm, each row a copy of it.

    Args:
        graph: a quantized graph; it is changed.
        affine: whether the affine part gets rows too.
        pairs: rows not by the width of the layer alone, but with that of the layers before it (`layers_before`).

    Returns:
        Names of the BatchNorms that were replaced, and of those that were left: the width of no single layer is theirs.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if is_module(node, BATCH_NORMS):
            calls.setdefault(str(node.target), []).append(node)
    widths = widths_node(graph)
    split, left = [], []
    for name, nodes in calls.items():
        layer, *others = {_layer_before(node) for node in nodes}
        if layer is None or others:
            left.append(name)
            continue
        split.append(name)
        before = layers_before(graph, layer) if pairs else ()
        graph.set_submodule(name, _width_norm(graph.get_submodule(name), layer, affine, before))
        for node in nodes:
            node.args = (node.args[0], widths)
    graph.recompile()
    return tuple(split), tuple(left)


def _layer_before(norm: fx.Node) -> str | None:
    """The quantized layer whose epilogue takes the BatchNorm: nobody else reads it, both count channels alike."""
    source = norm.args[0]
    if not isinstance(source, fx.Node) or not is_module(source, QUANT_LAYERS) or len(source.users) > 1:
        return None
    channels_differ = is_module(source, (QuantLinear,)) and len(type_of(source).dims) > 2
    return None if channels_differ else str(source.target)


def _width_norm(norm: Any, layer: str, affine: Literal["shared", "width"], before: tuple[str, ...]) -> WidthBatchNorm:
    made = WidthBatchNorm(layer, norm.num_features, norm.eps, norm.momentum, affine, before).to(norm.running_mean)
    with torch.no_grad():
        if norm.affine:
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
        made.running_mean.copy_(norm.running_mean)
        made.running_var.copy_(norm.running_var)
        made.num_batches_tracked.copy_(norm.num_batches_tracked)
    for own, given in ((made.weight, norm.weight), (made.bias, norm.bias)):
        own.requires_grad_(norm.affine and given.requires_grad)
    return made.train(norm.training)


def trained_rows(graph: fx.GraphModule, trained: Sequence[Widths]) -> dict[str, set[int]]:
    """After training, which rows of each WidthBatchNorm it moved, those of `trained` among them.

    Rows start alike, and training never moves row 0, so a row that differs from it was trained: at widths that some
    layers had switched to.
    """
    found = {}
    for name, norm in width_norms(graph).items():
        moved = norm.num_batches_tracked != norm.num_batches_tracked[0]
        for table in (norm.weight, norm.bias) if norm.affine == "width" else ():
            moved = moved | (table != table[0]).any(1)
        found[name] = {norm.row(widths) for widths in trained} | set(moved.nonzero().flatten().tolist())
    return found


def nearest_rows(graph: fx.GraphModule, known: Mapping[str, Set[int]]) -> None:
    """Gives the rows of WidthBatchNorms that hold nothing of their own the numbers of the nearest that do.

    The width of the norm's own layer goes first; where rows go by pairs, that of the layers before it goes second. A
    tie goes to the wider; the float model gets the row of the widest.

    Args:
        graph: a quantized graph; it is changed.
        known: by norm, the rows that hold something; one at least, beside row 0.
    """
    for name, norm in width_norms(graph).items():
        quantized = known[name] - {0}
        rows = [0 if 0 in known[name] else max(quantized, key=_widths_of_row)]
        rows += [_nearest(row, quantized) for row in range(1, len(norm.running_mean))]
        tensors = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
        with torch.no_grad():
            for tensor in tensors + ([norm.weight, norm.bias] if norm.affine == "width" else []):
                tensor.copy_(tensor[rows])


def _nearest(row: int, known: Set[int]) -> int:
    bits, before = _widths_of_row(row)

    def distance(other: int) -> tuple[int, int, int, int]:
        own, previous = _widths_of_row(other)
        return abs(own - bits), -own, abs(previous - before), -previous

    return min(known, key=distance)


def _widths_of_row(row: int) -> tuple[int, int]:
    """Width of the layer, and of those before it where rows go by pairs."""
    before, own = divmod(row - 1, STORED_BITS)
    return own + 1, before + 1


# Frozen statistics


def freeze_statistics(graph: fx.GraphModule) -> None:
    """From now on every BatchNorm normalizes with its running statistics, which stay as they are.

    Only the BatchNorms leave train mode, and they leave it again at each call, so `graph.train()` after an evaluation
    changes nothing. Gradients still reach their affine part. It is no part of the state dict: call it again after a
    resume, and `unfreeze_statistics` when training has ended.
    """
    for norm in batch_norms(graph).values():
        if _leave_train_mode not in norm._forward_pre_hooks.values():
            norm.register_forward_pre_hook(_leave_train_mode)
        norm.eval()


def unfreeze_statistics(graph: fx.GraphModule) -> None:
    """Undoes `freeze_statistics`: the BatchNorms follow the graph's mode again."""
    for norm in batch_norms(graph).values():
        hooks = norm._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _leave_train_mode]:
            del hooks[key]
            norm.train(graph.training)


def _leave_train_mode(norm: nn.Module, _: object) -> None:
    if norm.training:
        norm.eval()


# Estimation


def estimate(
    graph: fx.GraphModule,
    batches: Iterable[Batch],
    widths: Sequence[Widths],
    per_width: bool,
    progress: Progress = silent,
) -> None:
    """Sets running statistics to mean and variance (population, not unbiased) of what enters each BatchNorm.

    A BatchNorm that is estimated normalizes with the batch meanwhile, as in training. A shared one gets the moments
    over all batches and all `widths`; each row of a WidthBatchNorm those over the `widths` that choose it, and other
    rows stay.

    Args:
        graph: a quantized graph; it is changed.
        batches: inputs of the graph, read once.
        widths: what it is run at.
        per_width: split BatchNorms by width first (`split_by_width`), and leave those alone that cannot be.
        progress: advances with each batch.

    Raises:
        DataError: a batch gives a BatchNorm a single value a channel.
    """
    if per_width:
        split_by_width(graph)
    estimator, training = _Estimator(graph, WidthBatchNorm if per_width else BatchNorm), graph.training
    graph.eval()
    total = len(batches) if isinstance(batches, Sized) else None
    with progress("re-estimating BatchNorm", total) as advance, torch.no_grad():
        for batch in batches:
            for each in widths:
                estimator.run(*batch, each)
            advance()
        for (norm, row), (count, total, squares) in estimator.sums.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean = total / count
            norm.running_mean[row] = mean.to(norm.running_mean.dtype)
            norm.running_var[row] = (squares / count - mean.square()).clamp(min=0).to(norm.running_var.dtype)
    graph.train(training)


class _Estimator(fx.Interpreter):
    """Runs a graph; each BatchNorm of a kind normalizes with its input's own moments, as in training, and sums them."""

    def __init__(self, graph: fx.GraphModule, kind: type[nn.Module] | UnionType) -> None:
        super().__init__(graph)
        self.kind = kind
        self.sums: dict[tuple[BatchNorm, Any], Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        norm, x = self.fetch_attr(target), args[0]
        if not isinstance(norm, self.kind):
            return super().call_module(target, args, kwargs)
        assert isinstance(norm, BatchNorm)
        row: int | EllipsisType = ...
        weight: Tensor = norm.weight
        bias: Tensor = norm.bias
        if isinstance(norm, WidthBatchNorm):
            row = norm.row(args[1])
            weight, bias = norm.line(row)
        count = x.numel() // x.shape[1]
        if count < 2:
            raise DataError(f"a batch has one value a channel for BatchNorm {target}", hint="larger batches")
        assert norm.running_mean is not None
        mean, variance = torch.zeros(2, x.shape[1], dtype=norm.running_mean.dtype, device=x.device)
        # momentum 1 leaves the batch's own statistics, the variance unbiased: no pass over x of its own
        normalized = nn.functional.batch_norm(x, mean, variance, weight, bias, True, momentum=1.0, eps=norm.eps)
        mean, variance = mean.to(torch.float64), variance.to(torch.float64) * (count - 1) / count
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * count
        key = (norm, row)
        self.sums[key] = self.sums[key] + sums if key in self.sums else sums
        return normalized
