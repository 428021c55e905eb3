"""Training on another device than the CPU: what it gives is what the CPU gives, and nothing is left behind there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from mbqc.devices import CPU, find_device, fits
from mbqc.errors import DataError, PassError, UsageError
from mbqc.frontend.trace import trace
from mbqc.ir.graph import place
from mbqc.ir.quantized import quantized_layers
from mbqc.lookup import find_pass
from mbqc.passes.train import Train
from mbqc.passes.train.coreset.scores import Recorder
from mbqc.passes.train.feeds import Feeds
from mbqc.passes.train.parallel.ranks import Ranks, joined
from mbqc.passes.train.task import Task
from mbqc.pipeline import Context, Pipeline
from mbqc.pipeline.data import samples_of
from mbqc.pipeline.training import TrainingResult
from mbqc.widths import resolve
from tests.passes.train.small import QUANTIZED, Noisy, context, differing, quantized, run, stripes, trained, weights
from tests.second_device import NAME, device, with_second_device

CUDA = torch.device("cuda")
PLENTY = 1 << 30

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    """Runs a function of this module in a process that has a second device."""
    with with_second_device() as made:
        yield made


# The whole pass, on a second device: in float64 no native kernel takes part, so all numbers must be the CPU's


def few() -> tuple[Tensor, Tensor]:
    return stripes(32)


def noisy() -> Noisy:
    data = Noisy()
    data.images, data.labels = few()
    return data


def batches() -> list[tuple[Tensor, Tensor]]:
    images, labels = few()
    return list(zip(images.split(16), labels.split(16), strict=True))


BY_WIDTH = f"{QUANTIZED}{{moments=none,statistics=width,affine=width}}"
CASES: dict[str, tuple[Callable[[], object], str, str]] = {
    "tensors": (few, "epochs=2,reestimate=width", QUANTIZED),
    "dataset": (noisy, "epochs=1,widths=sandwich,switch=uniform,alrs=layer,scales=raw,distill=float", QUANTIZED),
    "batches": (batches, "epochs=1,step=accumulate,clip=0.5,reestimate=pooled", BY_WIDTH),
    "coreset": (few, "epochs=3,coreset=el2n,keep=0.5,resample=1,selection=top", QUANTIZED),
}


def trains(case: str, away: bool) -> tuple[dict[str, Tensor], TrainingResult]:
    """What a case gives: on the second device, or on the CPU."""
    data, options, passes = CASES[case]
    there = device() if away else CPU
    places: set[torch.device] = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        places.update({output.device, target.device})
        return nn.functional.cross_entropy(output, target)

    def metric(output: Tensor, target: Tensor) -> float:
        assert output.device == target.device == CPU
        return -float(nn.functional.cross_entropy(output, target))

    surroundings = context(data(), loss=loss, metric=metric, device=there)
    with patch("mbqc.devices.free_memory", lambda _: PLENTY):
        graph, result = trained(f"evaluate=0,precision=float64,{options}", surroundings, passes)
    assert places == {there}
    assert {tensor.device for tensor in graph.state_dict().values()} == {CPU}
    assert {type(tensor) for tensor in graph.parameters()} == {nn.Parameter}
    return weights(graph), result


@pytest.mark.parametrize("case", CASES)
def test_training_on_another_device_gives_what_the_cpu_gives(call: Call, case: str) -> None:
    found, result = call(trains, case, True)
    expected, exact = trains(case, False)
    assert differing(expected, found) == []
    assert (result.exact, result.before, result.after) == (exact.exact, exact.before, exact.after)
    assert (result.pooled, result.separate) == (exact.pooled, exact.separate)
    assert [record.loss for record in result.epochs] == [record.loss for record in exact.epochs]


def mixes(left: bool) -> Tensor:
    """A sum over both devices, and one in which the second tensor was not forgotten."""
    other = torch.ones(3) if left else torch.ones(3).to(device())
    return (torch.ones(3).to(device()) + other).cpu()


def test_the_second_device_takes_no_tensor_of_the_cpu(call: Call) -> None:
    """So a forgotten move would be seen above."""
    assert call(mixes, False).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="are on the CPU"):
        call(mixes, True)


def broken_off(folder: Path, away: bool) -> set[torch.device]:
    """Trains until the second epoch; where the graph that was given is afterwards."""
    left = iter(range(8))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    surroundings = context(few(), folder, loss=loss, device=device() if away else CPU)
    graph, (train,) = copy.deepcopy(quantized()), Pipeline.parse(f"train{{batch=16,{KEPT}}}", find_pass).passes
    with patch("mbqc.devices.free_memory", lambda _: PLENTY):
        with pytest.raises(KeyboardInterrupt):
            train.run(graph, surroundings)
        return {tensor.device for tensor in graph.state_dict().values()}


KEPT = "epochs=3,evaluate=0,precision=float64,coreset=el2n,selection=top,keep=0.5,bn_freeze=0"


def goes_on(folder: Path, away: bool) -> dict[str, Tensor]:
    surroundings = context(few(), folder, resume=True, loss=cross_entropy, device=device() if away else CPU)
    with patch("mbqc.devices.free_memory", lambda _: PLENTY):
        return weights(trained(KEPT, surroundings)[0])


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def test_a_checkpoint_of_one_device_is_one_of_the_other(call: Call, tmp_path: Path) -> None:
    unbroken = weights(trained(KEPT, context(few(), loss=cross_entropy))[0])
    assert call(broken_off, tmp_path / "away", True) == {CPU}
    assert call(broken_off, tmp_path / "home", False) == {CPU}
    (away,), (home,) = (
        [load_file(path) for path in sorted((tmp_path / name).glob("*.s*"))] for name in ("away", "home")
    )
    assert differing(away, home) == []
    assert differing(unbroken, goes_on(tmp_path / "away", False)) == []
    assert differing(unbroken, call(goes_on, tmp_path / "home", True)) == []


def as_two_ranks(folder: Path) -> list[tuple[str, str]]:
    """What a first rank of two would send, and from where; the second one is thought to hold the same."""
    sent: list[tuple[str, str]] = []

    def all_reduce(tensor: Tensor) -> None:
        sent.append(("sum", tensor.device.type))
        tensor.mul_(2)

    def all_gather(parts: list[Tensor], own: Tensor) -> None:
        sent.extend(("gather", tensor.device.type) for tensor in (own, *parts))
        for part in parts:
            part.copy_(own)

    def broadcast(tensor: Tensor, src: int) -> None:
        sent.append(("broadcast", tensor.device.type))

    @contextmanager
    def join(asked: torch.device) -> Iterator[Ranks]:
        yield Ranks(0, 2, asked)

    with ExitStack() as patches:
        for function in (all_reduce, all_gather, broadcast):
            patches.enter_context(patch.object(dist, function.__name__, function))
        patches.enter_context(patch.object(dist, "broadcast_object_list", lambda objects, src: None))
        patches.enter_context(patch("mbqc.passes.train.train.joined", join))
        patches.enter_context(patch("mbqc.devices.free_memory", lambda _: PLENTY))
        # half of the samples are only seen by the other rank
        patches.enter_context(patch.object(Recorder, "scores", lambda self, bits: torch.arange(32.0)))
        options = "epochs=2,coreset=el2n,selection=top,keep=0.5,distill=float,switch=uniform,reestimate=pooled"
        trained(options, context(few(), folder, device=device()))
    return sent


def test_what_ranks_exchange_is_on_the_device(call: Call, tmp_path: Path) -> None:
    """nccl takes nothing from the CPU."""
    sent = call(as_two_ranks, tmp_path)
    assert {kind for kind, _ in sent} == {"sum", "gather", "broadcast"}
    assert {place for _, place in sent} == {NAME}


def autocasts() -> list[tuple[str, torch.dtype]]:
    """For which devices a training in bfloat16 switches to it; the second one has no autocast of its own."""
    asked: list[tuple[str, torch.dtype]] = []

    def autocast(kind: str, dtype: torch.dtype) -> AbstractContextManager[None]:
        asked.append((kind, dtype))
        return nullcontext()

    with patch("torch.autocast", autocast), patch("mbqc.devices.free_memory", lambda _: PLENTY):
        trained("epochs=1,bits=8,evaluate=0,precision=bfloat16", context(few(), device=device()))
    return asked


def test_bfloat16_is_that_of_the_device(call: Call) -> None:
    assert set(call(autocasts)) == {(NAME, torch.bfloat16)}


class Positions(nn.Module):
    """A model that makes tensors and holds constants."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.constant = nn.Embedding(8, 4), nn.Linear(4, 4), torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        places = self.table(torch.arange(x.shape[1], device=x.device))
        mixed: Tensor = self.mix(x + places + self.constant).sum(1)
        rows = torch.arange(x.shape[2], device=x.device).to(mixed) + torch.arange(4).to(x.device, torch.float32)
        return mixed + rows + torch.full((4,), 3.0, device=x.device)


