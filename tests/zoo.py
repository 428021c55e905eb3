"""The models of `tests.models`, and the trained one of `examples/digits`, taken through passes once for all tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from torch import Tensor, fx, nn

from mbqc.frontend.trace import trace
from mbqc.lookup import find_pass, import_module
from mbqc.pipeline import Context, Pipeline
from mbqc.pipeline.instruments import Verify
from mbqc.program.operations import Program
from mbqc.properties import ALL
from tests.models import MODELS

DIGITS = "digits"
NAMES = tuple(MODELS)
FREE = "normalize,quant{pin_ends=false},bncorrect"
"""The usual passes with no layer pinned, so that a width reaches every layer."""


@cache
def digits() -> ModuleType:
    """`examples/digits/model.py`."""
    return import_module(str(Path(__file__).parents[1] / "examples" / "digits" / "model.py"))


@cache
def example(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model and inputs for it; the digits come with 32 held-out images."""
    if name == DIGITS:
        return digits().model(), (digits().images("test")[0][:32],)
    return MODELS[name]()


def context(name: str) -> Context:
    """Calibration is the example's own, or the inputs."""
    calibration = list(digits().calibration_data()) if name == DIGITS else None
    return Context(example(name)[1], calibration)


@cache
def traced(name: str) -> fx.GraphModule:
    """The graph as `mbqc.frontend` gives it. Pipelines run on copies: nobody changes what is kept here."""
    return trace(*example(name))


@cache
def graph(name: str, passes: str = FREE) -> fx.GraphModule:
    """The graph after `passes`, verified after each of them."""
    result = run(passes, traced(name), context(name))
    assert isinstance(result, fx.GraphModule)
    return result


@cache
def program(name: str, passes: str = FREE) -> Program:
    """The Program of the graph after `passes`."""
    result = run("lower", graph(name, passes), context(name))
    assert isinstance(result, Program)
    return result


def run(passes: str, start: fx.GraphModule, surroundings: Context) -> fx.GraphModule | Program:
    """A pipeline on a copy of a graph, verified after each pass."""
    return Pipeline.parse(passes, find_pass).run(start, surroundings, [Verify(ALL)])
