"""A training that has lost what the model knew is stopped, though all its numbers are finite; no other is."""

from __future__ import annotations

import copy
import itertools
import math
import re
import signal
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from mbqc.errors import MbqcError, PassError
from mbqc.passes.train.checkpoint.saving import Saver
from mbqc.passes.train.collapse import ANSWERED, ROUNDS, Watch
from mbqc.passes.train.diverged import changed_most, parameter_norms
from mbqc.passes.train.state import State
from mbqc.pipeline import Context
from tests import zoo
from tests.passes.train.small import BATCH, QUANTIZED, batch, quantized, run, stepper

losses = st.floats(0, 1e30)


def begun(loss: float = 0.1, blind: float = 1.0) -> Watch:
    watch = Watch()
    watch.begin(loss, lambda: blind)
    return watch


def always() -> float:
    """A batch for which one answer is no better than for the first."""
    return 1.0


# The rule


def test_a_width_is_lost_after_so_many_losses_without_an_answer() -> None:
    watch = begun()
    assert not watch.add(8, 0.1, always)
    assert [watch.add(8, 0.9 + i, always) for i in range(ROUNDS)] == [False] * (ROUNDS - 1) + [True]


@given(st.lists(losses, max_size=ROUNDS - 1), st.integers(1, 20), st.lists(losses, max_size=ANSWERED * 20))
def test_an_answer_takes_back_four(before: list[float], answers: int, after: list[float]) -> None:
    watch = begun()
    for loss in [*before, *[0.89] * answers]:
        assert not watch.add(8, loss, always)
    left = max(0, watch.courses[8].lost)
    assert left <= max(0, len(before) - ANSWERED * answers)
    assert not any(watch.add(8, loss, always) for loss in after[: ROUNDS - 1 - left])


def test_luck_now_and_then_saves_no_model_that_knows_nothing() -> None:
    watch, draw = begun(), Random(0)
    watch.add(8, 0.1, always)
    assert any(watch.add(8, draw.choice([0.8, *[1.0] * 9]), always) for _ in range(200))


@given(st.integers(0, 2**32))
def test_a_model_that_has_an_answer_every_third_time_is_not_lost(seed: int) -> None:
    watch, draw = begun(), Random(seed)
    assert not any(watch.add(8, loss, always) for _ in range(100) for loss in draw.sample([0.1, 1e9, 1e9], 3))


@given(st.lists(st.floats(0.5, 1e30), max_size=200))
def test_a_width_that_never_halved_the_blind_loss_has_nothing_to_lose(course: list[float]) -> None:
    watch = begun()
    assert not watch.add(8, 0.1, always)
    assert not any(watch.add(1, loss, always) for loss in course)


def test_a_loss_that_one_answer_could_not_have_either_says_nothing() -> None:
    """A sum over a larger batch, or a louder one."""
    watch = begun()
    assert not watch.add(8, 0.1, always)
    assert not any(watch.add(8, 25.0, lambda: 100.0) for _ in range(200))
    assert not watch.in_doubt


def test_with_other_samples_all_begins_anew() -> None:
    watch = begun()
    for loss in [0.1, *[2.0] * (ROUNDS - 1)]:
        assert not watch.add(8, loss, always)
    watch.begin_anew()
    assert not watch.in_doubt
    assert not any(watch.add(8, 2.0, always) for _ in range(200))


def test_losses_that_can_be_negative_are_not_judged() -> None:
    watch = begun()
    assert not watch.add(8, 0.1, always)
    assert not watch.add(8, -0.1, always)
    assert not any(watch.add(8, 2.0, always) for _ in range(200))


@pytest.mark.parametrize("signed", [False, True])
def test_what_a_model_learns_can_be_lost_from_the_next_epoch_on(signed: bool) -> None:
    """Whatever it knew before the first step; but no loss that was ever negative is judged."""
    watch = begun(0.9)
    for loss in (-0.1 if signed else 0.9, 0.1):
        assert not watch.add(8, loss, always)
    watch.begin(0.1, always)
    watch.begin(0.1, lambda: 100.0)  # in the epoch after that, which changes nothing
    assert not watch.add(8, 0.1, always)
    assert any(watch.add(8, 0.9, always) for _ in range(ROUNDS)) is not signed


