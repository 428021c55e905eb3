"""Convolutions and linear layers as kernel steps: which kernel, in which form the weights."""

from __future__ import annotations

from dataclasses import dataclass

from mbqc import numerics
from mbqc.backends.cpu import abi
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.epilogues import in_range, scaled
from mbqc.backends.cpu.forms import WeightForms
from mbqc.backends.cpu.geometry import FIRST_POSITION
from mbqc.program.bind import BoundEpilogue, Step
from mbqc.program.operations import Conv, Linear


@dataclass(frozen=True)
class LayerSteps:
    """Makes steps of layers.

    Attributes:
        batch: of the calls to come; it matters for linear layers of few rows.
    """

    at: Addresses
    forms: WeightForms
    batch: int

    def step(self, operation: Conv | Linear, step: Step) -> abi.Step:
        """The step of one layer."""
        geometry = self.forms.layers[operation.output].geometry
        if geometry.depthwise:
            return abi.step("depthwise", self._depthwise(operation, step))
        if self.forms.bits.serve(step, geometry):
            return abi.step("popcount", self._conv(operation, step, *self._counted_layer(operation, step)))
        return abi.step("conv", self._conv(operation, step, *self._layer(operation, step)))

    def _layer(self, operation: Conv | Linear, step: Step) -> tuple[abi.StoredWeights, abi.Epilogue]:
        """Weights and epilogue of a layer."""
        assert step.weights is not None
        data, shift = self.forms.layers[operation.output], step.weights.shift
        # shifted codes are in stored steps, as those of 8 bits are
        bound, drop = scaled(step.epilogues[0], step.bits if shift is None else numerics.STORED_BITS)
        weights = abi.StoredWeights(
            codes=self.at.pointer(data.weights),
            bits=step.bits,
            rounds=self.at.program.listing.ladder == "round",
            shift=drop,
            panel=self.at.layout.scratch.panel,
        )
        if packed := self.forms.packed.find(operation.output, step.bits, self.batch):
            weights.packed, weights.field = self.at.pointer(packed.codes), packed.field
        if shift is not None:
            assert data.positions is not None
            weights.added = self.at.pointer(data.by_block(shift.whole, shift.rest + FIRST_POSITION))
            weights.positions = self.at.pointer(data.positions)
        return weights, self._layer_epilogue(operation, bound, bound)

    def _counted_layer(self, operation: Conv | Linear, step: Step) -> tuple[abi.StoredWeights, abi.Epilogue]:
        """Weights as bit-planes, and epilogue: totals are those of the width itself."""
        planes = self.forms.bits.of(operation, step.bits, self.forms.layers[operation.output].geometry)
        weights = abi.StoredWeights(codes=self.at.pointer(planes), bits=step.bits, panel=self.at.layout.scratch.panel)
        as_stored, _ = scaled(step.epilogues[0], step.bits)
        return weights, self._layer_epilogue(operation, step.epilogues[0], as_stored)

    def _layer_epilogue(self, operation: Conv | Linear, bound: BoundEpilogue, as_stored: BoundEpilogue) -> abi.Epilogue:
        """The epilogue of a layer; `as_stored` is what it would be for codes of 8 bits."""
        epilogue = self.at.epilogue(bound, operation.output, operation.epilogue.residual)
        epilogue.in_range = in_range(as_stored, self.at.program.tensors[operation.weight.codes][0].numel())
        return epilogue

    def _conv(
        self, operation: Conv | Linear, step: Step, weights: abi.StoredWeights, epilogue: abi.Epilogue
    ) -> abi.Conv:
        g, scratch = self.forms.layers[operation.output].geometry, self.at.layout.scratch
        return abi.Conv(
            input=self.at.place(operation.input),
            output=self.at.place(operation.output),
            bordered=scratch.bordered,
            pixel_sums=scratch.pixel_sums,
            windows=scratch.windows,
            columns=scratch.columns,
            planes=scratch.planes,
            epilogue=epilogue,
            weights=weights,
            run_taps=g.run_taps,
            images=g.images,
            height=g.height,
            width=g.width,
            channels=g.channels,
            pixel_bytes=g.pixel_bytes,
            groups=g.groups,
            out_height=g.out_height,
            out_width=g.out_width,
            out_channels=g.out_channels,
            kernel=g.kernel,
            stride=g.stride,
            dilation=g.dilation,
            padding=g.padding,
            border_code=step.zero_point,
            input_bits=step.input_bits,
        )

    def _depthwise(self, operation: Conv | Linear, step: Step) -> abi.Depthwise:
        data = self.forms.layers[operation.output]
        g = data.geometry
        assert data.ones is not None
        weights, epilogue = self._layer(operation, step)
        return abi.Depthwise(
            input=self.at.place(operation.input),
            output=self.at.place(operation.output),
            columns=self.at.layout.scratch.columns,
            epilogue=epilogue,
            weights=weights,
            ones=self.at.pointer(data.ones),
            images=g.images,
            height=g.height,
            width=g.width,
            channels=g.channels,
            out_height=g.out_height,
            out_width=g.out_width,
            kernel=g.kernel,
            stride=g.stride,
            dilation=g.dilation,
            padding=g.padding,
            border_code=step.zero_point,
        )
