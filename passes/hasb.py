"""The `hasb` pass: how sensitive the loss is to each layer's weights, and how often each width is drawn in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mbqc.errors import PassError, PipelineError
from mbqc.ir.annotations import Sensitivity, Switching, annotate
from mbqc.ir.quantized import layer_nodes, weight_quantizer_of
from mbqc.numerics import ALL_BITS
from mbqc.pipeline import Context, Pass, Property
from mbqc.pipeline.data import LabelledBatch
from mbqc.pipeline.objective import checked_loss
from mbqc.properties import QUANTIZED, SENSITIVITY
from mbqc.widths import FLOAT


@dataclass(frozen=True)
class Hasb(Pass):
    """Annotates each layer with the trace of its Hessian, its standard error, and a switching distribution.

    Hutchinson's estimator on the float model: `tr(H_l) = E[v^T H_l v]` with random signs v; all layers share each
    Hessian-vector product; each probe uses one batch. Numbers of the model never change.

    Options:
        tolerance: stop when every layer's standard error is below this share of the largest trace per parameter.
        probes: most probes that are drawn.
        samples: most training samples that are used.
        threshold: a layer whose trace per parameter lies below the `mean`, `median` or third `quartile` of all layers
            draws its width uniformly; the others draw width b with probability b / sum of widths.
        bits: the widths that are switched between.

    Source: Hessian-aware stochastic bit-switching, arXiv 2502.01199, section 3.4; HAWQ-V2 for the trace.
    """

    tolerance: float = 0.05
    probes: int = 64
    samples: int = 1024
    threshold: Literal["mean", "median", "quartile"] = "median"
    bits: tuple[int, ...] = (8, 4, 2)

    name: ClassVar[str] = "hasb"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED,)
    sets: ClassVar[tuple[Property, ...]] = (SENSITIVITY,)

    def __post_init__(self) -> None:
        if self.probes < 2 or self.samples < 1 or not self.tolerance > 0:
            raise PipelineError("probes must be at least 2, samples at least 1, tolerance positive", where="pass hasb")
        if not self.bits or any(b not in ALL_BITS for b in self.bits) or len(set(self.bits)) != len(self.bits):
            raise PipelineError(f"bits={self.bits} must be different widths from 1 to 8", where="pass hasb")

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The same graph with annotations.

        Raises:
            PassError: the loss is not finite or does not depend on any layer.
            DataError: the data does not fit the loss.
        """
        nodes = {str(node.target): node for node in layer_nodes(graph)}
        weights = {layer: weight_quantizer_of(node)[2] for layer, node in nodes.items()}
        batches = self._batches(context)
        loss = _loss(context, batches, self.name)
        with _taking_gradients(weights.values()):
            traces = self._traces(graph, weights, batches, loss, context)
        self._annotate(graph, nodes, weights, traces)
        if not self._settled(traces / _sizes(weights)):
            message = f"traces had not settled after {len(traces)} probes: mind their standard errors, or allow more"
            context.report.add(self.name, "warning", "", message)
        return graph

    def _batches(self, context: Context) -> list[LabelledBatch]:
        chosen, seen = [], 0
        for inputs, target in context.labelled_batches():
            if seen >= self.samples:
                break
            chosen.append((inputs, target))
            seen += inputs[0].shape[0]
        return chosen

    def _traces(
        self,
        graph: fx.GraphModule,
        weights: dict[str, Tensor],
        batches: list[LabelledBatch],
        loss: Callable[[Any, Tensor | None], Tensor],
        context: Context,
    ) -> Tensor:
        """One row a probe, one column a layer: `v^T (H v)` of the layer's own weights, float64."""
        generator = torch.Generator().manual_seed(context.seed)
        sizes = _sizes(weights)
        rows: list[Tensor] = []
        ignored = set(weights)
        with context.progress("Hessian traces", self.probes) as advance:
            for probe in range(self.probes):
                batch = batches[probe % len(batches)]
                row, reached = _probe(graph, list(weights.values()), batch, loss, generator)
                rows.append(row)
                ignored -= {layer for layer, found in zip(weights, reached, strict=True) if found}
                advance()
                if probe + 1 >= max(2, len(batches)) and self._settled(torch.stack(rows) / sizes):
                    break
        for layer in [layer for layer in weights if layer in ignored]:
            context.report.add(self.name, "warning", layer, "the loss does not depend on it: its sensitivity is 0")
        return torch.stack(rows)

    def _settled(self, rows: Tensor) -> bool:
        mean, error = _mean_and_error(rows)
        return bool((error <= self.tolerance * mean.max()).all())

    def _annotate(
        self, graph: fx.GraphModule, nodes: dict[str, fx.Node], weights: dict[str, Tensor], traces: Tensor
    ) -> None:
        means, errors = _mean_and_error(traces)
        # a negative mean within its error is noise around zero
        means = torch.where((means < 0) & (means > -2 * errors), torch.zeros_like(means), means)
        sizes = _sizes(weights)
        limit = _threshold(means / sizes, self.threshold)
        total = sum(self.bits)
        by_layer = {}
        for layer, mean, error, size in zip(nodes, means.tolist(), errors.tolist(), sizes.tolist(), strict=True):
            uniform = mean / size < limit
            chances = tuple(1 / len(self.bits) if uniform else b / total for b in self.bits)
            by_layer[layer] = (Sensitivity(mean, error, mean / size, len(traces)), Switching(self.bits, chances))
        for node in layer_nodes(graph):  # every call of a shared layer
            for annotation in by_layer[str(node.target)]:
                annotate(node, annotation)


