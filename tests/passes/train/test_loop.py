"""One round of training: gradients, teachers, clipping, statistics, and where it refuses to go on."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from mbqc.errors import DataError, PassError
from mbqc.frontend.trace import trace
from mbqc.ir.modules import MomentCorrection
from mbqc.ir.norms import batch_norms
from mbqc.ir.quantized import quantized_layers
from mbqc.passes.train.distill import divergence
from mbqc.passes.train.feeds import Fed
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.optimizers import ScaleOptimizer, WeightOptimizer
from mbqc.widths import FLOAT, resolve
from tests.passes.train.small import batch, context, quiet, run, shared, stepper, trained, weights

BITS = (8, 4, 2)


def gradients(graph: fx.GraphModule, fed: Fed, bits: int) -> list[Tensor]:
    """Of the loss at one width, by parameter; zero where it has none."""
    graph.zero_grad()
    output = graph(*(x.double() for x in fed.inputs), resolve(bits, quantized_layers(graph)))
    cross_entropy(output, fed.target).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in graph.parameters()]


def test_accumulate_is_one_step_along_the_mean_gradient() -> None:
    graph, made = stepper(step="accumulate")
    by_hand = copy.deepcopy(graph)
    each = [gradients(by_hand, batch(), bits) for bits in BITS]
    for p, *parts in zip(by_hand.parameters(), *each, strict=True):
        p.grad = torch.stack(parts).mean(0)
    WeightOptimizer(by_hand, 5e-5).step(2e-3)
    ScaleOptimizer(by_hand, "log", "off").step(2e-3, 2)
    made.round(shared(batch()), 0, 0, quiet)
    for (name, found), expected in zip(graph.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10), name


def test_each_width_steps_from_where_the_one_before_it_went() -> None:
    graph, made = stepper()
    by_hand = copy.deepcopy(graph)
    adam, scales = WeightOptimizer(by_hand, 5e-5), ScaleOptimizer(by_hand, "log", "off")
    for bits in BITS:
        for p, gradient in zip(by_hand.parameters(), gradients(by_hand, batch(), bits), strict=True):
            p.grad = gradient
        adam.step(2e-3)
        scales.step(2e-3, bits)
    seen: list[int] = []
    made.round(shared(batch()), 0, 0, lambda bits, fed, output, loss: seen.append(bits))
    assert seen == list(BITS)
    for (name, found), expected in zip(graph.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10), name


class Teachers:
    """Stands where the divergence is, and notes who taught whom."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, output: Any, teacher: Any) -> Tensor:
        self.pairs.append((output, teacher))
        return divergence(output, teacher)


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> Teachers:
    found = Teachers()
    monkeypatch.setattr("mbqc.passes.train.objective.divergence", found)
    return found


def test_the_float_model_as_it_was_before_training_teaches_every_width(teachers: Teachers) -> None:
    graph, made = stepper(distill="float")
    with torch.no_grad():
        expected = copy.deepcopy(graph).eval()(*(x.double() for x in batch().inputs), FLOAT)
    for done in range(2):
        made.round(shared(batch()), 0, done, quiet)
    assert len(teachers.pairs) == 2 * len(BITS)
    assert all(torch.equal(teacher, expected) and not teacher.requires_grad for _, teacher in teachers.pairs)


def test_the_highest_width_learns_from_labels_and_teaches_the_others(teachers: Teachers) -> None:
    _, made = stepper(distill="highest")
    outputs: dict[int, Tensor] = {}
    made.round(shared(batch()), 0, 0, lambda bits, fed, output, loss: outputs.update({bits: output}))
    assert [teacher is outputs[8] for _, teacher in teachers.pairs] == [True, True]
    assert not outputs[8].requires_grad
    assert [torch.equal(o.detach(), outputs[b]) for (o, _), b in zip(teachers.pairs, (4, 2), strict=True)] == [True] * 2


