"""The `quant` pass: which tensors become codes and at whose width, the ranges it calibrates, and odd models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import mbqc
from mbqc import numerics
from mbqc.backends import reference
from mbqc.errors import DataError, PassError, PipelineError
from mbqc.frontend.trace import trace
from mbqc.ir.annotations import Pinned, Skipped, find_annotation
from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer
from mbqc.ir.quantized import layer_nodes, quantized_layers, weight_quantizer_of
from mbqc.ir.vocabulary import module_of
from mbqc.passes.quant import Quant
from mbqc.passes.quant.calibrate import BINS, Histogram
from mbqc.pipeline import Context
from mbqc.program.operations import Program
from mbqc.widths import FLOAT, resolve
from tests import zoo
from tests.models import seeded
from tests.structures import SHAPE, Forward, Net, conv, fork, pair, three, with_norm
from tests.teacher import assignments, follow

QUANT = "normalize,quant"


def example(modules: Callable[[], dict[str, nn.Module]], function: Forward) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return seeded(lambda: Net(modules(), function), SHAPE)


def quantize(model: nn.Module, context: Context, passes: str = QUANT) -> fx.GraphModule:
    graph = zoo.run(passes, trace(model, context.example_inputs), context)
    assert isinstance(graph, fx.GraphModule)
    return graph


def quantized(
    modules: Callable[[], dict[str, nn.Module]], function: Forward, passes: str = QUANT
) -> tuple[fx.GraphModule, Context]:
    model, inputs = example(modules, function)
    context = Context(inputs)
    return quantize(model, context, passes), context


def quantizers(graph: fx.GraphModule) -> dict[str, tuple[str, str, set[str]]]:
    """Activation quantizers by name: what they quantize, the layers whose width it gets ("8" for 8 bits), readers."""
    found = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, ActivationQuantizer):
            assert module.bits == ((8, 4, 2) if module.layers else (8,))
            layers = " ".join(module.layers) or "8"
            found[node.name] = (str(node.args[0]), layers, {user.name for user in node.users})
    return found


# Which tensors become codes


def test_a_chain_has_one_quantizer_before_each_layer() -> None:
    graph, _ = quantized(with_norm("norm"), lambda m, x: m.c(F.relu(m.b(F.relu(m.norm(m.a(x)))))))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a", {"a"}),
        "relu_quantizer": ("relu", "b", {"b"}),
        "relu_1_quantizer": ("relu_1", "c", {"c"}),
    }


def test_a_residual_is_kept_at_eight_bits_and_narrowed_for_its_layer() -> None:
    graph, _ = quantized(three, lambda m, x: m.c(F.relu(m.b(y := F.relu(m.a(x))) + y)))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a", {"a"}),
        "relu_quantizer": ("relu", "8", {"relu_requantizer", "add"}),
        "relu_requantizer": ("relu_quantizer", "b", {"b"}),
        "relu_1_quantizer": ("relu_1", "c", {"c"}),
    }


def test_of_two_layers_in_a_sum_one_stays_in_its_accumulator() -> None:
    graph, _ = quantized(fork, lambda m, x: m.c(m.a(x) + m.b(x)))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a b", {"a", "b"}),
        "b_quantizer": ("b", "8", {"add"}),
        "add_quantizer": ("add", "c", {"c"}),
    }


def test_the_widest_of_its_layers_gives_a_tensor_its_width() -> None:
    graph, _ = quantized(three, lambda m, x: m.b(y := m.a(x)) * m.c(y))
    assert quantizers(graph)["a_quantizer"] == ("a", "b c", {"b", "c"})


def test_pooling_and_reshaping_move_the_codes_of_their_readers_width() -> None:
    graph, _ = quantized(
        lambda: {"a": conv(3, 4), "fc": nn.Linear(64, 3)},
        lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(x)), 2).flatten(1)),
    )
    assert quantizers(graph)["relu_quantizer"] == ("relu", "fc", {"max_pool2d"})


def test_averages_and_tables_read_eight_bits() -> None:
    graph, _ = quantized(pair, lambda m, x: m.b(F.silu(F.avg_pool2d(m.a(x), 2))))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a", {"a"}),
        "a_quantizer": ("a", "8", {"avg_pool2d"}),
        "avg_pool2d_quantizer": ("avg_pool2d", "8", {"silu"}),
        "silu_quantizer": ("silu", "b", {"b"}),
    }


def test_parts_of_a_concatenation_are_kept_at_eight_bits() -> None:
    graph, _ = quantized(lambda: {**three(), "c": conv(8, 4)}, lambda m, x: m.c(torch.cat([y := m.a(x), m.b(y)], 1)))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a", {"a"}),
        "a_quantizer": ("a", "8", {"a_requantizer", "cat"}),
        "a_requantizer": ("a_quantizer", "b", {"b"}),
        "b_quantizer": ("b", "8", {"cat"}),
        "cat_quantizer": ("cat", "c", {"c"}),
    }


def test_a_float_reader_of_an_integer_result_reads_its_codes() -> None:
    """The result is computed once; what is float anyway, such as the input, is read as it is."""
    graph, _ = quantized(pair, lambda m, x: (m.b(y := F.relu(m.a(x))), y, y * 2, x * 3))
    assert quantizers(graph) == {
        "x_quantizer": ("x", "a", {"a"}),
        "relu_quantizer": ("relu", "8", {"relu_requantizer", "mul", "output"}),
        "relu_requantizer": ("relu_quantizer", "b", {"b"}),
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.c(m.a(x) + m.b(x)[:, :1]),
        lambda m, x: m.c(torch.add(m.a(x), m.b(x), alpha=2)),
        lambda m, x: m.c(m.a(x) - m.b(x)),
        lambda m, x: m.c(m.a(x) * m.b(x)),
    ],
)
def test_operands_of_float_arithmetic_stay_float(function: Forward) -> None:
    graph, _ = quantized(fork, function)
    (_, on_input, _), (_, behind, readers) = quantizers(graph).values()
    assert (on_input, behind, readers) == ("a b", "c", {"c"})


def test_what_no_layer_reads_stays_float() -> None:
    graph, _ = quantized(pair, lambda m, x: F.silu(F.avg_pool2d(m.a(x), 2)))
    assert list(quantizers(graph)) == ["x_quantizer"]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_layer_of_every_model_is_quantized_or_named_with_a_reason(name: str) -> None:
    context = zoo.context(name)
    before = zoo.run("normalize", zoo.traced(name), context)
    graph = zoo.run("normalize,quant", zoo.traced(name), context)
    assert isinstance(before, fx.GraphModule)
    assert isinstance(graph, fx.GraphModule)
    layers = {str(n.target) for n in before.graph.nodes if isinstance(module_of(n), nn.Conv1d | nn.Conv2d | nn.Linear)}
    skipped = {note.subject for note in context.report.notes if note.kind == "skip"}
    assert set(quantized_layers(graph)) | skipped == layers
    assert not set(quantized_layers(graph)) & skipped


# Layers: shared, pinned, skipped


def test_a_shared_layer_has_one_weight_quantizer() -> None:
    graph = zoo.graph("called_twice", QUANT)
    calls = [node for node in layer_nodes(graph) if node.target == "conv"]
    assert len(calls) == 2
    assert calls[0].args[1] is calls[1].args[1]
    names = [str(n.target) for n in graph.graph.nodes if isinstance(module_of(n), WeightQuantizer)]
    assert names == ["conv_weight_quantizer", "embed_weight_quantizer", "head_weight_quantizer"]


def test_tied_weights_get_equal_codes() -> None:
    nodes = {str(node.target): node for node in layer_nodes(zoo.graph("called_twice", QUANT))}
    (one, _, weight), (other, _, same) = (weight_quantizer_of(nodes[name]) for name in ("embed", "head"))
    assert weight is same
    assert torch.equal(one.codes(weight), other.codes(weight))


def pins(graph: fx.GraphModule) -> dict[str, int | None]:
    found = {str(n.target): find_annotation(n, Pinned) for n in layer_nodes(graph)}
    return {name: pin.bits if pin else None for name, pin in found.items()}


def test_first_and_last_layers_are_pinned_unless_told_otherwise() -> None:
    forked: Forward = lambda m, x: m.d(m.c(m.a(x)) + m.c(m.b(x)))  # noqa: E731
    modules = lambda: {**fork(), "d": conv(4, 4)}  # noqa: E731
    assert pins(quantized(modules, forked)[0]) == {"a": 8, "b": 8, "c": None, "d": 8}
    assert set(pins(quantized(modules, forked, "normalize,quant{pin_ends=false}")[0]).values()) == {None}


def test_pinned_layers_are_calibrated_at_their_own_width_whatever_the_others_are() -> None:
    """The range that loses least at 2 bits clips what 8 bits could show."""

    def found(bits: str) -> dict[str, tuple[dict[int, tuple[float, int]], tuple[int, ...]]]:
        graph, _ = quantized(three, lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), f"normalize,quant{{bits={bits}}}")
        modules = (module_of(node) for node in graph.graph.nodes)
        own = [m for m in modules if isinstance(m, ActivationQuantizer)]
        return {" ".join(m.layers): (m.grids(), m.bits) for m in own}

    few, all_three = found("4:2"), found("8:4:2")
    assert {layers: bits for layers, (_, bits) in few.items()} == {"a": (8, 4, 2), "b": (4, 2), "c": (8, 4, 2)}
    assert (few["a"], few["c"]) == (all_three["a"], all_three["c"])


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("b:", "a c layer.0 fc"),
        ('"layer.*":', "a b c fc"),
        ('"[ab]":', "c layer.0 fc"),
        ("Conv2d:", "fc"),
        ('Linear:"?":', "layer.0"),
    ],
)
def test_skipped_layers_stay_as_they_were_and_are_named(skip: str, left: str) -> None:
    def modules() -> dict[str, nn.Module]:
        return {**three(), "layer": nn.Sequential(conv(4, 4)), "fc": nn.Linear(4, 2)}

    graph, context = quantized(
        modules, lambda m, x: m.fc(m.layer(m.c(m.b(m.a(x)))).mean((2, 3))), f"normalize,quant{{skip={skip}}}"
    )
    assert " ".join(quantized_layers(graph)) == left
    skipped = {"a", "b", "c", "layer.0", "fc"} - set(left.split())
    calls = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    for name in skipped:
        assert type(module_of(calls[name])) in (nn.Conv2d, nn.Linear)
        annotation = find_annotation(calls[name], Skipped)
        assert annotation is not None
        assert annotation.reason.startswith("skipped by skip=")
    assert {note.subject for note in context.report.notes if note.kind == "skip"} == skipped


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PassError, match="skip=layer9 matches no layer"):
        quantized(pair, lambda m, x: m.b(m.a(x)), "normalize,quant{skip=a:layer9}")


@pytest.mark.parametrize(
    ("modules", "function", "message"),
    [
        (lambda: {"n": nn.BatchNorm2d(3)}, lambda m, x: F.relu(m.n(x)), "the model has no Conv or Linear layer"),
        (lambda: {"t": nn.ConvTranspose2d(3, 4, 2)}, lambda m, x: m.t(x), "the model has no Conv or Linear layer"),
    ],
)
def test_a_model_without_layers_is_an_error(modules: Any, function: Forward, message: str) -> None:
    with pytest.raises(PassError, match=message):
        quantized(modules, function)


def test_gauss_newton_calibrates_frozen_models_of_whole_numbers() -> None:
    def calibrated(frozen: bool) -> mbqc.Compiled:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        return mbqc.compile(model.requires_grad_(not frozen), ids[:2], "quant", [ids], "reference")

    ids = torch.arange(9)[:, None]
    assert torch.equal(calibrated(frozen=True)(ids), calibrated(frozen=False)(ids))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_layers_that_are_not_float32_are_named(dtype: torch.dtype) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype), torch.randn(2, 4, dtype=dtype)
    message = rf"\(0: it computes in {str(dtype)[6:]}, not in float32; 2: .*\n  try: .* \.float\(\)"
    with pytest.raises(PassError, match=message):
        mbqc.compile(model, x, passes="quant")


def test_leaving_no_layer_is_an_error_that_names_the_reasons() -> None:
    with pytest.raises(PassError, match=r"no layer can be quantized \(a: skipped by skip=\*; b: skipped by skip=\*\)"):
        quantized(pair, lambda m, x: m.b(m.a(x)), 'normalize,quant{skip="*":}')


@pytest.mark.parametrize(
    "options",
    [{"bits": ()}, {"bits": (8, 8)}, {"bits": (9,)}, {"bits": (0, 8)}, {"percentile": 0.5}, {"percentile": 1.5}],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError):
        Quant(**options)


# The float model inside


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_quantized_graph_contains_the_float_model_to_the_last_bit(name: str) -> None:
    inputs = zoo.example(name)[1]
    float_graph = zoo.run("normalize", zoo.traced(name), zoo.context(name))
    assert isinstance(float_graph, fx.GraphModule)
    with torch.no_grad():
        expected, found = float_graph(*inputs), zoo.graph(name)(*inputs, FLOAT)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (expected, found)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["conv_net", "mobilenet", "vit_own"])
def test_more_bits_are_closer_to_the_float_model(name: str) -> None:
    graph, inputs = zoo.graph(name), zoo.example(name)[1]
    with torch.no_grad():
        exact = graph(*inputs, FLOAT)
        noise = [float((graph(*inputs, resolve(b, quantized_layers(graph))) - exact).norm()) for b in (8, 6, 4, 2)]
    assert noise == sorted(noise)
    assert noise[0] < 0.15 * float(exact.norm())  # 16 dB at 8 bits: these models are random and small


# Calibration

METHODS = ("minmax", "percentile", "mse", "gauss_newton")


class Affine(nn.Module):
    """One linear layer: its input is what is calibrated."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def input_grids(data: list[Tensor], options: str) -> dict[int, tuple[float, int]]:
    """The grids of the input of a linear layer, of all widths."""
    context = Context((data[0],), data)
    graph = quantize(seeded(Affine)[0], context, f"normalize,quant{{{options}}}")
    quantizer = graph.get_submodule("x_quantizer")
    assert isinstance(quantizer, ActivationQuantizer)
    return quantizer.grids()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-800, 800), st.integers(-800, 800)), min_size=1, max_size=4))
