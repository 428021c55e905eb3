"""The two optimizers: one of weights, one of scales."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, fx, nn

from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer, WidthBatchNorm
from mbqc.passes.train.alrs import Rule, rates

Scales = Literal["log", "raw", "frozen"]

LEAST_RAW = 0.01
"""Share of its start to which a raw scale may fall; at next to nothing weights divided by it would overflow."""


def scale_parameters(graph: fx.GraphModule) -> list[nn.Parameter]:
    """The scales of all quantizers, in the order of the graph's modules."""
    return [m.scale for m in graph.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]


class WeightOptimizer:
    """Adam over all parameters but scales; only tensors of two or more dimensions (layers' weights) decay.

    Where a BatchNorm has an affine part for each of its rows, each is a parameter of its own: it rests in steps at
    others.

    Attributes:
        parameters: what it moves.
    """

    def __init__(self, graph: fx.GraphModule, weight_decay: float) -> None:
        norms = [m for m in graph.modules() if isinstance(m, WidthBatchNorm) and m.affine == "width"]
        self._tables = [table for norm in norms for table in (norm.weight, norm.bias)]
        self._rows = [list(table.detach()) for table in self._tables]  # views, which share their memory
        rests = [row for rows in self._rows for row in rows]
        apart = {id(p) for p in (*scale_parameters(graph), *self._tables)}
        whole = [p for p in graph.parameters() if id(p) not in apart]
        groups = [
            {"params": [p for p in whole if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in whole if p.dim() <= 1] + rests, "weight_decay": 0.0},
        ]
        self.parameters = [*whole, *self._tables]
        self._adam = torch.optim.Adam(groups, fused=True)

    def step(self, rate: float) -> None:
        """One step along the gradients, at a learning rate."""
        gradients = [torch.zeros_like(table) if table.grad is None else table.grad for table in self._tables]
        if gradients:
            used = torch.cat([each.any(1) for each in gradients]).tolist()  # at once: an answer makes the host wait
            rows = zip(itertools.chain(*self._rows), itertools.chain(*gradients), used, strict=True)
            for row, gradient, moves in rows:
                row.grad = gradient if moves else None
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return adam_state(self._adam)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""
        restore_adam(self._adam, state)


class ScaleOptimizer:
    """Adam over the scales of all quantizers as one vector, in the log domain or raw.

    A raw scale of 0.002 and a step of 0.001 do not go together, and would soon be negative: it stops at LEAST_RAW of
    what it was before training. A step of log(scale) is relative. Scales that the width
    of a step does not use have no gradient and keep their value, whatever momentum Adam has for them; the moments do
    decay meanwhile, so that in turns with two other widths a scale moves by about 0.64 of the rate.

    Attributes:
        clamped: of the last step, share of scales whose rate ALRS clamped to zero.
    """

    def __init__(self, graph: fx.GraphModule, scales: Scales, rule: Rule) -> None:
        self._parameters = scale_parameters(graph)
        self._sizes = [p.numel() for p in self._parameters]
        self._log, self._rule = scales == "log", rule
        values = torch.cat([p.detach() for p in self._parameters])
        tensor_of = torch.arange(len(self._sizes)).repeat_interleave(torch.tensor(self._sizes))
        self._tensor_of = tensor_of.to(values.device)
        self._least = LEAST_RAW * values
        self._vector = nn.Parameter(values.log() if self._log else values)
        self._adam = torch.optim.Adam([self._vector], lr=1.0)
        self.clamped = 0.0

    def step(self, rate: float, bits: int) -> None:
        """One step along the gradients of a forward pass at `bits` bits, at a learning rate."""
        gradient = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters])
        if self._log:
            gradient = gradient * self._vector.detach().exp()
        each, self.clamped = rates(self._rule, rate, bits, gradient, self._tensor_of, len(self._sizes))
        before = self._vector.detach().clone()
        self._vector.grad = gradient
        self._adam.step()
        used = gradient != 0
        with torch.no_grad():
            moved = before + each * used * (self._vector - before)
            self._vector.copy_(moved if self._log else torch.maximum(moved, self._least))
            # exp(log(scale)) is not quite the scale, so those that rest are left alone
            now = torch.cat([p.detach() for p in self._parameters])
            values = torch.where(used, self._vector.exp() if self._log else self._vector, now)
            for parameter, part in zip(self._parameters, torch.split(values, self._sizes), strict=True):
                parameter.copy_(part)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"vector": self._vector.detach(), "least": self._least, **adam_state(self._adam)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`; the scales themselves are the graph's."""
        with torch.no_grad():
            self._vector.copy_(state["vector"])
            self._least.copy_(state["least"])
        restore_adam(self._adam, {name: value for name, value in state.items() if name not in ("vector", "least")})


def adam_state(adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's moments and step counts as named tensors."""
    state = adam.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_adam(adam: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    """Gives Adam what `adam_state` took."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    adam.load_state_dict({"state": entries, "param_groups": adam.state_dict()["param_groups"]})
