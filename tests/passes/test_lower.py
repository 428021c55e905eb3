"""The `lower` pass: the Program computes what the quantized graph computes, fused as far as possible."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

import mbqc
from mbqc.backends import reference
from mbqc.errors import PassError, VerifyError
from mbqc.frontend.trace import trace
from mbqc.ir.annotations import Sensitivity, annotation
from mbqc.ir.compare import sqnr
from mbqc.ir.modules import ActivationQuantizer
from mbqc.ir.quantized import layer_nodes, quantized_layers
from mbqc.ir.vocabulary import module_of
from mbqc.numerics import ALL_BITS
from mbqc.pipeline import Context
from mbqc.program.float_operations import Activation, Arithmetic, FloatOperation, LayerNorm, Softmax
from mbqc.program.operations import (
    Affine,
    AnyOperation,
    Aten,
    AveragePool,
    Concat,
    Conv,
    Epilogue,
    LayerInfo,
    Linear,
    Lookup,
    MaxPool,
    Program,
    Quantize,
    Reshape,
)
from mbqc.program.text import print_program
from mbqc.widths import Bits, Widths, resolve
from tests import zoo
from tests.models import inputs_like, seeded
from tests.structures import STRUCTURES, Forward, Net, conv, pair, structure, three, with_norm
from tests.teacher import follow

FREE = zoo.FREE
WIDTH_NORMS = "normalize,quant{pin_ends=false,ladder=shift},bncorrect{statistics=width}"

AGREEMENT = 90.0
"""Decibels; float rounding alone leaves more than 100. One value that is rounded the other way costs far more, and
whether a sample has one is luck: so the best of several samples counts. `tests/teacher.py` needs no luck."""


def compiled(
    example: tuple[nn.Module, tuple[Tensor, ...]], passes: str = FREE
) -> tuple[fx.GraphModule, Program, Context]:
    model, inputs = example
    context = Context(inputs)
    graph = zoo.run(passes, trace(model, inputs), context)
    assert isinstance(graph, fx.GraphModule)
    program = zoo.run("lower", graph, context)
    assert isinstance(program, Program)
    return graph, program, context


def net(modules: Callable[[], dict[str, nn.Module]], function: Forward, passes: str = FREE) -> Program:
    """The Program of a small network on images [2, 3, 8, 8]."""
    return compiled(seeded(lambda: Net(modules(), function), (2, 3, 8, 8)), passes)[1]


def operations(program: Program, kind: type[Any]) -> list[Any]:
    return [o for o in program.listing.operations if isinstance(o, kind)]


def kinds(program: Program) -> list[str]:
    return [type(o).__name__ for o in program.listing.operations]


def mixed(graph: fx.GraphModule) -> Widths:
    """Neighbouring layers at different widths."""
    layers = quantized_layers(graph)
    return resolve({layer: 2 + 3 * index % 7 for index, layer in enumerate(layers)}, layers)


def agreement(graph: fx.GraphModule, program: Program, example: tuple[Tensor, ...], widths: Widths) -> float:
    """The worst output of the Program against the graph's, in decibels, for the best of eight random samples."""
    inputs = inputs_like(example, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = graph(*inputs, widths)
    found = reference.load(program).run(inputs, widths)
    pairs = list(zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(min(sqnr(a, b) for a, b in sample) for sample in zip(*(_samples(a, b) for a, b in pairs), strict=True))


def _samples(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(a.chunk(8), b.chunk(8), strict=True))


# What a Program computes


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_model_computes_in_integers_what_its_graph_computes(name: str) -> None:
    graph, program, inputs = zoo.graph(name), zoo.program(name), zoo.example(name)[1]
    layers = quantized_layers(graph)
    for widths in [*(resolve(bits, layers) for bits in (8, 4, 2, 1)), mixed(graph)]:
        assert agreement(graph, program, inputs, widths) > AGREEMENT, str(widths)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_computes_in_integers_what_its_graph_computes(name: str) -> None:
    graph, program, context = compiled(structure(name))
    layers = quantized_layers(graph)
    for widths in (resolve(8, layers), resolve(3, layers), mixed(graph)):
        assert agreement(graph, program, context.example_inputs, widths) > AGREEMENT, str(widths)


@pytest.mark.parametrize(
    "name", ["BatchNorm twice", "BatchNorm beside a float reader, then a layer", "one BatchNorm behind two layers"]
)
def test_batch_norms_with_statistics_a_width_lower_where_they_can_and_are_left_alone_elsewhere(name: str) -> None:
    modules, function = STRUCTURES[name]
    both = seeded(
        lambda: Net(
            {**modules(), "own": nn.BatchNorm2d(4), "d": conv(3, 4)}, lambda m, x: (function(m, x), m.own(m.d(x)))
        ),
        (2, 3, 8, 8),
    )
    graph, program, context = compiled(both, WIDTH_NORMS)
    for widths in (resolve(8, quantized_layers(graph)), mixed(graph)):
        assert agreement(graph, program, context.example_inputs, widths) > AGREEMENT


def only(graph: fx.GraphModule, bits: int) -> fx.GraphModule:
    """The graph with activation grids of one width alone; the interpolated ones are gone."""
    alone = copy.deepcopy(graph)
    for node in alone.graph.nodes:
        quantizer = module_of(node)
        if isinstance(quantizer, ActivationQuantizer) and quantizer.layers:
            scale, zero = quantizer.grids()[bits]
            made = ActivationQuantizer(quantizer.layers, (bits,))
            made.scale.data.fill_(scale)
            made.zero_point.fill_(zero)
            alone.set_submodule(str(node.target), made)
    return alone


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit_own", "densenet"])
@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_a_width_of_the_whole_program_is_the_model_lowered_for_that_width_alone(name: str, bits: int) -> None:
    graph, inputs = zoo.graph(name), zoo.example(name)[1]
    alone = zoo.run("lower", only(graph, bits), zoo.context(name))
    assert isinstance(alone, Program)
    widths = resolve(bits, quantized_layers(graph))
    found, expected = (reference.load(p).trace(inputs, widths) for p in (zoo.program(name), alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[value], expected[value]) for value in expected)


@pytest.mark.parametrize("name", ["resnet", "vit_torch", "conv1d_net", "channel_shuffle", "two_inputs"])
def test_any_batch_gives_each_sample_what_it_gets_alone(name: str) -> None:
    """Float fallbacks may sum in another order, so they are compared to float rounding."""
    program, inputs = reference.load(zoo.program(name)), zoo.example(name)[1]
    widths = resolve(4, quantized_layers(zoo.graph(name)))
    three = [torch.cat([x, x[:1]]) for x in inputs]
    for whole, alone in zip(program.run(three, widths), program.run([x[:1] for x in inputs], widths), strict=True):
        torch.testing.assert_close(whole[:1], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole[2:], alone, rtol=1e-5, atol=1e-5)


# What it stores


@pytest.mark.parametrize("name", ["mobilenet", "called_twice"])
def test_weights_are_stored_once_as_bytes_whatever_the_widths(name: str) -> None:
    graph, program = zoo.graph(name), zoo.program(name)
    layers = quantized_layers(graph)
    stored = {name: t for name, t in program.tensors.items() if t.dtype == torch.int8}
    assert stored.keys() == {f"{layer}.codes" for layer in layers}
    weights = {layer: graph.get_submodule(layer).weight for layer in layers}
    assert {n: t.numel() for n, t in stored.items()} == {f"{k}.codes": w.numel() for k, w in weights.items()}
    rest = sum(t.numel() for n, t in program.tensors.items() if n not in stored)
    assert rest <= sum(5 * w.shape[0] for w in weights.values()) + 16  # scale, mean, spread, gain, shift


@pytest.mark.parametrize(
    ("passes", "mean", "std"),
    [
        ("normalize,quant", False, False),
        ("normalize,quant,bncorrect{moments=mean}", True, False),
        ("normalize,quant,bncorrect", True, True),
    ],
)
def test_moments_are_stored_as_far_as_they_are_corrected(passes: str, mean: bool, std: bool) -> None:
    program = zoo.program("conv_net", passes)
    for layer in operations(program, Conv) + operations(program, Linear):
        assert (layer.weight.mean is not None, layer.weight.std is not None) == (mean, std)


def test_layers_keep_their_pins_and_their_sensitivity() -> None:
    infos = zoo.program("conv_net", "normalize,quant").listing.layers
    assert infos == {"0": LayerInfo(8), "3": LayerInfo(None), "8": LayerInfo(8)}
    passes = "normalize,quant{pin_ends=false},hasb{probes=3}"
    graph, known = zoo.graph("conv_net", passes), zoo.program("conv_net", passes).listing.layers
    for node in layer_nodes(graph):
        trace = annotation(node, Sensitivity)
        count = graph.get_submodule(str(node.target)).weight.numel()
        assert known[str(node.target)] == LayerInfo(None, trace.per_parameter, trace.stderr / count)


# Fusion


def test_batch_norm_bias_clamp_and_residual_become_the_epilogue_of_the_layer() -> None:
    program = net(with_norm("norm"), lambda m, x: m.c(F.hardtanh(m.norm(m.b(y := m.a(x))) + y, -0.5, 3.0)))
    assert kinds(program) == ["Quantize", "Conv", "Lookup", "Conv", "Conv", "Permute"]
    first, second, third = operations(program, Conv)
    assert first.epilogue == Epilogue(shift=f"{first.output}.shift")  # its bias
    assert second.epilogue == Epilogue(
        f"{second.output}.gain", f"{second.output}.shift", residual=first.output, low=-0.5, high=3.0
    )
    assert third.epilogue.residual is None
    norm, bias = zoo_norm(with_norm("norm"))
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    # float32 rounding of a product and a sum
    torch.testing.assert_close(program.tensors[f"{second.output}.gain"], gain, rtol=1e-6, atol=1e-6)
    shift = norm.bias + gain * (bias - norm.running_mean)
    torch.testing.assert_close(program.tensors[f"{second.output}.shift"], shift, rtol=1e-6, atol=1e-6)


def zoo_norm(modules: Callable[[], dict[str, nn.Module]]) -> tuple[nn.BatchNorm2d, Tensor]:
    """The BatchNorm of a network and the bias of the layer `b` before it."""
    model, _ = seeded(lambda: Net(modules(), lambda m, x: x), (2, 3, 8, 8))
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    return norm, model.get_submodule("b").get_parameter("bias").detach()


@torch.no_grad()
def test_statistics_a_width_become_a_row_a_width() -> None:
    program = net(with_norm("norm"), lambda m, x: m.b(m.norm(m.a(x))), WIDTH_NORMS)
    epilogue = operations(program, Conv)[0].epilogue
    for name in (epilogue.gain, epilogue.shift):
        rows = program.tensors[name]
        assert rows.shape == (8, 4)
        assert len({tuple(row) for row in rows.tolist()}) == 8


def test_an_affine_part_a_width_runs_at_its_width() -> None:
    passes = WIDTH_NORMS.replace("statistics", "affine=width,statistics")
    model, inputs = seeded(lambda: Net(with_norm("norm")(), lambda m, x: m.b(m.norm(m.a(x)))), (2, 3, 8, 8))
    graph = zoo.run(passes, trace(model, inputs), Context(inputs))
    assert isinstance(graph, fx.GraphModule)
    random = torch.Generator().manual_seed(0)
    for part in (graph.norm.weight, graph.norm.bias):
        nn.init.uniform_(part, 0.5, 2.0, generator=random)
    program = zoo.run("lower", graph, Context(inputs))
    assert isinstance(program, Program)
    for bits in ALL_BITS:
        assert agreement(graph, program, inputs, resolve(bits, quantized_layers(graph))) > AGREEMENT, bits


def test_a_layer_that_two_operations_read_is_computed_once() -> None:
    program = net(with_norm("norm"), lambda m, x: m.norm(y := m.a(x)) * y)
    assert kinds(program).count("Conv") == 1


def test_a_second_clamp_or_batch_norm_gets_an_operation_of_its_own() -> None:
    program = net(with_norm("norm"), lambda m, x: m.b(m.norm(F.relu(m.a(x)))))
    assert kinds(program) == ["Quantize", "Conv", "Affine", "Conv", "Permute"]
    (affine,) = operations(program, Affine)
    assert affine.epilogue.gain is not None


@pytest.mark.parametrize(
    ("function", "name", "arguments"),
    [(F.silu, "silu.default", ()), (lambda x: F.leaky_relu(x, 0.2), "leaky_relu.default", (0.2,))],
)
def test_other_activations_become_tables(function: Callable[[Tensor], Tensor], name: str, arguments: Any) -> None:
    program = net(pair, lambda m, x: m.b(function(m.a(x))))
    assert kinds(program) == ["Quantize", "Conv", "Lookup", "Conv", "Permute"]
    ((call,),) = (table.functions for table in operations(program, Lookup))
    assert (call.name, call.args) == (name, arguments)


def test_activations_in_a_row_become_one_table() -> None:
    program = net(pair, lambda m, x: m.b(torch.tanh(F.silu(m.a(x)))))
    assert kinds(program) == ["Quantize", "Conv", "Lookup", "Conv", "Permute"]
    ((first, second),) = (table.functions for table in operations(program, Lookup))
    assert (first.name, second.name) == ("silu.default", "tanh.default")


def test_pooling_and_reshaping_move_codes_and_keep_their_grid() -> None:
    program = net(
        lambda: {"a": conv(3, 4), "fc": nn.Linear(64, 3)},
        lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(x)), 2).flatten(1)),
    )
    assert kinds(program) == ["Quantize", "Conv", "MaxPool", "Permute", "Reshape", "Linear"]
    grids = [program.listing.values[o.output].grid for o in program.listing.operations[1:5]]
    assert len(set(grids)) == 1
    assert program.listing.grids[str(grids[0])].layers == ("fc",)
    assert operations(program, MaxPool)[0].kernel == (2, 2)


