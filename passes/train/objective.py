"""What a step minimizes: the loss of the graph at given widths, with its gradient."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from mbqc.passes.train.distill import divergence
from mbqc.passes.train.rectifiers import fuse_rectifiers
from mbqc.passes.train.task import Task
from mbqc.pipeline.data import Batch
from mbqc.pipeline.objective import checked_loss, cross_entropy, each_tensor
from mbqc.widths import FLOAT, Widths


class Objective:
    """The loss of the task's graph. Nothing here makes the host wait for a GPU, unless a loss of the user's does."""

    def __init__(self, task: Task) -> None:
        graph, options, own = task.graph, task.options, task.context.loss
        self._loss = checked_loss(own) if own is not None else cross_entropy(options.label_smoothing)
        self._teacher = copy.deepcopy(graph).eval() if options.distill == "float" else None
        self._graph, self._ranks = fuse_rectifiers(graph), task.ranks
        self._dtype = next(graph.parameters()).dtype
        self._half = options.precision == "bfloat16"

    def backward(
        self, inputs: Batch, target: Tensor, widths: Widths, highest: Tensor | None, share: float
    ) -> tuple[Any, Tensor]:
        """Output and loss at `widths`, detached; `share` times the gradient is added to that of parameters.

        Args:
            inputs: prepared (`judge.prepared`), where the graph is.
            highest: output of the highest width, which teaches; None without.

        Raises:
            DataError: the batch does not fit the loss.
            ValueError: BatchNorm has a single value a channel.
        """
        with self._ranks.synchronised():
            output = self._run(self._graph, inputs, widths)
        loss = self.loss(inputs, target, output, highest)
        torch.autograd.backward(loss * share)
        return each_tensor(output, Tensor.detach), loss.detach()

    def loss(self, inputs: Batch, target: Tensor, output: Any, highest: Tensor | None) -> Tensor:
        """The loss of an output, half of it the divergence from a teacher where there is one."""
        loss, teacher = self._loss(output, target), highest
        if self._teacher is not None:
            with torch.no_grad():
                teacher = self._run(self._teacher, inputs, FLOAT)
        return loss if teacher is None else 0.5 * (loss + divergence(output, teacher))

    def _run(self, graph: fx.GraphModule, inputs: Batch, widths: Widths) -> Any:
        """The output, which a loss takes in the precision of the weights."""
        if not self._half:
            return graph(*inputs, widths)
        with torch.autocast(self._ranks.device.type, torch.bfloat16):
            output = graph(*inputs, widths)
        return each_tensor(output, self._exact)

    def _exact(self, output: Tensor) -> Tensor:
        return output.to(self._dtype) if output.is_floating_point() else output