def test_minmax_covers_exactly_what_was_seen_and_zero(ranges: list[tuple[int, int]]) -> None:
    data = [torch.tensor([[a, b, (a + b) / 2, 0.5 * a]]) / 8 for a, b in ranges]
    low, high = min(0.0, *(float(x.min()) for x in data)), max(0.0, *(float(x.max()) for x in data))
    grids = input_grids(data, "calibration=minmax,bits=8:5:1")
    if low == high:
        assert grids[8] == (1.0, 0)  # nothing but zeros
        return
    for bits in (8, 5, 1):
        scale, zero = grids[bits]
        assert scale == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)  # float32
        assert zero == pytest.approx(-low / scale, abs=0.5001)


def test_percentile_leaves_outliers_out() -> None:
    data = [normal(2000, 4), normal(2000, 4, seed=1)]
    data[1][0, 0] = 1000.0
    scale, zero = input_grids(data, "calibration=percentile,percentile=0.999")[8]
    low, high = -zero * scale, (255 - zero) * scale
    values = torch.cat(data).flatten()
    kept = ((values >= low) & (values <= high)).double().mean()
    assert 0.998 < float(kept) < 0.9999  # 0.999, to a bin of the histogram and to the zero-point's rounding
    assert high < 10
    everything = input_grids(data, "calibration=percentile,percentile=1.0")[8]
    assert everything[0] == pytest.approx((1000 - float(values.min())) / 255, rel=1e-3)  # to a bin


