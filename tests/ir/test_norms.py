"""The BatchNorms of a quantized graph: split by width, frozen, estimated, filled up from their neighbours."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mbqc.ir.modules import WidthBatchNorm
from mbqc.ir.norms import (
    batch_norms,
    estimate,
    freeze_statistics,
    nearest_rows,
    split_by_width,
    trained_rows,
    unfreeze_statistics,
    width_norms,
)
from mbqc.ir.parse import parse_graph
from mbqc.ir.quantized import layers_before, quantized_layers
from mbqc.ir.text import graph_tensors, print_graph
from mbqc.ir.vocabulary import module_of
from mbqc.numerics import ALL_BITS
from mbqc.widths import FLOAT, Widths, resolve
from tests import zoo
from tests.teacher import Recorder

QUANT = "normalize,quant{pin_ends=false}"
Affine = Literal["shared", "width"]
every_structure = pytest.mark.parametrize("affine", [None, "shared", "width"])
every_affine = pytest.mark.parametrize("affine", ["shared", "width"])


def quantized(affine: Affine | None = None, name: str = "conv_net", pairs: bool = False) -> fx.GraphModule:
    """A copy of a model's quantized graph; its BatchNorms split by width or pair unless `affine` is None."""
    graph = copy.deepcopy(zoo.graph(name, QUANT))
    if affine is not None:
        split_by_width(graph, affine, pairs)
    return graph


def at(graph: fx.GraphModule, bits: int | dict[Any, int]) -> Widths:
    return resolve(bits, quantized_layers(graph))


def batches(count: int) -> list[tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(1)
    shape = zoo.example("conv_net")[1][0].shape[1:]
    return [(torch.randn(4 + i, *shape, generator=random),) for i in range(count)]


def statistics(graph: fx.GraphModule) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {key: t.clone() for key, t in graph.state_dict().items() if key.endswith(names)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Split by width


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("affine", ["shared", "width"])
def test_split_batch_norms_compute_what_the_shared_ones_did_until_they_are_trained(affine: Affine, pairs: bool) -> None:
    before, after = quantized(), quantized(affine, pairs=pairs)
    assert batch_norms(before)
    assert all(isinstance(norm, WidthBatchNorm) and norm.affine == affine for norm in batch_norms(after).values())
    (x,) = batches(1)[0]
    for widths in (FLOAT, at(before, 8), at(before, 3)):
        with torch.no_grad():
            assert torch.equal(after(x, widths), before(x, widths))
    for name, old in batch_norms(before).items():
        new = after.get_submodule(name)
        assert (new.momentum, new.eps, new.training) == (old.momentum, old.eps, old.training)
        assert new.num_batches_tracked.tolist() == [int(old.num_batches_tracked)] * (65 if new.before else 9)


@pytest.mark.parametrize("momentum", [0.1, 0.25, None])
@pytest.mark.parametrize(("affine", "pairs"), [("shared", False), ("width", False), ("width", True)])
def test_they_come_back_from_text(affine: Affine, pairs: bool, momentum: float | None) -> None:
    graph = quantized()
    for norm in batch_norms(graph).values():
        norm.momentum = momentum
    split_by_width(graph, affine, pairs)
    text, (x,) = print_graph(graph), batches(1)[0]
    found = parse_graph(text, graph_tensors(graph))
    assert print_graph(found) == text
    assert [n.momentum for n in batch_norms(found).values()] == [momentum] * len(batch_norms(graph))
    with torch.no_grad():
        assert torch.equal(found(x, at(graph, 4)), graph(x, at(graph, 4)))


def test_pairs_are_of_the_layers_that_lead_to_a_layer_past_no_other() -> None:
    """Where a residual joins, those of both branches; none before the first layer, which has a row a width."""
    graph = quantized("shared", "resnet", pairs=True)
    before = {norm.layer: norm.before for norm in width_norms(graph).values()}
    assert before["conv1"] == ()
    assert before["layer1.0.conv2"] == ("layer1.0.conv1",)
    assert before["layer1.1.conv1"] == ("conv1", "layer1.0.conv2")  # an identity shortcut
    assert before["layer2.0.body.0"] == ("layer1.1.downsample.0", "layer1.1.conv2")
    assert before == {layer: layers_before(graph, layer) for layer in before}


# Nearest rows


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ((8, 4, 2), [8, 2, 2, 4, 4, 4, 8, 8, 8]),  # rows of the float model, 1, 2, ..., 8; ties go to the wider
        ((6,), [6] * 9),
        ((2, 3), [3, 2, 2, 3, 3, 3, 3, 3, 3]),
        (ALL_BITS, [8, *ALL_BITS]),
    ],
)
@pytest.mark.parametrize("affine", ["shared", "width"])
def test_rows_never_trained_are_those_of_the_nearest_width(
    affine: Affine, trained: tuple[int, ...], expected: list[int]
) -> None:
    graph = quantized(affine)
    for norm in batch_norms(graph).values():
        for tensor in (norm.running_mean, norm.running_var, *([norm.weight, norm.bias] * (affine == "width"))):
            tensor.data.copy_(torch.arange(9.0)[:, None].expand(9, norm.num_features))
    nearest_rows(graph, {name: set(trained) for name in width_norms(graph)})
    for norm in batch_norms(graph).values():
        assert norm.running_mean[:, 0].tolist() == expected
        assert norm.running_var[:, -1].tolist() == expected
        if affine == "width":
            assert norm.weight[:, 0].tolist() == expected
            assert norm.bias[:, 0].tolist() == expected


