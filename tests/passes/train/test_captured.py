"""Captured passes train what passes that run as they are train, bit for bit; what cannot be recorded is told."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call, create_autospec

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbqc.devices import CPU
from mbqc.errors import DataError, MbqcError, PassError, PipelineError
from mbqc.passes.train import Train
from mbqc.passes.train.captured import WARM_UPS, GraphRecorder
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.passes.train.task import Task
from mbqc.passes.train.trainer import Trainer
from mbqc.pipeline import Context
from mbqc.pipeline.training import TrainingResult
from tests.passes.train.small import QUANTIZED, context, differing, quantized, run, stripes, trained, weights
from tests.passes.train.tape import Tape, TapeRecorder


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """All recordings, made without a GPU; and the numerics as PyTorch's operations, which alone they hold."""
    made: list[Tape] = []

    class Kept(TapeRecorder):
        def record(self, work: Callable[[], Any]) -> tuple[Tape, Any]:
            tape, result = super().record(work)
            made.append(tape)
            return tape, result

    monkeypatch.setattr("mbqc.passes.train.captured.GraphRecorder", Kept)
    monkeypatch.setattr("mbqc.fused.functions.kernels_for", lambda *tensors, half=False: None)
    return made


def training(
    capture: bool, surroundings: Context, passes: str = QUANTIZED, bits: tuple[int, ...] = (8, 4, 2), **options: Any
) -> tuple[dict[str, Tensor], TrainingResult]:
    """What is trained on the CPU, where the pass itself refuses to capture."""
    graph = copy.deepcopy(quantized(passes))
    train = Train(batch=16, evaluate=0, capture=capture, **options)
    trainer = Trainer(Task(graph, train, bits, surroundings, Ranks()))
    return (result := trainer.run()) and (weights(trainer.graph), result)