def positions(away: bool) -> tuple[list[Tensor], str, str]:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4)
    graph = run(QUANTIZED, trace(Positions().eval(), (x,)), Context((x,)))
    text = graph.code
    place(graph, device() if away else CPU)
    widths = [resolve(bits, quantized_layers(graph)) for bits in (8, 5)]
    found = [graph(x.to(device()) if away else x, each).detach().cpu() for each in widths]
    place(graph, CPU)
    return found, text, graph.code


def test_what_a_model_makes_itself_is_made_on_the_device(call: Call) -> None:
    found, before, after = call(positions, True)
    assert all(map(torch.equal, found, positions(False)[0]))
    assert "device(type='cpu')" in before
    assert before == after


# Data


@pytest.mark.parametrize(("free", "expected"), [(80, True), (79, False)])
def test_tensors_may_take_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, expected: bool) -> None:
    monkeypatch.setattr("mbqc.devices.free_memory", lambda _: free)
    assert fits([torch.zeros(5), torch.zeros(5)], CUDA) is expected
    assert fits([torch.zeros(1000)], CPU)


FORMS: dict[str, Callable[[], object]] = {
    "tensors": few,
    "TensorDataset": lambda: TensorDataset(*few()),
    "loader": lambda: DataLoader(TensorDataset(*few()), batch_size=16, shuffle=True),
    "loader with a worker": lambda: DataLoader(TensorDataset(*few()), batch_size=16, num_workers=1),
    "dataset": noisy,
}


