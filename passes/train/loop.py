"""A round of training: for each of its widths forward, loss, backward, step (arXiv 2502.01199, algorithm A.2)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from mbqc.errors import DataError, PassError
from mbqc.ir.annotations import Switching
from mbqc.ir.norms import freeze_statistics
from mbqc.ir.quantized import quantized_layers
from mbqc.passes.train.captured import Captured
from mbqc.passes.train.collapse import ROUNDS, Watch
from mbqc.passes.train.diverged import HINT, changed_most, first_not_finite, parameter_norms
from mbqc.passes.train.feeds import Fed
from mbqc.passes.train.judge import prepared
from mbqc.passes.train.objective import Objective
from mbqc.passes.train.optimizers import ScaleOptimizer, WeightOptimizer
from mbqc.passes.train.rounds import draws_of, rate_factor, sandwich, switched
from mbqc.passes.train.task import Task
from mbqc.widths import Widths, resolve

Observe = Callable[[int, Fed, Any, float], None]
"""Told of each forward pass: width, batch, output, loss."""


class Stepper:
    """Trains a graph round by round.

    Args:
        rounds: how many rounds there will be in all.

    Attributes:
        draws: from what each layer draws its width; empty where none does.
    """

    def __init__(self, task: Task, rounds: int) -> None:
        graph, options = task.graph, task.options
        self._graph, self._options, self._bits, self._rounds = graph, options, task.bits, rounds
        self._seed, self._ranks = task.context.seed, task.ranks
        self._objective = Objective(task)
        self._captured = Captured(self._objective, graph, task.ranks.device) if options.capture else None
        self.weights = WeightOptimizer(graph, options.weight_decay)
        self.scales = ScaleOptimizer(graph, options.scales, options.alrs)
        self._layers, self._norms = quantized_layers(graph), parameter_norms(graph)
        self.draws: dict[str, Switching] = {}
        if options.switch != "none":
            self.draws = self._ranks.of_first(draws_of(graph, options.switch, self._bits))
        self._dtype = next(graph.parameters()).dtype

    @property
    def not_captured(self) -> int:
        """How many passes were to be replayed, but ran as they are."""
        return self._captured.others if self._captured is not None else 0

    def freeze_statistics(self) -> None:
        """From now on BatchNorm statistics stay as they are."""
        freeze_statistics(self._graph)
        if self._captured is not None:
            self._captured.forget()

    def rate(self, done: int) -> float:
        """The learning rate of weights after `done` rounds."""
        return self._options.rate * self._factor(done)

    def chosen(self, done: int) -> list[int]:
        """The widths of the round before which there were `done` others, highest first."""
        return self._chosen(self._draw(done))

    def round(self, batches: Mapping[int, Fed], epoch: int, done: int, observe: Observe) -> None:
        """Trains on a round: each of its widths on its batch; `done` rounds were before it.

        Raises:
            PassError: the loss or a gradient is not finite; names width and layer. Weights are as before the step.
            DataError: the batch does not fit the loss.
        """
        draw, each = self._draw(done), self._options.step == "each"
        chosen = self._chosen(draw)
        highest: Tensor | None = None
        for bits in chosen:
            batch = batches[bits]
            if each or bits == chosen[0]:
                self._graph.zero_grad()
            widths = self._widths(bits, epoch, draw)
            output, loss = self._backward(bits, batch, widths, highest, 1.0 if each else 1.0 / len(chosen))
            if self._options.distill == "highest" and highest is None:
                highest = output
            if each or bits == chosen[-1]:
                self._step(bits, batch, widths, done)
            observe(bits, batch, output, loss)

    def _draw(self, done: int) -> Random:
        return Random(f"{self._seed} round {done}")

    def _chosen(self, draw: Random) -> list[int]:
        return sandwich(self._bits, draw) if self._options.widths == "sandwich" else list(self._bits)

    def _widths(self, bits: int, epoch: int, draw: Random) -> Widths:
        widths = resolve(bits, self._layers)
        if not self.draws:
            return widths
        chance = self._options.switch_most * (epoch + 1) / self._options.epochs
        return switched(widths, self._layers, self.draws, chance, draw)

    def _backward(
        self, bits: int, batch: Fed, widths: Widths, highest: Tensor | None, share: float
    ) -> tuple[Any, float]:
        """Output (detached) and the loss of all ranks; the own one's gradient times `share` is added to parameters'."""
        inputs, objective = prepared(batch.inputs, self._dtype), self._captured or self._objective
        try:
            output, loss = objective.backward(inputs, batch.target, widths, highest, share)
        except ValueError as error:
            if inputs[0].shape[0] > 1:
                raise
            raise DataError(
                f"a batch of one sample has no BatchNorm statistics: {error}", hint="larger batches"
            ) from error
        own = float(loss)
        value = self._ranks.mean(own)
        if not math.isfinite(value):  # all ranks end here together
            self._graph.zero_grad()  # no gradient is the cause
            if math.isfinite(own):
                raise self._diverged("the loss of another rank is not finite", "it says where", bits, batch, widths)
            raise self._diverged(f"the loss is {own}", "the output is finite, so it is loss()", bits, batch, widths)
        return output, value

    def _step(self, bits: int, batch: Fed, widths: Widths, done: int) -> None:
        used = [p for p in self._graph.parameters() if p.grad is not None]
        self._ranks.average_gradients(used)
        norm = torch.nn.utils.get_total_norm([p.grad for p in used if p.grad is not None])
        if not torch.isfinite(norm):
            what = "the gradient" if self._options.step == "each" else "the gradient of all widths together"
            raise self._diverged(f"{what} is not finite", "its norm overflows", bits, batch, widths)
        if self._options.clip:
            torch.nn.utils.clip_grad_norm_(self.weights.parameters, self._options.clip)
        factor = self._factor(done)
        self.weights.step(self._options.rate * factor)
        if self._options.scales != "frozen":
            self.scales.step(self._options.scale_rate * factor, bits)

    def _factor(self, done: int) -> float:
        return rate_factor(self._options.schedule, self._options.warmup, done, self._rounds)

    def blind_loss(self, batch: Fed, output: Any) -> float:
        """The loss of a batch, if the answer to every sample were the mean of `output`; without `distill=highest`.

        NaN where there is no such answer: the output is no tensor, or the loss does not take it.
        """
        own = math.nan
        if isinstance(output, Tensor):
            same = output.mean(0, keepdim=True).requires_grad_().expand_as(output).clone()
            inputs = prepared(batch.inputs, self._dtype)
            with contextlib.suppress(DataError):
                own = float(self._objective.loss(inputs, batch.target, same, None).detach())
        return self._ranks.mean(own)

    def lost(self, bits: int, loss: float, done: int, watch: Watch) -> PassError:
        """What to tell of a width that `watch` found lost in the round after `done` others."""
        return PassError(
            f"what the model knew at {bits} bits is lost by round {done + 1}: in {ROUNDS} rounds its loss has been no "
            f"better than that of one answer for all samples, {watch.blind:.3g}; now it is {loss:.3g}, and it had been "
            f"{watch.courses[bits].lowest:.3g}. {changed_most(self._graph, self._norms)}",
            hint=HINT,
        )

    def _diverged(self, what: str, otherwise: str, bits: int, batch: Fed, widths: Widths) -> PassError:
        place = first_not_finite(self._graph, prepared(batch.inputs, self._dtype), widths)
        return PassError(
            f"{what} at {bits} bits: {place or otherwise}",
            hint=HINT,
        )
