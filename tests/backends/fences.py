"""The cpu backend with memory in which a stray access shows: it ends the process, or leaves a mark.

Inputs, weights, tables and the arena each end right before a page that nobody may touch. Values in the arena, which
kernels may read past but not write past, have a gap behind them, and all of it begins with bytes that are no result.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mbqc.backends import cpu
from mbqc.backends.cpu import memory
from mbqc.backends.cpu.addresses import Addresses
from mbqc.backends.cpu.executor import CpuExecutable
from mbqc.ir.types import at_batch
from mbqc.program.arena import sample_bytes
from mbqc.program.operations import Program
from mbqc.widths import Widths

GAP = 256
FILL = 0xFF  # floats that are not numbers, integers of -1


def fenced(size: int) -> Tensor:
    """`size` bytes before a page that must not be touched."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return torch.frombuffer(region, dtype=torch.uint8, count=size, offset=pages - size)


def fenced_copy(tensor: Tensor) -> Tensor:
    """The same numbers before a fence."""
    copy = fenced(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


class Fences:
    """Stands for `ArenaPool`: one arena before a fence, filled anew for each call."""

    def __init__(self) -> None:
        self.last = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def arena(self, size: int) -> Iterator[Tensor]:
        self.last = fenced(size).fill_(FILL)
        yield self.last


class FencedExecutable:
    """A loaded Program whose memory is fenced."""

    def __init__(self, program: Program, threads: int) -> None:
        self._listing = program.listing
        aligned = memory._aligned
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "_aligned", lambda size: aligned(size) + GAP)
            self._executable: CpuExecutable = cpu.load(program, threads)
        self._fences = Fences()
        self._executable._pool = self._fences  # type: ignore[assignment]
        layers = self._executable._forms.layers
        assert isinstance(layers, dict)
        for name, layer in layers.items():
            layers[name] = replace(layer, weights=fenced_copy(layer.weights))

    def run(self, inputs: Sequence[Tensor], widths: Widths) -> list[Tensor]:
        """The outputs."""
        with fenced_tables():
            return self._executable.run([fenced_copy(tensor) for tensor in inputs], widths)

    def trace(self, inputs: Sequence[Tensor], widths: Widths) -> dict[str, Tensor]:
        """All values; fails if a kernel wrote past one of them."""
        with fenced_tables():
            values = self._executable.trace([fenced_copy(tensor) for tensor in inputs], widths)
        layout, batch = self._executable._trace_layout, inputs[0].shape[0]
        for name in layout.places:
            if layout.places[name].base == 0:
                size = torch.Size(at_batch(self._listing.values[name].shape, batch)).numel()
                size *= values[name].element_size()
                start = max(batch, 1) * layout.places[name].sample
                end = start + max(batch, 1) * memory._aligned(sample_bytes(self._listing, name)) + GAP
                gap = self._fences.last[start + size : end]
                assert bool((gap == FILL).all()), f"a kernel wrote past the end of {name}"
        return values


@contextmanager
def fenced_tables() -> Iterator[None]:
    """Plans made meanwhile have fenced tables."""
    pointer = Addresses.pointer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Addresses, "pointer", lambda self, table: pointer(self, fenced_copy(table)))
        yield
