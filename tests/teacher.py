"""Runs a Program operation by operation on the values of the quantized graph, and compares what comes out.

End to end the two drift apart in deep nets: float32 sums in another order round one code in thousands the other way,
and such a code spreads. For one operation at a time the law is exact: given the graph's own codes, it gives the graph's
next codes, but for those few that lie on a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, fx

from mbqc.backends import reference
from mbqc.ir.quantized import quantized_layers
from mbqc.ir.types import at_batch
from mbqc.program.bind import code_grid
from mbqc.program.float_operations import FloatOperation
from mbqc.program.operations import (
    AnyOperation,
    Aten,
    Listing,
    MaxPool,
    Permute,
    Program,
    Quantize,
    Reshape,
    inputs_of,
    outputs_of,
)
from mbqc.widths import Widths, resolve

ON_A_TIE = 1e-4
"""Share of an operation's codes that may differ, by one; a single one always may. Measured here: none of 2.9 million in
the models, one in the structures. The distance to a tie that float32 sums can bridge is about 1e-5 of a code."""

SUFFIXES = ("_float", "_plain", "_last", "_flat", "_rows")
"""What lowering adds to the name of a node whose value it stores in another layout or as floats."""


class Recorder(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def layouts(value: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A tensor of the graph in every layout of a Program that has this shape."""
    channels_last = value.movedim(1, -1) if value.dim() > 2 else value
    others = (channels_last.unsqueeze(1), channels_last.flatten(0, 1)) if value.dim() > 1 else ()
    for laid_out in (value, channels_last, *others):
        if tuple(laid_out.shape) == shape:
            yield laid_out


class Teacher:
    """Runs a Program operation by operation, each on the values of the graph."""

    def __init__(self, graph: fx.GraphModule, program: Program, inputs: tuple[Tensor, ...], widths: Widths) -> None:
        recorder = Recorder(graph)
        with torch.no_grad():
            recorder.run(*inputs, widths)
        self.program, self.widths, self.batch = program, widths, inputs[0].shape[0]
        self.graph = {name: value.detach() for name, value in recorder.values.items() if isinstance(value, Tensor)}
        self.values: dict[str, Tensor] = dict(zip(program.listing.inputs, inputs, strict=True))
        self.checked = 0

    def run(self) -> None:
        for operation in self.program.listing.operations:
            found = self._run(operation)
            for name in outputs_of(operation):
                self.values[name] = self._corrected(operation, name, found[name])

    def _run(self, operation: AnyOperation) -> dict[str, Tensor]:
        """One operation as a Program of its own; codes come in as the real numbers that they stand for."""
        listing = self.program.listing
        first = listing.inputs[0]  # always there, as it gives the batch
        inputs, before, values = [(first, self.values[first])], [], dict(listing.values)
        for name in dict.fromkeys(inputs_of(operation)):
            value = self.values[name]
            if listing.values[name].dtype == "u8":
                values[f"{name}.real"] = replace(listing.values[name], dtype="f32", grid=None)
                before.append(Quantize(f"{name}.real", name, channels_last=False))
                value = self._real(name, value)
            inputs.append((f"{name}.real" if listing.values[name].dtype == "u8" else name, value))
        alone = Listing(
            listing.ladder, tuple(n for n, _ in inputs), (), values, listing.grids, listing.layers, (*before, operation)
        )
        return reference.load(Program(alone, self.program.tensors)).trace([x for _, x in inputs], self.widths)

    def _real(self, name: str, codes: Tensor) -> Tensor:
        grid = code_grid(self.program.listing.grids[str(self.program.listing.values[name].grid)], self.widths)
        return (codes.float() - grid.zero_point) * torch.tensor(grid.scale)

    def _corrected(self, operation: AnyOperation, name: str, found: Tensor) -> Tensor:
        """The graph's value under this name, after comparing; what was found where the graph has none."""
        base = name
        while base not in self.graph and base.endswith(SUFFIXES):
            base = base.rpartition("_")[0]
        value = self.program.listing.values[name]
        shape = at_batch(value.shape, self.batch)
        candidates = list(layouts(self.graph[base], shape)) if base in self.graph else []
        if not candidates:
            return found
        self.checked += 1
        if value.dtype != "u8":
            expected = min(candidates, key=lambda c: float((c.double() - found.double()).abs().sum()))
            if value.dtype == "f32":  # float32 sums in another order, relative to the largest value
                largest = float(expected.abs().max()) + 1e-30
                torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-5)
            return expected
        expected = min((self._codes(name, c) for c in candidates), key=lambda c: int((c != found).sum()))
        differing = (found.long() - expected.long()).abs()
        moves = isinstance(operation, MaxPool | Reshape | Permute)
        allowed = 0 if moves else max(1, int(ON_A_TIE * differing.numel()))
        assert int(differing.max()) <= 1, f"{name} is off by {int(differing.max())} codes"
        assert int(differing.sum()) <= allowed, f"{name}: {int(differing.sum())} of {differing.numel()} codes differ"
        return expected

    def _codes(self, name: str, real: Tensor) -> Tensor:
        grid = code_grid(self.program.listing.grids[str(self.program.listing.values[name].grid)], self.widths)
        return torch.round(real.double() / grid.scale + grid.zero_point).to(torch.uint8)


def follow(graph: fx.GraphModule, program: Program, inputs: tuple[Tensor, ...], widths: Widths) -> None:
    """Checks every operation; each but float functions and changes of layout must have a counterpart in the graph."""
    teacher = Teacher(graph, program, inputs, widths)
    teacher.run()
    integer = [o for o in program.listing.operations if not isinstance(o, Aten | FloatOperation | Reshape | Permute)]
    assert teacher.checked >= len(integer)


def assignments(graph: fx.GraphModule) -> dict[str, Widths]:
    """Uniform widths, and neighbouring layers at different ones."""
    layers = quantized_layers(graph)
    mixed = resolve({layer: 1 + 3 * index % 8 for index, layer in enumerate(layers)}, layers)
    return {**{str(bits): resolve(bits, layers) for bits in (8, 5, 4, 2, 1)}, "mixed": mixed}
