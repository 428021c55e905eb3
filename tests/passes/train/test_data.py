"""Training data in every form that it may come in, and what is said of data that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mbqc.errors import DataError, PassError
from mbqc.pipeline import Context
from mbqc.userfile import load_user_model
from tests.passes.train.small import (
    BATCH,
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

ROUNDS = SAMPLES // BATCH


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = stripes()
    return zip(images.split(BATCH), labels.split(BATCH), strict=True)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples one by one; a DataLoader makes batches of them."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*stripes(), strict=True)


class Own:
    """Batches that can be read again, of unknown number."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches()


FORMS: dict[str, Callable[[], Any]] = {
    "dataset": lambda: TensorDataset(*stripes()),
    "loader": lambda: DataLoader(TensorDataset(*stripes()), batch_size=BATCH),
    "shuffling loader": lambda: DataLoader(TensorDataset(*stripes()), batch_size=BATCH, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_in_any_form_train_alike(form: str) -> None:
    expected, one = trained("epochs=1")
    found, other = trained("epochs=1", context(FORMS[form]()))
    assert differing(weights(expected), weights(found)) == []
    assert one.epochs == other.epochs


def test_a_loader_with_a_worker_trains_as_one_without() -> None:
    expected, _ = trained("epochs=1")
    loader = DataLoader(TensorDataset(*stripes()), batch_size=BATCH, num_workers=1, persistent_workers=True)
    found, _ = trained("epochs=1", context(loader))
    assert differing(weights(expected), weights(found)) == []
    assert active_children() == []


STREAMS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(batches()),
    "own": Own,
    "loader over an iterable dataset": lambda: DataLoader(Endless(), batch_size=BATCH),
}


@pytest.mark.parametrize("form", STREAMS)
def test_batches_in_any_form_come_in_their_own_order(form: str) -> None:
    expected, _ = trained("epochs=2", context(list(batches())))
    found, result = trained("epochs=2", context(STREAMS[form]()))
    assert result.epochs[-1].steps == 2 * 3 * ROUNDS
    assert differing(weights(expected), weights(found)) == []


def test_a_generator_in_a_user_file_is_made_anew_for_every_epoch(tmp_path: Path) -> None:
    (tmp_path / "stripes_file.py").write_text(
        "from tests.passes.train.small import stripes, network as model\n"
        "def train_data():\n    images, labels = stripes()\n    yield from zip(images.split(16), labels.split(16))\n"
    )
    user = load_user_model(str(tmp_path / "stripes_file.py"))
    expected, _ = trained("epochs=2", context(list(batches())))
    found, _ = trained("epochs=2", context(user.training_data()))
    assert differing(weights(expected), weights(found)) == []


class Kept(Noisy):
    """Remembers what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        self.given.append(image)
        return image, label


def test_what_a_loss_draws_is_new_in_every_call_and_changes_no_augmentation() -> None:
    quiet, loud, draws = Kept(), Kept(), list[float]()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        draws.append(float(torch.randn(())))
        return torch.nn.functional.cross_entropy(output, target) * (1 + 0.1 * draws[-1])

    trained("epochs=2,evaluate=0", context(quiet))
    trained("epochs=2,evaluate=0", context(loud, loss=loss))
    assert torch.equal(torch.stack(quiet.given), torch.stack(loud.given))
    assert len(set(draws)) == len(draws) > 36


@pytest.mark.parametrize(("size", "given", "steps"), [(32, 16, 3), (None, 16, 6), (None, 40, 2), (None, 1000, 1)])
def test_the_batch_size_is_the_loaders_or_the_option(size: int | None, given: int, steps: int) -> None:
    data = TensorDataset(*stripes())
    labelled = data if size is None else DataLoader(data, batch_size=size)
    seen = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(target))
        return cross_entropy(output, target)

    run(f"train{{epochs=1,bits=8,batch={given}}}", quantized(), context(labelled, loss=loss))
    assert len(seen) == steps + 1  # once about one answer for all samples of the first batch
    assert set(seen) == {min(size or given, SAMPLES)}


# What does not fit


def images() -> Tensor:
    return stripes()[0]


def labels() -> Tensor:
    return stripes()[1]


class Broken(Dataset[Any]):
    """Raises in the middle."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        raise OSError(f"sample {index} is gone")


class BrokenStream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from list(batches())[:2]
        raise OSError("the stream broke")


class Lying:
    """Says that it has one batch."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches()


def with_nan() -> Tensor:
    changed = images().clone()
    changed[50, 0, 3, 3] = torch.nan
    return changed


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no batch": (list, r"training data is empty\n.*at least one batch"),
    "empty loader": (lambda: DataLoader(Endless(), batch_size=1000, drop_last=True), "training data is empty"),
    "no sample": (lambda: (images()[:0], labels()[:0]), r"training data is empty\n.*at least one sample"),
    "an iterator": (batches, r"is an iterator, which can be read only once\n.*a list, or a DataLoader"),
    "fewer targets": (lambda: (images(), labels()[1:]), r"differ in their number of samples: \(96, 1, 8, 8\), \(95,\)"),
    "no targets": (lambda: [images()], r"training data: there are no targets\n.*\(inputs, target\)"),
    "a negative label": (lambda: (images(), labels() - 1), r"training data: label -1 is out of range: .* 3 classes\n"),
    "a large label": (
        lambda: (images(), labels() + 5),
        r"training data: label 7 is out of range: .*\n.*0 to 2",
    ),
    "float targets": (lambda: (images(), labels().float()), r"training data: targets are torch.float32 \(16,\)"),
    "several targets a sample": (
        lambda: (images(), torch.full((SAMPLES, 4), 255)),
        r"training data: targets are torch.int64 \(16, 4\), not whole-number labels \[N\]\n.*define loss",
    ),
    "NaN": (lambda: (with_nan(), labels()), r"training data, batch \d: an input holds NaN or infinity\n"),
    "another shape": (lambda: (images()[..., 1:], labels()), r"training data, batch 0: an input is .*\(16, 1, 8, 7\)"),
    "samples, not batches": (Endless, r"training data, batch 0: an input is torch.float32 \(1, 8, 8\)"),
    "a dataset that raises": (Broken, r"test_data\.py:\d+: training data raised OSError: sample \d+ is gone"),
    "a stream that raises": (
        lambda: DataLoader(BrokenStream(), batch_size=None),
        r"test_data\.py:\d+: training data raised OSError: the stream broke",
    ),
    "a wrong length": (Lying, r"training data: an epoch has more than the 1 batches that it said or had before\n"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_does_not_fit(tmp_path: Path, case: str) -> None:
    data, message = WRONG[case]
    with pytest.raises(DataError, match=rf"^pass train[:,] .*{message}"):
        trained("epochs=1", context(data(), folder=tmp_path))
    assert list(tmp_path.glob("step-*")) == []


def test_no_data_at_all() -> None:
    with pytest.raises(PassError, match=r"^pass train: there is no training data\n.*define train_data\(\)"):
        trained("epochs=1", replace(context(), labelled=None))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (
            "keep=0.1",
            lambda: stripes(),
            r"of 10 samples \(0\.1 of 96\) is smaller than the 16 samples in a batch",
        ),
        ("keep=0.25,batch=1", lambda: (images()[:8], labels()[:8]), "smaller than the 3 classes"),
        ("keep=0.5", lambda: list(batches()), "coresets choose samples, but the training data comes in batches"),
        ("keep=0.5", lambda: (images(), labels().float()), "a score needs one whole-number label a sample"),
        ("keep=0.5", lambda: (images(), labels() - 1), "label -1 is negative"),
    ],
)
def test_data_that_coresets_cannot_use(options: str, data: Callable[[], Any], message: str) -> None:
    size = "" if "batch" in options else f",batch={BATCH}"
    with pytest.raises(DataError, match=message):
        run(f"train{{epochs=3,coreset=el2n,{options}{size}}}", quantized(), context(data()))


@pytest.mark.parametrize("score", ["el2n", "entropy", "forgetting"])
def test_labels_that_only_a_loss_of_ones_own_takes_have_no_score(score: str) -> None:
    """Such as those which it ignores."""
    ignored = labels().clone()
    ignored[5] = 255
    data = context((images(), ignored), loss=partial(cross_entropy, ignore_index=255))
    with pytest.raises(DataError, match=r"training data: label 255 is out of range: the model has 3 classes\n.*0 to 2"):
        trained(f"epochs=2,coreset={score},keep=0.5", data)


def test_random_samples_need_no_labels_and_are_not_read_to_be_chosen() -> None:
    """Half of them in each epoch, others for each width."""
    read: list[int] = []

    class Heights(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            read.append(index)
            return images()[index], images()[index].mean()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).square().mean()

    surroundings = replace(context(Heights(), loss=loss), evaluation=None)
    trained("epochs=2,coreset=random,coreset_warmup=0,keep=0.5", surroundings)
    half = len(read) // 2
    first, second = set(read[:half]), set(read[half:])
    assert half == 3 * SAMPLES // 2
    assert min(len(first), len(second)) > SAMPLES // 2
    assert first != second


class Unlabelled(Dataset[Tensor]):
    """Images alone."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return images()[index]


@pytest.mark.parametrize(
    ("where", "surroundings", "options"),
    [
        ("training data", lambda: context(Unlabelled()), ""),
        ("training data", lambda: context(Unlabelled()), ",coreset=el2n,keep=0.5"),
        ("evaluation data", lambda: replace(context(), evaluation=[images()]), ""),
    ],
)
def test_missing_targets_are_told_alike(where: str, surroundings: Callable[[], Context], options: str) -> None:
    with pytest.raises(DataError, match=rf"^pass train, {where}: there are no targets\n  try: give pairs \(inputs, t"):
        trained(f"epochs=2{options}", surroundings())


def test_evaluation_data_that_does_not_fit() -> None:
    for data, message in (
        ([(images(), labels() + 3)], r"evaluation data: label 5 is out of range"),
        ([(images(), labels().float())], r"evaluation data: targets are torch.float32.*\n.*define metric"),
        ([], "evaluation data is empty"),
    ):
        surroundings = context()
        object.__setattr__(surroundings, "evaluation", data)
        with pytest.raises(DataError, match=message):
            trained("epochs=1", surroundings)


class BrokenBatches:
    """Batches that can be read again, but not to the end."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield images(), labels()
        raise OSError("the file ends early")


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", ["evaluation", "calibration"])
def test_data_that_raises_is_told_with_its_line(name: str, once: bool) -> None:
    message = rf"test_data\.py:\d+: {name} data raised OSError: the file ends early"
    with pytest.raises(DataError, match=message):
        trained("epochs=1", replace(context(), **{name: iter(BrokenBatches()) if once else BrokenBatches()}))


# The user's functions


def raising(*_: object) -> Any:
    raise RuntimeError("not today")


def test_a_loss_or_metric_that_raises_is_told_with_its_line() -> None:
    for functions, name in (({"loss": raising}, "loss"), ({"metric": raising}, "metric")):
        with pytest.raises(DataError, match=rf"test_data\.py:\d+: {name}\(output, target\) failed: RuntimeError"):
            trained("epochs=1", context(**functions))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: output, r"shape \(16, 3\), expected a scalar\n.*average"),
        (lambda output, target: 3.0, "an object of type float, expected a scalar"),
        (lambda output, target: output.detach().sum(), "does not depend on output"),
    ],
)
def test_a_loss_that_is_none(loss: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained("epochs=1", context(loss=loss))


def test_label_smoothing_of_a_loss_of_ones_own_is_refused() -> None:
    with pytest.raises(PassError, match=r"label_smoothing is part of the usual loss.*\n.*smooth there"):
        trained("epochs=1,label_smoothing=0.1", context(loss=cross_entropy))
