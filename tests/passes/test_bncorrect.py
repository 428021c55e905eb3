"""The `bncorrect` pass: weights of every width with the moments of the float ones, or statistics for every width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

from mbqc.errors import PassError, PipelineError
from mbqc.frontend.trace import trace
from mbqc.ir.compare import sqnr
from mbqc.ir.modules import MomentCorrection, WidthBatchNorm
from mbqc.ir.quantized import layer_nodes, quantized_layers, weight_quantizer_of
from mbqc.ir.vocabulary import BATCH_NORMS, is_module, module_of
from mbqc.numerics import ALL_BITS
from mbqc.passes.bncorrect import BnCorrect
from mbqc.pipeline import Context
from mbqc.widths import FLOAT, resolve
from tests import zoo
from tests.models import seeded
from tests.structures import STRUCTURES, Net, structure, with_norm
from tests.teacher import Recorder

QUANT = "normalize,quant{pin_ends=false}"
SWITCHED = f"{QUANT},bncorrect{{statistics=width}}"


def weights_of(graph: fx.GraphModule, bits: int, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer: the weight that it computes with at a width, and the float weight, both [out, n] in float64."""
    recorder = Recorder(graph)
    with torch.no_grad():
        recorder.run(*inputs, resolve(bits, quantized_layers(graph)))
    found = {}
    for node in layer_nodes(graph):
        weight = weight_quantizer_of(node)[2].detach()
        found[str(node.target)] = (recorder.values[str(node.args[1])].flatten(1).double(), weight.flatten(1).double())
    return found