def test_a_layer_that_kept_a_width_of_its_own_was_trained_at_that_one() -> None:
    graph = quantized("shared")
    name, norm = next(iter(batch_norms(graph).items()))
    norm.running_mean.copy_(torch.arange(9.0)[:, None].expand(9, norm.num_features))
    rows = trained_rows(graph, [at(graph, {norm.layer: 5, ...: bits}) for bits in (8, 4, 2)])
    assert rows[name] == {5}
    nearest_rows(graph, rows)
    assert graph.get_submodule(name).running_mean[:, 0].tolist() == [5.0] * 9


def row(bits: int, before: int) -> int:
    return 8 * (before - 1) + bits


@given(st.sets(st.tuples(st.sampled_from(ALL_BITS), st.sampled_from(ALL_BITS)), min_size=1), st.data())
def test_pairs_never_trained_are_those_of_the_nearest_width_of_the_layer_then_of_those_before(
    known: set[tuple[int, int]], data: st.DataObject
) -> None:
    norm = WidthBatchNorm("b", 2, 1e-3, before=("a",))
    norm.running_mean.copy_(torch.arange(65.0)[:, None].expand(65, 2))
    nearest_rows(only(norm), {"norm": {row(*pair) for pair in known}})
    bits, before = data.draw(st.tuples(st.sampled_from(ALL_BITS), st.sampled_from(ALL_BITS)))
    found = int(norm.running_mean[row(bits, before), 0])
    (own,) = {p for p in known if row(*p) == found}
    assert all(abs(own[0] - bits) <= abs(p[0] - bits) for p in known)
    assert all(abs(own[1] - before) <= abs(p[1] - before) for p in known if p[0] == own[0])
    assert int(norm.running_mean[0, 0]) == row(*max(known))
    assert all(int(norm.running_mean[row(*pair), 0]) == row(*pair) for pair in known)


@given(st.sets(st.sampled_from(ALL_BITS), min_size=1), st.booleans())
def test_for_uniform_widths_pairs_are_taken_from_where_widths_are(trained: set[int], pinned: bool) -> None:
    single, pair = WidthBatchNorm("b", 2, 1e-3), WidthBatchNorm("b", 2, 1e-3, before=("a",))
    uniform = {bits: Widths((("a", 8 if pinned else bits), ("b", bits))) for bits in ALL_BITS}
    for norm in (single, pair):
        for bits, widths in uniform.items():
            norm.running_mean[norm.row(widths)] = bits
        nearest_rows(only(norm), {"norm": {norm.row(uniform[bits]) for bits in trained}})
    for widths in (FLOAT, *uniform.values()):
        assert torch.equal(pair.running_mean[pair.row(widths)], single.running_mean[single.row(widths)])


def only(norm: WidthBatchNorm) -> fx.GraphModule:
    """A graph of one BatchNorm."""
    graph = fx.Graph()
    node = graph.call_module("norm", (graph.placeholder("x"), graph.placeholder("widths")))
    graph.output(node)
    return fx.GraphModule({"norm": norm}, graph)


@every_affine
def test_rows_that_switched_layers_were_trained_at_are_known(affine: Affine) -> None:
    graph = quantized(affine, pairs=True)
    mixed = at(graph, {...: 4, next(iter(quantized_layers(graph))): 2})
    graph.train()(batches(1)[0][0], mixed)
    for name, norm in width_norms(graph).items():
        assert trained_rows(graph, [at(graph, 8)])[name] == {norm.row(at(graph, 8)), norm.row(mixed)}


def test_rows_whose_affine_part_alone_moved_are_known() -> None:
    graph = quantized("width", pairs=True)
    name, norm = list(width_norms(graph).items())[-1]
    with torch.no_grad():
        norm.bias[33] += 0.1
    assert trained_rows(graph, [at(graph, 8)])[name] == {33, norm.row(at(graph, 8))}


