"""A killed training goes on as if nothing had happened: the weights are those of an unbroken run, bit for bit."""

from __future__ import annotations

import copy
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

from mbqc.errors import CheckpointError, MbqcError
from mbqc.ir.annotations import Sensitivity, Switching, annotate, find_annotation
from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer, WidthBatchNorm
from mbqc.passes.train.collapse import Watch
from mbqc.passes.train.judge import metrics
from tests.passes.train.small import (
    BATCH,
    QUANTIZED,
    SAMPLES,
    Noisy,
    context,
    differing,
    quantized,
    run,
    stripes,
    trained,
    weights,
)

EPOCHS = 3
OPTIONS = {
    "plain": f"epochs={EPOCHS},checkpoint=2",
    "sandwich": f"epochs={EPOCHS},checkpoint=2,widths=sandwich,alrs=layer,scales=raw",
    "coreset": f"epochs={EPOCHS},checkpoint=2,coreset=el2n,keep=0.5,resample=1",
    "random": f"epochs={EPOCHS},checkpoint=2,coreset=random,keep=0.5",
    "switch": f"epochs={EPOCHS},checkpoint=2,switch=uniform,bn_freeze=0.6",
    "bfloat16": f"epochs={EPOCHS},checkpoint=2,precision=bfloat16",
}


class Stopped(BaseException):
    """What a kill looks like from within: nothing is caught, nothing is saved."""


Loss = Callable[[Tensor, Tensor], Tensor]


