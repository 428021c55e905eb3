"""Widths for a budget: exact, within the budget, and never fewer bits for a more sensitive layer."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest

from mbqc.budget import _squared_errors, mean_bits, widths_of_mean
from mbqc.errors import WidthsError
from mbqc.program.operations import Conv, LayerInfo, Linear, Program
from tests.backends.program_builder import Builder

SIZES = (5, 9, 2, 17)


def chain(sensitivities: tuple[float | None, ...], pinned: tuple[int | None, ...] = ()) -> Program:
    """Linear layers of different sizes in a row."""
    build = Builder(3)
    x = build.quantize(build.new_input((-1, 4)), build.new_grid())
    for size in SIZES:
        x = build.linear(x, size, grid=build.new_grid())
    y = build.affine(x, grid=None)
    kept = pinned or (None,) * len(SIZES)
    for layer, sensitivity, bits in zip(list(build.layers), sensitivities, kept, strict=True):
        build.layers[layer] = LayerInfo(bits, sensitivity, None if sensitivity is None else 0.01)
    return build.finish((y,))


def costs(program: Program) -> dict[str, list[float]]:
    """What each layer costs at each width."""
    result = {}
    for operation in program.listing.operations:
        if isinstance(operation, Conv | Linear):
            sensitivity = program.listing.layers[operation.weight.layer].sensitivity or 0.0
            errors = _squared_errors(program, operation.weight)
            result[operation.weight.layer] = [sensitivity * error for error in errors]
    return result


@pytest.mark.parametrize("mean", [1.0, 1.3, 2.0, 3.37, 5.5, 8.0])
def test_is_the_best_of_all_choices(mean: float) -> None:
    program = chain((0.5, 3.0, 20.0, 0.1))
    chosen = widths_of_mean(program, mean)
    assert mean_bits(program, chosen) <= mean + 1e-9
    table, sizes = costs(program), np.array([4, *SIZES[:-1]]) * np.array(SIZES)
    every = np.array(list(itertools.product(range(1, 9), repeat=len(SIZES))))
    totals = sum(np.array(column)[every[:, i] - 1] for i, column in enumerate(table.values()))
    best = totals[every @ sizes <= mean * sizes.sum() + 1e-9].min()
    assert math.isclose(sum(table[layer][bits - 1] for layer, bits in chosen.items()), best, rel_tol=1e-9)


def test_more_sensitive_never_fewer_bits() -> None:
    """The sign trap: a literal reading of the paper's program starves the most sensitive layers."""
    before = None
    for sensitivity in (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3):
        bits = widths_of_mean(chain((0.5, sensitivity, 1.0, 0.5)), 3.5)["layer1"]
        assert before is None or bits >= before
        before = bits


def test_pinned_layers_keep_their_width() -> None:
    program = chain((1.0, 1.0, 1.0, 1.0), pinned=(8, None, None, 4))
    chosen = widths_of_mean(program, 2.0)
    assert (chosen["layer0"], chosen["layer3"]) == (8, 4)
    assert mean_bits(program, chosen) <= 2.0
    assert mean_bits(program, {**chosen, "layer0": 1, "layer3": 1}) == mean_bits(program, chosen)


def test_without_sensitivity() -> None:
    """Weight errors alone decide; a layer that was measured as flat is not free."""
    assert widths_of_mean(chain((None,) * 4), 8.0) == dict.fromkeys(("layer0", "layer1", "layer2", "layer3"), 8)
    assert widths_of_mean(chain((0.0,) * 4), 8.0) == dict.fromkeys(("layer0", "layer1", "layer2", "layer3"), 8)


@pytest.mark.parametrize("mean", [0.99, 0, -1, math.nan])
def test_infeasible(mean: float) -> None:
    with pytest.raises(WidthsError, match="the smallest is 1"):
        widths_of_mean(chain((1.0,) * 4), mean)


def test_nothing_to_choose() -> None:
    program = chain((1.0,) * 4)
    layers = {name: msgspec.structs.replace(info, pinned=8) for name, info in program.listing.layers.items()}
    pinned = Program(msgspec.structs.replace(program.listing, layers=layers), program.tensors)
    with pytest.raises(WidthsError, match="nothing to choose"):
        widths_of_mean(pinned, 4)