@given(st.lists(losses, max_size=200))
def test_a_lucky_batch_in_the_midst_of_an_epoch_is_no_knowledge(course: list[float]) -> None:
    watch = begun(0.9)
    assert not any(watch.add(8, loss, always) for loss in [0.1, *course])
    assert not watch.in_doubt


@given(st.lists(st.tuples(st.sampled_from([8, 4, 2]), st.sampled_from([0.1, 2.0])), max_size=300))
def test_each_width_goes_by_its_own_losses(course: list[tuple[int, float]]) -> None:
    together, alone = begun(), {bits: begun() for bits in (8, 4, 2)}
    for bits, loss in course:
        assert together.add(bits, loss, always) == alone[bits].add(bits, loss, always)
    assert together.in_doubt == any(watch.in_doubt for watch in alone.values())


@pytest.mark.parametrize(
    ("loss", "blind"),
    [
        (0.5, 1.0),
        (2.0, 1.0),
        (-0.1, -1.0),
        (-2.0, -1.0),
        (-1.0, 0.0),
        (-3.0, 0.2),
        (0.1, math.nan),
        (0.1, math.inf),
        (0.0, 0.0),
    ],
)
@given(course=st.lists(st.floats(-1e30, 1e30), max_size=100))
def test_nothing_is_said_where_the_blind_loss_says_nothing(loss: float, blind: float, course: list[float]) -> None:
    watch = begun(loss, blind)
    assert not any(watch.add(8, value, always) for value in course)
    assert not watch.in_doubt


# What it compares with


def test_the_blind_loss_is_that_of_the_mean_output() -> None:
    _, made = stepper()
    output = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]).repeat(BATCH // 2, 1)
    expected = cross_entropy(torch.tensor([[4.5, 4.5, 0.0]]).expand(BATCH, 3), batch().target)
    assert made.blind_loss(batch(), output) == pytest.approx(float(expected))


def test_distillation_is_part_of_it() -> None:
    _, made = stepper(distill="float")
    output = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0)).double()
    same = output.mean(0, keepdim=True).expand_as(output)
    _, plain = stepper()
    loss = plain.blind_loss(batch(), output)
    assert made.blind_loss(batch(), output) > 0.5 * loss
    assert made.blind_loss(batch(), same) == pytest.approx(made.blind_loss(batch(), output))


def test_a_loss_that_refuses_the_mean_output_is_not_judged_by_it() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        if torch.equal(output[0], output[1]):
            raise ValueError("all the same")
        return cross_entropy(output, target)

    _, made = stepper(loss=loss)
    assert math.isnan(made.blind_loss(batch(), torch.eye(BATCH, 3)))
    assert math.isnan(made.blind_loss(batch(), (torch.eye(BATCH, 3),)))


def test_the_parameter_that_changed_most_is_named() -> None:
    graph = copy.deepcopy(quantized())
    before = parameter_norms(graph)
    with torch.no_grad():
        graph.get_parameter("0.weight").mul_(2)
        graph.get_parameter("3.weight").mul_(0.1)
    assert changed_most(graph, before) == "3.weight has changed most: its norm is 0.1 times what it was"
    with torch.no_grad():
        graph.get_parameter("3_weight_quantizer.scale").mul_(50)
    assert changed_most(graph, before).startswith("3_weight_quantizer.scale has changed most: its norm is 50 times")


# Trainings


def surroundings(**others: Any) -> Context:
    """Of the digits, whose model knows them; an untrained one has nothing to lose."""
    images, labels = zoo.digits().images("train")
    usual = {"labelled": (images[:128], labels[:128]), "loss": cross_entropy}
    return Context(zoo.digits().example_inputs(), **{**usual, **others})


def go_on(options: str, context: Context) -> Any:
    epochs = "" if "epochs=" in options else "epochs=8,"
    return run(f"train{{batch=16,bits=8:2,{epochs}evaluate=0,{options}}}", zoo.graph(zoo.DIGITS, QUANTIZED), context)


