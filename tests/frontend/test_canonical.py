"""Every model of the zoo, brought to the canonical form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from mbqc.frontend.exported import trace_by_export
from mbqc.frontend.inplace import make_functional
from mbqc.frontend.trace import trace
from mbqc.ir.graph import is_int
from mbqc.ir.verify import check_canonical
from mbqc.passes.normalize.rewrite import canonicalize
from tests.models import MODELS, Example, inputs_like

# by hand, since a change of the way is worth noticing
EXPORTED = {"vit_torch", "conv_subclass", "shape_branch", "two_inputs"}


@pytest.fixture(scope="module")
def canonical() -> dict[str, tuple[Example, fx.GraphModule]]:
    """Each model and its canonical graph, made once: tests must not change them."""
    made = {}
    for name, build in MODELS.items():
        model, inputs = build()
        gm = trace(model, inputs)
        canonicalize(gm, inputs)
        made[name] = (model, inputs), gm
    return made


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result = model(*(x.clone() for x in inputs))
    return result if isinstance(result, tuple) else (result,)


def lines(gm: fx.GraphModule) -> list[str]:
    return [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs} {n.meta.get('type')}" for n in gm.graph.nodes]


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_model_computes(canonical, name):
    (model, examples), gm = canonical[name]
    for batch in (1, 2, 5):
        generator = torch.Generator().manual_seed(batch)
        inputs = inputs_like(examples, batch, generator)
        for got, expected in zip(outputs(gm, inputs), outputs(model, inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_is_canonical(canonical, name):
    _, gm = canonical[name]
    check_canonical(gm)
    gm.graph.lint()
    assert gm.meta["traced_by"] == ("torch.export" if name in EXPORTED else "torch.fx")


@pytest.mark.parametrize("name", MODELS)
def test_twice_changes_nothing(canonical, name):
    (_, inputs), gm = canonical[name]
    again = copy.deepcopy(gm)
    canonicalize(again, inputs)
    assert lines(again) == lines(gm)
    assert str(again) == str(gm)
    assert list(again.state_dict()) == list(gm.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_every_computed_tensor_knows_its_line(canonical, name):
    (model, _), gm = canonical[name]
    for node in gm.graph.nodes:
        if node.op in ("call_module", "call_function") and not is_int(node):
            source = node.meta["source"]
            without_lines = isinstance(model, nn.Sequential) and source is None  # all of them are torch's own
            assert without_lines or "models.py:" in source, node.name


@pytest.mark.parametrize("name", sorted(set(MODELS) - EXPORTED))
def test_both_ways_meet(canonical, name):
    (model, inputs), gm = canonical[name]
    other = trace_by_export(copy.deepcopy(model), inputs)
    make_functional(other)
    output = other.graph.output_node()
    output.args = output.args[0]
    canonicalize(other, inputs)
    assert lines(other) == lines(gm)


@pytest.mark.parametrize("name", ["mobilenet", "called_twice", "vit_torch"])
def test_the_model_stays_as_it_is(name):
    model, inputs = MODELS[name]()
    model.train()
    before = copy.deepcopy(model.state_dict())
    kept = tuple(x.clone() for x in inputs)
    canonicalize(trace(model, inputs), inputs)
    assert all(m.training for m in model.modules())
    assert [getattr(m, "inplace", None) for m in model.modules()].count(True) == (str(model).count("inplace=True"))
    assert before.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    for x, y in zip(inputs, kept, strict=True):
        assert torch.equal(x, y)