def same_loss(output: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def drawing_loss(output: Tensor, target: Tensor) -> Tensor:
    """Draws from all generators that a user may know."""
    noise = torch.randn_like(output) + random.random() + torch.tensor(np.random.rand(*output.shape))
    return same_loss(output + 0.1 * noise, target)


def stop_after(calls: int, loss: Loss = same_loss) -> Loss:
    """A loss after so many calls of which the process is gone."""
    left = iter(range(calls))

    def stopping(output: Tensor, target: Tensor) -> Tensor:
        if next(left, None) is None:
            raise Stopped
        return loss(output, target)

    return stopping


def sigterm_at(call: int) -> Loss:
    """A loss that tells the process to end at one of its calls."""
    calls = iter(range(1000))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return same_loss(output, target)

    return loss


def generated() -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = stripes()
    return zip(images.split(BATCH), labels.split(BATCH), strict=True)


class OwnOrder:
    """Batches in a new order on each sweep, from a generator that remembers."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = stripes()
        order = torch.randperm(len(labels), generator=self.generator)
        return ((images[pick], labels[pick]) for pick in order.split(BATCH))


DATA: dict[str, Callable[[], object]] = {
    "tensors": stripes,
    "dataset": Noisy,
    "loader": lambda: DataLoader(Noisy(), batch_size=BATCH, shuffle=True),
    "list": lambda: list(generated()),
    "own order": OwnOrder,
}


@pytest.mark.parametrize("kill", [1, 9, 30])
@pytest.mark.parametrize("options", OPTIONS)
def test_any_options(tmp_path: Path, options: str, kill: int) -> None:
    _resumed_equals_unbroken(tmp_path, OPTIONS[options], stripes, kill)


@pytest.mark.parametrize("data", DATA)
def test_any_data(tmp_path: Path, data: str) -> None:
    _resumed_equals_unbroken(tmp_path, OPTIONS["plain"], DATA[data], 31)


@pytest.mark.parametrize("kill", [20, 40])
def test_scores_of_augmented_samples(tmp_path: Path, kill: int) -> None:
    """Scoring draws random numbers too, between epochs."""
    options = "epochs=4,checkpoint=1,coreset=el2n,selection=top,keep=0.5,resample=1,bn_freeze=0,reestimate=pooled"
    _resumed_equals_unbroken(tmp_path, options, Noisy, kill)


@pytest.mark.parametrize("data", ["tensors", "dataset", "loader", "own order"])
def test_a_loss_that_draws_random_numbers(tmp_path: Path, data: str) -> None:
    _resumed_equals_unbroken(tmp_path, "epochs=2,checkpoint=2,evaluate=0", DATA[data], 9, drawing_loss)


@pytest.mark.parametrize("kill", [40, 60])
def test_scores_that_select_no_more_are_not_kept(tmp_path: Path, kill: int) -> None:
    """Those of `tdds` are as large as all outputs, twice, on the device."""
    options = "epochs=6,checkpoint=1,evaluate=0,coreset=el2n,selection=top,keep=0.5,coreset_warmup=2,resample=2"
    _resumed_equals_unbroken(tmp_path / "killed", options, stripes, kill)
    trained(options, context(folder=tmp_path / "unbroken"))
    kept = {name for name in load_file(max((tmp_path / "unbroken").glob("step-*"))) if name.startswith("subsets.")}
    assert kept == {"subsets.selected.8", "subsets.selected.4", "subsets.selected.2"}


def test_a_coreset_without_scores_keeps_nothing(tmp_path: Path) -> None:
    trained("epochs=2,evaluate=0,coreset=random,keep=0.5", context(folder=tmp_path))
    assert not [name for name in load_file(max(tmp_path.glob("step-*"))) if name.startswith("subsets.")]


def _resumed_equals_unbroken(
    folder: Path, options: str, data: Callable[[], object], kill: int, loss: Loss = same_loss
) -> None:
    whole, result = trained(options, context(data(), loss=loss))
    with pytest.raises(Stopped):
        trained(options, context(data(), folder, loss=stop_after(kill, loss)))
    saved = any(folder.glob("step-*"))
    again, resumed = trained(options, context(data(), folder, resume=saved, loss=loss))
    assert differing(weights(whole), weights(again)) == []
    assert resumed.epochs == result.epochs
    assert resumed.after == result.after


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """A real process, killed again and again until it gets through."""
    options, draw = OPTIONS["plain"], random.Random(0)
    whole, _ = trained(options)
    kills, resumes, finished = 0, 0, False
    while not finished:
        resume = any(tmp_path.glob("step-*"))
        resumes += resume
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # a fork has none of its parent's others
            trained(options, context(folder=tmp_path, resume=resume))
            os._exit(0)
        time.sleep(draw.uniform(0.0, 0.1 * (1 + kills)))  # the first is dead before it has trained
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        finished = os.waitstatus_to_exitcode(status) == 0
        kills += not finished
    again, _ = trained(options, context(folder=tmp_path, resume=True))
    assert kills > 0
    assert resumes > 0
    assert differing(weights(whole), weights(again)) == []


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(MbqcError, match=r"stopped by SIGTERM after 4 rounds.*\n.*--resume"):
        trained("epochs=3,checkpoint=1000", context(folder=tmp_path, loss=sigterm_at(10)))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000004.safetensors"]


def test_an_epoch_that_is_only_closed_after_the_stop_has_the_same_record(tmp_path: Path) -> None:
    """Statistics freeze in the second epoch, and stay frozen in the third."""
    options = "epochs=3,evaluate=0,bn_freeze=0.5"
    whole, result = trained(options, context(loss=same_loss))
    assert [record.frozen for record in result.epochs] == [False, True, True]
    with pytest.raises(MbqcError, match="stopped by SIGTERM after 12 rounds"):
        trained(options, context(folder=tmp_path, loss=sigterm_at(36)))  # the last of 12 rounds of 3 widths
    again, resumed = trained(options, context(folder=tmp_path, resume=True, loss=same_loss))
    assert resumed.epochs == result.epochs
    assert differing(weights(whole), weights(again)) == []


# Whose checkpoints these are


MEASURED = {
    "switching distributions": (f"{QUANTIZED},hasb{{probes=2}}", "switch=hasb"),
    "statistics by width": (f"{QUANTIZED}{{moments=none,statistics=width,affine=width}}", "scales=log"),
    "limits of raw scales": (QUANTIZED, "scales=raw,scale_rate=0.1"),
}


@pytest.mark.parametrize("case", MEASURED)
def test_what_passes_measure_goes_on_as_it_was_measured_first(tmp_path: Path, case: str) -> None:
    """Another number of threads adds up in another order, so that the same passes find other last digits."""
    passes, options = MEASURED[case]
    graph = quantized(passes)
    options = f"train{{batch={BATCH},epochs=1,checkpoint=2,bn_freeze=0,{options}}}"
    whole = run(options, graph, context(loss=same_loss))
    with pytest.raises(Stopped):
        run(options, graph, context(folder=tmp_path, loss=stop_after(10)))
    elsewhere = measured_elsewhere(graph)
    assert differing(weights(whole), weights(run(options, elsewhere, context(loss=same_loss)))) != []
    again = run(options, elsewhere, context(folder=tmp_path, resume=True, loss=same_loss))
    assert differing(weights(whole), weights(again)) == []


def measured_elsewhere(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with other numbers where passes measure them."""
    other = copy.deepcopy(graph)
    for module in other.modules():
        if isinstance(module, WeightQuantizer | ActivationQuantizer):
            module.scale.data *= 1.01
        if isinstance(module, WidthBatchNorm):
            module.running_mean[1:] += 0.01
            module.running_var[1:] *= 1.01
    for node in other.graph.nodes:
        if find_annotation(node, Switching) is not None:
            annotate(node, Sensitivity(1.0, 0.1, 0.01, 2))
            annotate(node, Switching((8, 4, 2), (0.2, 0.3, 0.5)))
    return other


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("epochs=2", r"data: saved 6 rounds .*, now 12 rounds .*; train epochs: saved 1, now 2\n"),
        ("epochs=1,rate=0.1", r"belongs to another run; train rate: saved 0\.002, now 0\.1\n"),
    ],
)
def test_other_options_are_refused(tmp_path: Path, options: str, told: str) -> None:
    trained("epochs=1", context(folder=tmp_path))
    with pytest.raises(CheckpointError, match=told):
        trained(options, context(folder=tmp_path, resume=True))


