"""The pass as a whole: what it gives back and reports, and that it does what training is for."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbqc.api import TrialLowering, compile_model, pipeline_of
from mbqc.errors import PassError
from mbqc.ir.compare import sqnr
from mbqc.ir.modules import WidthBatchNorm
from mbqc.ir.norms import batch_norms, estimate, width_norms
from mbqc.ir.quantized import quantized_layers
from mbqc.ir.text import print_graph
from mbqc.lookup import find_pass
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.judge import all_metrics, metrics
from mbqc.pipeline import Pass
from mbqc.pipeline.context import Note
from mbqc.runtime import make
from mbqc.widths import FLOAT, resolve
from tests.passes.train.small import (
    BATCH,
    QUANTIZED,
    SAMPLES,
    Noisy,
    context,
    differing,
    network,
    quantized,
    run,
    stripes,
    trained,
    weights,
)

LONG = "epochs=10,rate=0.01"


def test_training_lowers_the_loss_and_two_bits_gain_accuracy() -> None:
    _, result = trained(LONG)
    for bits in (8, 4, 2):
        assert result.epochs[-1].loss[bits] < 0.7 * result.epochs[0].loss[bits]
    assert result.after[2] > result.before[2] + 20
    assert result.after[3] > result.before[3] + 20  # never trained


def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_others() -> None:
    one, other, apart = (weights(trained("epochs=1", context(seed=seed))[0]) for seed in (0, 0, 1))
    assert differing(one, other) == []
    assert len(differing(one, apart)) > 10


def test_the_report_counts_what_was_done() -> None:
    _, result = trained("epochs=2,alrs=layer,scales=raw,widths=sandwich,bn_freeze=0.5")
    rounds = SAMPLES // BATCH
    assert result.trained == (8, 4, 2)
    assert [record.epoch for record in result.epochs] == [1, 2]
    assert [record.steps for record in result.epochs] == [3 * rounds, 6 * rounds]
    assert [record.frozen for record in result.epochs] == [False, True]
    assert [record.rate for record in result.epochs] == pytest.approx([1e-3, 0.0])
    assert all(set(record.loss) == set(record.clamped) == {8, 4, 2} for record in result.epochs)
    assert all(0 <= share <= 1 for record in result.epochs for share in record.clamped.values())
    assert set(result.before) == set(result.after) == set(range(1, 9))
    assert {"training", "evaluating"} <= set(result.seconds)


TRANSITIONAL = "normalize,quant{pin_ends=false},bncorrect{moments=none,statistics=pair,affine=pair}"


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ("epochs=1", QUANTIZED),
        ("epochs=1", QUANTIZED + "{moments=none,statistics=width}"),
        ("epochs=1,switch=uniform,switch_most=1", TRANSITIONAL),
    ],
)
def test_the_metrics_are_those_of_the_graphs_before_and_after(options: str, passes: str) -> None:
    surroundings = context()
    graph, result = trained(options, surroundings, passes)
    assert result.exact == all_metrics(quantized(passes), surroundings)[0]
    assert result.before == metrics(quantized(passes), range(1, 9), surroundings)
    assert result.after == metrics(graph, range(1, 9), surroundings)
    assert result.epochs[-1].metric == {bits: result.after[bits] for bits in (8, 4, 2)}


@pytest.mark.parametrize("evaluate", [0, 1, 2])
def test_nothing_is_judged_twice(evaluate: int) -> None:
    """After the last epoch, 5 widths are left that it did not train, or all 8."""
    judged: list[int] = []

    def metric(output: Tensor, target: Tensor) -> float:
        judged.append(len(target))
        return float((output.argmax(1) == target).double().mean())

    _, result = trained(f"epochs=2,evaluate={evaluate}", context(metric=metric))
    before = 1 + len(ALL_BITS)
    assert len(judged) == before + {0: 8, 1: 3 + 3 + 5, 2: 3 + 5}[evaluate]
    assert list(result.after) == list(result.before)


def test_judging_is_rare_where_asked() -> None:
    _, result = trained("epochs=4,evaluate=3")
    assert [bool(record.metric) for record in result.epochs] == [False, False, True, False]
    _, result = trained("epochs=2,evaluate=0")
    assert [bool(record.metric) for record in result.epochs] == [False, False]
    assert len(result.after) == 8


def test_without_evaluation_data_nothing_is_judged() -> None:
    _, result = trained("epochs=1,reestimate=width", replace(context(), evaluation=None))
    assert result.exact is None
    assert (result.before, result.after, result.pooled, result.separate) == ({}, {}, {}, {})


def test_the_graph_comes_back_in_eval_mode_and_the_one_given_is_as_before() -> None:
    before = weights(quantized())
    graph, _ = trained("epochs=1,precision=float64,bn_freeze=0.5")
    assert differing(before, weights(quantized())) == []
    assert not any(module.training for module in graph.modules())
    assert all(not norm._forward_pre_hooks for norm in batch_norms(graph).values())
    assert {p.dtype for p in graph.parameters()} == {torch.float32}
    graph.train()
    assert all(norm.training for norm in batch_norms(graph).values())


def test_training_in_float64_computes_in_it_and_agrees_with_float32() -> None:
    seen = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.add(output.dtype)
        return torch.nn.functional.cross_entropy(output, target)

    _, exact = trained("epochs=2,precision=float64", context(loss=loss))
    assert seen == {torch.float64}
    _, rough = trained("epochs=2", context(loss=loss))
    for one, other in zip(exact.epochs, rough.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.01)


def test_only_the_widths_asked_for_are_trained() -> None:
    graph, result = trained("epochs=1,bits=8:2")
    assert result.trained == (8, 2)
    assert set(result.epochs[0].loss) == {8, 2}
    old, new = weights(quantized()), weights(graph)
    for name, module in graph.named_modules():
        bits = getattr(module, "bits", None)
        if isinstance(bits, tuple) and 4 in bits:
            index = bits.index(4)
            assert torch.equal(old[f"{name}.scale"][index], new[f"{name}.scale"][index])


@pytest.mark.parametrize("options", ["epochs=1", "epochs=1,reestimate=width"])
def test_the_program_is_as_good_as_the_trained_graph(options: str) -> None:
    surroundings = context()
    made = compile_model(network(), pipeline_of(f"quant,bncorrect,train{{batch=16,{options}}}"), surroundings)
    program = make(made.program, made.manifest, "cpu")
    images, labels = stripes(48, seed=1)
    for bits in range(1, 9):
        with torch.no_grad():
            expected = made.quantized(images, resolve(bits, quantized_layers(made.quantized)))
        found = program(images, bits=bits)
        assert isinstance(found, Tensor)
        assert sqnr(expected, found) > 30
        assert abs(float((found.argmax(1) == labels).sum() - (expected.argmax(1) == labels).sum())) <= 1


def test_statistics_are_estimated_anew_pooled_or_by_width() -> None:
    surroundings = context()
    plain, result = trained("epochs=1", surroundings)
    pooled, one = trained("epochs=1,reestimate=pooled", context())
    separate, other = trained("epochs=1,reestimate=width", context())
    assert (result.pooled, result.separate) == ({}, {})
    assert one.after == other.after == result.after
    assert (one.pooled, one.separate) == (other.pooled, other.separate)
    assert one.pooled == metrics(pooled, range(1, 9), surroundings)
    assert other.separate == metrics(separate, range(1, 9), surroundings)
    by_hand = copy.deepcopy(plain)
    layers = quantized_layers(by_hand)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    estimate(
        by_hand, list(zip(stripes()[0][order].split(BATCH))), [resolve(b, layers) for b in (8, 4, 2)], per_width=False
    )
    for name, norm in batch_norms(by_hand).items():
        assert torch.allclose(norm.running_var, batch_norms(pooled)[name].running_var)  # type: ignore[arg-type]
        assert torch.equal(norm.weight, batch_norms(pooled)[name].weight)
    assert any(isinstance(norm, WidthBatchNorm) for norm in batch_norms(separate).values())
    assert not any(isinstance(norm, WidthBatchNorm) for norm in batch_norms(pooled).values())


def test_the_lowering_on_trial_leaves_no_trace() -> None:
    graph, surroundings = copy.deepcopy(quantized("normalize,quant,bncorrect,hasb")), context()
    text, before, random = print_graph(graph), weights(graph), torch.get_rng_state()
    TrialLowering(find_pass("lower")(), surroundings).before(0, find_pass("train")(), graph)
    assert (print_graph(graph), differing(weights(graph), before)) == (text, [])
    assert torch.equal(torch.get_rng_state(), random)
    assert surroundings.report == context().report


def test_training_is_not_remarked_as_a_change_of_the_model() -> None:
    surroundings = context()
    compile_model(network(), pipeline_of("quant,bncorrect,train{epochs=1}"), surroundings)
    notes: list[Note] = surroundings.report.notes
    assert [note for note in notes if "changes the float model" in note.message] == []


def test_progress_tells_loss_and_metric_by_width() -> None:
    told: list[str] = []

    class Shown:
        def __init__(self, description: str, total: int | None) -> None:
            self.total = total

        def __enter__(self) -> Any:
            return lambda status="": told.append(status)

        def __exit__(self, *_: object) -> None:
            assert self.total is None or self.total == len(told)

    trained("epochs=2", context(progress=Shown))
    assert len(told) == 2 * SAMPLES // BATCH
    assert told[0].startswith("loss 8: 1.")
    assert ", 2: " in told[0]
    assert "metric" not in told[0]
    assert "; metric 8: " in told[-1]


def test_every_other_pass_leaves_the_model_alone() -> None:
    from mbqc.lookup import find_pass, pass_table

    passes: dict[str, type[Pass]] = {name: find_pass(name) for name in pass_table()}
    assert [name for name, found in passes.items() if found.trains] == ["train"]


def test_parameters_without_gradient_are_named() -> None:
    graph = copy.deepcopy(quantized())
    kept = graph.get_parameter("3.weight").requires_grad_(False).clone()
    surroundings = context()
    after = run(f"train{{batch={BATCH},epochs=1}}", graph, surroundings)
    assert torch.equal(after.get_parameter("3.weight"), kept)
    assert "train: 1 parameter(s) take no gradient and keep their values: 3.weight" in map(
        str, surroundings.report.notes
    )


def test_statistics_are_re_estimated_on_all_kinds_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples sorted by class, and fewer batches than there are: in their order some classes would be missing."""
    monkeypatch.setattr("mbqc.passes.train.trainer.ESTIMATION_BATCHES", 2)
    images, labels = stripes()
    order = labels.argsort(stable=True)
    _, result = trained(f"{LONG},reestimate=pooled", context((images[order], labels[order])))
    for bits in (8, 4):
        assert min(result.pooled[bits], result.separate[bits]) > result.after[bits] - 10


