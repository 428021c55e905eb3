"""Runs a Program: native calls, and torch for what has no integer form."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from mbqc.backends.cpu.geometry import pack_layers
from mbqc.backends.cpu.memory import ArenaPool, Layout, layout
from mbqc.backends.cpu.native import Kernels, kernels
from mbqc.backends.cpu.plan import NativeRun, Part, plan
from mbqc.backends.cpu.popcount import BitWeights
from mbqc.ir.types import at_batch
from mbqc.program import aten
from mbqc.program.bind import Binder
from mbqc.program.operations import TORCH_DTYPES, Aten, Listing, Program
from mbqc.widths import Widths

CACHED_PLANS = 32
"""Choices of widths whose plans are kept; a plan holds epilogue tables only, no weights."""


def load(program: Program, threads: int = 1) -> CpuExecutable:
    """Makes a Program ready to run, each call on up to `threads` threads of its own.

    Raises:
        BackendError: the kernels were not built, or this machine or the Program is beyond them.
    """
    return CpuExecutable(program, kernels(), threads)


class CpuExecutable:
    """A loaded Program: packed weights, plans of recent widths, and arenas for calls."""

    def __init__(self, program: Program, kernels: Kernels, threads: int) -> None:
        self._program = program
        self._kernels = kernels
        self._binder = Binder(program)
        self._layers = pack_layers(program)
        self._bit_weights = BitWeights(program, kernels.popcount)
        geometries = [layer.geometry for layer in self._layers.values()]
        self._layout = layout(program.listing, geometries, reuse=True)
        self._trace_layout = layout(program.listing, geometries, reuse=False)
        self._pool = ArenaPool()
        self._team = kernels.team(threads)
        self._plan = lru_cache(maxsize=CACHED_PLANS)(self._make_plan)

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """Outputs of the Program."""
        values = self._execute(inputs, widths, trace=False)
        return [values[name] for name in self._program.listing.outputs]

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """Every value of the Program by name; u8 values as uint8."""
        return self._execute(inputs, widths, trace=True)

    def kernels(self) -> tuple[str, ...]:
        """The instruction set of each operation, `torch` for float fallbacks."""
        operations = self._program.listing.operations
        return tuple("torch" if isinstance(op, Aten) else self._kernels.isa for op in operations)

    def _make_plan(self, widths: Widths, trace: bool) -> tuple[Part, ...]:
        places = self._trace_layout if trace else self._layout
        return plan(self._program, self._layers, self._bit_weights, places, self._binder.bind(widths))

    def _execute(self, inputs: Sequence[Tensor], widths: Widths, *, trace: bool) -> dict[str, Tensor]:
        """The outputs by name, or all values."""
        listing, places = self._program.listing, self._trace_layout if trace else self._layout
        batch = inputs[0].shape[0] if inputs else 1
        arena_bytes = places.arena_bytes(batch, self._team.threads)
        with self._pool.arena(arena_bytes) as arena, self._team.reserved() as team:
            values = _Values(listing, places, arena, batch)
            for name, tensor in zip(listing.inputs, inputs, strict=True):
                values.define(name, tensor)
            values.allocate()
            for part in self._plan(widths, trace):
                if isinstance(part, NativeRun):
                    self._kernels.run(part.steps, batch, values.bases, places.own, team)
                else:
                    results = aten.call(part.call, values, self._program.tensors, batch)
                    for name, tensor in zip(part.outputs, results, strict=True):
                        values.define(name, tensor)
            return {name: values.detached(name) for name in (listing.values if trace else listing.outputs)}


@dataclass(frozen=True)
class _Values(Mapping[str, Tensor]):
    """The values of one call: views of the arena, and tensors from outside."""

    listing: Listing
    layout: Layout
    arena: Tensor
    batch: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bases(self) -> ctypes.Array[ctypes.c_void_p]:
        """What places refer to: the arena, then the external values that are there by now."""
        found = (self.tensors.get(name) for name in self.layout.external)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in found]
        return (ctypes.c_void_p * (1 + len(addresses)))(self.arena.data_ptr(), *addresses)

    def allocate(self) -> None:
        """Makes the tensors that kernels write."""
        for name in self.layout.made:
            value = self.listing.values[name]
            self.tensors[name] = torch.empty(at_batch(value.shape, self.batch), dtype=TORCH_DTYPES[value.dtype])

    def define(self, name: str, tensor: Tensor) -> None:
        """Sets an input, or a result of torch: it may be a view of the arena, whose memory will be reused."""
        if name not in self.layout.external:
            self[name].copy_(tensor)
        elif tensor.untyped_storage().data_ptr() == self.arena.untyped_storage().data_ptr():
            self.tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            self.tensors[name] = tensor.contiguous()

    def detached(self, name: str) -> Tensor:
        """A value that outlives the call."""
        return self.tensors[name] if name in self.tensors else self[name].clone()

    def __getitem__(self, name: str) -> Tensor:
        if name in self.tensors:
            return self.tensors[name]
        return self.layout.view(self.listing, name, self.arena, self.batch)

    def __iter__(self) -> Iterator[str]:
        return iter(self.listing.values)

    def __len__(self) -> int:
        return len(self.listing.values)