# Frozen statistics


@every_structure
def test_frozen_statistics_do_not_move_and_are_what_normalizes(affine: Affine | None) -> None:
    graph = quantized(affine)
    (x,), widths = batches(1)[0], at(graph, 4)
    with torch.no_grad():
        expected, before = graph(x, widths), statistics(graph)
    freeze_statistics(graph)
    graph.eval()
    graph.train()  # as after an evaluation
    result = graph(x, widths)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    assert same(statistics(graph), before)
    for norm in batch_norms(graph).values():
        assert norm.weight.grad is not None
        assert bool(norm.weight.grad.any())
    assert all(m.training for m in graph.modules() if not isinstance(m, tuple(map(type, batch_norms(graph).values()))))


@every_structure
def test_they_follow_the_mode_of_the_graph_until_frozen_and_once_unfrozen(affine: Affine | None) -> None:
    graph, before = quantized(affine), statistics(quantized(affine))
    (x,), widths = batches(1)[0], at(graph, 4)
    graph.eval()(x, widths)
    assert same(statistics(graph), before)
    freeze_statistics(graph.train())
    freeze_statistics(graph)  # twice is once
    graph(x, widths)
    unfreeze_statistics(graph)
    assert same(statistics(graph), before)
    graph(x, widths)
    moved = statistics(graph)
    assert all(not torch.equal(moved[key], before[key]) for key in before)


# Estimation


def moments(graph: fx.GraphModule, data: list[tuple[Tensor, ...]], widths: list[Widths]) -> dict[Any, Tensor]:
    """Mean and variance [2, C] of all that entered a BatchNorm, by its name and the row of its width."""
    graph = copy.deepcopy(graph).train()
    seen = defaultdict(list)
    for inputs in data:
        for each in widths:
            recorder = Recorder(graph)
            with torch.no_grad():
                recorder.run(*inputs, each)
            for node in graph.graph.nodes:
                norm = module_of(node)
                if isinstance(norm, nn.BatchNorm2d | WidthBatchNorm):
                    row = norm.row(each) if isinstance(norm, WidthBatchNorm) else None
                    x = recorder.values[str(node.args[0])].double()
                    seen[str(node.target), row].append(x.movedim(1, 0).flatten(1))
    values = {key: torch.cat(parts, 1) for key, parts in seen.items()}
    return {key: torch.stack([v.mean(1), v.var(1, correction=0)]) for key, v in values.items()}


@pytest.mark.parametrize("training", [False, True])
@every_structure
def test_estimates_are_the_moments_over_all_samples_and_the_widths_that_share_them(
    affine: Affine | None, training: bool
) -> None:
    graph, data = quantized(affine).train(training), batches(3)
    first = next(iter(quantized_layers(graph)))
    widths = [at(graph, 8), at(graph, 4), at(graph, {first: 4, ...: 2})]  # 4 bits twice in the first layer
    expected, before = moments(graph, data, widths), statistics(graph)
    estimate(graph, data, widths, per_width=False)
    for name, norm in batch_norms(graph).items():
        rows = range(9) if isinstance(norm, WidthBatchNorm) else [None]
        for row in rows:
            index = ... if row is None else row
            found = torch.stack([norm.running_mean[index], norm.running_var[index]])
            unseen = torch.stack([before[f"{name}.running_mean"][index], before[f"{name}.running_var"][index]])
            wanted = expected.get((name, row), unseen)
            torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)  # float32 batches
    assert len(expected) > len(batch_norms(graph)) * (affine is not None)
    assert graph.training is training


def test_estimates_for_every_width_split_the_batch_norms_first() -> None:
    pooled, by_width, data = quantized("shared"), quantized(), batches(2)
    widths = [at(pooled, bits) for bits in ALL_BITS]
    estimate(pooled, data, widths, per_width=False)
    estimate(by_width, data, widths, per_width=True)
    assert same(statistics(by_width), statistics(pooled))


def test_estimates_are_sums_in_double_precision() -> None:
    """A large mean over many batches: sums in float32 would lose the variance."""
    graph = quantized()
    name, norm = next(iter(batch_norms(graph).items()))
    (source,) = (n.args[0] for n in graph.graph.nodes if str(n.target) == name)
    layer = graph.get_submodule(str(source.target))
    layer.bias = nn.Parameter(torch.full((norm.num_features,), 100.0))
    data, widths = batches(1) * 50, [at(graph, 8)]
    expected = moments(graph, data[:1], widths)[name, None]
    estimate(graph, data, widths, per_width=False)
    found = torch.stack([norm.running_mean, norm.running_var]).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