def squared_error(data: list[Tensor], grid: tuple[float, int], bits: int) -> float:
    scale, zero = grid
    values = torch.cat(data).double()
    codes = torch.round(values / scale + zero).clamp(0, 2**bits - 1)
    return float(((codes - zero) * scale - values).square().sum())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("tail", [0.0, 3.0, 30.0])
def test_the_least_squared_error_is_no_larger_than_that_of_the_full_range(bits: int, tail: float) -> None:
    data = [normal(500, 4), normal(500, 4, seed=1).abs()]
    data[0][0] += tail
    errors = [squared_error(data, input_grids(data, f"calibration={m}")[bits], bits) for m in ("mse", "minmax")]
    assert errors[0] <= 1.01 * errors[1]  # the search sees bins of the histogram
    if tail == 30 and bits == 4:
        assert errors[0] < 0.7 * errors[1]


def test_gauss_newton_is_a_function_of_the_data_and_the_seed() -> None:
    """Its draws are random: another seed gives slightly other ranges."""
    model, inputs = example(three, lambda m, x: m.c(F.silu(m.b(F.silu(m.a(x))))))

    def scales(seed: int) -> list[float]:
        graph = quantize(model, Context(inputs, seed=seed))
        found = [module_of(n) for n in graph.graph.nodes]
        return [s for q in found if isinstance(q, ActivationQuantizer) for s in q.scale.tolist()]

    assert scales(0) == scales(0)
    assert scales(0) != scales(1)