def test_rows_of_untrained_widths_are_re_estimated_with_their_neighbours() -> None:
    graph, _ = trained("epochs=1,reestimate=pooled", passes=QUANTIZED + "{moments=none,statistics=width}")
    for norm in batch_norms(graph).values():
        assert isinstance(norm, WidthBatchNorm)
        assert torch.equal(norm.running_mean[7], norm.running_mean[8])
        assert torch.equal(norm.running_mean[5], norm.running_mean[4])


@pytest.mark.parametrize("options", ["epochs=2", "epochs=2,bn_freeze=0,reestimate=pooled", "epochs=1,widths=sandwich"])
def test_transitional_batch_norm_trained_at_uniform_widths_is_switchable_batch_norm(options: str) -> None:
    """Pairs matter only where `switch` mixes widths: else results are equal bit for bit, at untrained widths too."""
    switchable, one = trained(options, passes=TRANSITIONAL.replace("pair", "width"))
    transitional, other = trained(options, passes=TRANSITIONAL)
    (images, _), layers = stripes(48, seed=1), quantized_layers(switchable)
    assert (one.after, one.pooled) == (other.after, other.pooled)
    with torch.no_grad():
        for widths in (FLOAT, *(resolve(bits, layers) for bits in ALL_BITS)):
            assert torch.equal(transitional(images, widths), switchable(images, widths))


