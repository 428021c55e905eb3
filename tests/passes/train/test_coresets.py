"""Coresets: exact sizes, range balance, and samplers that give every sample once."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mbqc.errors import DataError, MbqcError, PipelineError
from mbqc.passes.train.coreset.selection import CoresetSampler, coreset_size, select

Rule = Literal["top", "stratified"]
RULES: tuple[Rule, ...] = get_args(Rule)
every_rule = pytest.mark.parametrize("rule", RULES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chosen(scores: Tensor, targets: Tensor, keep: float, rule: Rule, seed: int = 0) -> list[int]:
    indices = select(scores, targets, keep, rule, seeded(seed))
    assert indices.dtype == torch.int64
    return indices.tolist()  # type: ignore[no-any-return]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Scores with ties, classes of any size, and a share that keeps at least as many samples as there are classes."""
    pairs = st.tuples(st.floats(-2, 9, width=16) | st.integers(0, 2).map(float), st.integers(0, 4))
    samples = draw(st.lists(pairs, min_size=1, max_size=45))
    classes = len({c for _, c in samples})
    keep = draw(st.integers(classes, len(samples))) / len(samples)
    return torch.tensor([s for s, _ in samples]).double(), torch.tensor([c for _, c in samples]), keep


# Selection


@every_rule
@given(data=scored())
def test_every_rule_keeps_exactly_the_share_asked_for(rule: Rule, data: tuple[Tensor, Tensor, float]) -> None:
    scores, targets, keep = data
    indices = chosen(scores, targets, keep, rule)
    assert len(indices) == round(keep * len(scores)) == coreset_size(targets, keep)
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(len(scores)))
    assert chosen(scores, targets, keep, rule) == indices


@given(data=scored())
def test_top_keeps_the_highest_scores_and_of_equal_ones_the_first(data: tuple[Tensor, Tensor, float]) -> None:
    scores, targets, keep = data
    hardest_first = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    assert chosen(scores, targets, keep, "top") == sorted(hardest_first[: coreset_size(targets, keep)])


