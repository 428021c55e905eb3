"""The `hasb` pass: Hessian traces with honest errors, and what follows from them; the model itself never changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mbqc.errors import DataError, PassError, PipelineError
from mbqc.frontend.trace import trace
from mbqc.ir.annotations import Sensitivity, Switching, annotation, find_annotation
from mbqc.ir.quantized import layer_nodes, quantized_layers
from mbqc.ir.text import graph_tensors, print_graph
from mbqc.passes.hasb import Hasb
from mbqc.pipeline import Context, Pipeline
from mbqc.widths import FLOAT, resolve
from tests import zoo
from tests.models import seeded

SAMPLES, IN, OUT = 64, 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TwoLinear(nn.Module):
    """Linear in both weights, so that the Hessian of a quadratic loss is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(IN, OUT), nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(3 * x)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(1).mean()


def correlated(seed: int = 0) -> Tensor:
    """Inputs that share a part: the Hessian has entries beside its diagonal, and probes differ."""
    return normal(SAMPLES, IN, seed=seed) + 2 * normal(SAMPLES, 1, seed=seed + 1)


def traces_of(x: Tensor) -> dict[str, float]:
    """The Hessian of a layer is I (x) X^T X / N."""
    own = OUT * float(x.double().square().sum(1).mean())
    return {"a": own, "b": 9 * own}


def quantized(build: Callable[[], nn.Module], x: Tensor) -> fx.GraphModule:
    model, _ = seeded(build)
    graph = zoo.run("normalize,quant", trace(model, (x[:2],)), Context((x[:2],)))
    assert isinstance(graph, fx.GraphModule)
    return graph


def sensed(graph: fx.GraphModule, context: Context, options: Hasb) -> fx.GraphModule:
    result = Pipeline((options,)).run(graph, context)
    assert isinstance(result, fx.GraphModule)
    return result


def sensitivities(graph: fx.GraphModule) -> dict[str, Sensitivity]:
    return {str(node.target): annotation(node, Sensitivity) for node in layer_nodes(graph)}


def labelled(*batches: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, normal(len(x), OUT, seed=9)) for x in batches]


NEVER = 1e-9
"""A tolerance that no number of probes reaches."""


# The estimate


def test_traces_of_a_quadratic_lie_within_their_errors_and_the_errors_are_honest() -> None:
    """Over thirty seeds and two layers, the mean square of the deviation in standard errors is 1 within its own error.

    Cross terms with the other layer have mean zero; to the error of the smaller layer they add most.
    """
    x = correlated()
    graph = quantized(TwoLinear, x)
    deviations = []
    for seed in range(30):
        context = Context((x[:2],), labelled=labelled(x), loss=squared, seed=seed)
        found = sensitivities(sensed(graph, context, Hasb(probes=40, tolerance=NEVER)))
        for layer, exact in traces_of(x).items():
            assert found[layer].probes == 40
            assert found[layer].stderr < 0.5 * exact
            assert found[layer].per_parameter == pytest.approx(found[layer].trace / (IN * OUT))
            deviations.append((found[layer].trace - exact) / found[layer].stderr)
    assert max(map(abs, deviations[:2])) < 3
    assert max(map(abs, deviations)) < 4
    # the variance of Student's t with 39 degrees is 1.05; the mean of 60 squares has a standard error of 0.2
    assert 0.5 < sum(d * d for d in deviations) / len(deviations) < 1.7


def test_batches_count_alike() -> None:
    small, large = correlated(), 4 * correlated(5)
    context = Context((small[:2],), labelled=labelled(small, large), loss=squared)
    found = sensitivities(sensed(quantized(TwoLinear, small), context, Hasb(probes=60, tolerance=NEVER)))
    for layer in ("a", "b"):
        exact = (traces_of(small)[layer] + traces_of(large)[layer]) / 2
        assert abs(found[layer].trace - exact) < 3 * found[layer].stderr


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_without_labels_the_trace_is_that_of_the_fisher_matrix() -> None:
    """Of a softmax over the scores: E[(1 - sum p^2) |x|^2]."""
    x = correlated()
    graph = quantized(Softmax, x)
    context = Context((x[:2],), [x])
    found = sensitivities(sensed(graph, context, Hasb(probes=200, tolerance=NEVER)))["fc"]
    with torch.no_grad():
        p = graph(x, FLOAT).softmax(1).double()
    exact = float(((1 - p.square().sum(1)) * x.double().square().sum(1)).mean())
    assert abs(found.trace - exact) < 3 * found.stderr
    assert found.stderr < 0.1 * exact


