"""Names, sharing, and the odd ways in which modules compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from mbqc.frontend.trace import trace
from mbqc.ir.verify import check_canonical
from mbqc.passes.normalize.rewrite import canonicalize
from tests.models import MODELS


def canonical(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    gm = trace(model, inputs)
    canonicalize(gm, inputs)
    check_canonical(gm)
    return gm


def same_outputs(gm: fx.GraphModule, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(gm(*inputs), model.eval()(*inputs), rtol=0, atol=1e-5)


def layers(gm: fx.GraphModule) -> list[str]:
    """Targets of all nodes that compute tensors, in order."""
    return [str(n.target) for n in gm.graph.nodes if n.op in ("call_module", "call_function")]


@pytest.mark.parametrize(
    "swapped",
    [lambda x: x.swapaxes(1, -1), lambda x: torch.swapdims(x, 1, 2), lambda x: x.mT, lambda x: x.transpose(2, 1)],
)
def test_all_ways_to_swap_dimensions_are_one(swapped):
    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(swapped(x))

    model, inputs = Swaps(), (torch.randn(2, 5, 3),)
    gm = canonical(model, inputs)
    assert layers(gm) == ["aten.permute.default", "fc"]
    same_outputs(gm, model, inputs)


def test_a_model_of_any_number_of_inputs():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, *given: Tensor) -> Tensor:
            return self.fc(torch.stack(given).amax(0))

    model, inputs = Sums(), (torch.randn(2, 5), torch.randn(2, 5))
    same_outputs(canonical(model, inputs), model, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_a_compiled_model_is_the_model_behind_it():
    model, inputs = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 5),)
    same_outputs(canonical(torch.compile(model), inputs), model, inputs)


def test_layers_have_the_names_of_the_model():
    gm = canonical(*MODELS["resnet"]())
    assert {"layer1.0.conv1", "layer1.1.downsample.0", "layer2.0.body.3", "fc"} <= set(layers(gm))
    assert {n.name for n in gm.graph.nodes} >= {"layer1_0_conv1", "layer1_1_downsample_0"}


def test_attention_is_named_by_its_parameters():
    gm = canonical(*MODELS["vit_torch"]())
    assert "blocks.1.attn.attention.in_proj" in layers(gm)
    assert type(gm.get_submodule("blocks.1.attn.attention.out_proj")) is nn.Linear


def test_functions_are_named_by_their_owner():
    assert layers(canonical(*MODELS["own_weight_conv"]())) == ["0_relu", "0", "1"]


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.w2 = (nn.Parameter(torch.randn(3, 3, 1, 1)) for _ in range(2))
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(F.conv2d(F.relu(x), self.weight)))
        return F.conv2d(x, self.w2) + F.conv2d(x, self.w2, stride=1)


def test_names_give_way_where_they_are_taken():
    model, inputs = nn.Sequential(Owner()), (torch.randn(2, 3, 4, 4),)
    gm = canonical(model, inputs)
    assert layers(gm) == ["0.relu", "0.conv2d", "0.bn", "0.relu_1", "0.w2_conv2d", "0.w2_conv2d", "aten.add.Tensor"]
    same_outputs(gm, model, inputs)
    outermost = canonical(Owner(), inputs)
    assert layers(outermost)[:2] == ["relu", "conv2d"]


@pytest.mark.parametrize("traced_by", ["torch.fx", "torch.export"])
def test_sharing_survives(traced_by):
    model, inputs = MODELS["called_twice"]()
    if traced_by == "torch.export":
        # an unknown function sends the model there
        model = nn.Sequential(model, nn.Softsign())
    gm = canonical(model, inputs)
    assert gm.meta["traced_by"] == traced_by
    prefix = "" if traced_by == "torch.fx" else "0."
    assert layers(gm).count(f"{prefix}conv") == 2
    assert layers(gm).count(f"{prefix}relu") == 2
    inner = gm if not prefix else gm.get_submodule("0")
    assert inner.embed.weight is inner.head.weight
    assert isinstance(inner.head.weight, nn.Parameter)
    assert len(list(gm.parameters())) == 4


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.drop = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 3, 2), nn.Dropout()
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(input=self.up(output_size=(5, 5), input=self.conv(input=x)))
        return self.fc(input=self.drop(input=x))


def test_modules_may_be_called_by_keyword():
    model, inputs = ByKeyword(), (torch.randn(2, 3, 4, 4),)
    gm = canonical(model, inputs)
    assert gm.meta["traced_by"] == "torch.fx"
    assert layers(gm) == ["conv", "up", "relu", "fc"]
    assert all(not node.kwargs for node in gm.graph.find_nodes(op="call_module"))
    same_outputs(gm, model, inputs)


class ChangedUnderTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(6, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        kept = x
        y = self.relu(x)
        y += 1.0  # torch.fx records an ordinary addition
        return kept * 2.0 + y


def test_changes_that_symbolic_tracing_misses():
    model, inputs = ChangedUnderTwoNames(), (torch.randn(2, 6),)
    gm = canonical(model, inputs)
    assert gm.meta["traced_by"] == "torch.export"
    same_outputs(gm, model, inputs)


def test_parametrized_weights_become_plain():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    gm = canonical(model, (torch.randn(2, 3, 6, 6),))
    assert set(gm.state_dict()) == {"0.weight", "0.bias"}
    assert type(gm.get_submodule("0")) is nn.Conv2d
    # the class of a parametrized module is shared with its copies
    same_outputs(gm, model, (torch.randn(2, 3, 6, 6),))
    assert "parametrizations" in dict(model[0].named_children())


def test_hooks_are_part_of_the_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output * 2.0)
    inputs = (torch.randn(2, 3, 6, 6),)
    gm = canonical(model, inputs)
    assert layers(gm) == ["0", "aten.mul.Tensor", "1"]
    same_outputs(gm, model, inputs)


def test_a_graph_is_a_model_too():
    model, inputs = MODELS["resnet"]()
    gm = canonical(fx.symbolic_trace(copy.deepcopy(model)), inputs)
    same_outputs(gm, model, inputs)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None, flag: bool = True) -> Tensor:
        y = self.fc(x) if scale is None else self.fc(x) * scale
        return y if flag else -y


class Unused(Optional):
    def forward(self, x: Tensor, mask: Tensor | None = None, *rest: Any, scale: float = 2.0, **more: Any) -> Tensor:
        return self.fc(x * scale)


def test_inputs_that_are_given_may_have_defaults():
    model, inputs = Optional(), (torch.randn(2, 6), torch.randn(2, 4))
    gm = canonical(model, inputs)
    same_outputs(gm, model, inputs)
    assert [node.args for node in gm.graph.find_nodes(op="placeholder")] == [(), ()]


@pytest.mark.parametrize(
    ("build", "expected"), [(Optional, ["fc"]), (Unused, ["aten.mul.Tensor", "fc"])], ids=["decides", "unused"]
)
def test_arguments_left_out_keep_their_defaults(build, expected):
    model, inputs = build(), (torch.randn(2, 6),)
    gm = canonical(model, inputs)
    assert gm.meta["traced_by"] == "torch.fx"
    assert [n.target for n in gm.graph.find_nodes(op="placeholder")] == ["x"]
    assert layers(gm) == expected
    same_outputs(gm, model, inputs)


def test_an_input_without_use_stays():
    class Ignores(Optional):
        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return self.fc(x)

    gm = canonical(Ignores(), (torch.randn(2, 6), torch.randn(2, 3)))
    assert [n.target for n in gm.graph.find_nodes(op="placeholder")] == ["x", "unused"]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_asymmetric_same_padding_is_a_module():
    model = nn.Sequential(nn.Conv2d(3, 4, (4, 3), padding="same"), nn.Conv2d(4, 4, 2, padding="same"))
    inputs = (torch.randn(2, 3, 8, 8),)
    gm = canonical(model, inputs)
    assert layers(gm) == ["0_pad", "0", "1_pad", "1"]
    assert gm.get_submodule("0_pad").padding == (1, 1, 1, 2)
    assert gm.get_submodule("0").padding == (0, 0)
    same_outputs(gm, model, inputs)


def test_sizes_leave_no_trace_in_shapes():
    gm = canonical(*MODELS["channel_shuffle"]())
    reshapes = [n.args[1] for n in gm.graph.nodes if str(n.target) == "aten.reshape.default"]
    assert reshapes == [[-1, 2, 4, 4, 4], [-1, 8, 4, 4]]
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)


def test_what_is_computed_from_fixed_sizes_is_a_number():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            _, words, channels = x.shape
            return super().forward(x) / (channels // words) ** 0.5

    model, inputs = Scaled(16, 16), (torch.randn(2, 4, 16),)
    gm = canonical(model, inputs)
    (division,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.div.Tensor)
    assert division.args[1] == 2.0
    same_outputs(gm, model, inputs)


@pytest.mark.parametrize("decide", [lambda y: y > 0, lambda y: y.argmax(1), lambda y: y.topk(2, 1)])
def test_outputs_of_every_type_are_compared(decide):
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return decide(self.fc(x))

    model, inputs = Decides(), (torch.randn(2, 5),)
    same_outputs(canonical(model, inputs), model, inputs)


@pytest.mark.parametrize("spelled", [lambda x: x.clamp(0.7, -0.5), lambda x: F.hardtanh(x, 0.5, 0.5)])
def test_a_clamp_to_one_value_stays_a_call(spelled):
    class Clamps(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return spelled(super().forward(x))

    model, inputs = Clamps(5, 4), (torch.randn(2, 5),)
    gm = canonical(model, inputs)
    assert layers(gm)[1] in ("aten.clamp.default", "aten.hardtanh.default")
    same_outputs(gm, model, inputs)


def test_floats_may_be_indices():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Embedding(30, 4), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cat([self.embedding(x[:, 0].long()), x[:, 1:]], 1))

    model, inputs = Table(), (torch.tensor([[1.0, 0.5, -0.5], [29.0, 1.5, 0.0], [0.0, 2.0, 1.0]]),)
    same_outputs(canonical(model, inputs), model, inputs)


def test_random_state_is_left_alone():
    model, inputs = MODELS["vit_torch"]()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    canonical(model, inputs)
    assert torch.equal(torch.rand(4), expected)
