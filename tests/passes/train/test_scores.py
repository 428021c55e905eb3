"""Scores of training samples: each formula against plain Python, and a state that ranks and checkpoints can share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from mbqc.errors import DataError, WidthsError
from mbqc.passes.train.coreset.scores import Recorder, Score

SAMPLES, CLASSES = 12, 5
SCORES: tuple[Score, ...] = get_args(Score)
every_score = pytest.mark.parametrize("score", SCORES)


def labels(samples: int = SAMPLES) -> Tensor:
    return torch.arange(samples) % CLASSES


def epochs(count: int, seed: int = 0, samples: int = SAMPLES) -> list[Tensor]:
    """What a model says about all samples in each epoch; the spread differs by sample."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, samples)[:, None]
    lean = torch.eye(CLASSES)[labels(samples)]  # towards the label, so that many samples are right at times
    return [(torch.randn(samples, CLASSES, generator=generator) + lean) * spread for _ in range(count)]


def recorded(score: Score, logits: Sequence[Tensor], bits: Sequence[int] = (8,), batch: int = 5) -> Recorder:
    """Every epoch in its own order, in batches, the last one smaller."""
    recorder = Recorder(score, SAMPLES, CLASSES, bits)
    for epoch, said in enumerate(logits):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for part in order.split(batch):
            for width in bits:
                recorder.observe(width, part, said[part], labels()[part])
        recorder.end_snapshot()
    return recorder


# The same formulas, sample by sample


def softmax(logits: Sequence[float]) -> list[float]:
    terms = [math.exp(z - max(logits)) for z in logits]
    return [t / math.fsum(terms) for t in terms]


def el2n(trajectory: list[list[float]], label: int) -> float:
    norms = [math.dist(softmax(z), [float(c == label) for c in range(CLASSES)]) for z in trajectory]
    return math.fsum(norms) / len(norms)


def entropy(trajectory: list[list[float]], label: int) -> float:
    each = [-math.fsum(p * math.log(p) for p in softmax(z)) for z in trajectory]
    return math.fsum(each) / len(each)


def forgetting(trajectory: list[list[float]], label: int) -> float:
    right = [z.index(max(z)) == label for z in trajectory]
    if not any(right):
        return float(len(trajectory))
    return float(sum(a and not b for a, b in pairwise(right)))


def tdds(trajectory: list[list[float]], label: int) -> float:
    snapshots, beta = len(trajectory), 0.9
    window = min(10, snapshots)
    probabilities = [softmax(z) for z in trajectory]
    score = 0.0
    for k in range(snapshots - window + 1):
        inside = probabilities[k : k + window]
        d = [
            math.fsum(abs(p * (math.log(p) - math.log(q))) for p, q in zip(new, old, strict=True))
            for old, new in pairwise(inside)
        ]
        mean = math.fsum(d) / len(d)
        score += math.hypot(*(x - mean for x in d)) * beta * (1 - beta) ** (snapshots - window - k)
    return score


@pytest.mark.parametrize("formula", [el2n, entropy, forgetting, tdds])
@pytest.mark.parametrize("count", [3, 4, 10, 11, 23])
def test_scores_follow_their_formulas(formula: Callable[[list[list[float]], int], float], count: int) -> None:
    said = epochs(count)
    name = next(score for score in SCORES if score == formula.__name__)
    found = recorded(name, said).scores(8)
    expected = [formula([z[i].double().tolist() for z in said], int(labels()[i])) for i in range(SAMPLES)]
    assert found.dtype == torch.float64
    assert len(set(expected)) > 2
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_a_sample_that_was_never_right_counts_as_most_forgotten() -> None:
    right, wrong = torch.eye(CLASSES)[:1], torch.eye(CLASSES)[1:2]
    histories = ["+-+-+-", "------", "-+++++", "++++++", "--+-++"]
    recorder = Recorder("forgetting", len(histories), CLASSES, [8])
    targets = torch.zeros(len(histories), dtype=torch.int64)
    for turn in zip(*histories, strict=True):
        said = torch.cat([right if t == "+" else wrong for t in turn])
        recorder.observe(8, torch.arange(len(histories)), said, targets)
        recorder.end_snapshot()
    assert recorder.scores(8).tolist() == [3, 6, 0, 0, 1]


@every_score
def test_widths_are_scored_apart(score: Score) -> None:
    recorder = Recorder(score, SAMPLES, CLASSES, [8, 2])
    for high, low in zip(epochs(4), epochs(4, seed=1), strict=True):
        recorder.observe(8, torch.arange(SAMPLES), high, labels())
        recorder.observe(2, torch.arange(SAMPLES), low, labels())
        recorder.end_snapshot()
    assert not torch.equal(recorder.scores(8), recorder.scores(2))
    assert torch.equal(recorder.scores(8), recorded(score, epochs(4)).scores(8))
    assert torch.equal(recorder.scores(2), recorded(score, epochs(4, seed=1)).scores(8))