def test_of_outputs_that_are_no_scores_it_is_that_of_the_squared_error() -> None:
    x = normal(8, 5, IN) + normal(8, 1, 1, seed=1)
    found = sensitivities(sensed(quantized(Softmax, x), Context((x[:2],), [x]), Hasb(probes=200, tolerance=NEVER)))
    exact = OUT * float(x.double().square().sum((1, 2)).mean())
    assert abs(found["fc"].trace - exact) < 3 * found["fc"].stderr


def test_a_loss_without_curvature_has_a_trace_of_zero() -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=lambda output, target: output.mean())
    found = sensitivities(sensed(quantized(TwoLinear, x), context, Hasb()))
    assert {(s.trace, s.stderr, s.probes) for s in found.values()} == {(0.0, 0.0, 2)}


def test_a_negative_trace_within_its_error_counts_as_zero_and_beyond_it_stays() -> None:
    x = correlated()
    graph = quantized(TwoLinear, x)
    context = Context((x[:2],), labelled=labelled(x), loss=lambda output, target: -squared(output, target))
    assert all(s.trace < -2 * s.stderr for s in sensitivities(sensed(graph, context, Hasb())).values())
    saddle = lambda output, target: (output[:, 0].square() - output[:, 1].square()).mean()  # noqa: E731
    found = [
        s
        for seed in range(6)
        for s in sensitivities(
            sensed(graph, Context((x[:2],), labelled=labelled(x), loss=saddle, seed=seed), Hasb(probes=10))
        ).values()
    ]
    assert any(s.trace == 0 for s in found)
    assert all(s.trace >= 0 or s.trace < -2 * s.stderr for s in found)


# When it stops


@pytest.mark.parametrize("tolerance", [0.2, 0.1, 0.05])
def test_it_stops_once_all_errors_are_below_the_tolerance(tolerance: float) -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=squared)
    found = sensitivities(sensed(quantized(TwoLinear, x), context, Hasb(probes=1000, tolerance=tolerance)))
    largest = max(s.per_parameter for s in found.values())
    assert all(s.stderr / (IN * OUT) <= tolerance * largest for s in found.values())
    assert 2 <= found["a"].probes < 1000
    assert not context.report.notes


def test_it_says_when_it_has_not_settled() -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=squared)
    sensed(quantized(TwoLinear, x), context, Hasb(probes=3, tolerance=NEVER))
    assert ["had not settled after 3 probes" in note.message for note in context.report.notes] == [True]


def test_it_reads_no_more_samples_than_it_is_given() -> None:
    """Training data may be endless."""
    read = []

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for seed in itertools.count():
            read.append(seed)
            yield labelled(correlated(seed))[0]

    x = correlated()
    context = Context((x[:2],), labelled=endless(), loss=squared)
    sensed(quantized(TwoLinear, x), context, Hasb(samples=3 * SAMPLES, probes=4))
    assert len(read) <= 4  # it may look at one more to know that there are enough


# What it leaves as it was


@pytest.mark.parametrize("name", zoo.NAMES)
def test_outputs_and_graph_stay_the_same_to_the_last_bit(name: str) -> None:
    before, inputs = zoo.graph(name), zoo.example(name)[1]
    after = sensed(before, zoo.context(name), Hasb(probes=2))
    layers = quantized_layers(before)
    for widths in (FLOAT, resolve(8, layers), resolve(2, layers)):
        with torch.no_grad():
            pairs = zip(
                *(v if isinstance(v, tuple) else (v,) for v in (before(*inputs, widths), after(*inputs, widths))),
                strict=True,
            )
        assert all(torch.equal(a, b) for a, b in pairs)
    tensors = graph_tensors(after)
    assert all(torch.equal(t, tensors[key]) for key, t in graph_tensors(before).items())
    assert all(find_annotation(node, Sensitivity) is None for node in layer_nodes(before))
    for node in layer_nodes(after):
        del node.meta["annotations"][Sensitivity], node.meta["annotations"][Switching]
    assert print_graph(after).replace(", sensitivity", "") == print_graph(before)