def test_gauss_newton_counts_what_reaches_the_output() -> None:
    """Half of the inputs are large and do not matter; the range fits those that do."""
    model = seeded(Affine)[0]
    with torch.no_grad():
        model.fc.weight[:, 2:] = 0
    data = normal(1000, 4)
    data[:, 2:] *= 50
    grids = {}
    for method in ("gauss_newton", "mse"):
        graph = quantize(model, Context((data,), [data]), f"normalize,quant{{calibration={method}}}")
        grids[method] = graph.get_submodule("x_quantizer").grids()[4][0]
    assert grids["gauss_newton"] < grids["mse"] / 4


def test_gauss_newton_without_a_gradient_is_least_squared_error_and_says_so() -> None:
    def calibrated(method: str) -> tuple[list[float], list[str]]:
        model, inputs = example(pair, lambda m, x: m.b(m.a(x).relu()).argmax(1))
        context = Context(inputs, [5 * normal(64, *SHAPE[1:]) ** 3])
        graph = quantize(model, context, f"normalize,quant{{calibration={method}}}")
        found = [module_of(n) for n in graph.graph.nodes]
        scales = [s for q in found if isinstance(q, ActivationQuantizer) for s in q.scale.tolist()]
        return scales, [str(note) for note in context.report.notes if note.kind == "warning"]

    scales, warnings = calibrated("gauss_newton")
    assert scales == calibrated("mse")[0]
    assert scales != calibrated("minmax")[0]
    why = "no output has a gradient for it: its range is that of calibration=mse, not gauss_newton"
    assert warnings == [f"quant: x: {why}", f"quant: relu: {why}"]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_runs_once_a_batch_however_many_widths_there_are(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
    model, inputs = example(three, lambda m, x: m.c(F.relu(m.b(y := m.a(x)) + y)))
    graph = zoo.run("normalize", trace(model, inputs), Context(inputs))
    assert isinstance(graph, fx.GraphModule)
    calls.clear()
    batches = [normal(2, *SHAPE[1:], seed=seed) for seed in range(5)]
    zoo.run(f"quant{{bits=8:7:6:5:4:3:2:1,calibration={method}}}", graph, Context(inputs, batches))
    assert len(calls) == 3 * 5


@pytest.mark.parametrize("method", METHODS)
def test_calibration_refuses_activations_that_are_not_finite(method: str) -> None:
    model, inputs = example(pair, lambda m, x: m.b(torch.log(m.a(x))))
    with pytest.raises(DataError, match="an activation is NaN or infinite on the calibration data") as caught:
        quantize(model, Context(inputs), f"normalize,quant{{calibration={method}}}")
    assert caught.value.where == "pass quant, node log"


def test_the_user_is_told_when_the_example_inputs_alone_calibrate() -> None:
    _, context = quantized(pair, lambda m, x: m.b(m.a(x)))
    assert [str(note) for note in context.report.notes if note.kind == "warning"] == [
        "quant: no calibration data: the example inputs alone set every activation range"
    ]


# The histogram under it


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), min_size=1, max_size=4))
def test_a_histogram_counts_every_value_within_a_bin_of_where_it_lies(batches: list[list[float]]) -> None:
    histogram, values = Histogram(), torch.tensor([v for batch in batches for v in batch])
    for batch in batches:
        histogram.add(torch.tensor(batch))
    assert float(histogram.counts.sum()) == len(values)
    assert (histogram.low, histogram.high) == (min(0.0, float(values.min())), max(0.0, float(values.max())))
    centres = histogram.centres()[histogram.counts > 0]
    distances = (values.double()[:, None] - centres).abs().amin(1)
    # half a bin; values on an edge may be counted on either side of it by float32
    assert bool((distances <= 0.51 * histogram.limit / BINS).all())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50))
