"""Types of graph values: dtype and shape with a free batch size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mbqc.errors import VerifyError

Dims = tuple[int, ...]
"""A shape in which a dimension -k stands for k times the batch size: (-1, 3, 224, 224) is N x 3 x 224 x 224."""


@dataclass(frozen=True)
class TensorType:
    """What is known about a tensor in a graph.

    Attributes:
        dtype: element type.
        dims: shape, with -k for k times the batch size.
    """

    dtype: torch.dtype
    dims: Dims

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").replace("float", "f").replace("int", "i")
        return f"{dtype}[{format_dims(self.dims)}]"


def at_batch(dims: Dims, batch: int) -> tuple[int, ...]:
    """The concrete shape of `dims` for a batch of `batch` samples."""
    return tuple(d if d >= 0 else -d * batch for d in dims)


def format_dims(dims: Dims) -> str:
    """`(-1, 3, 8)` as `Nx3x8`, `(-12, 5)` as `12Nx5`."""
    return "x".join(str(d) if d >= 0 else ("N" if d == -1 else f"{-d}N") for d in dims)


def type_of(node: fx.Node) -> TensorType:
    """The type that `normalize` gave to a node.

    Raises:
        VerifyError: the node has none, or is no tensor.
    """
    value = node.meta.get("type")
    if not isinstance(value, TensorType):
        raise VerifyError("the node has no tensor type", where=f"node {node.name}", hint="run normalize first")
    return value
