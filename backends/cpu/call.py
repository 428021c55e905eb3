"""The values of one call: views of its arena, and tensors from outside."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mbqc.backends.cpu.memory import Layout
from mbqc.ir.types import at_batch
from mbqc.program.operations import TORCH_DTYPES, Listing


class CallValues(Mapping[str, Tensor]):
    """The values of one call by name. A plain class with slots: one is made at every call."""

    __slots__ = ("_arena", "_batch", "_layout", "_listing", "_tensors")

    def __init__(self, listing: Listing, layout: Layout, arena: Tensor, batch: int) -> None:
        self._listing, self._layout, self._arena, self._batch = listing, layout, arena, batch
        self._tensors: dict[str, Tensor] = {}

    @property
    def bases(self) -> ctypes.Array[ctypes.c_void_p]:
        """What places refer to: the arena, then the external values that are there by now."""
        tensors = self._tensors
        addresses = [tensors[name].data_ptr() if name in tensors else 0 for name in self._layout.external]
        return (ctypes.c_void_p * (1 + len(addresses)))(self._arena.data_ptr(), *addresses)

    def allocate(self) -> None:
        """Makes the tensors that kernels write."""
        for name in self._layout.made:
            value = self._listing.values[name]
            self._tensors[name] = torch.empty(at_batch(value.shape, self._batch), dtype=TORCH_DTYPES[value.dtype])

    def take(self, name: str, tensor: Tensor) -> None:
        """Sets an input: a contiguous tensor that outlives the call."""
        if name in self._layout.external:
            self._tensors[name] = tensor
        else:
            self[name].copy_(tensor)

    def define(self, name: str, tensor: Tensor) -> None:
        """Sets a result of torch: it may be a view of the arena, whose memory will be reused."""
        if tensor.untyped_storage().data_ptr() == self._arena.untyped_storage().data_ptr():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self.take(name, tensor.contiguous())

    def detached(self, name: str) -> Tensor:
        """A value that outlives the call."""
        return self._tensors[name] if name in self._tensors else self[name].clone()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name]
        return self._layout.view(self._listing, name, self._arena, self._batch)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listing.values)

    def __len__(self) -> int:
        return len(self._listing.values)
