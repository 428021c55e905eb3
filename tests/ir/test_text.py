"""IR text: a golden graph, round trips, and text that is no graph."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mbqc.errors import VerifyError
from mbqc.ir.annotations import (
    Pinned,
    Sensitivity,
    Skipped,
    Switching,
    annotate,
    annotation,
    find_annotation,
)
from mbqc.ir.construct import MODULES
from mbqc.ir.modules import ActivationQuantizer, MomentCorrection, QuantConv2d, WeightQuantizer
from mbqc.ir.parse import parse_graph
from mbqc.ir.text import graph_tensors, print_graph
from mbqc.ir.types import TensorType
from mbqc.widths import Widths

aten = torch.ops.aten

GOLDEN = """\
graph [canonical, sensitivity] {
  %x = input x                                               : f32[Nx3x4x4]
  %conv1 = call conv1(%x)                                    : f32[Nx4x4x4] @pinned{bits=8}
  %bn1 = call bn1(%conv1)                                    : f32[Nx4x4x4]
  %relu = call relu(%bn1)                                    : f32[Nx4x4x4]
  %conv2 = call conv2(%relu)                                 : f32[Nx4x4x4] \
@sensitivity{trace=0.5,stderr=1e-05,per_parameter=0.0,probes=3} @skipped{reason="a \\"}{\\", b"}
  %add = aten.add.Tensor(%conv2, %relu, alpha=1)             : f32[Nx4x4x4]
  %relu_1 = call relu(%add)                                  : f32[Nx4x4x4]
  %flat = aten.view.default(%relu_1, [-1, 64])               : f32[Nx64]
  %split = aten.split.Tensor(%flat, 32, 1)                   : (f32[Nx32], f32[Nx32])
  %part = getitem(%split, 0)                                 : f32[Nx32]
  %half = aten._to_copy.default(%part, dtype=torch.float64)  : f64[Nx32]
  %back = aten.to.dtype_layout(%half, dtype=torch.float32, \
layout=torch.strided, device=device("cpu"), memory_format=torch.preserve_format)
  %pos = parameter pos_embedding                             : f32[32]
  %mask = tensor masks.first                                 : f32[32]
  %scaled = aten.mul.Tensor(%back, %pos)                     : f32[Nx32]
  %moved = aten.add.Tensor(%scaled, %mask)                   : f32[Nx32]
  %gelu = aten.gelu.default(%moved, approximate="tanh")      : f32[Nx32]
  %clamp = aten.clamp.default(%gelu, none, 1e+20)            : f32[Nx32]
  %fc = call head.fc(%clamp)                                 : f32[Nx2]
  return (%fc, {"features": %clamp})
}
modules {
  conv1 = Conv2d{in_channels=3,out_channels=4,kernel_size=3:3,padding=1:1,bias=false}
  bn1 = BatchNorm2d{num_features=4,eps=0.001}
  relu = ReLU
  conv2 = Conv2d{in_channels=4,out_channels=4,kernel_size=3:3,padding=same,groups=2}
  head.fc = Linear{in_features=32,out_features=2}
}
"""


def golden_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    modules = {
        "conv1": nn.Conv2d(3, 4, 3, bias=False),
        "bn1": nn.BatchNorm2d(4),
        "conv2": nn.Conv2d(4, 4, 3, groups=2),
        "head.fc": nn.Linear(32, 2),
    }
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    return {**tensors, "pos_embedding": torch.randn(32), "masks.first": torch.randn(32)}


class Residual(nn.Module):
    """Convolution, BatchNorm, a shared ReLU, a residual sum and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.BatchNorm2d(8, momentum=None))
        self.pool = nn.AdaptiveAvgPool2d((None, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(aten.add.Tensor(self.blocks(x), x))
        return self.fc(aten.mean.dim(self.pool(x), [2, 3]))


class Parts(nn.Module):
    """Multiple results, sizes, a parameter in a folder, a plain tensor and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.up.weight = self.down.weight
        self.inner = nn.Module()
        self.inner.register_parameter("scale", nn.Parameter(torch.randn(3)))
        self.shift = torch.randn(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = aten.split.Tensor(self.up(self.down(x)), 3, -1)
        size = operator.floordiv(operator.mul(aten.sym_size.int(x, 0), 2), 2)
        left = aten.view.default(aten.mul.Tensor(operator.getitem(parts, 0), self.inner.scale), [size, 3])
        return left, aten.add.Tensor(operator.getitem(parts, 1), self.shift, alpha=0.5)


class Odd(nn.Module):
    """Names that need quotes, and modules with unusual arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"1st layer": nn.Conv1d(2, 4, 3, padding_mode="circular", padding=1)})
        self.steps = nn.Sequential(
            nn.ZeroPad1d(1),
            nn.ConstantPad1d((0, 2), 0.5),
            nn.GELU("tanh"),
            nn.Hardtanh(-0.0, 2),
            nn.GroupNorm(2, 4, affine=False),
            nn.MaxPool1d(2, padding=1),
            nn.PReLU(4),
            nn.BatchNorm1d(4, affine=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.LayerNorm([40]),
            nn.Softmax(dim=-1),
            nn.Sigmoid(),
            nn.Softplus(2.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self.layers["1st layer"](x))


MODELS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (Residual, (2, 3, 6, 6)),
    (Parts, (4, 6)),
    (Odd, (2, 2, 15)),
]


def trace(model: nn.Module) -> fx.GraphModule:
    torch.manual_seed(1)
    for module in model.modules():  # statistics that differ from those of a new module
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
    gm = fx.symbolic_trace(model.eval())
    for i, node in enumerate(gm.graph.nodes):
        annotate(node, Pinned(i))
    gm.meta["properties"] = frozenset({"canonical"})
    return gm


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_round_trip(model: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    gm = trace(model())
    text = print_graph(gm)
    again = parse_graph(text, graph_tensors(gm))
    assert print_graph(again) == text
    assert again.meta == gm.meta
    for one, other in zip(gm.graph.nodes, again.graph.nodes, strict=True):
        assert (one.op, one.name, str(one.target)) == (other.op, other.name, str(other.target))
        assert repr((one.args, one.kwargs)) == repr((other.args, other.kwargs))
        assert one.meta["annotations"] == other.meta["annotations"]
    x = torch.randn(shape)
    torch.testing.assert_close(again(x), gm(x), rtol=0, atol=0, equal_nan=True)
    again.graph.lint()


def test_tied_and_shared_stay_so() -> None:
    again = parse_graph(print_graph(gm := trace(Parts())), graph_tensors(gm))
    assert again.down.weight is again.up.weight
    assert len(list(again.parameters())) == 3
    assert [name for name, _ in again.named_buffers()] == ["shift"]
    untied = {name: tensor.clone() for name, tensor in graph_tensors(gm).items()}
    assert len(list(parse_graph(print_graph(gm), untied).parameters())) == 4
    shared = parse_graph(print_graph(gm := trace(Residual())), graph_tensors(gm))
    assert print_graph(shared).count("relu = ReLU") == 1


def test_golden() -> None:
    gm = parse_graph(GOLDEN, golden_tensors())
    assert print_graph(gm) == GOLDEN
    result, extra = gm(torch.randn(5, 3, 4, 4))
    assert result.shape == (5, 2)
    assert list(extra) == ["features"]
    nodes = {node.name: node for node in gm.graph.nodes}
    assert gm.meta["properties"] == {"canonical", "sensitivity"}
    assert nodes["part"].meta["type"] == TensorType(torch.float32, (-1, 32))
    assert nodes["part"].target is operator.getitem
    assert annotation(nodes["conv2"], Sensitivity) == Sensitivity(0.5, 1e-05, 0.0, 3)
    assert annotation(nodes["conv2"], Skipped).reason == 'a "}{", b'


def test_parsing_draws_no_random_numbers() -> None:
    tensors = golden_tensors()
    state = torch.get_rng_state()
    parse_graph(GOLDEN, tensors)
    assert torch.equal(torch.get_rng_state(), state)


def test_quantized_graph() -> None:
    root = nn.Module()
    root.conv = QuantConv2d(3, 4, 3)
    root.quantize_weight = WeightQuantizer("conv", 4, "shift")
    root.correct = MomentCorrection("conv", "both", "shift")
    root.quantize_x = ActivationQuantizer(("conv",), (8, 4))
    graph = fx.Graph()
    x, widths = graph.placeholder("x"), graph.placeholder("widths")
    x.meta["type"] = TensorType(torch.float32, (-1, 3, 8, 8))
    weight = graph.get_attr("conv.weight")
    quantized = graph.call_module("quantize_weight", (weight, widths))
    scale = graph.get_attr("quantize_weight.scale")
    corrected = graph.call_module("correct", (quantized, weight, scale, widths))
    layer = graph.call_module("conv", (graph.call_module("quantize_x", (x, widths)), corrected))
    annotate(layer, Switching((8, 4), (0.25, 0.75)))
    graph.output(layer)
    gm = fx.GraphModule(root, graph).eval()
    text = print_graph(gm)
    assert "%widths = input widths  " in text
    assert ": widths\n" in text
    assert "quantize_x = ActivationQuantizer{layers=conv:,bits=8:4}" in text
    assert "correct = MomentCorrection{layer=conv,moments=both,ladder=shift}" in text
    again = parse_graph(text, gm.state_dict())
    assert print_graph(again) == text
    x, at_four = torch.randn(2, 3, 8, 8), Widths((("conv", 4),))
    assert torch.equal(again(x, at_four), gm(x, at_four))
    assert again.conv.weight is again.get_parameter("conv.weight")


@pytest.mark.parametrize("cls", MODULES)
def test_every_module_class_prints(cls: type[nn.Module]) -> None:
    values = {
        "in_channels": 4, "out_channels": 6, "kernel_size": 3, "in_features": 2, "out_features": 3,
        "eps": 1e-3, "num_features": 4, "padding": 1, "value": 0.5, "output_size": 2, "normalized_shape": 7,
        "bias": False, "num_groups": 2, "num_channels": 4, "num_embeddings": 5, "embedding_dim": 3,
        "bits": (8, 2), "layer": "fc", "channels": 3, "ladder": "round", "moments": "mean", "layers": ("a",),
    }  # fmt: skip
    names = cls.__init__.__code__.co_varnames[: cls.__init__.__code__.co_argcount + 1]
    root = nn.Module()
    root.m = cls(**{name: value for name, value in values.items() if name in names})
    graph = fx.Graph()
    graph.output(graph.call_module("m", (graph.placeholder("x"),)))
    gm = fx.GraphModule(root, graph)
    again = parse_graph(print_graph(gm), gm.state_dict())
    assert print_graph(again) == print_graph(gm)
    assert repr(again.m) == repr(gm.m)


def test_prints_what_is_not_canonical() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, activation=torch.tanh)
            self.unfold = nn.Unflatten(1, (2, 2))

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.unfold(torch.relu(self.encoder(x)).view(-1)[slice(1, 2)])

    text = print_graph(gm := fx.symbolic_trace(Raw()))
    assert "<relu>(%encoder)" in text
    assert "encoder = TransformerEncoderLayer{d_model=<missing>," in text
    assert "activation=<tanh>" in text
    assert "unfold = Unflatten{dim=1,unflattened_size=2:2}" in text
    assert "<method view>(%relu, -1)" in text
    assert "<slice(1, 2, None)>" in text
    assert "%mask = input mask default none" in text
    with pytest.raises(VerifyError, match="line 5: expected input"):
        parse_graph(text, gm.state_dict())


def test_annotations() -> None:
    node = fx.Graph().placeholder("x")
    annotate(node, Pinned(8))
    copy = fx.Graph().node_copy(node)
    annotate(copy, Pinned(4))
    assert annotation(node, Pinned) == Pinned(8)
    assert find_annotation(node, Skipped) is None
    with pytest.raises(VerifyError, match="node x: the node has no annotation skipped"):
        annotation(node, Skipped)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("%bn1 = call bn1(%conv1)", "%bn1 = call bn1(%conv9)", "line 4: %conv9 is not defined above"),
        ("%bn1 = call bn1(%conv1)", "%bn1 = call bn9(%conv1)", "line 4: there is no module 'bn9'"),
        ("%bn1 = call bn1", "%conv1 = call bn1", "line 4: %conv1 cannot be the name"),
        ("%mask", "%for", "%for cannot be the name"),
        ("input x", "input class", "line 2: 'class' cannot be"),
        ("f32[Nx3x4x4]", "f33[N]", "line 2: there is no dtype 'f33'"),
        ("f32[Nx3x4x4]", "f32[N,3]", r"line 2: expected 'x' or '\]', found ',3\]'"),
        ("@pinned{bits=8}", "@pinned{bit=8}", "line 3: pinned: there is no option 'bit'"),
        ("@pinned{bits=8}", "@pined{bits=8}", "line 3: there is no annotation 'pined'"),
        ("alpha=1", "alpha=one", "line 7: expected a value, found 'one"),
        ("alpha=1", "alpha=1, alpha=2", "line 7: argument 'alpha'"),
        ("aten.add.Tensor", "aten.add.Tenso", "line 7: there is no function 'aten.add.Tenso'"),
        ("relu = ReLU", "relu = Tanhh", "cannot hold modules of class 'Tanhh'"),
        ("relu = ReLU", "relu = ReLU{x=1}", "ReLU has no option 'x'"),
        ("relu = ReLU\n", "", "line 5: there is no module 'relu'"),
        ("relu = ReLU", "relu = ReLU\n  other = ReLU", "no statement calls the module 'other'"),
        ("relu = ReLU", "relu = ReLU\n  relu = ReLU", "'relu' is defined twice"),
        ("out_features=2", "out_features=3", r"head.fc.weight has shape \(2, 32\), expected \(3, 32\)"),
        ("groups=2", "groups=0", "Conv2d cannot be built"),
        ("pos_embedding", "embedding", "there is no tensor 'embedding'"),
        ("masks.first", "bn1.first.x.forward", "there is no tensor"),
        ("  return (%fc, ", "  return (%gone, ", "line 21: %gone is not defined"),
        ("(%fc, {", "(%fc {", "line 21: expected ',' or '[)]'"),
        ('  return (%fc, {"features": %clamp})\n', "", "line 21: expected a return"),
    ],
)
def test_errors_name_the_line(old: str, new: str, message: str) -> None:
    assert old in GOLDEN
    with pytest.raises(VerifyError, match=message):
        parse_graph(GOLDEN.replace(old, new), golden_tensors())