def stays(form: str, free: int) -> bool:
    with patch("mbqc.devices.free_memory", lambda _: free):
        task = Task(quantized(), Train(batch=16), (8,), context(FORMS[form]()), Ranks(device=device()))
        samples = Feeds(task).samples
    assert samples is not None
    return samples.stay_on(device())


@pytest.mark.parametrize("form", FORMS)
def test_only_tensors_that_fit_stay_on_the_device(call: Call, form: str) -> None:
    assert call(stays, form, PLENTY) is (form in ("tensors", "TensorDataset", "loader"))
    assert call(stays, form, 0) is False


def test_other_samples_are_read_into_pinned_memory_for_a_gpu() -> None:
    samples = samples_of(noisy(), 1)
    assert samples is not None
    assert samples.on(CUDA).settings == {"pin_memory": True}
    assert samples.on(CPU).settings == {}


class Whole(Dataset[tuple[Tensor, Tensor]]):
    """Gives batches, and no sample alone."""

    def __len__(self) -> int:
        return 32

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images, labels = few()
        return images[indices], labels[indices]


class Gone(Whole):
    """Cannot be read."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        raise OSError("the file is gone")


def as_it_is(made: object) -> object:
    return made


def test_a_dataset_is_asked_as_its_reader_will_ask_it() -> None:
    samples = samples_of(DataLoader(Whole(), batch_size=16, collate_fn=as_it_is), 1)
    assert samples is not None
    assert samples.on(CUDA).settings["pin_memory"] is True


def test_a_dataset_that_raises_there_is_told_with_its_line() -> None:
    samples = samples_of(DataLoader(Gone(), batch_size=16, collate_fn=as_it_is), 1)
    assert samples is not None
    with pytest.raises(DataError, match=r"test_device\.py:\d+: training data raised OSError: the file is gone"):
        samples.on(CUDA)


class There(Noisy):
    """Samples on the second device, where the dataset keeps them."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        return image.to(device()), label


