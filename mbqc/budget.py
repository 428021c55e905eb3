"""Widths for a budget: the layers whose error matters most get the most bits, solved exactly.

    minimise   sum over layers of sensitivity * ||W - Q_b(W)||^2        (Omega of HAWQ-V2, arXiv 1911.03852)
    subject to the mean width over all weights <= mean

Layers with a pinned width keep it and do not count.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from mbqc import numerics
from mbqc.errors import WidthsError
from mbqc.numerics import ALL_BITS
from mbqc.program.bind import weight_codes, weight_line
from mbqc.program.operations import Conv, LayerInfo, Linear, Program, Weight

OBJECTIVE_RANGE = 1e6
"""The objective is scaled to this: the solver's absolute tolerance of 1e-6 then lies far below real differences."""

SMALLEST_SHARE = 1e-6


def widths_of_mean(program: Program, mean: float) -> dict[str, int]:
    """The width of every layer of `program`, of the least expected loss among those with at most `mean` bits a weight.

    Raises:
        WidthsError: no choice is that small, or every layer has a pinned width.
    """
    weights, sizes = _layer_weights(program), _free_sizes(program)
    free = list(sizes)
    if not free:
        raise WidthsError("every layer keeps a pinned width: there is nothing to choose", where="budget")
    if not mean >= ALL_BITS[0]:
        raise WidthsError(f"a mean of {mean} bits cannot be reached, the smallest is {ALL_BITS[0]}", where="budget")
    errors = np.array([_squared_errors(program, weights[name]) for name in free])
    costs = _sensitivities([program.listing.layers[name] for name in free])[:, None] * errors
    shares = np.array(list(sizes.values())) / sum(sizes.values())
    chosen = dict(zip(free, _solve(costs, shares, mean), strict=True))
    return {name: chosen.get(name, info.pinned or 0) for name, info in program.listing.layers.items()}


def mean_bits(program: Program, widths: Mapping[str, int]) -> float:
    """Mean width over all weights of layers without a pinned width; 0 where there are none."""
    sizes = _free_sizes(program)
    return sum(widths[name] * size for name, size in sizes.items()) / max(sum(sizes.values()), 1)


def _free_sizes(program: Program) -> dict[str, int]:
    """Weights of each layer without a pinned width."""
    weights = _layer_weights(program)
    free = (name for name, info in program.listing.layers.items() if info.pinned is None)
    return {name: program.tensors[weights[name].codes].numel() for name in free}


def _layer_weights(program: Program) -> dict[str, Weight]:
    operations = program.listing.operations
    return {item.weight.layer: item.weight for item in operations if isinstance(item, Conv | Linear)}


def _sensitivities(layers: list[LayerInfo]) -> npt.NDArray[np.float64]:
    """Traces per parameter, 1 for all where they were not measured.

    A measured trace counts as at least its standard error, and at least a tiny share of the largest one: a layer in
    which no curvature was found is not free.
    """
    if any(info.sensitivity is None for info in layers):
        return np.ones(len(layers))
    known = np.array([max(info.sensitivity or 0.0, info.sensitivity_error or 0.0) for info in layers])
    return np.maximum(known, known.max() * SMALLEST_SHARE) if known.max() > 0 else np.ones(len(layers))


def _squared_errors(program: Program, weight: Weight) -> list[float]:
    """`||W - Q_b(W)||^2` of a layer's weights for widths 1 to 8, with the weights at 8 bits as W."""
    stored, ladder = program.tensors[weight.codes].flatten(1), program.listing.ladder

    def values(bits: int) -> Tensor:
        line = weight_line(weight, program.tensors, bits, ladder)
        return line.slope[:, None] * weight_codes(stored, bits, ladder, line.shift) + line.offset[:, None]

    exact = values(numerics.STORED_BITS)
    return [float((values(bits) - exact).square().sum()) for bits in ALL_BITS]


def _solve(costs: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], mean: float) -> list[int]:
    """One width a layer: `costs` [layers, 8], `shares` of all weights [layers]."""
    layers, count = costs.shape
    largest = costs.max(1).sum()
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(count)), 1, 1)
    within = LinearConstraint(np.kron(shares, ALL_BITS)[None], -np.inf, mean)
    result = milp(
        costs.flatten() * (OBJECTIVE_RANGE / largest if largest > 0 else 0.0),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=[one_each, within],
        options={"mip_rel_gap": 0.0},
    )
    assert result.success, f"the solver failed: {result.message}"
    choice: list[int] = (result.x.reshape(costs.shape).argmax(1) + ALL_BITS[0]).tolist()
    return choice