def test_layers_that_take_no_gradient_take_none_afterwards() -> None:
    """They are the user's frozen ones, which a later `train` must keep."""
    x = correlated()
    graph = quantized(TwoLinear, x)
    graph.get_parameter("a.weight").requires_grad_(False)
    after = sensed(graph, Context((x[:2],), labelled=labelled(x), loss=squared), Hasb(probes=2))
    assert sensitivities(after)["a"].trace != 0
    assert not after.get_parameter("a.weight").requires_grad
    assert after.get_parameter("b.weight").requires_grad


def test_the_seed_decides() -> None:
    x = correlated()
    graph = quantized(TwoLinear, x)

    def found(seed: int) -> list[Sensitivity]:
        context = Context((x[:2],), labelled=labelled(x), loss=squared, seed=seed)
        return list(sensitivities(sensed(graph, context, Hasb(probes=5, tolerance=NEVER))).values())

    state = torch.get_rng_state()
    assert found(1) == found(1)
    assert found(1) != found(2)
    assert torch.equal(torch.get_rng_state(), state)  # of nobody else's numbers


def test_every_call_of_a_shared_layer_is_annotated_alike() -> None:
    graph = sensed(zoo.graph("called_twice"), zoo.context("called_twice"), Hasb(probes=2))
    first, second = (annotation(n, Sensitivity) for n in layer_nodes(graph) if n.target == "conv")
    assert first == second


# Switching


@pytest.mark.parametrize(("threshold", "uniform"), [("mean", {"a"}), ("median", {"a"}), ("quartile", {"a"})])
def test_layers_below_the_threshold_draw_uniformly_the_others_in_proportion_to_their_widths(
    threshold: Any, uniform: set[str]
) -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=squared)
    graph = sensed(quantized(TwoLinear, x), context, Hasb(threshold=threshold, bits=(8, 6, 2)))
    for node in layer_nodes(graph):
        switching = annotation(node, Switching)
        assert switching.bits == (8, 6, 2)
        expected = (1 / 3, 1 / 3, 1 / 3) if node.target in uniform else (8 / 16, 6 / 16, 2 / 16)
        assert switching.probabilities == pytest.approx(expected)