def test_equal_weights_count_like_none(values: list[float]) -> None:
    x = torch.tensor(values)
    plain, weighted = Histogram(), Histogram()
    plain.add(x)
    weighted.add(x, torch.full_like(x, 3.0))
    assert float(weighted.counts.sum()) == 3 * float(plain.counts.sum())
    # a value on the edge between two bins may fall on either side
    assert float((weighted.counts.cumsum(0) / 3 - plain.counts.cumsum(0)).abs().max()) <= len(values)
    assert (weighted.limit, weighted.low, weighted.high) == (plain.limit, plain.low, plain.high)


# Weight scales


def wide() -> nn.Module:
    """Normal weights, for which clipping pays at few bits."""
    model = nn.Sequential(nn.Linear(512, 8))
    nn.init.normal_(model[0].weight)
    return model


@pytest.mark.parametrize("ladder", ["round", "shift"])
@pytest.mark.parametrize("bits", [(8,), (8, 4, 2), (3,), (1,)])
def test_weight_scales_minimize_the_product_of_the_squared_errors_of_all_widths(
    bits: tuple[int, ...], ladder: numerics.Ladder
) -> None:
    model, inputs = seeded(wide, (2, 512))
    options = f"bits={':'.join(map(str, bits))}:,ladder={ladder},pin_ends=false"
    graph = quantize(model, Context(inputs), f"normalize,quant{{{options}}}")
    quantizer, _, weight = weight_quantizer_of(layer_nodes(graph)[0])
    flat = weight.detach()
    full = torch.maximum(flat.amax(1) / 127, flat.amin(1) / -128)

    def cost(scale: Tensor) -> Tensor:
        total = torch.zeros(len(scale))
        for width in bits:
            stored = torch.round(flat / scale[:, None]).clamp(-128, 127)
            values = numerics.code_values(numerics.narrow(stored, width, ladder), width, ladder)
            total += (values * scale[:, None] - flat).square().mean(1).log()
        return total

    found = cost(quantizer.scale.detach())
    for share in torch.linspace(0.2, 1.0, 17).tolist():
        # the search tries other shares, at most 0.0125 away, and multiplies by 1 / s
        assert bool((found <= cost(share * full) + 0.05).all()), share
    assert (float((found - cost(full)).mean()) < -0.3) == (bits in ((3,), (1,)))  # 8 bits would suffer