@contextmanager
def _taking_gradients(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within it all `weights` take gradients; afterwards those that took none, the user's frozen ones, take none."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _sizes(weights: dict[str, Tensor]) -> Tensor:
    return torch.tensor([weight.numel() for weight in weights.values()], dtype=torch.float64)


class _TwiceDifferentiable(fx.Interpreter):
    """Runs a graph with functions that torch can differentiate twice."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), nn.Hardsigmoid):
            return nn.functional.relu6(args[0] + 3) / 6
        return super().call_module(target, args, kwargs)


def _probe(
    graph: fx.GraphModule,
    weights: list[Tensor],
    batch: LabelledBatch,
    loss: Callable[[Any, Tensor | None], Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, list[bool]]:
    """`v^T (H v)` of each layer, and whether the loss depends on the layer at all; without that it is 0."""
    inputs, target = batch
    signs = [torch.randint(0, 2, w.shape, generator=generator).to(w.dtype) * 2 - 1 for w in weights]
    with torch.enable_grad():
        # attention's fused kernels have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            value = loss(_TwiceDifferentiable(graph).run(*inputs, FLOAT), target)
        if not bool(torch.isfinite(value.detach())):
            raise _not_finite(graph, float(value.detach()))
        gradients = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
        reached = [g is not None for g in gradients]
        if not any(reached):
            raise PassError("the loss does not depend on any layer's weight", hint="check loss()")
        curved = [(g, s) for g, s in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
        if not curved:
            return torch.zeros(len(weights), dtype=torch.float64), reached
        outputs, vectors = zip(*curved, strict=True)
        products = torch.autograd.grad(outputs, weights, vectors, allow_unused=True)
    zero = torch.zeros((), dtype=torch.float64)  # where the loss is linear in a layer's weight
    pairs = zip(signs, products, strict=True)
    return torch.stack([zero if p is None else (s * p).sum(dtype=torch.float64) for s, p in pairs]), reached


def _not_finite(graph: fx.GraphModule, loss: float) -> PassError:
    """Why a loss is NaN or infinite: a tensor of the model that is, else what the user gave."""
    for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            message = f"the loss is {loss} on the float model, whose {name} holds NaN or infinity"
            return PassError(message, hint="load a checkpoint whose numbers are finite")
    return PassError(f"the loss is {loss} on the float model", hint="check the data and loss()")


def _mean_and_error(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over probes and its standard error."""
    return rows.mean(0), rows.std(0, correction=1) / math.sqrt(len(rows))


def _threshold(per_parameter: Tensor, rule: str) -> float:
    match rule:
        case "mean":
            return float(per_parameter.mean())
        case "median":
            return float(per_parameter.quantile(0.5))
        case _:
            return float(per_parameter.quantile(0.75))


def _loss(context: Context, batches: list[LabelledBatch], source: str) -> Callable[[Any, Tensor | None], Tensor]:
    """The user's loss, or without one (or without targets) the divergence from the model's own prediction."""
    labelled = bool(batches) and batches[0][1] is not None
    if context.loss is not None and labelled:
        return cast("Callable[[Any, Tensor | None], Tensor]", checked_loss(context.loss))
    missing = "no loss()" if labelled else "no labelled data"
    context.report.add(source, "warning", "", f"{missing}: sensitivity is measured against the model's own prediction")
    return _own_prediction_loss


def _own_prediction_loss(output: Any, target: Tensor | None) -> Tensor:
    """Cross entropy against the model's own distribution over dimension 1; its Hessian is the Fisher matrix.

    Outputs that are no scores [N, classes] are compared by squared error with themselves (the Gauss-Newton matrix);
    those without a gradient (whole numbers, bools) do not count.

    Raises:
        PassError: none of the outputs has a gradient.
    """
    outputs = [o for o in (output if isinstance(output, tuple | list) else (output,)) if o.requires_grad]
    if not outputs:
        raise PassError(
            "no output of the model has a gradient, so that its own prediction measures no sensitivity",
            hint="return the scores and decide outside the model, for instance argmax(1) or > 0; or leave hasb out",
        )
    total = torch.zeros(())
    for part in outputs:
        if part.dim() == 2 and part.shape[1] > 1:
            scores = part.log_softmax(1)
            total = total - (scores.detach().exp() * scores).sum(1).mean()
        else:
            total = total + 0.5 * (part - part.detach()).square().sum() / part.shape[0]
    return total