class Chain(nn.Module):
    """Five layers, each read with a factor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(IN, OUT) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (layer(x * factor) for layer, factor in zip(self.layers, (1, 2, 3, 4, 20), strict=True))
        return a + b + c + d + e


@pytest.mark.parametrize(("threshold", "count"), [("mean", 4), ("median", 2), ("quartile", 3)])
def test_a_few_huge_traces_hide_the_rest_from_the_mean_alone(threshold: Any, count: int) -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=squared)
    graph = sensed(quantized(Chain, x), context, Hasb(threshold=threshold, bits=(8, 4), probes=300, tolerance=0.001))
    chances = [annotation(node, Switching).probabilities for node in layer_nodes(graph)]
    assert [c == (0.5, 0.5) for c in chances] == [True] * count + [False] * (5 - count)


# Data, loss and options


def notes(context: Context) -> list[str]:
    return [note.message for note in context.report.notes if "sensitivity is measured" in note.message]


def test_the_user_is_told_when_the_models_own_prediction_serves_as_the_target() -> None:
    x = correlated()
    graph = quantized(TwoLinear, x)
    without_labels, without_loss, complete = (
        Context((x[:2],), [x], loss=squared),
        Context((x[:2],), labelled=labelled(x)),
        Context((x[:2],), labelled=labelled(x), loss=squared),
    )
    for context in (without_labels, without_loss, complete):
        sensed(graph, context, Hasb(probes=2))
    own = ": sensitivity is measured against the model's own prediction"
    assert [notes(c) for c in (without_labels, without_loss, complete)] == [
        [f"no labelled data{own}"],
        [f"no loss(){own}"],
        [],
    ]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: 3, "an object of type int, expected a scalar"),
        (lambda output, target: (output - target).square(), r"and shape \(\d+, \d+\), expected a scalar"),
        (lambda output, target: torch.tensor(1.0), "does not depend on output"),
        (lambda output, target: output.argmax(1).float().mean(), "does not depend on output"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, message: str) -> None:
    x = correlated()
    with pytest.raises(DataError, match=message):
        sensed(quantized(TwoLinear, x), Context((x[:2],), labelled=labelled(x), loss=loss), Hasb())


def test_a_loss_that_fails_is_quoted() -> None:
    x = correlated()
    context = Context((x[:2],), labelled=[(x, torch.zeros(SAMPLES, OUT + 1))], loss=squared)
    with pytest.raises(DataError, match=r"loss\(output, target\) failed: RuntimeError: The size of tensor a"):
        sensed(quantized(TwoLinear, x), context, Hasb())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: output.sum() * float("nan"), "the loss is nan on the float model"),
        (lambda output, target: target.sum().requires_grad_(), "does not depend on any layer"),
    ],
)
def test_a_loss_that_says_nothing_is_refused(loss: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=loss)
    with pytest.raises(PassError, match=message) as caught:
        sensed(quantized(TwoLinear, x), context, Hasb())
    assert caught.value.where == "pass hasb"


def test_a_layer_that_the_loss_ignores_has_sensitivity_zero_and_is_named() -> None:
    class TwoHeads(TwoLinear):
        def forward(self, x: Tensor) -> Any:
            return self.a(x), self.b(x)

    x = correlated()
    context = Context((x[:2],), labelled=labelled(x), loss=lambda output, target: squared(output[0], target))
    found = sensitivities(sensed(quantized(TwoHeads, x), context, Hasb(probes=4)))
    assert found["b"].trace == found["b"].stderr == 0 < found["a"].trace
    (warning,) = [str(note) for note in context.report.notes if "depend" in str(note)]
    assert warning == "hasb: b: the loss does not depend on it: its sensitivity is 0"


def test_a_parameter_that_is_not_finite_is_named() -> None:
    x = correlated()
    graph = quantized(lambda: nn.Sequential(nn.Linear(IN, 4), nn.Linear(4, OUT)), x)
    with torch.no_grad():
        graph.get_parameter("1.weight")[0, 0] = float("nan")
    with pytest.raises(PassError, match=r"the loss is nan on the float model, whose 1\.weight holds NaN"):
        sensed(graph, Context((x[:2],), labelled=labelled(x), loss=squared), Hasb())


class Decides(nn.Module):
    """Its prediction beside its scores, or alone."""

    def __init__(self, scores: bool) -> None:
        super().__init__()
        self.a, self.b, self.scores = nn.Linear(IN, 5), nn.Linear(5, OUT), scores

    def forward(self, x: Tensor) -> Any:
        scores = self.b(self.a(x).relu())
        return (scores, scores.argmax(1), scores > 0) if self.scores else scores.argmax(1)


def test_outputs_without_a_gradient_do_not_count() -> None:
    x = correlated()
    found = sensitivities(sensed(quantized(lambda: Decides(True), x), Context((x[:2],), [x]), Hasb(probes=4)))
    assert min(s.trace for s in found.values()) > 0


def test_a_model_without_any_gradient_is_told_what_to_return() -> None:
    x = correlated()
    with pytest.raises(PassError, match="no output of the model has a gradient") as caught:
        sensed(quantized(lambda: Decides(False), x), Context((x[:2],), [x]), Hasb(probes=4))
    assert "return the scores" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"probes": 1},
        {"samples": 0},
        {"tolerance": 0.0},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
        {"bits": ()},
        {"bits": (8, 9)},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError):
        Hasb(**options)
