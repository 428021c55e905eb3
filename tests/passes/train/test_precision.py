"""bfloat16: layers compute in half the bits, what accumulates and what is reported does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbqc.fused.functions import quantize_activation
from mbqc.ir.modules import ActivationQuantizer, MomentCorrection, QuantConv2d, WeightQuantizer
from mbqc.ir.norms import batch_norms
from mbqc.passes.train import Train
from mbqc.passes.train.judge import metrics
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.passes.train.parallel.synchronised import SynchronisedBatchNorm
from mbqc.passes.train.task import Task
from tests.passes.train.small import batch, context, differing, quantized, quiet, shared, trained, weights

HALF, EXACT = torch.bfloat16, torch.float32
LONG = "epochs=10,rate=0.01"


def test_it_learns_as_well() -> None:
    (_, rough), (_, exact) = trained(f"{LONG},precision=bfloat16"), trained(LONG)
    for bits in (8, 4, 2):
        assert rough.epochs[0].loss[bits] == pytest.approx(exact.epochs[0].loss[bits], rel=0.01)
        assert rough.epochs[-1].loss[bits] == pytest.approx(exact.epochs[-1].loss[bits], rel=0.03)
        assert rough.after[bits] == pytest.approx(exact.after[bits], abs=5)  # 2 of 48 samples


def test_layers_compute_in_half_and_all_else_does_not() -> None:
    graph = copy.deepcopy(quantized()).train()
    seen: dict[type[nn.Module], set[torch.dtype]] = {}

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        seen.setdefault(type(module), set()).add(output.dtype)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen[nn.CrossEntropyLoss] = {output.dtype}
        assert not torch.is_autocast_enabled("cpu")
        return nn.functional.cross_entropy(output, target)

    for module in graph.modules():
        module.register_forward_hook(note)
    options = Train(precision="bfloat16", distill="float")
    Stepper(Task(graph, options, (8, 4, 2), context(loss=loss), Ranks()), 10).round(shared(batch()), 0, 0, quiet)
    assert seen[QuantConv2d] == seen[nn.BatchNorm2d] == {HALF}
    assert seen[ActivationQuantizer] == {EXACT, HALF}  # the first one quantizes the input
    assert seen[WeightQuantizer] == seen[MomentCorrection] == seen[nn.CrossEntropyLoss] == {EXACT}
    for name, tensor in graph.state_dict().items():
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else EXACT), name
    assert {p.grad.dtype for p in graph.parameters() if p.grad is not None} == {EXACT}


@pytest.mark.parametrize("options", ["epochs=1", "epochs=2,coreset=entropy", "epochs=1,reestimate=width"])
def test_what_is_judged_is_what_is_lowered(options: str) -> None:
    surroundings = context()
    graph, result = trained(f"precision=bfloat16,{options}", surroundings)
    assert {p.dtype for p in graph.parameters()} == {EXACT}
    assert (result.separate or result.after) == metrics(graph, range(1, 9), surroundings)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in graph.state_dict().values())


def test_a_loss_gets_all_of_several_outputs_in_float32() -> None:
    graph = copy.deepcopy(quantized()).train()
    (output,) = graph.graph.find_nodes(op="output")
    with graph.graph.inserting_before(output):
        label = graph.graph.call_function(torch.argmax, (output.args[0], 1))
    output.args = ((output.args[0], label),)
    graph.recompile()
    seen: list[torch.dtype] = []

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        seen.extend(part.dtype for part in output)
        return nn.functional.cross_entropy(output[0], target)

    made = Stepper(Task(graph, Train(precision="bfloat16"), (8,), context(loss=loss), Ranks()), 10)
    made.round(shared(batch()), 0, 0, quiet)
    assert seen == [EXACT, torch.int64]


@pytest.mark.parametrize("bits", [8, 4, 1])
@pytest.mark.parametrize("rectify", [False, True])
def test_activations_are_quantized_in_float32_and_come_back_as_they_were(bits: int, rectify: bool) -> None:
    random = torch.Generator().manual_seed(bits)
    x = torch.randn(4, 3, 5, 5, generator=random).to(HALF)
    gradient = torch.randn(x.shape, generator=random).to(HALF)
    found = []
    for dtype in (HALF, EXACT):
        inputs, scale = x.to(dtype, copy=True).requires_grad_(), torch.tensor(0.013, requires_grad=True)
        y = quantize_activation(inputs, scale, torch.tensor(3.0), bits, rectify=rectify)
        y.backward(gradient.to(dtype))
        assert inputs.grad is not None
        assert scale.grad is not None
        assert y.dtype == inputs.grad.dtype == dtype
        found.append((y, inputs.grad, scale.grad))
    (y, at_x, at_scale), (exact, exact_at_x, exact_at_scale) = found
    assert torch.equal(y, exact.to(HALF))
    assert torch.equal(at_x, exact_at_x.to(HALF))
    assert torch.equal(at_scale, exact_at_scale)
    assert at_scale.dtype == EXACT


def test_batch_norm_over_ranks_takes_its_statistics_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a world of one it is torch's own."""
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda sums: None)
    random = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(8, 3, 4, 4, generator=random).to(HALF) for _ in range(2))
    found: list[list[Tensor]] = []
    for mode in (SynchronisedBatchNorm(1), torch.enable_grad()):
        norm, inputs = nn.BatchNorm2d(3), x.clone().requires_grad_()
        with mode:
            y = norm(inputs)
        y.backward(gradient)
        assert inputs.grad is not None
        assert y.dtype == inputs.grad.dtype == HALF
        assert norm.weight.grad is not None
        assert norm.running_var is not None
        assert norm.running_mean is not None
        assert norm.running_var.dtype == EXACT
        found.append([y, inputs.grad, norm.weight.grad, norm.running_mean, norm.running_var])
    for own, torchs in zip(*found, strict=True):
        assert own.dtype == torchs.dtype
        assert torch.allclose(own, torchs, rtol=2**-7 if own.dtype == HALF else 1e-4, atol=2**-7)


def test_one_seed_gives_the_same_weights_bit_for_bit() -> None:
    one, other = (weights(trained("epochs=1,precision=bfloat16")[0]) for _ in range(2))
    assert differing(one, other) == []
    assert len(differing(one, weights(trained("epochs=1")[0]))) > 10


def test_statistics_stand_still_where_they_are_frozen() -> None:
    before = {name: norm.running_var for name, norm in batch_norms(quantized()).items()}
    graph, _ = trained("epochs=1,bn_freeze=1,precision=bfloat16")
    for name, norm in batch_norms(graph).items():
        assert torch.equal(norm.running_var, before[name])  # type: ignore[arg-type]
