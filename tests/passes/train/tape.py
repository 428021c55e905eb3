"""A recorder without a GPU: what it records and replays are PyTorch's operations, on the memory they were recorded on.

As a CUDA graph a replay reads and writes the same tensors, runs no Python, and draws random numbers anew; recording
changes nothing, and an operation whose answer the host waits for is an error (`tolist()` is none on the CPU). Other
than with CUDA, native kernels outside of PyTorch would not be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mbqc.passes.train.captured import WARM_UPS

Result = TypeVar("Result")

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.lift_fresh.default,  # a tensor from Python's numbers, copied from memory that is not pinned
}


class TapeRecorder:
    """In the place of `captured.GraphRecorder`."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def warm_up(self, work: Callable[[], object]) -> None:
        for _ in range(WARM_UPS):
            work()

    def record(self, work: Callable[[], Result]) -> tuple[Tape, Result]:
        tape = Tape()
        state = torch.get_rng_state()
        try:
            with tape:
                result = work()
        finally:
            torch.set_rng_state(state)
            tape.undo()
        return tape, result


class Tape(TorchDispatchMode):
    """The operations in the order in which they ran."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0
        self._made: dict[int, Tensor] = {}  # by memory
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        self._keep((args, kwargs))
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._made[tensor.untyped_storage().data_ptr()] = tensor
        self.operations.append((func, args, kwargs, result))
        return result

    def _keep(self, given: Any) -> None:
        """Schemas do not tell all that changes: BatchNorm's leaves its statistics out."""
        for tensor in _tensors(given):
            memory = tensor.untyped_storage().data_ptr()
            if memory not in self._made and memory not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[memory] = whole, whole.clone()

    def undo(self) -> None:
        """What was there before the recording is as it was."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