def sent_there(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    images, labels = default_collate(samples)
    return [images.to(device()), labels.to(device())]


ELSEWHERE: dict[str, Callable[[], DataLoader[Any]]] = {
    "dataset": lambda: DataLoader(There(), batch_size=16, pin_memory=True),
    "collate_fn": lambda: DataLoader(noisy(), batch_size=16, pin_memory=True, collate_fn=sent_there),
}


def pins(form: str) -> bool:
    samples = samples_of(ELSEWHERE[form](), 1)
    assert samples is not None
    return bool(samples.on(CUDA).settings["pin_memory"])


@pytest.mark.parametrize("form", ELSEWHERE)
def test_samples_that_come_on_a_device_are_not_pinned(call: Call, form: str) -> None:
    """torch pins only tensors of the CPU, and raises for others."""
    assert call(pins, form) is False


def not_finite() -> None:
    images, labels = few()
    images[20, 0, 0, 0] = torch.nan
    with patch("mbqc.devices.free_memory", lambda _: PLENTY):
        trained("epochs=1", context((images, labels), device=device()))


def test_data_that_stays_on_the_device_is_checked_too(call: Call) -> None:
    with pytest.raises(DataError, match="training data, batch 0: an input holds NaN"):
        call(not_finite)


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mbqc.passes.train.trainer.Stepper.round", full)
    with pytest.raises(PassError, match=r"cpu has not enough memory\n.*batch="):
        trained("epochs=1")


# Which device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device", lambda _: nullcontext())


@pytest.mark.parametrize(
    ("asked", "found"),
    [("cpu", "cpu"), ("cpu:0", "cpu"), (CPU, "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), (CUDA, "cuda")],
)
@pytest.mark.usefixtures("two_gpus")
def test_a_device_by_name(asked: str | torch.device, found: str) -> None:
    assert find_device(asked) == torch.device(found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda:3", "cuda:3: no device 3: there are 2, counted from 0"),
        ("cpu:1", "cpu:1: no device 1: there is 1, counted from 0"),
        ("gpu", "'gpu' is no device\n.*cpu, cuda or cuda:1"),
        ("cuda:-1", "'cuda:-1' is no device"),
        ("", "'' is no device"),
        (None, "None is no device"),
        ("meta", "meta is not supported\n.*cpu or cuda"),
        ("mps", "mps is not supported"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_a_device_that_is_not_there(asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_device(asked)


def test_a_pytorch_without_cuda_and_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    with pytest.raises(UsageError, match="cuda: this PyTorch has no CUDA"):
        find_device("cuda")
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError, match="cuda:0: PyTorch finds no GPU"):
        find_device("cuda:0")


@pytest.mark.parametrize(("asked", "found"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
@pytest.mark.usefixtures("two_gpus")
def test_one_process_takes_the_device_that_was_asked_for(asked: str, found: str) -> None:
    with joined(torch.device(asked)) as ranks:
        assert ranks.device == torch.device(found)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> list[str]:
    """Process 1 of two, as torchrun starts it; the backends that it makes groups with."""
    backends: list[str] = []
    names = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    meeting = "mbqc.passes.train.parallel.ranks.rendezvous"
    monkeypatch.setattr(meeting, lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return backends


@pytest.mark.parametrize(("asked", "found", "backend"), [("cpu", "cpu", "gloo"), ("cuda", "cuda:1", "nccl")])
def test_under_torchrun_each_process_takes_its_own(torchrun: list[str], asked: str, found: str, backend: str) -> None:
    with joined(torch.device(asked)) as ranks:
        assert ranks == Ranks(1, 2, torch.device(found))
    assert torchrun == [backend]


def test_processes_do_not_share_a_gpu(torchrun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def join(asked: str) -> AbstractContextManager[Ranks]:
        return joined(torch.device(asked))

    with pytest.raises(UsageError, match=r"cuda:1 is one GPU, but there are 2 processes"), join("cuda:1"):
        pass
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 of this machine finds 2 GPUs"), join("cuda"):
        pass
    assert torchrun == []
