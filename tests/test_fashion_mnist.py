"""The evidence experiments: they can run, a run is recorded whole, and the tables say what the records say."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mbqc.api import pipeline_of
from mbqc.spec import split_specs

FOLDER = Path(__file__).parent.parent / "examples" / "fashion_mnist"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def runs() -> list[str]:
    from experiments import TABLES

    return list(dict.fromkeys(run for table in TABLES for row in table.rows for run in row.runs))


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """Saves a run whose accuracy is the same at all widths, except where told."""
    from experiments import WIDTHS
    from records import Record, save

    def write(
        passes: str,
        seed: int,
        accuracy: float,
        at: dict[int, float] | None = None,
        seconds: float = 1.0,
        timed: bool = True,
    ) -> Path:
        program = dict.fromkeys(WIDTHS, accuracy) | (at or {})
        parts = {"training": seconds, "evaluating": 100.0, "all": 200.0}
        accuracies = program, program, program, program
        save(Record(passes, passes, seed, 90.0, *accuracies, {}, {}, {}, 10, parts, timed, {}), tmp_path)
        return tmp_path

    return write


# The experiments


def test_every_pipeline_can_run() -> None:
    for text in runs():
        pipeline_of(text)


def test_no_run_is_asked_for_in_two_ways() -> None:
    """Two texts of one pipeline would be two runs; two pipelines in one file would overwrite each other."""
    from records import record_file

    meanings = {tuple((name, frozenset(options.items())) for name, options in split_specs(text)) for text in runs()}
    assert len(meanings) == len(runs())
    assert len({record_file(text, 0) for text in runs()}) == len(runs())


def test_separate_trainings_serve_each_width_by_its_own_run() -> None:
    from experiments import table

    row = table("serving").row("seven separate trainings")
    assert set(row.serves) == {8, 7, 6, 5, 4, 3, 2}
    assert all(f"quant{{bits={bits}}}" in run for bits, run in row.serves.items())


def test_what_is_recorded_is_not_run_again(recorded: Callable[..., Path]) -> None:
    from evidence import missing

    first, *others = missing(["ladder"], [0, 1], recorded("another", 0, 80.0))
    assert others == missing(["ladder"], [0, 1], recorded(*first, 80.0))


# Records


def test_a_record_is_read_as_it_was_written(recorded: Callable[..., Path]) -> None:
    from records import load

    folder = recorded("quant,bncorrect", 2, 80.0, {3: 70.5})
    record = load("quant,bncorrect", 2, folder)
    assert record is not None
    assert record.program[3] == 70.5
    assert record.cost == 1.0  # judging it costs nothing
    assert load("quant,bncorrect", 1, folder) is None


def test_the_record_of_another_run_is_refused(recorded: Callable[..., Path]) -> None:
    from records import load, record_file

    folder = recorded("quant", 0, 80.0)
    record_file("quant", 0, folder).rename(record_file("bncorrect", 0, folder))
    with pytest.raises(ValueError, match="holds the run 'quant' of seed 0"):
        load("bncorrect", 0, folder)


# Tables


def test_a_row_shows_mean_and_half_range_over_seeds(recorded: Callable[..., Path]) -> None:
    from experiments import table
    from report import report

    (passes,) = table("bn").row("switchable").runs
    for seed, accuracy in enumerate((80.0, 81.0, 83.0)):
        folder = recorded(passes, seed, accuracy, {1: 11.0}, seconds=seed)
    text = report([0, 1, 2], folder)
    cells = ["switchable", *["81.33±1.50"] * 7, "11.00±0.00", "10", "1.0", "0.0"]
    assert f"| {' | '.join(cells)} |" in text
    assert "| corrected, frozen (not run) |" in text
    assert "| switchable (3 of 4 seeds) |" in report([0, 1, 2, 3], folder)


def test_trainings_apart_are_shown_as_one_row(recorded: Callable[..., Path]) -> None:
    from experiments import table
    from report import report

    row = table("serving").row("seven separate trainings")
    for bits, passes in row.serves.items():
        folder = recorded(passes, 0, 50.0, {bits: 80.0 + bits})
    cells = [row.name, *(f"{80 + bits}.00" for bits in range(8, 1, -1)), "-", "70", "7.0"]
    assert f"| {' | '.join(cells)} |" in report([0], folder)


def test_goals_are_judged_by_the_worst_width(recorded: Callable[..., Path]) -> None:
    from experiments import table
    from goals import goals

    rows = table("bn")
    recorded(rows.row("switchable").runs[0], 0, 80.0)
    folder = recorded(rows.row("corrected, frozen").runs[0], 0, 79.8, {4: 79.6, 3: 81.0, 2: 79.5, 5: 79.0})
    found = [(round(goal.found, 2) if goal.found is not None else None, goal.met) for goal in goals([0], folder)]
    assert found[:5] == [(-0.4, "no"), (-0.5, "yes"), (1.0, "yes"), (-0.8, "no"), (0.0, "yes")]
    assert set(found[5:]) == {(None, "not run")}


def test_a_share_of_the_time_is_what_training_took(recorded: Callable[..., Path]) -> None:
    from experiments import table
    from goals import goals

    rows = table("serving")
    for passes in rows.row("seven separate trainings").runs:
        recorded(passes, 0, 80.0, seconds=4.0)
    folder = recorded(rows.row("one run, 8, 4, 2 bits").runs[0], 0, 80.0, seconds=10.0)
    above, times = goals([0], folder)[5:7]
    assert (above.found, above.met) == (0.0, "yes")
    assert (times.found, times.met) == (pytest.approx(2.8), "yes")


def test_seconds_of_a_run_that_shared_its_core_are_not_shown(recorded: Callable[..., Path]) -> None:
    from experiments import table
    from goals import goals
    from report import report

    rows = table("serving")
    (run,) = rows.row("one run, 8, 4, 2 bits").runs
    for passes in rows.row("seven separate trainings").runs:
        recorded(passes, 0, 80.0)
    folder = recorded(run, 0, 80.0, timed=False)
    above, times = goals([0], folder)[5:7]
    assert (above.met, times.met) == ("yes", "not run")
    assert f"| one run, 8, 4, 2 bits | {' | '.join(['80.00'] * 8)} | 10 | - |" in report([0], folder)


# Data and runs, on images of noise


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Data in Fashion-MNIST's form, and weights of seed 0; the pixels of the training images."""
    import model
    from safetensors.torch import save_file

    numbers = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 30)):
        images = numbers.integers(0, 256, (count, 28, 28), np.uint8)
        labels = numbers.integers(0, 10, count, np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
        if part == "train":
            pixels = images
    monkeypatch.setattr(model, "DATA", tmp_path)
    torch.manual_seed(0)
    save_file(model.ResNet8().state_dict(), model.weights_file(0))
    return pixels


def test_images_are_pooled_and_normalised(noise: np.ndarray) -> None:
    import model

    images, labels = model.train_images()
    assert images.shape == (40, 1, 14, 14)
    assert labels.dtype == torch.int64
    corner = noise[7, 2:4, 4:6].mean() / 255
    assert float(images[7, 0, 1, 2]) == pytest.approx((corner - model.MEAN) / model.STD, abs=1e-5)


@pytest.mark.usefixtures("noise")
def test_an_epoch_holds_every_image_once_as_it_is_or_mirrored() -> None:
    import model

    images, labels = model.train_images()
    torch.manual_seed(0)
    batches = list(model.train_data())
    drawn, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    same, mirrored = ((drawn[:, None] == other[None]).flatten(2).all(2) for other in (images, images.flip(3)))
    assert 0 < int(mirrored.sum()) < len(images)
    assert torch.equal((same | mirrored).sum(0), torch.ones(len(images), dtype=torch.int64))
    assert torch.equal(labels[(same | mirrored).int().argmax(1)], targets)


@pytest.mark.usefixtures("noise")
def test_a_run_is_recorded_whole() -> None:
    from evidence import measure
    from experiments import WIDTHS

    record = measure("quant,bncorrect", 0)
    assert record.pipeline == "normalize,quant,bncorrect,lower"
    assert list(record.program) == list(record.graph) == list(WIDTHS)
    assert all(record.program[bits] == pytest.approx(record.graph[bits], abs=100 / 30 + 0.1) for bits in WIDTHS)
    assert record.steps == 0
    assert record.mixed is not None
    assert 0 <= record.mixed <= 100
    assert {"torch", "mbqc", "python", "processor"} <= set(record.environment)


def test_mixed_widths_are_the_same_for_every_run_and_leave_pinned_layers_alone() -> None:
    from evidence import MIXED, _mixed

    layers = {"conv1": 8, "conv2": None, "conv3": None, "fc": 8}
    draws = list(_mixed(layers))
    assert draws == list(_mixed(layers))
    assert len(draws) == MIXED
    assert all(draw["conv1"] == draw["fc"] == 8 for draw in draws)
    assert len({(draw["conv2"], draw["conv3"]) for draw in draws}) > 4


@pytest.mark.usefixtures("noise")
def test_a_training_is_recorded_with_its_steps_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import model
    from evidence import measure
    from experiments import WIDTHS

    monkeypatch.setattr(model, "BATCH", 20)
    record = measure("quant{bits=8:2},train{epochs=2,scales=raw,alrs=paper,reestimate=width}", 0)
    assert record.steps == 2 * 2 * 2  # epochs, batches, widths
    assert set(record.clamped) == {8, 2}
    assert set(record.after) == set(WIDTHS)
    assert record.graph == record.separate
    assert all(record.program[bits] == pytest.approx(record.graph[bits], abs=100 / 30 + 0.1) for bits in WIDTHS)
    assert 0 < record.cost < record.seconds["all"]
    assert set(record.environment) == {"mbqc", "torch", "python", "commit", "processor", "jobs"}


@pytest.mark.usefixtures("noise")
def test_weights_that_were_not_trained_are_asked_for() -> None:
    import model

    with pytest.raises(FileNotFoundError, match=r"no weights of seed 3 .*train_float.py --seed 3"):
        model.float_network(3)