def test_comments_and_blank_lines() -> None:
    commented = "# a comment\n\n" + GOLDEN.replace("relu = ReLU", "relu = ReLU  # twice").replace("{\n", "{ # x\n\n")
    assert print_graph(parse_graph(commented, golden_tensors())) == GOLDEN


def parse_or_refuse(text: str, tensors: dict[str, Tensor]) -> None:
    try:
        gm = parse_graph(text, tensors)
    except VerifyError as error:
        if not str(error.where).startswith("line"):
            raise  # nothing else than a place in the text helps
    else:
        assert print_graph(parse_graph(print_graph(gm), tensors)) == print_graph(gm)


def test_truncated_text() -> None:
    tensors = golden_tensors()
    for end in range(0, len(GOLDEN) - 1, 7):
        parse_or_refuse(GOLDEN[:end], tensors)


def test_mutated_text() -> None:
    """Random edits: of characters, and of whole words."""
    tensors = golden_tensors()
    rng = random.Random(0)
    words = [
        "%x",
        "%",
        "self",
        "0",
        "-1",
        "1e999",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "=",
        '"',
        "@",
        "\\",
        " ",
    ]
    words += [
        "\n",
        "call ",
        "input ",
        "return ",
        "torch.float32",
        "none",
        "conv1",
        "x" * 50,
        "[" * 2000,
        "²",
        "#",
    ]
    for _ in range(400):
        text = GOLDEN
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text))
            text = text[:start] + rng.choice([*words, ""]) + text[start + rng.randint(0, 3) :]
        parse_or_refuse(text, tensors)