def ranges_of(scores: Tensor, indices: list[int]) -> list[int]:
    """How many indices fall into each tenth of the range that the easiest 95 % of the scores span."""
    ascending = scores.sort().values
    low, high = float(ascending[0]), float(ascending[len(scores) - len(scores) // 20 - 1])
    places = Counter(min(9, int((float(scores[i]) - low) / (high - low) * 10)) for i in indices)
    return [places[k] for k in range(10)]


def test_stratified_takes_as_many_from_each_range_of_scores() -> None:
    scores = torch.rand(2000, dtype=torch.float64, generator=seeded())
    indices = chosen(scores, torch.arange(2000) % 10, 0.2, "stratified")
    assert ranges_of(scores, indices) == [40] * 10


def test_stratified_spreads_what_scarce_ranges_lack() -> None:
    """Most samples are easy: ranges give all they have, or equal numbers that differ by one at most."""
    scores = torch.rand(2000, dtype=torch.float64, generator=seeded()) ** 6
    easiest = scores.argsort()[:1900].tolist()
    available = ranges_of(scores, easiest)
    kept = ranges_of(scores, chosen(scores, torch.arange(2000) % 10, 0.3, "stratified"))
    scarce = [a < max(kept) for a in available]
    assert 0 < sum(scarce) < 10
    assert all(k == a if s else k >= max(kept) - 1 for k, a, s in zip(kept, available, scarce, strict=True))


@given(data=scored())
def test_stratified_drops_the_hardest_as_far_as_the_size_allows(data: tuple[Tensor, Tensor, float]) -> None:
    scores, targets, keep = data
    total, size = len(scores), coreset_size(targets, keep)
    dropped = min(total // 20, total - size)
    hardest = sorted(range(total), key=lambda i: (float(scores[i]), i))[total - dropped :]
    assert not set(hardest) & set(chosen(scores, targets, keep, "stratified"))


def test_stratified_draws_within_a_range_by_its_generator() -> None:
    scores, targets = torch.rand(500, generator=seeded()), torch.arange(500) % 10
    assert chosen(scores, targets, 0.2, "stratified", 1) == chosen(scores, targets, 0.2, "stratified", 1)
    assert chosen(scores, targets, 0.2, "stratified", 1) != chosen(scores, targets, 0.2, "stratified", 2)


@every_rule
def test_equal_scores_and_full_shares_are_no_special_case(rule: Rule) -> None:
    targets = torch.arange(50) % 5
    assert len(chosen(torch.zeros(50), targets, 0.2, rule)) == 10
    assert chosen(torch.arange(50.0), targets, 1, rule) == list(range(50))


LABELS = torch.arange(100) % 10


@pytest.mark.parametrize(
    ("targets", "keep", "kind", "message"),
    [
        (LABELS, 0.0, PipelineError, "cannot keep 0.0 of the data"),
        (LABELS, 1.5, PipelineError, "cannot keep 1.5"),
        (LABELS, -0.2, PipelineError, "cannot keep -0.2"),
        (LABELS, float("nan"), PipelineError, "cannot keep nan"),
        (LABELS.double(), 0.5, DataError, r"targets are torch.float64 \(100,\), a score needs one whole-number"),
        (LABELS.bool(), 0.5, DataError, "targets are torch.bool"),
        (LABELS.reshape(50, 2), 0.5, DataError, r"targets are torch.int64 \(50, 2\)"),
        (LABELS - 1, 0.5, DataError, "label -1 is negative"),
        (LABELS[:0], 0.5, DataError, "training data is empty"),
        (LABELS, 0.09, DataError, r"9 samples \(0.09 of 100\) is smaller than the 10 classes in the data"),
        (LABELS, 0.31, DataError, r"31 samples \(0.31 of 100\) is smaller than the 32 samples in a batch"),
    ],
)
def test_impossible_coresets_are_refused(targets: Tensor, keep: float, kind: type[MbqcError], message: str) -> None:
    with pytest.raises(kind, match=message):
        coreset_size(targets, keep, batch=32)


def test_a_coreset_of_one_batch_or_of_one_sample_a_class_is_enough() -> None:
    assert coreset_size(LABELS, 0.32, batch=32) == 32
    assert coreset_size(LABELS, 0.1) == 10


@every_rule
def test_scores_that_are_missing_or_not_finite_are_refused(rule: Rule) -> None:
    scores = torch.arange(100.0)
    with pytest.raises(DataError, match=r"there are \(99,\) scores for 100 samples"):
        select(scores[1:], LABELS, 0.5, rule, seeded())
    scores[7] = float("nan")
    with pytest.raises(DataError, match="the score of sample 7 is nan"):
        select(scores, LABELS, 0.5, rule, seeded())


# Samplers


@given(
    indices=st.lists(st.integers(0, 500), min_size=5, max_size=60, unique=True),
    share=st.floats(0, 1),
    world=st.integers(1, 5),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 300),
)
def test_ranks_share_an_epoch_in_equal_disjoint_parts_and_batches_are_those_of_one_process(
    indices: list[int], share: float, world: int, batch: int, seed: int, epoch: int
) -> None:
    take = max(world, round(share * len(indices)))

    def epoch_of(rank: int, world: int) -> list[int]:
        sampler = CoresetSampler(torch.tensor(indices), seed, take=take, rank=rank, world=world)
        sampler.set_epoch(epoch)
        assert len(sampler) == take // world
        return list(sampler)

    alone, parts = epoch_of(0, 1), [epoch_of(rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {take // world}
    together = [index for turn in zip(*parts, strict=True) for index in turn]
    assert together == alone[: take // world * world]
    assert len(set(alone)) == take
    assert set(alone) <= set(indices)
    for start in range(0, take // world, batch):
        of_ranks = {index for part in parts for index in part[start : start + batch]}
        assert of_ranks == set(together[start * world : (start + batch) * world])


def test_an_epoch_gives_every_sample_of_the_coreset_once_in_an_order_of_its_own() -> None:
    indices = torch.arange(3, 300, 3)
    sampler = CoresetSampler(indices, seed=1)
    orders = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
        assert sorted(orders[-1]) == indices.tolist()
        assert list(sampler) == sampler.order().tolist() == list(orders[-1])
    assert len(set(orders)) == 20


def test_taking_a_part_draws_a_fresh_subset_each_epoch_and_in_time_all_samples_alike() -> None:
    sampler = CoresetSampler(torch.arange(100), seed=3, take=20)
    seen: Counter[int] = Counter()
    for epoch in range(400):
        sampler.set_epoch(epoch)
        assert len(set(sampler)) == len(sampler) == 20
        seen.update(sampler)
    # 400 draws with a chance of 0.2: 80, standard deviation 8
    assert len(seen) == 100
    assert all(80 - 5 * 8 < count < 80 + 5 * 8 for count in seen.values())


def test_seeds_and_epochs_do_not_coincide() -> None:
    """Seed 1 in epoch 0 is not seed 0 in epoch 1, and seeds beyond 32 bits differ."""
    orders = set()
    for seed in (0, 1, 2, 2**32, 2**62):
        sampler = CoresetSampler(torch.arange(50), seed)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 20


def test_a_data_loader_reads_a_coreset() -> None:
    data = TensorDataset(torch.arange(100))
    sampler = CoresetSampler(torch.arange(0, 100, 2), seed=0)
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    assert [int(i) for (batch,) in loader for i in batch] == list(sampler)
    assert len(loader) == 7


@pytest.mark.parametrize(
    ("indices", "take", "rank", "world", "kind", "message"),
    [
        (torch.arange(0), None, 0, 1, DataError, r"a coreset is torch.int64 \(0,\)"),
        (torch.rand(5), None, 0, 1, DataError, "a coreset is torch.float32"),
        (torch.arange(-1, 5), None, 0, 1, DataError, "expected indices of samples"),
        (torch.tensor([1, 2, 1]), None, 0, 1, DataError, "names a sample twice"),
        (torch.arange(5), 6, 0, 1, DataError, "takes 6 of 5 samples"),
        (torch.arange(5), 0, 0, 1, DataError, "takes 0 of 5 samples"),
        (torch.arange(3), None, 0, 4, DataError, "takes 3 of 3 samples on 4 ranks"),
        (torch.arange(5), None, 2, 2, PipelineError, "rank 2 is outside a world of 2"),
    ],
)
def test_impossible_samplers_are_refused(
    indices: Tensor, take: int | None, rank: int, world: int, kind: type[MbqcError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        CoresetSampler(indices, 0, take=take, rank=rank, world=world)
