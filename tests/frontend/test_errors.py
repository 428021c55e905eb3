"""What trace and canonicalize refuse: one error each, with the user's line and a way out."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.utils import prune

from mbqc.errors import MbqcError, ModelError, TraceError
from mbqc.frontend.trace import trace
from mbqc.passes.normalize.rewrite import canonicalize


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # here
            return x
        return -x


class DataDependentShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.sum().item())]  # here


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.zeros(7, 2)  # here


class FixedBatchInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4] + x.reshape(2, 6)[:, :4]  # here


class FixedBatchOutside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class BatchBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] > 1 else -x


class LargeBatchBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] <= 4 else x - x.mean(0)


class HugeBatchBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] <= 1000 else -x


class SomeSamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x.sum(1) > 0]  # here


class OneMoreSample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1]])  # here


class ReturnsDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x}


class WritesView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 0
        y[:, 0] += 1.0
        return y


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)  # here
        return x * self.calls


class CountsByAssignment(CountsCalls):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0  # here
        return F.relu(x)


class KeepsAnAverage(CountsCalls):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = 0.9 * self.calls + 0.1 * x.mean()  # here
        return x - self.calls


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


CASES = [
    (DataDependent, TraceError, "depend on the values", "torch.where"),
    (DataDependentShape, TraceError, "depend on the values", "torch.where"),
    (Raises, ModelError, "mat1 and mat2 shapes cannot be multiplied", ""),
    (FixedBatchInside, TraceError, "one batch size only", "x.shape[0]"),
    (FixedBatchOutside, TraceError, "one batch size only", "x.shape[0]"),
    (BatchBranch, TraceError, "differ in output 0", "decisions on the batch size"),
    (LargeBatchBranch, TraceError, "this way for 4 samples at most", "move the decision out"),
    (HugeBatchBranch, TraceError, "this way for 1000 samples at most", "move the decision out"),
    (SomeSamples, TraceError, "unknown operation", "operations of torch"),
    (OneMoreSample, TraceError, "must be fixed or a multiple of the batch", "alike"),
    (ReturnsDict, TraceError, "the model returns dict", "forward returns tensors"),
    (WritesView, TraceError, "differ in output 0", "in-place changes of slices"),
    (CountsCalls, TraceError, "changes its own tensor 'calls'", "compute outputs only"),
    (CountsByAssignment, TraceError, "changes its own tensor 'calls'", "compute outputs only"),
    (KeepsAnAverage, TraceError, "changes its own tensor 'calls'", "compute outputs only"),
    (AlwaysDrops, TraceError, "differ in output 0", "random operations"),
]


@pytest.mark.parametrize(("build", "kind", "message", "hint"), CASES, ids=[case[0].__name__ for case in CASES])
def test_refused(build, kind, message, hint):
    with pytest.raises(MbqcError) as caught:
        trace(build(), (torch.ones(2, 6),))
    error = caught.value
    assert type(error) is kind
    assert message in str(error)
    assert hint in (error.hint or "")
    lines, start = inspect.getsourcelines(build)
    marked = [start + i for i, line in enumerate(lines) if "# here" in line]
    if marked:
        assert f"{__file__}:{marked[0]}" in (error.where or "")


def test_a_decision_on_the_batch_size_of_the_calibration_data():
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x if x.shape[0] == 64 else x

    with pytest.raises(TraceError, match="differ in output 0 for a batch of 64") as caught:
        trace(Decides(), (torch.ones(2, 6),), (torch.ones(64, 6),))
    assert "decisions on the batch size" in (caught.value.hint or "")


def test_calibration_data_on_which_the_model_fails():
    with pytest.raises(ModelError, match="fails on the calibration data: IndexError"):
        trace(nn.Embedding(3, 2), (torch.tensor([[0, 2]]),), (torch.tensor([[1, 3]]),))


@pytest.mark.parametrize("exported", [False, True])
def test_an_input_with_the_name_of_the_widths(exported):
    class Scales(nn.Module):
        def forward(self, x: Tensor, widths: Tensor) -> Tensor:
            return F.softsign(x) * widths if exported else x * widths

    with pytest.raises(TraceError, match="input of the model is called 'widths'") as caught:
        trace(Scales(), (torch.ones(2, 6), torch.ones(2, 6)))
    assert "rename this argument" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
@pytest.mark.parametrize("part", [nn.Linear(6, 6), nn.Parameter(torch.ones(6))], ids=["module", "parameter"])
def test_a_name_that_graphs_use_themselves(name, part):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, part)

        def forward(self, x: Tensor) -> Tensor:
            found = getattr(self, name)
            return x * found if isinstance(found, nn.Parameter) else found(x)

    with pytest.raises(TraceError, match=f"called '{name}', a name that torch.fx uses") as caught:
        trace(Named(), (torch.ones(2, 6),))
    assert f"rename Named.{name}" in (caught.value.hint or "")
    trace(nn.Sequential(Named()), (torch.ones(2, 6),))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model():
    model = torch.jit.trace(nn.Linear(6, 2), torch.ones(2, 6))
    with pytest.raises(TraceError, match="is a ScriptModule") as caught:
        trace(model, (torch.ones(2, 6),))
    assert "nn.Module that it was made from" in (caught.value.hint or "")


def test_a_weight_computed_from_others():
    model = prune.l1_unstructured(nn.Linear(6, 2), "weight", 0.3)
    with pytest.raises(ModelError, match="computed from others") as caught:
        trace(model, (torch.ones(2, 6),))
    assert "prune.remove" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("lazy", "name"), [(nn.LazyLinear(2), "0.weight"), (nn.LazyBatchNorm1d(affine=False), "0.running_mean")]
)
def test_a_lazy_module_that_has_not_run(lazy, name):
    with pytest.raises(ModelError, match=f"'{name}' is not initialized") as caught:
        trace(nn.Sequential(lazy), (torch.ones(2, 6),))
    assert "run the model once" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "non-empty tuple"),
        (torch.ones(2, 6), "non-empty tuple"),
        ((3,), "must be a tensor"),
        ((torch.tensor(1.0),), "batch as dimension 0"),
        ((torch.ones(2, 6), torch.ones(3, 6)), "[2, 3]"),
        ((torch.ones(0, 6),), "[0]"),
        ((torch.ones(2, 6, dtype=torch.uint8),), "divide by 255 outside the model"),
    ],
)
def test_inputs_that_are_no_batch(inputs, message):
    with pytest.raises(ModelError) as caught:
        trace(nn.Identity(), inputs)
    assert message in str(caught.value)


def test_batchnorm_without_running_statistics():
    inputs = (torch.randn(2, 3, 4, 4),)
    gm = trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), inputs)
    with pytest.raises(TraceError) as caught:
        canonicalize(gm, inputs)
    assert "track_running_stats=True" in str(caught.value)


def test_nothing_is_printed(capfd):
    with pytest.raises(TraceError):
        trace(DataDependent(), (torch.ones(2, 6),))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