def test_an_average_takes_the_clamp_and_the_grid_behind_it() -> None:
    program = net(pair, lambda m, x: m.b(F.relu(F.avg_pool2d(m.a(x), 2))))
    assert kinds(program) == ["Quantize", "Conv", "AveragePool", "Conv", "Permute"]
    (average,) = operations(program, AveragePool)
    assert average.epilogue == Epilogue(low=0.0)


def test_concatenation_brings_its_parts_to_one_grid() -> None:
    program = net(lambda: {**three(), "c": conv(8, 4)}, lambda m, x: m.c(torch.cat([y := m.a(x), m.b(y)], 1)))
    (concat,) = operations(program, Concat)
    values = program.listing.values
    assert concat.dim == 3  # channels last
    assert len({values[name].grid for name in (*concat.inputs, concat.output)}) == 3


def test_padding_joins_that_of_the_convolution() -> None:
    program = net(
        lambda: {"a": conv(3, 4), "b": nn.Conv2d(4, 4, 3, padding=(1, 2))},
        lambda m, x: m.b(F.pad(m.a(x), (0, 1, 2, 0))),
    )
    assert kinds(program) == ["Quantize", "Conv", "Conv", "Permute"]
    assert operations(program, Conv)[1].padding == (3, 1, 2, 3)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_puts_the_odd_element_behind(kernel: int, dilation: int) -> None:
    program = net(
        lambda: {"a": conv(3, 4), "b": nn.Conv2d(4, 4, (kernel, 3), padding="same", dilation=dilation)},
        lambda m, x: m.b(m.a(x)),
    )
    total = dilation * (kernel - 1)
    assert operations(program, Conv)[1].padding == (total // 2, total - total // 2, dilation, dilation)
    assert not operations(program, Aten)


def test_one_dimensional_layers_run_as_images_of_one_row() -> None:
    program = zoo.program("conv1d_net")
    assert {program.tensors[c.weight.codes].shape[1] for c in operations(program, Conv)} == {1}
    assert not operations(program, Aten)
    assert len(operations(program, Reshape)) >= 1


def test_a_layer_that_is_called_again_reads_the_same_weight() -> None:
    program = net(lambda: {"a": conv(3, 3)}, lambda m, x: m.a(F.relu(m.a(x))))
    first, second = operations(program, Conv)
    assert first.weight == second.weight
    assert list(program.listing.layers) == ["a"]


# What has no integer form


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_float_operation_is_reported_and_nothing_else(name: str) -> None:
    context = zoo.context(name)
    program = zoo.run("lower", zoo.graph(name), context)
    assert isinstance(program, Program)
    expected = [(o.outputs[0], f"aten.{o.call.name} runs in float") for o in operations(program, Aten)]
    assert [(n.subject, n.message) for n in context.report.notes if n.kind == "fallback"] == expected


@pytest.mark.parametrize(
    ("name", "functions"),
    [
        ("mlp", set()),
        ("conv_net", set()),
        ("mobilenet", set()),
        ("resnet", set()),
        ("conv1d_net", set()),
        ("called_twice", set()),
        ("squeeze_excite", {"sigmoid.default", "mul.Tensor"}),
        ("densenet", set()),
        ("text_net", set()),
        ("vit_own", {"expand.default", "cat.default"}),
    ],
)
def test_models_leave_little_to_torch(name: str, functions: set[str]) -> None:
    assert {o.call.name for o in operations(zoo.program(name), Aten)} == functions


class Functions(nn.Module):
    """A table of words, and the float functions that a Program has operations for."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc, self.end = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.norm, self.plain = nn.LayerNorm((3, 6)), nn.LayerNorm(6, elementwise_affine=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.fc(self.words(ids)))
        x = F.silu(x) * F.gelu(x) * F.gelu(x, approximate="tanh")
        return self.end(torch.softmax(self.plain(x), -1))


def words() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return seeded(Functions)[0], (torch.randint(0, 9, (2, 3), generator=torch.Generator().manual_seed(0)),)


def test_float_functions_become_operations_of_their_own() -> None:
    graph, program, context = compiled(words())
    assert [type(o).__name__ for o in operations(program, FloatOperation)] == [
        "Embedding", "LayerNorm", "Activation", "Activation", "Arithmetic", "Activation", "Arithmetic", "LayerNorm",
        "Softmax",
    ]  # fmt: skip
    norms = operations(program, LayerNorm)
    assert [(n.dims, n.weight, n.bias) for n in norms] == [(2, "norm.weight", "norm.bias"), (1, None, None)]
    assert [o.function for o in operations(program, Activation)] == ["silu", "gelu", "gelu_tanh"]
    assert program.listing.values["ids"].dtype == "i64"
    text = print_program(program)
    assert "= embedding(%ids) {table=words.weight} : f32[Nx3x4]" in text
    assert "= layer_norm(%fc) {dims=2,weight=norm.weight,bias=norm.bias,epsilon=1e-05} : f32[Nx3x6]" in text
    assert "= activation(%norm) {function=gelu_tanh} : f32[Nx3x6]" in text
    assert "= layer_norm(%mul_1) {dims=1,epsilon=1e-05} : f32[Nx3x6]" in text
    assert not [n for n in context.report.notes if n.kind == "fallback"]
    for widths in (resolve(bits, quantized_layers(graph)) for bits in (8, 3)):
        follow(graph, program, words()[1], widths)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 2 * x, ["mul constant"]),
        (lambda x: x - 2, ["sub constant"]),
        (lambda x: 2 - x, None),
        (lambda x: x.mul(x), ["mul"]),
        (lambda x: torch.add(x, x, alpha=2), None),
        (lambda x: x - x.mean(1, keepdim=True), None),
        (lambda x: x.mean(1, keepdim=True), ["mean"]),
        (lambda x: x.mean((1, 2), keepdim=True), None),
        (lambda x: x + x.mean().mean(0), None),
        (lambda x: x[:, -1], ["select"]),
        (lambda x: x + x[:, :1], None),
        (lambda x: x * x[:, 1].unsqueeze(1), None),
        (lambda x: x @ x.transpose(1, 2), ["matmul"]),
        (lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.5), ["mul constant", "matmul", "softmax", "matmul"]),
        (lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2]), None),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), None),
    ],
)
def test_functions_of_floats(function: Callable[[Tensor], Tensor], expected: list[str] | None) -> None:
    """Operations on [2, 3, 4] behind a layer; None where one of them is left to torch."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.fc(x))

    example = seeded(Model, (2, 3, 4))
    graph, program, _ = compiled(example)
    found = [
        f"{o.sign}{' constant' if o.constant else ''}" if isinstance(o, Arithmetic) else type(o).__name__.lower()
        for o in operations(program, FloatOperation)
    ]
    assert bool(operations(program, Aten)) == (expected is None)
    assert expected is None or found == expected
    follow(graph, program, example[1], resolve(8, quantized_layers(graph)))


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.softmax(x, 1), lambda x: torch.softmax(x, -1, torch.float32), lambda x: torch.softmax(x, 0)],
)
def test_another_softmax_is_left_to_torch(function: Callable[[Tensor], Tensor]) -> None:
    program = net(lambda: {"a": conv(3, 4), "b": conv(4, 3)}, lambda m, x: m.b(function(m.a(x))))
    assert not operations(program, Softmax)
    assert [o.call.name for o in operations(program, Aten)] == ["softmax.int"]


