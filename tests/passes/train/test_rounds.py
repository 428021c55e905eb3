"""Schedules, sandwiches and switching: the corners, and frequencies against probabilities."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbqc.errors import PassError
from mbqc.ir.annotations import Switching
from mbqc.passes.train.rounds import Schedule, draws_of, rate_factor, sandwich, switched
from mbqc.widths import Widths
from tests.passes.train.small import QUANTIZED, batch, quantized, quiet, shared, stepper

DRAWS = 4000


def likely(count: int, chance: float, draws: int = DRAWS) -> bool:
    """Within five standard deviations of the binomial distribution."""
    return abs(count - draws * chance) <= 5 * math.sqrt(draws * chance * (1 - chance))


@pytest.mark.parametrize(
    ("schedule", "warmup", "done", "factor"),
    [
        ("cosine", 0.0, 0, 1.0),
        ("cosine", 0.0, 5, 0.5),
        ("cosine", 0.0, 10, 0.0),
        ("cosine", 0.2, 0, 0.5),
        ("cosine", 0.2, 1, 1.0),
        ("cosine", 0.2, 2, 1.0),
        ("cosine", 0.2, 6, 0.5),
        ("cosine", 0.2, 10, 0.0),
        ("cosine", 0.25, 2, 1.0),  # not 3 / 2.5
        ("cosine", 0.01, 0, 1.0),
        ("cosine", 1.0, 4, 0.5),
        ("cosine", 1.0, 10, 1.0),
        ("constant", 0.0, 0, 1.0),
        ("constant", 0.0, 10, 1.0),
        ("constant", 0.5, 3, 0.8),
        ("constant", 0.5, 5, 1.0),
    ],
)
def test_the_rate_at_its_corners(schedule: Schedule, warmup: float, done: int, factor: float) -> None:
    assert rate_factor(schedule, warmup, done, 10) == pytest.approx(factor, abs=1e-12)


shares = st.floats(0, 1)


@given(st.sampled_from(["cosine", "constant"]), shares, st.integers(1, 10**6), shares, shares)
def test_a_rate_grows_in_the_warm_up_and_never_after_it(
    schedule: Schedule, warmup: float, rounds: int, one: float, other: float
) -> None:
    a, b = sorted((round(one * rounds), round(other * rounds)))
    first, second = (rate_factor(schedule, warmup, done, rounds) for done in (a, b))
    assert 0 <= first <= 1
    assert first > 0 or a == rounds  # no round is for nothing
    if b / rounds < warmup:
        assert first <= second
    if a / rounds >= warmup:
        assert first >= second


def test_a_sandwich_holds_the_ends_and_one_between_drawn_uniformly() -> None:
    draw, bits = Random(0), (8, 6, 4, 2)
    found = [sandwich(bits, draw) for _ in range(DRAWS)]
    assert {(row[0], row[-1], len(row)) for row in found} == {(8, 2, 3)}
    counts = Counter(row[1] for row in found)
    assert counts.keys() == {6, 4}
    assert likely(counts[6], 0.5)
    assert sandwich((8, 2), draw) == [8, 2]


LAYERS = {"first": 8, "a": None, "b": None}
OWN = {layer: Switching((8, 4, 2), (0.5, 0.25, 0.25)) for layer in LAYERS}
AT_8 = Widths((("first", 8), ("a", 8), ("b", 8)))
AT_4 = Widths((("first", 8), ("a", 4), ("b", 4)))


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_layers_switch_as_often_as_they_should_and_pinned_ones_never(chance: float) -> None:
    draw = Random(1)
    found = [switched(AT_4, LAYERS, OWN, chance, draw).by_layer for _ in range(DRAWS)]
    assert {row["first"] for row in found} == {8}
    for layer in ("a", "b"):
        counts = Counter(row[layer] for row in found)
        assert likely(counts[8], chance * 0.5)
        assert likely(counts[2], chance * 0.25)
        assert likely(counts[4], 1 - chance * 0.75)
    both = sum(row["a"] == row["b"] == 8 for row in found)
    assert likely(both, (chance * 0.5) ** 2)  # layers draw apart


def test_the_chance_to_switch_grows_with_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = []

    def spy(widths: Widths, pinned: object, draws: object, chance: float, draw: Random) -> Widths:
        chances.append(chance)
        return widths

    monkeypatch.setattr("mbqc.passes.train.loop.switched", spy)
    _, made = stepper(rounds=8, bits=(8,), epochs=4, switch="uniform", switch_most=0.6)
    for done, epoch in enumerate([0, 0, 1, 1, 2, 2, 3, 3]):
        made.round(shared(batch()), epoch, done, quiet)
    assert chances == pytest.approx([0.15, 0.15, 0.3, 0.3, 0.45, 0.45, 0.6, 0.6])


def test_uniform_switching_draws_the_trained_widths_and_hasb_its_own() -> None:
    graph = quantized(QUANTIZED + ",hasb{probes=2,bits=8:2}")
    assert {own.bits for own in draws_of(graph, "uniform", (8, 4)).values()} == {(8, 4)}
    assert {own.bits for own in draws_of(graph, "hasb", (8, 4, 2)).values()} == {(8, 2)}
    with pytest.raises(PassError, match=r"layer .* would switch to 2 bits, which are not trained\n.*hasb\{bits=8:4\}"):
        draws_of(graph, "hasb", (8, 4))
