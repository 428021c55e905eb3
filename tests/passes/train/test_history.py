"""What a training leaves in its folder, and what stays when it ends badly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mbqc.errors import CheckpointError, MbqcError, PassError
from mbqc.passes.train.history import draw_curves
from mbqc.pipeline.training import EpochRecord
from tests.passes.train.small import context, differing, trained, weights


def test_history_is_json_of_the_report(tmp_path: Path) -> None:
    _, result = trained("epochs=2", context(folder=tmp_path))
    found = json.loads((tmp_path / "history.json").read_text())
    assert found["exact"] == result.exact
    assert {int(b): v for b, v in found["after"].items()} == result.after
    assert {int(b): v for b, v in found["before"].items()} == result.before
    assert [row["epoch"] for row in found["epochs"]] == [1, 2]
    assert {int(b): v for b, v in found["epochs"][1]["metric"].items()} == result.epochs[1].metric
    assert "training" in found["seconds"]


def record(epoch: int, loss: dict[int, float]) -> EpochRecord:
    return EpochRecord(epoch, epoch, 0.1, loss, {}, {}, frozen=False)


def test_curves_show_widths_that_the_first_epoch_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import axes

    drawn: list[str] = []
    original = axes.Axes.plot

    def spy(self: Any, *arguments: Any, label: str, **others: Any) -> Any:
        drawn.append(label)
        return original(self, *arguments, label=label, **others)

    monkeypatch.setattr(axes.Axes, "plot", spy)
    assert draw_curves(tmp_path, [record(1, {8: 1.0, 2: 1.0}), record(2, {8: 0.5, 4: 0.6, 2: 0.7})], None)
    assert drawn == ["8 bits", "4 bits", "2 bits"]
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("file", ["history.json", "curves.png", "step-00000006"])
def test_a_full_disk_is_told_and_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    from mbqc.files import write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith(file):
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    for module in ("history", "checkpoint.store"):
        monkeypatch.setattr(f"mbqc.passes.train.{module}.write_atomically", full)
    with pytest.raises(CheckpointError, match=rf"^pass train, .*{file}.*: cannot .*No space left on device"):
        trained("epochs=1,checkpoint=3", context(folder=tmp_path))
    monkeypatch.undo()
    assert (tmp_path / "step-00000003.safetensors").exists()
    whole, _ = trained("epochs=1,checkpoint=3")
    again, _ = trained("epochs=1,checkpoint=3", context(folder=tmp_path, resume=True))
    assert differing(weights(whole), weights(again)) == []


def nan_at(call: int) -> Any:
    calls = iter(range(1, 1000))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target) * (torch.nan if next(calls) == call else 1.0)

    return loss


def test_after_nan_the_last_checkpoint_is_there_and_goes_on(tmp_path: Path) -> None:
    whole, _ = trained("epochs=1,checkpoint=1", context(loss=cross_entropy))
    with pytest.raises(PassError, match=r"^pass train: the loss is nan at 4 bits: .*\n  try: a lower rate"):
        # three widths, the mean output of the first, and the second width of the next round
        trained("epochs=1,checkpoint=1", context(folder=tmp_path, loss=nan_at(6)))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001.safetensors"]
    again, _ = trained("epochs=1,checkpoint=1", context(folder=tmp_path, resume=True, loss=cross_entropy))
    assert differing(weights(whole), weights(again)) == []


def test_a_rate_that_is_far_too_high_names_width_and_weights() -> None:
    with pytest.raises(PassError, match=r"^pass train: the (loss|gradient) is .* bits: .*\n  try: a lower rate"):
        trained("epochs=1,rate=1e30")


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_signal_while_an_epoch_is_judged_is_not_forgotten(tmp_path: Path, epochs: int) -> None:
    calls = iter(range(100))

    def metric(output: Tensor, target: Tensor) -> float:
        if next(calls) == 9:  # float, eight widths, and now the first epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with pytest.raises(MbqcError, match="stopped by SIGTERM after 6 rounds"):
        trained(f"epochs={epochs}", context(folder=tmp_path, metric=metric))
    trained(f"epochs={epochs}", context(folder=tmp_path, resume=True))
