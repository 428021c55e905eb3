"""Steps of weights and scales against Adam done by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mbqc.ir.modules import WidthBatchNorm
from mbqc.passes.train.optimizers import ScaleOptimizer, WeightOptimizer, scale_parameters
from tests.passes.train.small import batch, quiet, shared, stepper

RATE = 0.01
SWITCHABLE = "normalize,quant,bncorrect{moments=none,statistics=width,affine=width}"


class Adam:
    """Of one number (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

    def __init__(self) -> None:
        self.m, self.v, self.t = 0.0, 0.0, 0

    def step(self, g: float) -> float:
        """What to subtract, at a rate of 1."""
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        return self.m / (1 - 0.9**self.t) / (math.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64) + 0.1


def scales_of(graph: fx.GraphModule) -> list[float]:
    return torch.cat([p.detach() for p in scale_parameters(graph)]).tolist()


DOMAINS: dict[str, tuple[Callable[[float], float], Callable[[float], float], Callable[[float, float], float]]] = {
    "log": (math.log, math.exp, lambda s, g: g * s),
    "raw": (lambda s: s, lambda s: s, lambda s, g: g),
}
"""To the domain and back, and the gradient in it."""


@pytest.mark.parametrize("domain", DOMAINS)
def test_scale_steps_are_those_of_adam_in_their_domain(domain: str) -> None:
    """A step without gradient tells Adam of a zero, but the scale goes on from where it was."""
    into, back, chain = DOMAINS[domain]
    rate = {"log": RATE, "raw": 1e-6}[domain]
    graph, _ = stepper()
    scales, parameters = ScaleOptimizer(graph, domain, "off"), scale_parameters(graph)  # type: ignore[arg-type]
    expected = scales_of(graph)
    adams = [Adam() for _ in expected]
    for turn in range(4):
        give_gradients(parameters, turn)
        for p in parameters[turn % 2 :: 2] if turn else []:
            p.grad = torch.zeros_like(p)
        gradients = torch.cat([p.grad for p in parameters if p.grad is not None]).tolist()
        expected = [
            back(into(s) - rate * adam.step(chain(s, g)) * (g != 0))
            for s, g, adam in zip(expected, gradients, adams, strict=True)
        ]
        scales.step(rate, 8)
    assert scales_of(graph) == pytest.approx(expected, rel=1e-9)


def test_raw_scales_stay_positive() -> None:
    graph, _ = stepper()
    scales = ScaleOptimizer(graph, "raw", "off")
    give_gradients(scale_parameters(graph), 0)
    scales.step(1e3, 8)
    assert min(scales_of(graph)) > 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_scales_without_gradient_keep_their_value_for_all_their_momentum(domain: str) -> None:
    graph, _ = stepper()
    scales, parameters = ScaleOptimizer(graph, domain, "off"), scale_parameters(graph)  # type: ignore[arg-type]
    give_gradients(parameters, 0)
    scales.step(RATE, 8)
    before = [p.detach().clone() for p in parameters]
    resting = parameters[::2]
    for p in resting:
        p.grad = None
    partly = parameters[1]
    assert partly.grad is not None
    partly.grad[0] = 0.0
    scales.step(RATE, 8)
    for p, old in zip(parameters, before, strict=True):
        if any(p is other for other in resting):
            assert torch.equal(p, old)
        else:
            assert not torch.equal(p, old)
    assert partly[0] == before[1][0]


def test_a_step_at_one_width_moves_no_activation_scale_of_another() -> None:
    graph, made = stepper(bits=(4,))
    before = {name: p.detach().clone() for name, p in graph.named_parameters() if "scale" in name}
    made.round(shared(batch()), 0, 0, quiet)
    for name, module in graph.named_modules():
        own = before.get(f"{name}.scale")
        if own is None or not hasattr(module, "bits"):
            continue
        moved = [b for b, old, new in zip(module.bits, own, module.scale, strict=True) if old != new]
        assert moved in ([4], [8])  # 8: what pinned layers read
    assert any(".scale" in name for name in before)


def test_alrs_scales_each_step_by_its_rates() -> None:
    plain, ruled = (stepper()[0] for _ in range(2))
    for graph, rule, rate in ((plain, "off", 1.0), (ruled, "channel", 2.0)):
        scales = ScaleOptimizer(graph, "log", rule)  # type: ignore[arg-type]
        give_gradients(scale_parameters(graph), 0)
        before = scales_of(graph)
        scales.step(rate, 6)
        moves = [math.log(s / old) for s, old in zip(scales_of(graph), before, strict=True)]
        if rule == "off":
            whole = moves
    gradient = torch.cat([p.grad for p in scale_parameters(ruled) if p.grad is not None])
    gradient = gradient * torch.tensor(before, dtype=torch.float64)
    parts = torch.split(gradient, [p.numel() for p in scale_parameters(ruled)])
    size = torch.cat([part / max(1.0, float(part.norm())) for part in parts]).abs()
    expected = 0.1 * (2.0 - size) * torch.tensor(whole, dtype=torch.float64)
    assert moves == pytest.approx(expected.tolist(), rel=1e-6)
    assert scales.clamped == 0.0


def test_frozen_scales_never_move() -> None:
    graph, made = stepper(scales="frozen")
    before = scales_of(graph)
    made.round(shared(batch()), 0, 0, quiet)
    assert scales_of(graph) == before


def test_weight_steps_are_those_of_adam_and_only_layers_weights_decay() -> None:
    graph, _ = stepper()
    decay = 0.1
    weights, apart = WeightOptimizer(graph, decay), {id(p) for p in scale_parameters(graph)}
    own = [p for p in graph.parameters() if id(p) not in apart]
    scales = scales_of(graph)
    for p in graph.parameters():
        p.grad = torch.full_like(p, 0.5)
    before = [p.detach().clone() for p in own]
    weights.step(RATE)
    for p, old in zip(own, before, strict=True):
        gradient = 0.5 + (decay * old if p.dim() > 1 else 0.0)
        assert torch.allclose(p, old - RATE * torch.sign(torch.as_tensor(gradient)), atol=1e-8)
    assert {p.dim() for p in own} == {1, 2, 4}
    assert scales_of(graph) == scales


def test_decay_alone_moves_weights_of_layers_and_nothing_else() -> None:
    graph, _ = stepper()
    weights, apart = WeightOptimizer(graph, 0.1), {id(p) for p in scale_parameters(graph)}
    for p in graph.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in graph.named_parameters()}
    weights.step(RATE)
    moved = {name for name, p in graph.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n, p in graph.named_parameters() if p.dim() > 1 and id(p) not in apart}


def rows(graph: fx.GraphModule) -> list[Tensor]:
    norms = [m for m in graph.modules() if isinstance(m, WidthBatchNorm)]
    return [table.detach().clone() for norm in norms for table in (norm.weight, norm.bias)]


def test_rows_of_a_switchable_batchnorm_rest_in_steps_at_other_widths() -> None:
    graph, made = stepper(passes=SWITCHABLE)
    layers = [m.layer for m in graph.modules() if isinstance(m, WidthBatchNorm)]
    pinned = {layer for layer, bits in made._layers.items() if bits is not None}
    made.round(shared(batch()), 0, 0, quiet)  # gives all trained rows momentum
    history = [rows(graph)]
    made._bits = (4,)
    made.round(shared(batch(1)), 0, 1, quiet)
    history.append(rows(graph))
    for layer, pair in zip([n for n in layers for _ in range(2)], zip(*history, strict=True), strict=True):
        moved = (pair[0] != pair[1]).any(1).nonzero().flatten().tolist()
        assert moved == ([8] if layer in pinned else [4])