@every_score
def test_half_precision_logits_and_narrow_labels_are_taken_for_what_they_say(score: Score) -> None:
    said = [z.bfloat16() for z in epochs(3)]
    plain, narrow = (Recorder(score, SAMPLES, CLASSES, [8]) for _ in range(2))
    for z in said:
        plain.observe(8, torch.arange(SAMPLES), z.float(), labels())
        narrow.observe(8, torch.arange(SAMPLES), z.requires_grad_(), labels().to(torch.uint8))
        plain.end_snapshot()
        narrow.end_snapshot()
    # torch.argmax and softmax read bfloat16 exactly
    assert torch.equal(plain.scores(8), narrow.scores(8))


# What was not seen


@every_score
def test_a_snapshot_that_missed_a_sample_leaves_its_trajectory_alone(score: Score) -> None:
    """Sample 0 sits out two of seven epochs and scores as if they had not been."""
    said, missed = epochs(7), {2, 5}
    recorder = Recorder(score, SAMPLES, CLASSES, [8])
    for epoch, z in enumerate(said):
        part = torch.arange(1 if epoch in missed else 0, SAMPLES)
        recorder.observe(8, part, z[part], labels()[part])
        recorder.end_snapshot()
    whole = recorded(score, said).scores(8)
    short = recorded(score, [z for epoch, z in enumerate(said) if epoch not in missed]).scores(8)
    found = recorder.scores(8)
    assert torch.equal(found[1:], whole[1:])
    assert found[0] == short[0]
    assert score == "forgetting" or found[0] != whole[0]


@pytest.mark.parametrize(("score", "needed"), [("el2n", 1), ("entropy", 1), ("forgetting", 1), ("tdds", 3)])
def test_samples_without_enough_snapshots_are_an_error(score: Score, needed: int) -> None:
    recorder = recorded(score, epochs(needed - 1))
    part = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9, 11])
    recorder.observe(8, part, epochs(1)[0][part], labels()[part])
    assert len(recorder.unscored(8)) == SAMPLES  # the snapshot is still open
    recorder.end_snapshot()
    assert recorder.unscored(8).tolist() == [3, 10]
    with pytest.raises(DataError, match=f"2 samples have no score at 8 bits, the first is sample 3: {score} needs"):
        recorder.scores(8)
    part = recorder.unscored(8)
    recorder.observe(8, part, epochs(1)[0][part], labels()[part])
    recorder.end_snapshot()
    assert torch.equal(recorder.scores(8), recorded(score, [*epochs(needed - 1), epochs(1)[0]]).scores(8))


def test_samples_that_no_rank_has_met_in_the_open_snapshot_are_named() -> None:
    z, ranks = epochs(1)[0], [Recorder("el2n", SAMPLES, CLASSES, [8]) for _ in range(2)]
    for recorder, part in zip(ranks, (torch.tensor([0, 1, 2, 6, 7]), torch.tensor([3, 4, 9, 10, 11])), strict=True):
        recorder.end_snapshot()
        recorder.observe(8, part, z[part], labels()[part])
    counts = sum(recorder.state()["el2n.8.count"] for recorder in ranks)
    for recorder in ranks:
        assert recorder.unseen(8, lambda tensor: tensor.copy_(counts)).tolist() == [5, 8]
        assert recorder.state()["el2n.8.count"].sum() == 5  # asking changes nothing


def test_repeated_observations_of_a_snapshot_are_averaged() -> None:
    twice = Recorder("el2n", SAMPLES, CLASSES, [8])
    for z in epochs(2):
        twice.observe(8, torch.arange(SAMPLES), z, labels())
    twice.end_snapshot()
    assert twice.scores(8).tolist() == pytest.approx(recorded("el2n", epochs(2)).scores(8).tolist(), rel=1e-15)
    assert twice.state()["el2n.8.snapshots"].tolist() == [1] * SAMPLES


# Ranks and checkpoints


class Ranks:
    """Sums tensors over recorders that end their snapshots one after the other, as all_reduce does at once."""

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        self.totals = [sum(p[n].clone() for p in parts) for n in parts[0] if n.endswith(("sum", "count"))]

    def reduce(self) -> Callable[[Tensor], object]:
        left = iter(self.totals)
        return lambda tensor: tensor.copy_(next(left))