def close(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    """To float32 rounding of sums, relative to the largest weight of each channel."""
    return bool(((found - expected).abs() <= 1e-5 * size).all())


@pytest.mark.parametrize("name", zoo.NAMES)
def test_corrected_weights_have_the_moments_of_the_float_ones_at_every_width(name: str) -> None:
    graph, inputs = zoo.graph(name), zoo.example(name)[1]
    for bits in ALL_BITS:
        for layer, (used, weight) in weights_of(graph, bits, inputs).items():
            size = used.abs().amax(1) + weight.abs().amax(1)
            if bits == 8:  # no correction: rounding keeps the sum to half a code of at most 1/127 of the largest weight
                assert float(((used.sum(1) - weight.sum(1)).abs() / size).max()) <= 0.51 / 127, layer
                continue
            assert close(used.mean(1), weight.mean(1), size), f"{layer} at {bits} bits"
            spread = used.std(1, correction=0)
            constant = spread <= 1e-6 * size  # all codes of a channel may be the same at 1 or 2 bits
            assert close(torch.where(constant, weight.std(1, correction=0), spread), weight.std(1, correction=0), size)
            assert not bool(constant.all()), f"{layer} at {bits} bits"


def test_the_mean_alone_is_an_option() -> None:
    inputs = zoo.example("conv_net")[1]
    plain, corrected = (zoo.graph("conv_net", f"{QUANT}{rest}") for rest in ("", ",bncorrect{moments=mean}"))
    for bits in (6, 3, 1):
        before, after = (weights_of(graph, bits, inputs) for graph in (plain, corrected))
        for layer, (used, weight) in after.items():
            size = used.abs().amax(1) + weight.abs().amax(1)
            assert close(used.mean(1), weight.mean(1), size)
            assert close(used.std(1), before[layer][0].std(1), size)


def test_a_shared_layer_is_corrected_once() -> None:
    graph = zoo.graph("called_twice")
    corrections = [str(n.target) for n in graph.graph.nodes if is_module(n, (MomentCorrection,))]
    assert corrections == ["conv_weight_correction", "embed_weight_correction", "head_weight_correction"]


def test_correction_is_worth_several_decibels_at_low_widths() -> None:
    """On the trained example, with the statistics of its BatchNorms as they are."""
    images = zoo.digits().images("test")[0][:100]
    plain, corrected = (zoo.graph(zoo.DIGITS, passes) for passes in (QUANT, zoo.FREE))
    with torch.no_grad():
        exact = plain(images, FLOAT)
        for bits in (4, 3, 2):
            widths = resolve(bits, quantized_layers(plain))
            without, with_ = (sqnr(exact, graph(images, widths)) for graph in (plain, corrected))
            assert with_ > without + 2, bits


# Statistics for every width


def norms(graph: fx.GraphModule) -> dict[str, fx.Node]:
    return {str(n.target): n for n in graph.graph.nodes if is_module(n, (WidthBatchNorm,))}


@pytest.mark.parametrize("moments", ["none", "both"])
@pytest.mark.parametrize("name", ["conv_net", "resnet", "mobilenet", "conv1d_net"])
def test_each_row_holds_the_moments_of_what_its_width_feeds_the_batch_norm(name: str, moments: str) -> None:
    """Calibrated on one batch and run on it: mean and variance of each BatchNorm's input are those of the row."""
    passes = f"{QUANT},bncorrect{{moments={moments},statistics=width}}"
    graph, inputs = zoo.graph(name, passes), zoo.example(name)[1]
    assert norms(graph)
    assert any(is_module(n, (MomentCorrection,)) for n in graph.graph.nodes) == (moments == "both")
    for bits in ALL_BITS:
        recorder = Recorder(graph)
        with torch.no_grad():
            recorder.run(*inputs, resolve(bits, quantized_layers(graph)))
        for path, node in norms(graph).items():
            norm = graph.get_submodule(path)
            assert isinstance(norm, WidthBatchNorm)
            seen = recorder.values[str(node.args[0])].movedim(1, 0).flatten(1).double()
            found = torch.stack([norm.running_mean[bits], norm.running_var[bits]]).double()
            expected = torch.stack([seen.mean(1), seen.var(1, correction=0)])
            # float32; a code in a hundred thousand that is rounded the other way would move later layers by as much
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_statistics_of_several_batches_are_those_of_all_their_samples() -> None:
    model, (x,) = seeded(lambda: Net(with_norm("norm")(), lambda m, x: m.b(m.norm(m.a(x)))), (12, 3, 8, 8))
    graphs = []
    for batches in ([x], [x[:1], x[1:4], x[4:]]):
        graph = zoo.run(
            f"{QUANT.replace('{', '{calibration=minmax,')},bncorrect{{statistics=width}}",
            trace(model, (x,)),
            Context((x,), batches),
        )
        assert isinstance(graph, fx.GraphModule)
        graphs.append(graph.get_submodule("norm"))
    one, several = graphs
    torch.testing.assert_close(several.running_mean, one.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(several.running_var, one.running_var, rtol=1e-5, atol=1e-6)


def test_row_zero_affine_part_and_epsilon_are_those_of_the_model() -> None:
    before, after = zoo.graph("resnet", QUANT), zoo.graph("resnet", SWITCHED)
    for path in norms(after):
        old, new = before.get_submodule(path), after.get_submodule(path)
        assert torch.equal(new.running_mean[0], old.running_mean)
        assert torch.equal(new.running_var[0], old.running_var)
        assert torch.equal(new.weight, old.weight)
        assert torch.equal(new.bias, old.bias)
        assert new.eps == old.eps


@pytest.mark.parametrize("name", ["conv_net", "resnet", "mobilenet"])
def test_the_float_model_inside_keeps_its_statistics(name: str) -> None:
    inputs = zoo.example(name)[1]
    with torch.no_grad():
        expected, found = (zoo.graph(name, passes)(*inputs, FLOAT) for passes in (QUANT, SWITCHED))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("one BatchNorm behind two layers", {"norm"}),
        ("one BatchNorm behind a layer and a sum", {"norm"}),
        ("BatchNorm beside a float reader", {"norm"}),
        ("BatchNorm twice", {"n2"}),
        ("BatchNorm behind a clamp", {"norm"}),
        ("one layer with two BatchNorms", set()),
    ],
)
def test_batch_norms_that_fold_into_no_single_layer_keep_shared_statistics_and_are_reported(
    name: str, left: set[str]
) -> None:
    modules, function = STRUCTURES[name]
    foldable = {"last": nn.BatchNorm2d(3), "d": nn.Conv2d(3, 3, 1)}
    model, inputs = seeded(
        lambda: Net({**modules(), **foldable}, lambda m, x: (function(m, x), m.last(m.d(x)))), (2, 3, 8, 8)
    )
    context = Context(inputs)
    graph = zoo.run(SWITCHED, trace(model, inputs), context)
    assert isinstance(graph, fx.GraphModule)
    assert "last" in norms(graph)
    assert {str(n.target) for n in graph.graph.nodes if isinstance(module_of(n), BATCH_NORMS)} == left
    reported = {n.subject for n in context.report.notes if "keeps the statistics" in n.message}
    assert reported == left


# Options and errors


def test_correcting_nothing_is_refused() -> None:
    with pytest.raises(PipelineError, match="corrects nothing"):
        BnCorrect(moments="none", statistics="shared")


@pytest.mark.parametrize("name", ["a difference", "BatchNorm behind a clamp"])
def test_statistics_a_width_need_a_batch_norm_behind_a_layer(name: str) -> None:
    model, inputs = structure(name)
    with pytest.raises(PassError, match="no BatchNorm follows a quantized layer") as caught:
        zoo.run(SWITCHED, trace(model, inputs), Context(inputs))
    assert caught.value.where == "pass bncorrect"


def test_it_needs_a_quantized_graph() -> None:
    model, inputs = structure("BatchNorm first")
    with pytest.raises(PipelineError, match="bncorrect needs 'quantized'"):
        zoo.run("normalize,bncorrect", trace(model, inputs), Context(inputs))


def test_functional_batch_norm_is_corrected_like_a_module() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.full((4,), 0.1))
            self.register_buffer("var", torch.full((4,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), self.mean, self.var)

    model, inputs = seeded(Functional, (2, 3, 6, 6))
    graph = zoo.run(SWITCHED, trace(model, inputs), Context(inputs))
    assert isinstance(graph, fx.GraphModule)
    assert len(norms(graph)) == 1