def test_a_taught_width_gets_half_of_each_loss() -> None:
    _, made = stepper(distill="highest")
    found: dict[int, tuple[Tensor, float]] = {}
    made.round(shared(batch()), 0, 0, lambda bits, fed, output, loss: found.update({bits: (output, loss)}))
    for bits, (output, loss) in found.items():
        expected = cross_entropy(output, batch().target)
        if bits != 8:
            expected = 0.5 * (expected + divergence(output, found[8][0]))
        assert loss == pytest.approx(float(expected), rel=1e-9)


def test_divergence_is_kullback_leiblers_and_gives_no_gradient_to_the_teacher() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    found = divergence(student, teacher)
    p, q = (x.detach().softmax(1) for x in (teacher, student))
    assert float(found.detach()) == pytest.approx(float((p * (p / q).log()).sum() / 5), rel=1e-12)
    found.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.allclose(student.grad, (q - p) / 5)
    assert float(divergence(teacher.detach(), teacher)) == 0
    with pytest.raises(DataError, match=r"compares scores \[N, classes\].*\n.*distill=none"):
        divergence(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def test_labels_are_smoothed() -> None:
    _, made = stepper(label_smoothing=0.3)
    found: list[tuple[float, Tensor]] = []
    made.round(shared(batch()), 0, 0, lambda bits, fed, output, loss: found.append((loss, output)))
    for loss, output in found:
        target = 0.7 * nn.functional.one_hot(batch().target, 3).double() + 0.1
        assert loss == pytest.approx(float(-(target * output.log_softmax(1)).sum(1).mean()), rel=1e-9)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e6])