@every_score
def test_ranks_that_see_different_samples_end_with_the_state_of_one_process(score: Score) -> None:
    ranks = [Recorder(score, SAMPLES, CLASSES, [8, 4]) for _ in range(3)]
    alone = Recorder(score, SAMPLES, CLASSES, [8, 4])
    for epoch, z in enumerate(epochs(12)):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for width in (8, 4):
            alone.observe(width, order, z[order], labels()[order])
            for rank, recorder in enumerate(ranks):
                part = order[rank::3]
                recorder.observe(width, part, z[part], labels()[part])
        shared = Ranks([recorder.state() for recorder in ranks])
        for recorder in ranks:
            recorder.end_snapshot(shared.reduce())
        alone.end_snapshot()
    for recorder in ranks:
        for name, tensor in alone.state().items():
            assert torch.equal(recorder.state()[name], tensor), name


@every_score
def test_a_restored_recorder_goes_on_where_the_stored_one_stood(score: Score) -> None:
    """Stored amid an epoch; continuing the one leaves what was stored of it as it was."""
    said = epochs(13)

    def finish(recorder: Recorder) -> None:
        recorder.observe(2, torch.arange(4, SAMPLES), said[11][4:], labels()[4:])
        recorder.end_snapshot()
        recorder.observe(8, torch.arange(SAMPLES), said[12], labels())
        recorder.end_snapshot()

    first, second = recorded(score, said[:11], [8, 2]), Recorder(score, SAMPLES, CLASSES, [8, 2])
    first.observe(2, torch.arange(4), said[11][:4], labels()[:4])
    stored = {name: tensor.clone() for name, tensor in first.state().items()}
    finish(first)
    second.restore(stored)
    finish(second)
    for width in (8, 2):
        assert torch.equal(first.scores(width), second.scores(width))
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor), name


def test_ranks_store_and_restore_an_open_snapshot_once() -> None:
    z = epochs(1)[0]
    ranks = [Recorder("el2n", SAMPLES, CLASSES, [8]) for _ in range(2)]
    for rank, recorder in enumerate(ranks):
        part = torch.arange(rank, SAMPLES, 2)
        recorder.observe(8, part, z[part], labels()[part])
    stored = ranks[0].state(Ranks([recorder.state() for recorder in ranks]).reduce())
    assert ranks[0].state()["el2n.8.count"].sum() == SAMPLES // 2  # storing changes nothing
    again = [Recorder("el2n", SAMPLES, CLASSES, [8]) for _ in range(2)]
    for rank, recorder in enumerate(again):
        recorder.restore(stored, rank)
    assert sum(recorder.state()["el2n.8.count"] for recorder in again).tolist() == [1] * SAMPLES
    shared = Ranks([recorder.state() for recorder in again])
    for recorder in again:
        recorder.end_snapshot(shared.reduce())
        assert torch.equal(recorder.scores(8), recorded("el2n", [z]).scores(8))


@pytest.mark.parametrize(
    "other",
    [
        Recorder("entropy", SAMPLES, CLASSES, [8]),
        Recorder("tdds", SAMPLES, CLASSES + 1, [8]),
        Recorder("tdds", SAMPLES, CLASSES, [8, 4]),
        Recorder("tdds", SAMPLES + 1, CLASSES, [8]),
    ],
    ids=["score", "classes", "widths", "samples"],
)
def test_a_state_of_another_run_is_refused_and_nothing_changes(other: Recorder) -> None:
    recorder = recorded("tdds", epochs(4))
    before = recorder.scores(8)
    with pytest.raises(DataError, match="the stored scores do not fit"):
        recorder.restore(other.state())
    assert torch.equal(recorder.scores(8), before)


# Bad input


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(4, CLASSES + 1), labels(4), r"output is torch.float32 \(4, 6\), a score needs \(4, 5\)"),
        (torch.zeros(4, CLASSES, 2), labels(4), r"output is torch.float32 \(4, 5, 2\)"),
        (torch.zeros(3, CLASSES), labels(4), r"output is torch.float32 \(3, 5\)"),
        (torch.zeros(4, CLASSES, dtype=torch.int64), labels(4), "output is torch.int64"),
        (torch.zeros(4, CLASSES), labels(4).double(), "targets are torch.float64"),
        (torch.zeros(4, CLASSES), labels(4)[:, None], r"targets are torch.int64 \(4, 1\)"),
    ],
)
def test_outputs_without_classes_and_targets_without_labels_are_refused(
    logits: Tensor, targets: Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Recorder("el2n", SAMPLES, CLASSES, [8]).observe(8, torch.arange(4), logits, targets)


def test_a_width_that_is_not_scored_is_refused() -> None:
    recorder = Recorder("el2n", SAMPLES, CLASSES, [8, 2])
    with pytest.raises(WidthsError, match="4 bits are not scored, only 8, 2"):
        recorder.observe(4, torch.arange(SAMPLES), epochs(1)[0], labels())


def test_no_data_is_an_error() -> None:
    with pytest.raises(DataError, match="training data is empty"):
        Recorder("el2n", 0, CLASSES, [8])
