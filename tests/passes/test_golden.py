"""What each pass does to one small model, as text that a reviewer reads as a diff; and that the text says everything.

`MBQC_REGEN_GOLDEN=1 python -m pytest tests/passes/test_golden.py` writes `tests/golden/*.ir` anew.
"""

from __future__ import annotations

import difflib
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

from mbqc.frontend.trace import trace
from mbqc.ir.parse import parse_graph
from mbqc.ir.quantized import quantized_layers
from mbqc.ir.text import graph_tensors, print_graph
from mbqc.lookup import pass_table
from mbqc.pipeline import Context
from mbqc.program.operations import Program
from mbqc.program.text import print_program
from mbqc.widths import FLOAT, Widths, resolve
from tests import zoo
from tests.models import seeded

FOLDER = Path(__file__).parents[1] / "golden"
REGENERATE = "MBQC_REGEN_GOLDEN"

PIPELINES = {
    "normalize": ("", "normalize"),
    "quant": ("normalize", "quant"),
    "bncorrect": ("normalize,quant", "bncorrect"),
    "hasb": ("normalize,quant", "hasb{probes=2}"),
    "train": ("normalize,quant,hasb{probes=2},bncorrect", "train{epochs=1}"),
    "lower": ("normalize,quant,bncorrect", "lower"),
}
"""What runs before a pass, and the pass."""


class Small(nn.Module):
    """Convolution, BatchNorm and ReLU, a residual, a table, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = F.hardswish(self.bn(self.conv(x)) + x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(self.drop(torch.flatten(x, 1)))


@cache
def small() -> tuple[fx.GraphModule, Context]:
    model, inputs = seeded(Small, (2, 3, 8, 8))
    return trace(model, inputs), Context(inputs, labelled=[(*inputs, torch.tensor([0, 1]))])


def text(result: fx.GraphModule | Program) -> str:
    """The printed form; estimates, whose last digits depend on the machine, are left out."""
    if isinstance(result, Program):
        return print_program(result)
    return re.sub(r"(trace|stderr|per_parameter)=[^,}]+", r"\1=...", print_graph(result))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pass_does_what_its_golden_file_shows(name: str) -> None:
    start, context = small()
    before, item = PIPELINES[name]
    graph = zoo.run(before, start, context) if before else start
    assert isinstance(graph, fx.GraphModule)
    after = zoo.run(item, graph, context)
    found = f"# before {item}\n{text(graph)}\n# after {item}\n{text(after)}"
    file = FOLDER / f"{name}.ir"
    if os.environ.get(REGENERATE) == "1":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(found)
    expected = file.read_text()
    changes = difflib.unified_diff(expected.splitlines(), found.splitlines(), str(file), "now", lineterm="", n=1)
    assert found == expected, f"{REGENERATE}=1 accepts this:\n" + "\n".join(changes)


def test_every_pass_has_a_golden_file_and_no_file_is_left_over() -> None:
    assert set(PIPELINES) == set(pass_table())
    assert {file.stem for file in FOLDER.iterdir()} == set(PIPELINES)


# The text says everything but the weights


def same(one: fx.GraphModule, other: fx.GraphModule, inputs: tuple[Tensor, ...], widths: list[Widths]) -> bool:
    with torch.no_grad():
        outputs = [graph(*inputs, *widths) for graph in (one, other)]
    pairs = zip(*(v if isinstance(v, tuple) else (v,) for v in outputs), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [*zoo.NAMES, zoo.DIGITS])
def test_a_float_graph_comes_back_from_its_text(name: str) -> None:
    graph = zoo.graph(name, "normalize")
    again = parse_graph(print_graph(graph), graph_tensors(graph))
    assert print_graph(again) == print_graph(graph)
    assert same(again, graph, zoo.example(name)[1], [])


@pytest.mark.parametrize("name", [*zoo.NAMES, zoo.DIGITS])
@pytest.mark.parametrize("passes", ["normalize,quant,hasb{probes=2}", zoo.FREE])
def test_a_quantized_graph_comes_back_from_its_text(name: str, passes: str) -> None:
    graph = zoo.graph(name, passes)
    again = parse_graph(print_graph(graph), graph_tensors(graph))
    assert print_graph(again) == print_graph(graph)
    assert quantized_layers(again) == quantized_layers(graph)
    layers = quantized_layers(graph)
    for widths in (FLOAT, resolve(8, layers), resolve(3, layers)):
        assert same(again, graph, zoo.example(name)[1], [widths])


@pytest.mark.parametrize("name", ["conv_net", "resnet", "mobilenet"])
def test_a_graph_with_statistics_a_width_comes_back_from_its_text(name: str) -> None:
    graph = zoo.graph(name, "normalize,quant,bncorrect{statistics=width}")
    again = parse_graph(print_graph(graph), graph_tensors(graph))
    assert print_graph(again) == print_graph(graph)
    assert same(again, graph, zoo.example(name)[1], [resolve(3, quantized_layers(graph))])


def test_a_program_lowered_from_a_parsed_graph_is_the_same() -> None:
    graph = zoo.graph("resnet")
    again = zoo.run("lower", parse_graph(print_graph(graph), graph_tensors(graph)), zoo.context("resnet"))
    program = zoo.program("resnet")
    assert isinstance(again, Program)
    assert again.listing == program.listing
    assert again.tensors.keys() == program.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in program.tensors.items())
