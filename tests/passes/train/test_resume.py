"""A killed training goes on as if nothing had happened: the weights are those of an unbroken run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from mbqc.errors import CheckpointError, MbqcError
from tests.passes.train.small import BATCH, SAMPLES, Noisy, context, differing, stripes, trained, weights

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


def stop_after(calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss after so many calls of which the process is gone."""
    left = iter(range(calls))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(left, None) is None:
            raise Stopped
        return torch.nn.functional.cross_entropy(output, target)

    return loss


def same_loss(output: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output, target)


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


def _resumed_equals_unbroken(folder: Path, options: str, data: Callable[[], object], kill: int) -> None:
    whole, result = trained(options, context(data(), loss=same_loss))
    with pytest.raises(Stopped):
        trained(options, context(data(), folder, loss=stop_after(kill)))
    saved = any(folder.glob("step-*"))
    again, resumed = trained(options, context(data(), folder, resume=saved, loss=same_loss))
    assert differing(weights(whole), weights(again)) == []
    assert resumed.epochs == result.epochs
    assert resumed.after == result.after


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """A real process, killed again and again until it gets through."""
    options, draw = OPTIONS["plain"], random.Random(0)
    whole, _ = trained(options)
    kills, finished = 0, False
    while not finished:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # a fork has none of its parent's others
            trained(options, context(folder=tmp_path, resume=any(tmp_path.glob("step-*"))))
            os._exit(0)
        time.sleep(draw.uniform(0.0, 0.1 * (1 + kills)))  # the first is dead before it has trained
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        finished = os.waitstatus_to_exitcode(status) == 0
        kills += not finished
    again, _ = trained(options, context(folder=tmp_path, resume=True))
    assert kills > 0
    assert differing(weights(whole), weights(again)) == []


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    calls = iter(range(100))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.nn.functional.cross_entropy(output, target)

    with pytest.raises(MbqcError, match=r"stopped by SIGTERM after 4 rounds.*\n.*--resume"):
        trained("epochs=3,checkpoint=1000", context(folder=tmp_path, loss=loss))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000004.safetensors"]


def test_another_model_or_other_options_are_refused(tmp_path: Path) -> None:
    trained("epochs=1", context(folder=tmp_path))
    with pytest.raises(CheckpointError, match=r"options: saved train\{epochs=1,batch=16\}.*now train\{epochs=2"):
        trained("epochs=2", context(folder=tmp_path, resume=True))
    with pytest.raises(CheckpointError, match="model: saved"):
        trained("epochs=1", context(folder=tmp_path, resume=True), "normalize,quant{ladder=shift},bncorrect")


def test_other_data_is_refused(tmp_path: Path) -> None:
    trained("epochs=1", context(folder=tmp_path))
    more = context(stripes(2 * SAMPLES), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"6 rounds on 96 samples in batches of 16, now .* 12 rounds on 192"):
        trained("epochs=1", more)


def test_earlier_checkpoints_are_never_overwritten(tmp_path: Path) -> None:
    trained("epochs=1", context(folder=tmp_path))
    with pytest.raises(CheckpointError, match=r"checkpoints of an earlier training\n.*--resume"):
        trained("epochs=1", context(folder=tmp_path))


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        trained("epochs=1", context(folder=tmp_path, resume=True))