def test_the_norm_of_gradients_but_those_of_scales_is_clipped(clip: float) -> None:
    norms = []
    for limit in (0.0, clip):
        _, made = stepper(clip=limit, bits=(2,))
        made.round(shared(batch()), 0, 0, quiet)
        gradients = [p.grad for p in made.weights.parameters if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
    assert norms[1] == pytest.approx(clip if clip == 1e-3 else norms[0], rel=1e-5)


# BatchNorm


def statistics_by_round(monkeypatch: pytest.MonkeyPatch, options: str) -> list[dict[str, Tensor]]:
    """Before the first round and after each."""
    found: list[dict[str, Tensor]] = []
    original = Stepper.round

    def spy(self: Stepper, *arguments: Any) -> None:
        if not found:
            found.append(_statistics(self._graph))
        original(self, *arguments)
        found.append(_statistics(self._graph))

    monkeypatch.setattr(Stepper, "round", spy)
    trained(options)
    return found


def _statistics(graph: fx.GraphModule) -> dict[str, Tensor]:
    norms = batch_norms(graph).items()
    assert norms
    return {f"{name}.{key}": value.clone() for name, norm in norms for key, value in norm.named_buffers()}


@pytest.mark.parametrize(("share", "moving"), [(0.0, 12), (0.25, 9), (0.35, 8), (1.0, 0)])
def test_statistics_stand_still_in_the_last_share_of_the_rounds_and_move_in_all_others(
    monkeypatch: pytest.MonkeyPatch, share: float, moving: int
) -> None:
    found = statistics_by_round(monkeypatch, f"epochs=2,bn_freeze={share}")
    changed = [[not torch.equal(old[k], new[k]) for k in old] for old, new in pairwise(found)]
    assert [all(row) for row in changed] == [True] * moving + [False] * (12 - moving)
    assert [any(row) for row in changed] == [True] * moving + [False] * (12 - moving)


def test_the_affine_part_learns_on_while_statistics_stand_still() -> None:
    graph, _ = trained("epochs=1,bn_freeze=1")
    start, _ = stepper()
    for name, norm in batch_norms(graph).items():
        old = batch_norms(start)[name]
        assert torch.equal(norm.running_mean, old.running_mean.float())  # type: ignore[union-attr]
        assert not torch.equal(norm.weight, old.weight.float())


class _Corrected(fx.Interpreter):
    """Runs a graph and keeps weights before and after moment correction."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_module(target, args, kwargs)
        if isinstance(self.fetch_attr(target), MomentCorrection):
            self.found.append((args[1].flatten(1), args[0].flatten(1) / args[2][:, None], result.flatten(1)))
        return result


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("offsets", [False, True])
def test_live_weights_have_the_moments_of_the_float_ones_at_every_width(
    monkeypatch: pytest.MonkeyPatch, bits: int, offsets: bool
) -> None:
    """With an offset a channel exactly, with one in the codes to half a step of their sum (`numerics`)."""
    if offsets:
        monkeypatch.setattr("mbqc.numerics.shift_granularity", lambda shape, bits: 0)
    graph, made = stepper()
    for done in range(3):
        made.round(shared(batch(done)), 0, done, quiet)
    interpreter = _Corrected(graph)
    with torch.no_grad():
        interpreter.run(batch().inputs[0].double(), resolve(bits, quantized_layers(graph)))
    assert len(interpreter.found) == 4
    for layer, (weight, codes, corrected) in enumerate(interpreter.found):
        if layer in (0, 3):
            continue  # pinned to 8 bits
        size = weight.shape[1]
        spread = weight.std(1, correction=0)
        step = 0.0 if offsets else spread / codes.std(1, correction=0)
        mean_off = (corrected.mean(1) - weight.mean(1)).abs()
        spread_off = (corrected.std(1, correction=0) - spread).abs()
        assert bool((mean_off <= 0.5 * step / size + 1e-6 * spread).all())
        assert bool((spread_off <= 0.5 * step + 1e-6 * spread).all())


# What is not finite


def nan_at(call: int) -> Any:
    calls = iter(range(1, 1000))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target) * (torch.nan if next(calls) == call else 1.0)

    return loss


def test_a_loss_that_is_nan_stops_before_the_step_and_names_width_and_loss() -> None:
    graph, made = stepper(loss=nan_at(2))
    parameters: list[dict[str, Tensor]] = []
    with pytest.raises(PassError, match=r"the loss is nan at 4 bits: the output is finite, so it is loss\(\)\n"):
        made.round(shared(batch()), 0, 0, lambda *_: parameters.append(weights(graph)))
    assert len(parameters) == 1
    assert all(torch.equal(p, parameters[0][name]) for name, p in graph.named_parameters())


def test_a_weight_that_is_nan_is_named() -> None:
    graph, made = stepper()
    with torch.no_grad():
        graph.get_parameter("3.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(PassError, match=r"the loss is nan at 8 bits: 3\.weight holds NaN or infinity\n.*lower rate"):
        made.round(shared(batch()), 0, 0, quiet)


def test_a_node_that_overflows_is_named() -> None:
    graph, made = stepper()
    with torch.no_grad():
        graph.get_parameter("4.weight").fill_(1e308)
        graph.get_parameter("4.bias").fill_(1e308)
    with pytest.raises(PassError, match=r"at 8 bits: the output of 4 \(_4\) is the first that holds NaN or infinity"):
        made.round(shared(batch()), 0, 0, quiet)


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


def test_a_gradient_that_is_nan_is_named() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(_BadGradient.apply(output), target)  # type: ignore[no-untyped-call]

    graph, made = stepper(loss=loss)
    before = weights(graph)
    with pytest.raises(PassError, match=r"the gradient is not finite at 8 bits: the gradient of .* is the first"):
        made.round(shared(batch()), 0, 0, quiet)
    assert all(torch.equal(p, before[name]) for name, p in graph.named_parameters())


def test_a_batch_of_one_sample_is_told_where_batchnorm_needs_more() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    fed = batch()
    one = [(fed.inputs[0][:1], fed.target[:1])]
    graph = trace(Flat().eval(), (fed.inputs[0][:1],))
    with pytest.raises(DataError, match="a batch of one sample has no BatchNorm statistics"):
        run("normalize,quant{pin_ends=false},bncorrect,train{epochs=1}", graph, context(one))