def test_a_number_beyond_float32_is_left_to_torch() -> None:
    program = net(lambda: {"a": conv(3, 4), "b": conv(4, 3)}, lambda m, x: m.b((m.a(x) - 1e39).clamp(min=-5)))
    assert "sub.Tensor" in [o.call.name for o in operations(program, Aten)]


class Namesake(nn.Module):
    """A parameter at the path that lowering gives to the number of a sum, or to the bias of a layer."""

    def __init__(self, owner: str, name: str) -> None:
        super().__init__()
        self.layers, self._path = nn.Sequential(nn.Linear(4, 4)), f"{owner}.{name}"
        self.add_module(owner, nn.Module())
        self.get_submodule(owner).register_parameter(name, nn.Parameter(torch.arange(4.0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.layers(x), 1) * self.get_parameter(self._path) + 100.0


@pytest.mark.parametrize(("owner", "name"), [("add", "number"), ("layers_0", "shift")])
def test_a_parameter_with_the_name_of_another_stored_tensor_is_kept_apart(owner: str, name: str) -> None:
    example = seeded(lambda: Namesake(owner, name), (2, 4))
    graph, program, _ = compiled(example)
    assert {f"{owner}.{name}", f"{owner}.{name}_1"} <= set(program.tensors)
    follow(graph, program, example[1], resolve(8, quantized_layers(graph)))


class Constant(nn.Module):
    """Uses what it computes from its own tensors, between two layers on [N, 3, 4]."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Linear(4, 4), nn.Linear(4, 4), use
        self.gamma, self.weight = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 4))
        self.norm, self.table, self.inner = nn.LayerNorm(4), nn.Embedding(3, 4), nn.Linear(4, 4)
        self.register_buffer("ids", torch.arange(3)[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.use(self, self.a(x)))


CONSTANTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "viewed": lambda m, y: m.gamma.view(1, -1, 1) * y,
    "indexed": lambda m, y: m.gamma[:, None] * y,
    "transposed": lambda m, y: y @ m.weight.t(),
    "squashed": lambda m, y: y * torch.sigmoid(m.gamma).view(3, 1),
    "a softmax": lambda m, y: torch.softmax(m.gamma, 0).view(3, 1) * y,
    "normalised": lambda m, y: y + m.norm(m.weight)[:3],
    "looked up": lambda m, y: y + m.table(m.ids),
    "in parts": lambda m, y: y * m.weight.chunk(2, 1)[0][:3, :1],
    "the largest": lambda m, y: y * m.weight.max(1)[0],
    "a layer's": lambda m, y: y + m.inner(m.weight)[:3],
    "a layer's that is called again": lambda m, y: m.inner(y) + m.inner(m.weight)[:3],
    "counted": lambda m, y: y * torch.arange(4),
    "joined": lambda m, y: y + torch.cat([m.gamma, m.gamma.relu()[:1]]),
}


@pytest.mark.parametrize("use", CONSTANTS.values(), ids=CONSTANTS.keys())
def test_what_no_input_reaches_is_computed_once_from_the_tensors_as_they_are_now(
    use: Callable[[Any, Tensor], Tensor],
) -> None:
    model, inputs = seeded(lambda: Constant(use), (2, 3, 4))
    graph = zoo.run(FREE, trace(model, inputs), Context(inputs))
    assert isinstance(graph, fx.GraphModule)
    with torch.no_grad():  # as training does
        for name, parameter in graph.named_parameters():
            if not name.endswith("scale"):
                parameter.mul_(1.25)
    program = zoo.run("lower", graph, Context(inputs))
    assert isinstance(program, Program)
    follow(graph, program, inputs, resolve(8, quantized_layers(graph)))
    assert len(operations(program, Aten)) <= 2


def test_skipped_layers_run_in_float_with_the_float_weights() -> None:
    program = net(three, lambda m, x: m.c(m.b(m.a(x))), "normalize,quant{skip=b:}")
    assert list(program.listing.layers) == ["a", "c"]
    (call,) = [o.call for o in operations(program, Aten)]
    assert call.name == "conv2d.default"
    assert program.tensors["b.weight"].dtype == torch.float32


def test_a_table_that_changes_when_it_is_read_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(10, 8, max_norm=0.5), nn.Linear(8, 8)).eval()
    with pytest.raises(PassError, match=r"Embedding with max_norm changes its table.*\n.*max_norm to None"):
        compiled((model, (torch.tensor([[1, 2]]),)))


TO_TORCH: dict[str, Forward] = {
    "masked_fill.Scalar": lambda m, x: x.masked_fill(x > 0, 0.5),
    "masked_fill.Tensor": lambda m, x: x.masked_fill(x > 0, torch.tensor(0.5)),
    "bitwise_not.default": lambda m, x: torch.where(~(x > 0), x, 2 * x),
    "full_like.default": lambda m, x: x + torch.full_like(x, 0.5),
    "new_zeros.default": lambda m, x: torch.cat([x, x.new_zeros(x.shape[0], 1, 4, 4)], 1),
    "new_ones.default": lambda m, x: torch.cat([x, x.new_ones(x.shape[0], 1, 4, 4)], 1),
    "new_full.default": lambda m, x: torch.cat([x, x.new_full((x.shape[0], 1, 4, 4), 0.5)], 1),
    "index_select.default": lambda m, x: x.index_select(1, torch.tensor([2, 0, 0])),
    "nan_to_num.default": lambda m, x: torch.nan_to_num(x, 0.5),
    "one_hot.default": lambda m, x: x + F.one_hot((x > 0).to(torch.int64), 4).float().mean(4),
    "tile.default": lambda m, x: x.tile((2, 1)),
    "sort.default": lambda m, x: x.sort(1)[0],
    "sort.stable": lambda m, x: torch.sort(x, dim=1, stable=True)[0],
    "adaptive_avg_pool2d.default": lambda m, x: m.pool(x),
}
"""Functions of [N, 3, 4, 4] by what torch runs for them."""


@pytest.mark.parametrize(("name", "function"), TO_TORCH.items(), ids=TO_TORCH.keys())
def test_other_functions_are_left_to_torch_on_every_backend(name: str, function: Forward) -> None:
    def build() -> nn.Module:
        modules = {"a": conv(3, 3), "b": nn.Linear(4, 4), "pool": nn.AdaptiveAvgPool2d((3, None))}
        return Net(modules, lambda m, x: m.b(function(m, m.a(x))))

    model, inputs = example = seeded(build, (2, 3, 4, 4))
    graph, program, _ = compiled(example)
    assert name in [o.call.name for o in operations(program, Aten)]
    follow(graph, program, inputs, resolve(8, quantized_layers(graph)))
    by_backend = [mbqc.compile(model, inputs, "quant", backend=backend)(*inputs) for backend in ("cpu", "reference")]
    torch.testing.assert_close(*by_backend, rtol=0, atol=1e-5)


class Cumulated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).logcumsumexp(1)


def test_an_operation_that_has_no_form_is_named_with_its_source() -> None:
    with pytest.raises(PassError, match=r"aten\.logcumsumexp\.default has neither an integer form") as caught:
        compiled(seeded(Cumulated, (2, 4)))
    line = Cumulated.forward.__code__.co_firstlineno + 1
    assert caught.value.where == f"pass lower, node logcumsumexp ({__file__}:{line})"


def test_a_layer_that_could_overflow_its_accumulator_is_refused() -> None:
    def wide() -> nn.Module:
        layer = nn.Linear(70_000, 1)
        nn.init.constant_(layer.weight, 0.01)
        return nn.Sequential(layer)

    with pytest.raises(VerifyError, match="more than 32 bits hold") as caught:
        compiled(seeded(wide, (2, 70_000)))
    assert "linear" in str(caught.value.where)


def test_an_input_of_a_type_that_programs_do_not_have_is_refused() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(torch.float32))

    model, inputs = seeded(Halved, (2, 4))
    with pytest.raises(PassError, match="an input of type f64"):
        compiled((model, tuple(x.double() for x in inputs)))


def test_quantizing_is_the_first_thing_that_happens_to_an_image() -> None:
    for name in ("conv_net", "resnet", "mobilenet"):
        program = zoo.program(name)
        first: AnyOperation = program.listing.operations[0]
        assert isinstance(first, Quantize)
        assert first.channels_last
        assert not any(isinstance(o, Quantize) for o in program.listing.operations[1:])


def test_widths_of_a_program_are_those_of_its_graph() -> None:
    graph, program = zoo.graph("resnet"), zoo.program("resnet")
    assert list(program.listing.layers) == list(quantized_layers(graph))
    bits: Bits = {"fc": 3, ...: 6}
    pins = {name: info.pinned for name, info in program.listing.layers.items()}
    assert resolve(bits, pins) == resolve(bits, quantized_layers(graph))
    assert all(len(grid.scales) == len(ALL_BITS) for grid in program.listing.grids.values())


@pytest.mark.parametrize(
    ("pool", "shape"), [(nn.MaxPool2d(3, 1, 1), (2, 8, 8)), (nn.AvgPool2d(2), (2, 8, 8)), (nn.MaxPool1d(2), (2, 8))]
)
def test_pools_of_tensors_without_channels_are_refused(pool: nn.Module, shape: tuple[int, ...]) -> None:
    """Torch takes them for one image without a batch; as a pool of one dimension less the numbers would be wrong."""

    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pool = nn.Linear(8, 8), pool

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.fc(x))

    message = (
        r"node pool \(.*\): \w+Pool\dd of a tensor with \d dimensions has no form(?s:.*)x.unsqueeze\(1\) before it"
    )
    with pytest.raises(PassError, match=message):
        compiled(seeded(Unbatched, shape))
