"""check_canonical finds each kind of damage, and names it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from mbqc.errors import VerifyError
from mbqc.frontend.trace import trace
from mbqc.ir.graph import first_layers, last_layers, to_networkx
from mbqc.ir.types import TensorType
from mbqc.ir.verify import check_canonical
from mbqc.passes.normalize.rewrite import canonicalize
from tests.models import MODELS

aten = torch.ops.aten


def canonical(name: str) -> fx.GraphModule:
    model, inputs = MODELS[name]()
    gm = trace(model, inputs)
    canonicalize(gm, inputs)
    return gm


@pytest.fixture(scope="module")
def resnet() -> fx.GraphModule:
    return canonical("resnet")


def node(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def call(gm: fx.GraphModule, target: object, *args: object) -> None:
    """Put a function between the last layer and the output."""
    output = gm.graph.output_node()
    (value,) = output.args
    with gm.graph.inserting_before(output):
        new = gm.graph.call_function(target, args)
    new.meta["type"] = value.meta["type"]
    output.args = (new,)


def no_type(gm):
    del node(gm, "bn1").meta["type"]


def dead_node(gm):
    with gm.graph.inserting_after(node(gm, "bn1")):
        gm.graph.call_module("maxpool", (node(gm, "bn1"),))


def orphan_module(gm):
    gm.add_submodule("left.over", nn.ReLU().eval())


def orphan_parameter(gm):
    gm.register_parameter("scale", nn.Parameter(torch.ones(1)))


def use_before_def(gm):
    node(gm, "bn1").append(node(gm, "conv1"))


def wrong_channels(gm):
    gm.bn1 = nn.BatchNorm2d(9).eval()


def training(gm):
    gm.bn1.train()


def missing_module(gm):
    node(gm, "fc").target = "fcc"


def foreign_module(gm):
    gm.maxpool = nn.Softsign().eval()


def too_many_arguments(gm):
    fc = node(gm, "fc")
    fc.args = (*fc.args, 3)


def python_function(gm):
    call(gm, torch.relu, node(gm, "fc"))


def in_place(gm):
    call(gm, aten.relu_.default, node(gm, "fc"))


def identity(gm):
    call(gm, aten.detach.default, node(gm, "fc"))


def missing_argument(gm):
    call(gm, aten.add.Tensor, node(gm, "fc"))


def nested_output(gm):
    output = gm.graph.output_node()
    output.args = (((output.args[0],),),)


BROKEN: list[tuple[Callable[[fx.GraphModule], None], str]] = [
    (no_type, "node bn1 (.*): it has no type"),
    (dead_node, "node maxpool_1: nothing uses it"),
    (orphan_module, "module left: nothing calls the module"),
    (orphan_parameter, "tensor scale: nothing reads the tensor"),
    (use_before_def, "node bn1 .*: it uses conv1 before that is computed"),
    (wrong_channels, r"node bn1 .*: BatchNorm2d for 9 channels gets 8: f32\[Nx8x16x16\]"),
    (training, "module bn1: the module is in training mode"),
    (missing_module, "node fc .*: there is no module 'fcc'"),
    (foreign_module, "node maxpool .*: module class Softsign is not canonical"),
    (too_many_arguments, "node fc .*: wrong arguments for Linear"),
    (python_function, "node relu.*: function .*relu.* is no aten overload"),
    (in_place, "node relu__default: aten.relu_.default changes its argument in place"),
    (identity, "node detach_default: aten.detach.default does nothing in eval mode"),
    (missing_argument, "node add_tensor: wrong arguments for aten.add.Tensor: argument 'other' is missing"),
    (nested_output, "node output: the output must be a tensor or a flat tuple"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_finds_damage(resnet, damage, message):
    gm = copy.deepcopy(resnet)
    check_canonical(gm)
    damage(gm)
    with pytest.raises(VerifyError, match=message):
        check_canonical(gm)


def test_first_and_last_layers(resnet):
    assert [n.name for n in first_layers(resnet)] == ["conv1"]
    assert [n.name for n in last_layers(resnet)] == ["fc"]
    two = canonical("two_inputs")
    assert [n.name for n in first_layers(two)] == ["image", "vector"]
    # its other outputs do not pass the head
    assert [n.name for n in last_layers(two)] == ["head"]


def test_networkx_has_every_edge(resnet):
    flow = to_networkx(resnet)
    assert list(flow.nodes) == list(resnet.graph.nodes)
    assert set(flow.edges) == {(i, n) for n in resnet.graph.nodes for i in n.all_input_nodes}


def test_types_have_the_batch(resnet):
    assert node(resnet, "x").meta["type"] == TensorType(torch.float32, (-1, 3, 32, 32))
    assert node(resnet, "fc").meta["type"] == TensorType(torch.float32, (-1, 5))
    own = canonical("vit_own")
    assert node(own, "permute_1").meta["type"].dims == (3, -1, 2, 5, 8)