FOUR = "normalize,quant{bits=8:6:4:2},bncorrect"
PINNED = "normalize,quant{bits=4:2},bncorrect"
BY_WIDTH = f"{QUANTIZED}{{moments=none,statistics=width,affine=width}}"
CASES: dict[str, dict[str, Any]] = {
    "statistics freeze on the way": {"epochs": 2},
    "statistics by width": {"epochs": 2, "passes": BY_WIDTH},
    "gradient through the moments": {"epochs": 1, "passes": f"{QUANTIZED}{{gradient=through}}"},
    "one step for all widths": {"epochs": 2, "step": "accumulate", "clip": 0.5},
    "the highest width teaches": {"epochs": 2, "distill": "highest"},
    "the float model teaches": {"epochs": 2, "distill": "float"},
    "sandwich": {"epochs": 2, "passes": FOUR, "bits": (8, 6, 4, 2), "widths": "sandwich"},
    "raw scales": {"epochs": 1, "scales": "raw", "alrs": "layer"},
    "coresets": {"epochs": 3, "coreset": "el2n", "selection": "top", "keep": 0.5},
    "bfloat16": {"epochs": 2, "precision": "bfloat16"},
    "pinned layers of a width that is not trained": {"epochs": 1, "passes": PINNED, "bits": (4, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_replays_train_what_passes_train(tapes: list[Tape], case: str) -> None:
    options = CASES[case]
    expected, exact = training(False, context(), **options)
    assert not tapes
    found, result = training(True, context(), **options)
    assert differing(expected, found) == []
    assert result.after == exact.after
    assert [record.loss for record in result.epochs] == [record.loss for record in exact.epochs]
    widths = len(options.get("bits", (8, 4, 2)))
    assert len(tapes) == 2 * widths  # before and after statistics are frozen
    assert sum(tape.replays for tape in tapes) == sum(record.steps for record in result.epochs[-1:])


def test_draws_on_the_device_are_new_in_every_replay(tapes: list[Tape]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output + torch.randn_like(output), target)

    expected, _ = training(False, context(loss=loss), epochs=2)
    found, _ = training(True, context(loss=loss), epochs=2)
    assert differing(expected, found) == []


def test_batches_of_another_shape_run_as_they_are_and_are_counted(tapes: list[Tape]) -> None:
    images, labels = stripes(40)
    data = list(zip(images.split(16), labels.split(16), strict=True))
    expected, _ = training(False, context(data), epochs=2, bn_freeze=0.0)
    surroundings = context(data)
    found, _ = training(True, surroundings, epochs=2, bn_freeze=0.0)
    assert differing(expected, found) == []
    assert sum(tape.replays for tape in tapes) == 2 * 2 * 3
    (note,) = surroundings.report.notes
    assert (note.kind, note.message) == ("fallback", f"{2 * 3} passes were not replayed: {OTHER_SHAPE}")


OTHER_SHAPE = "their batches had another shape than the first"


def test_a_resumed_training_records_anew_and_goes_on_alike(tapes: list[Tape], tmp_path: Path) -> None:
    left = iter(range(16))  # of 3 + 1 for each of three widths, and again when statistics freeze

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    def breaks(output: Tensor, target: Tensor) -> Tensor:  # called where passes run or are recorded, not at replays
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(output, target)

    options = {"epochs": 3, "checkpoint": 1, "step": "accumulate"}
    expected, _ = training(True, context(loss=loss), **options)
    with pytest.raises(KeyboardInterrupt):
        training(True, context(loss=breaks, folder=tmp_path), **options)
    found, _ = training(True, context(loss=loss, folder=tmp_path, resume=True), **options)
    assert differing(expected, found) == []


def test_a_pass_that_the_host_must_wait_for_cannot_be_recorded(tapes: list[Tape]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        found = nn.functional.cross_entropy(output, target)
        return found if found.item() > 0 else -found

    told = r"^the pass at 8 bits cannot be recorded as a CUDA graph: \S*.py:\d+: loss\(.*\) failed"
    with pytest.raises(PassError, match=told + r"(?s:.*)\n  try: capture=false; or a loss\(\) and layers that read no"):
        training(True, context(loss=loss), epochs=1)


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: float(np.random.rand())])
def test_a_pass_that_draws_on_the_host_cannot_be_recorded(tapes: list[Tape], draw: Callable[[], float]) -> None:
    """All replays would draw the same, and other ones after a resume."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return draw() * nn.functional.cross_entropy(output, target)

    with pytest.raises(PassError, match="draws random numbers from Python or numpy, which every replay would repeat"):
        training(True, context(loss=loss), epochs=1)


def test_a_failure_is_told_though_the_end_of_its_recording_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording:
        def __init__(self, *given: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *raised: object) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    for name in ("Stream", "graph_pool_handle", "current_stream", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    torch.cuda.stream.return_value.__exit__.return_value = None  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    cause = DataError("loss(output, target) failed", where="model.py:3")
    with pytest.raises(DataError) as caught:
        GraphRecorder(CPU).record(MagicMock(side_effect=cause))
    assert caught.value is cause


def test_errors_of_the_data_are_told_as_without_recording(tapes: list[Tape]) -> None:
    images, labels = stripes()
    with pytest.raises(DataError, match=r"^training data: targets are torch.float32"):
        training(True, context((images, labels.float())), epochs=1)


def test_memory_that_does_not_suffice_is_no_fault_of_the_recording(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(self: object, work: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TapeRecorder, "record", record)
    with pytest.raises(torch.OutOfMemoryError):
        training(True, context(), epochs=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("capture=true", PassError, r"capture=true records CUDA graphs, but training is on cpu\n  try: --device cuda"),
        ("capture=true,switch=uniform", PipelineError, r"capture=true replays the same widths each time, but switch"),
    ],
)
def test_where_nothing_can_be_captured_it_is_refused(options: str, error: type[MbqcError], message: str) -> None:
    with pytest.raises(error, match=message):
        trained(f"epochs=1,{options}")


def test_several_processes_capture_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", MagicMock())
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(PassError, match=r"capture=true is for one process, but 2 train together"):
        run("train{batch=16,capture=true}", quantized(), context(device=torch.device("cuda")))


def test_the_recorder_warms_up_and_records_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be seen without a GPU: the calls fit PyTorch's signatures, in the order that it asks for."""
    calls = MagicMock()
    for name in ("Stream", "graph_pool_handle", "current_stream", "stream", "CUDAGraph", "graph"):
        double = create_autospec(getattr(torch.cuda, name))
        calls.attach_mock(double, name)
        monkeypatch.setattr(torch.cuda, name, double)
    recorder = GraphRecorder(CPU)
    work = MagicMock(return_value="result")
    calls.attach_mock(work, "work")
    recorder.warm_up(work)
    graph, result = recorder.record(work)
    assert (graph, result) == (calls.CUDAGraph.return_value, "result")
    stream, current = calls.Stream.return_value, calls.current_stream.return_value
    stream.wait_stream.assert_called_once_with(current)
    current.wait_stream.assert_called_once_with(stream)
    calls.stream.assert_has_calls([call(stream), call(current)], any_order=True)
    calls.graph.assert_called_once_with(graph, calls.graph_pool_handle.return_value, stream, "thread_local")
    names = [name for name, _, _ in calls.mock_calls]
    entered, recorded = names.index("stream().__enter__"), names.index("graph().__enter__")
    assert names[entered + 1 : entered + 1 + WARM_UPS] == ["work"] * WARM_UPS
    assert names[recorded + 1] == "work"