# Models with nothing to measure, or too much


def run_everywhere(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Compiles a model, runs it at every width, and follows the Program through the graph. Returns the notes."""
    context = Context(inputs)
    graph = quantize(model, context, "normalize,quant{pin_ends=false},bncorrect")
    program = zoo.run("lower", graph, context)
    assert isinstance(program, Program)
    for widths in assignments(graph).values():
        (found,) = reference.load(program).run(inputs, widths)
        assert bool(torch.isfinite(found).all())
        follow(graph, program, inputs, widths)
    return [str(note) for note in context.report.notes]


def edited(edit: Callable[[Any], None]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Three convolutions with a BatchNorm and ReLUs, changed by `edit`."""
    model, inputs = example(with_norm("norm"), lambda m, x: m.c(F.relu(m.b(F.relu(m.norm(m.a(x)))))))
    with torch.no_grad():
        edit(model)
    return model, inputs


def dead_relu(m: Any) -> None:
    m.norm.bias.fill_(-1e4)


def constant_channels(m: Any) -> None:
    m.b.weight[0] = 0.25
    m.b.weight[1] = -0.25


def zero_weights(m: Any) -> None:
    m.b.weight.zero_()


def zero_channel(m: Any) -> None:
    m.a.weight[2] = 0


def zero_variance(m: Any) -> None:
    m.norm.running_var[1] = 0


def tiny_weights(m: Any) -> None:
    m.b.weight.mul_(1e-36)


def huge_weights(m: Any) -> None:
    m.a.weight.mul_(1e15)


DEGENERATE = (
    dead_relu,
    constant_channels,
    zero_weights,
    zero_channel,
    zero_variance,
    tiny_weights,
    huge_weights,
)


@pytest.mark.parametrize("edit", DEGENERATE)
def test_degenerate_models_compile_and_run(edit: Callable[[Any], None]) -> None:
    notes = run_everywhere(*edited(edit))
    assert any("is zero on all calibration data" in note for note in notes) == (edit is dead_relu)


def test_inputs_that_are_all_zero_calibrate() -> None:
    model, inputs = edited(lambda m: None)
    assert any("is zero on all" in note for note in run_everywhere(model, tuple(torch.zeros_like(x) for x in inputs)))


def test_a_layer_with_nan_weights_is_skipped_with_the_reason() -> None:
    model, inputs = example(three, lambda m, x: (m.b(m.a(x)), m.c(m.a(x))))
    with torch.no_grad():
        model.get_submodule("c").weight[0, 0, 0, 0] = float("nan")
    context = Context(inputs)
    graph = quantize(model, context)
    assert list(quantized_layers(graph)) == ["a", "b"]
    assert "quant: c: its weight holds NaN or infinity" in [str(note) for note in context.report.notes]