@pytest.mark.parametrize(
    ("passes", "told"),
    [
        (f"{QUANTIZED},hasb{{probes=3}}", r"run; hasb probes: saved 2, now 3\n"),
        ("normalize,quant{calibration=mse},bncorrect,hasb{probes=2}", r"run; quant calibration: saved gauss_newton,"),
        ("normalize,quant{ladder=shift},bncorrect,hasb{probes=2}", r"run; model: saved \w+, now \w+; quant ladder: "),
        (QUANTIZED, r"; passes: saved normalize,quant,bncorrect,hasb,train, now normalize,quant,bncorrect,train; "),
    ],
)
def test_other_options_of_passes_before_are_refused(tmp_path: Path, passes: str, told: str) -> None:
    trained("epochs=1", context(folder=tmp_path), f"{QUANTIZED},hasb{{probes=2}}")
    with pytest.raises(CheckpointError, match=told):
        trained("epochs=1", context(folder=tmp_path, resume=True), passes)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.bias"])
@pytest.mark.parametrize("passes", [QUANTIZED, MEASURED["statistics by width"][0]])
def test_another_model_is_refused(tmp_path: Path, passes: str, name: str) -> None:
    trained("epochs=1", context(folder=tmp_path), passes)
    graph = copy.deepcopy(quantized(passes))
    graph.state_dict()[name].view(-1)[0] += 1  # of statistics by width, those of the float model
    with pytest.raises(CheckpointError, match=r"belongs to another run; model: saved \w+, now \w+\n"):
        run(f"train{{batch={BATCH},epochs=1}}", graph, context(folder=tmp_path, resume=True))


def test_another_mbqc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("epochs=1", context(folder=tmp_path))
    monkeypatch.setattr("mbqc.passes.train.checkpoint.saving.version", lambda name: "9")
    with pytest.raises(CheckpointError, match=r"mbqc: saved \S+, now 9\n"):
        trained("epochs=1", context(folder=tmp_path, resume=True))


def test_other_data_and_another_seed_are_refused(tmp_path: Path) -> None:
    trained("epochs=1", context(folder=tmp_path))
    more = context(stripes(2 * SAMPLES), tmp_path, resume=True, seed=1)
    told = r"seed: saved 0, now 1; data: saved 6 rounds on 96 samples in batches of 16, now 12 rounds on 192"
    with pytest.raises(CheckpointError, match=told):
        trained("epochs=1", more)


def test_earlier_checkpoints_are_never_overwritten(tmp_path: Path) -> None:
    trained("epochs=1", context(folder=tmp_path))
    with pytest.raises(CheckpointError, match=r"checkpoints of an earlier training\n.*--resume"):
        trained("epochs=1", context(folder=tmp_path))


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        trained("epochs=1", context(folder=tmp_path, resume=True))


def test_a_finished_training_is_judged_anew(tmp_path: Path) -> None:
    """On the evaluation data of now: a checkpoint knows only what was found on that of then."""
    trained("epochs=1", context(folder=tmp_path))
    surroundings = context(folder=tmp_path, resume=True)
    surroundings = replace(surroundings, evaluation=[stripes(48, seed=2)])
    graph, result = trained("epochs=1", surroundings)
    assert result.after == metrics(graph, range(1, 9), surroundings)


def test_a_stop_while_judging_saves_though_a_width_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training: list[bool] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        training.append(True)
        return nn.functional.cross_entropy(output, target)

    def metric(output: Tensor, target: Tensor) -> float:
        if training:
            signal.raise_signal(signal.SIGTERM)
        return 0.0

    monkeypatch.setattr(Watch, "in_doubt", property(lambda watch: True))
    with pytest.raises(MbqcError, match="stopped by SIGTERM after 6 rounds"):
        trained("epochs=2", context(folder=tmp_path, loss=loss, metric=metric))
    assert [file.name for file in tmp_path.glob("step-*")]