LOST = r"what the model knew at \d bits is lost by round \d+: in 50 rounds .*\. \S+ has changed most.*\n.*a lower rate"


@pytest.mark.parametrize("options", ["rate=1", "rate=10,step=accumulate", "rate=10,distill=float"])
def test_rates_that_are_far_too_high_are_stopped(options: str) -> None:
    with pytest.raises(PassError, match=LOST):
        go_on(options, surroundings())


def other_digits() -> tuple[Tensor, Tensor]:
    """Each with the label of the next one: the model knows less than nothing, but learns fast."""
    images, labels = zoo.digits().images("train")
    return images[:256], (labels[:256] + 1) % 10


def test_a_model_that_learned_first_and_then_lost_it_is_stopped_and_one_that_keeps_it_is_not() -> None:
    with pytest.raises(PassError, match=LOST):
        go_on("rate=0.3,warmup=1,epochs=12", surroundings(labelled=other_digits()))
    go_on("rate=0.01,epochs=4", surroundings(labelled=other_digits()))


@pytest.mark.parametrize("options", ["rate=0.01", "rate=0.05", "rate=0.01,distill=float"])
def test_high_rates_that_work_are_not(options: str) -> None:
    go_on(options, surroundings())


def newest(folder: Path) -> tuple[int, str]:
    path = max(folder.glob("step-*"))
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        return int(path.stem.removeprefix("step-")), file.metadata()["checkpoint"]


def test_the_last_checkpoint_is_from_before_it_was_lost(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="is lost by round") as caught:
        go_on("rate=10,checkpoint=1", surroundings(folder=tmp_path))
    step, facts = newest(tmp_path)
    assert step > 0
    assert '"lost": 0' in facts
    assert not re.search(r'"lost": [1-9]', facts)
    told = int(str(caught.value).split("by round ")[1].split(":")[0])
    assert step <= told - ROUNDS


def test_a_checkpoint_waits_while_a_width_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, saved, save = itertools.count(), [], Saver.save

    def loss(output: Tensor, target: Tensor) -> Tensor:
        # the first width, one answer for all samples, the second width; the second round of both
        return cross_entropy(output, target) * (1000 if next(calls) == 4 else 1)

    def noted(self: Saver, state: State) -> None:
        saved.append(state.done)
        save(self, state)

    monkeypatch.setattr(Saver, "save", noted)
    go_on("rate=0.001,checkpoint=2,epochs=1", surroundings(folder=tmp_path, loss=loss))
    assert saved == [3, 4, 6, 8, 8]


def test_a_coreset_begins_anew() -> None:
    """Its samples may be the hardest ones, whose losses were never low."""
    watches = []

    def noted(self: Watch) -> None:
        watches.append(dict(self.courses))
        self.courses.clear()

    with mock.patch.object(Watch, "begin_anew", noted):
        go_on("rate=0.001,epochs=4,coreset=el2n,selection=top,keep=0.5,resample=2", surroundings())
    assert [sorted(courses) for courses in watches] == [[2, 8], [2, 8]]


def test_a_resumed_training_is_stopped_where_the_unbroken_one_is(tmp_path: Path) -> None:
    """A signal has a checkpoint written even where it is in doubt."""

    def interrupting(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == 50:
            signal.raise_signal(signal.SIGTERM)
        return cross_entropy(output, target)

    with pytest.raises(PassError) as unbroken:
        go_on("rate=10,checkpoint=1", surroundings())
    calls = itertools.count()
    with pytest.raises(MbqcError, match="stopped by SIGTERM"):
        go_on("rate=10,checkpoint=1", surroundings(folder=tmp_path, loss=interrupting))
    assert newest(tmp_path)[0] > 1
    assert re.search(r'"lost": [1-9]', newest(tmp_path)[1])
    with pytest.raises(PassError) as resumed:
        go_on("rate=10,checkpoint=1", surroundings(folder=tmp_path, resume=True))
    assert str(resumed.value) == str(unbroken.value)
