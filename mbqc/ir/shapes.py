"""Types of all values in a graph, found by running it on fake tensors at two batch sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from mbqc.errors import TraceError
from mbqc.ir.types import Dims, TensorType

BATCHES = (2, 3)
"""The two sizes compared: not 1, which broadcasts, and without a common divisor."""


def infer_types(gm: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Set `node.meta["type"]`: a TensorType, or a tuple of them for a node with several outputs; nothing for sizes.

    Dimension 0 of every example input is the batch.

    Raises:
        TraceError: a node fails at another batch size, or has a dimension that is neither constant nor a multiple
            of the batch.
    """
    first, second = (evaluate(gm, example_inputs, batch) for batch in BATCHES)
    for node in gm.graph.nodes:
        node.meta.pop("type", None)
        found = _type(node, first[node], second[node])
        if found is not None and node.op != "output":
            node.meta["type"] = found


def evaluate(gm: fx.GraphModule, example_inputs: tuple[Tensor, ...], batch: int) -> dict[fx.Node, Any]:
    """What every node computes at a batch of `batch`: fake tensors (shapes without data) and ints.

    Raises:
        TraceError: a node fails at this batch size.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = [torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=x.device) for x in example_inputs]
        evaluator = _Evaluator(gm, batch)
        evaluator.run(*fakes)
    return evaluator.values


def place(node: fx.Node) -> str:
    """Where a node comes from, for messages: the user's file and line if known, and the node's name."""
    source = node.meta.get("source")
    return f"{source} (node {node.name})" if source else f"node {node.name}"


class _Evaluator(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, batch: int) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.batch = batch
        self.values: dict[fx.Node, Any] = {}
        # its default wraps errors into text about fx internals
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as exc:
            reason = str(exc).strip().split("\n")[0]
            raise TraceError(
                f"the model does not run with a batch of {self.batch}: {reason}",
                where=place(n),
                hint="write shapes with x.shape[0] or -1 instead of a fixed batch size",
            ) from exc
        self.values[n] = value
        return value


def _type(node: fx.Node, first: Any, second: Any) -> TensorType | tuple[TensorType, ...] | None:
    if isinstance(first, Tensor):
        return TensorType(first.dtype, _dims(node, tuple(first.shape), tuple(second.shape)))
    if isinstance(first, (tuple, list)) and first and all(isinstance(t, Tensor) for t in first):
        if len(first) != len(second):
            raise TraceError("the number of results depends on the batch size", where=place(node))
        pairs = zip(first, second, strict=True)
        return tuple(TensorType(a.dtype, _dims(node, tuple(a.shape), tuple(b.shape))) for a, b in pairs)
    return None


def _dims(node: fx.Node, first: tuple[int, ...], second: tuple[int, ...]) -> Dims:
    if len(first) == len(second):
        dims = [scaled_by_batch((a, b)) for a, b in zip(first, second, strict=True)]
        if all(d is not None for d in dims):
            return tuple(d for d in dims if d is not None)
    raise TraceError(
        f"the shape is {list(first)} for {BATCHES[0]} samples and {list(second)} for {BATCHES[1]}: "
        "a dimension must be fixed or a multiple of the batch",
        where=place(node),
        hint="treat all samples of a batch alike",
    )


def scaled_by_batch(values: tuple[int, int]) -> int | None:
    """A size from its values at both BATCHES: constant as it is, k times the batch as -k, None for anything else."""
    a, b = values
    if a == b:
        return a
    times, rest = divmod(a, BATCHES[0])
    return -times if rest == 0 and b == times * BATCHES[1] else None
