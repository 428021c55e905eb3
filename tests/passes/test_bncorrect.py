"""The `bncorrect` pass: weights of every width with the moments of the float ones, or statistics for every width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

from mbqc import numerics
from mbqc.errors import PassError, PipelineError
from mbqc.frontend.trace import trace
from mbqc.ir.compare import sqnr
from mbqc.ir.modules import MomentCorrection, WidthBatchNorm
from mbqc.ir.norms import width_norms
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


@dataclass(frozen=True)
class Weights:
    """Of one layer at one width, each [out, n] in float64; the correction's own laws are those of `mbqc.numerics`.

    Attributes:
        used: what the layer computes with.
        quantized: the same before its correction.
        real: the float weights.
        scale: of the quantizer, [out].
        granularity: of the shift, or 0.
    """

    used: Tensor
    quantized: Tensor
    real: Tensor
    scale: Tensor
    granularity: int

    @property
    def rounding(self) -> Tensor:
        """Of float32 sums."""
        return 1e-5 * (self.used.abs().amax(1) + self.real.abs().amax(1))

    @property
    def before(self) -> Tensor:
        """The spread before correction; a constant, as all codes of a channel may be at 1 or 2 bits, has none."""
        spread = numerics.moments(self.quantized)[1]
        return torch.where(spread <= self.rounding, 0.0, spread)

    def step(self, spread: Tensor) -> Tensor:
        """Of the codes that hold a channel's mean, once they have a spread; nothing where an offset does."""
        slope = self.scale * torch.where(self.before > 0, spread / self.before, 1.0)
        return slope if self.granularity else torch.zeros_like(slope)

    def at_an_end(self, step: Tensor) -> Tensor:
        """Channels with a code at an end of the stored range, which may have been clipped."""
        codes = torch.round(self.used / torch.where(step > 0, step, torch.inf)[:, None])
        return ((codes == -128) | (codes == 127)).any(1)


def weights_of(graph: fx.GraphModule, bits: int, inputs: tuple[Tensor, ...]) -> dict[str, Weights]:
    """The weights of every layer at a width."""
    recorder = Recorder(graph)
    with torch.no_grad():
        recorder.run(*inputs, resolve(bits, quantized_layers(graph)))
    found = {}
    for node in layer_nodes(graph):
        quantizer, _, weight = weight_quantizer_of(node)
        source = node.all_input_nodes[1]
        (before,) = (n for n in (source, *source.all_input_nodes) if module_of(n) is quantizer)
        values = (recorder.values[str(node.args[1])], recorder.values[before.name], weight.detach())
        flat, scale = (v.flatten(1).double() for v in values), quantizer.scale.detach().double()
        found[str(node.target)] = Weights(*flat, scale, numerics.shift_granularity(weight.shape, bits))
    return found


@pytest.mark.parametrize("name", zoo.NAMES)
def test_corrected_weights_have_the_moments_of_the_float_ones_at_every_width(name: str) -> None:
    """To half a step of the codes that hold the mean, and half a group of their sum; a clip takes from the spread.

    A constant has no spread to gain; at most one other channel of a layer keeps what it has, for the sake of its mean.
    """
    graph, inputs = zoo.graph(name), zoo.example(name)[1]
    for bits in ALL_BITS:
        for layer, of in weights_of(graph, bits, inputs).items():
            (mean, std), (found_mean, found_std) = numerics.moments(of.real), numerics.moments(of.used)
            count = of.real.shape[1]
            if bits == 8:  # no correction: rounding keeps the sum to half a stored code
                assert torch.equal(of.used, of.quantized)
                assert bool(((found_mean - mean).abs() <= of.scale / (2 * count) + of.rounding).all()), layer
                continue
            where, step = f"{layer} at {bits} bits", of.step(std)
            nearest = (of.granularity // 2 + 0.5) * step / count
            assert bool(((found_mean - mean).abs() <= nearest + of.rounding).all()), where
            assert bool((of.before > 0).any()), where
            off, most = found_std - std, step / 2 + of.rounding
            gained = (off <= most) & ((off >= -most) | of.at_an_end(step))
            kept = (found_std - of.before).abs() <= of.scale / 2 + of.rounding
            assert bool((gained | kept).all()), where
            assert int((~gained & (of.before > 0)).sum()) <= 1, where


def test_the_mean_alone_is_an_option() -> None:
    graph, inputs = zoo.graph("conv_net", f"{QUANT},bncorrect{{moments=mean}}"), zoo.example("conv_net")[1]
    for bits in (6, 3, 1):
        for of in weights_of(graph, bits, inputs).values():
            (mean, _), (found_mean, found_std) = numerics.moments(of.real), numerics.moments(of.used)
            step, count = of.step(of.before), of.real.shape[1]
            assert bool(((found_mean - mean).abs() <= step / (2 * count) + of.rounding).all())
            kept = (found_std - of.before).abs() <= step / 2 + of.rounding
            assert bool((kept | of.at_an_end(step)).all())


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


def test_switchable_batch_norm_has_an_affine_part_a_width_and_starts_from_the_models() -> None:
    switchable = zoo.graph("resnet", f"{QUANT},bncorrect{{moments=none,statistics=width,affine=width}}")
    shared = zoo.graph("resnet", f"{QUANT},bncorrect{{moments=none,statistics=width}}")
    assert norms(switchable)
    for path in norms(switchable):
        norm, like = switchable.get_submodule(path), shared.get_submodule(path)
        assert norm.affine == "width"
        assert torch.equal(norm.weight, like.weight.expand(9, -1))
        assert torch.equal(norm.bias, like.bias.expand(9, -1))
        assert torch.equal(norm.running_var, like.running_var)
    assert not any(is_module(n, (MomentCorrection,)) for n in switchable.graph.nodes)


@pytest.mark.parametrize("ends", ["", "{pin_ends=false}"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_transitional_batch_norm_is_switchable_batch_norm_at_every_uniform_width(name: str, ends: str) -> None:
    """And in float: there a row a width and a row a pair hold the same numbers, so outputs are equal bit for bit."""
    passes = f"normalize,quant{ends},bncorrect{{statistics=width,affine=width}}"
    single, pair, inputs = (
        zoo.graph(name, passes),
        zoo.graph(name, passes.replace("width", "pair")),
        zoo.example(name)[1],
    )
    assert any(norm.before for norm in width_norms(pair).values())
    with torch.no_grad():
        for widths in (FLOAT, *(resolve(bits, quantized_layers(single)) for bits in ALL_BITS)):
            assert torch.equal(pair(*inputs, widths), single(*inputs, widths))


def test_pairs_that_no_uniform_width_has_start_from_the_row_of_their_layers_width() -> None:
    graph = zoo.graph("resnet", "normalize,quant{pin_ends=false},bncorrect{statistics=pair}")
    for norm in width_norms(graph).values():
        rows = norm.running_mean[1:].reshape(-1, 8, norm.num_features)
        own = rows[range(8), range(8)] if norm.before else rows[0]
        assert torch.equal(rows, own.expand_as(rows))


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


@pytest.mark.parametrize("statistics", ["shared", "width", "pair"])
@pytest.mark.parametrize("affine", ["width", "pair"])
def test_an_affine_part_a_row_needs_statistics_of_the_same_rows(statistics: Any, affine: Any) -> None:
    if statistics == affine:
        assert BnCorrect(statistics=statistics, affine=affine).affine == affine
        return
    with pytest.raises(PipelineError, match=f"affine={affine} needs statistics={affine}"):
        BnCorrect(statistics=statistics, affine=affine)


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