def test_pairs_that_layers_switched_to_keep_what_was_trained() -> None:
    graph, _ = trained("epochs=4,switch=uniform,switch_most=1,bits=8:2", passes=TRANSITIONAL)
    (norm,) = (n for n in width_norms(graph).values() if n.layer == "3")
    pairs = {(before, bits): norm.running_mean[8 * (before - 1) + bits] for before in ALL_BITS for bits in ALL_BITS}
    kept = [(before, bits) for before in (8, 2) for bits in (8, 2)]
    assert not any(torch.equal(pairs[a], pairs[b]) for a in kept for b in kept if a != b)
    for (before, bits), numbers in pairs.items():  # 5 is as near to 8 as to 2: the wider
        assert torch.equal(numbers, pairs[8 if before >= 5 else 2, 8 if bits >= 5 else 2])


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained(fails: bool) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, target) * (torch.nan if fails else 1)

    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), np.random.rand(), random.random()

    def seeded() -> None:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    quantized()
    seeded()
    expected = drawn()
    seeded()
    with pytest.raises(PassError) if fails else nullcontext():
        trained("epochs=1,evaluate=0", context(Noisy(), loss=loss))
    assert drawn() == expected


def test_labels_of_any_whole_number_type() -> None:
    images, labels = stripes()
    found = [weights(trained("epochs=1", context((images, labels.to(t))))[0]) for t in (torch.int64, torch.int32)]
    assert differing(*found) == []
