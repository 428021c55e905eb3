"""What lowering knows about the value of a graph node before, or after, an operation computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mbqc.ir.types import Dims
from mbqc.program.operations import AnyOperation, AtenCall, Epilogue

NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True)
class Stored:
    """A value of the Program.

    Attributes:
        name: in the Program.
        dims: shape of the graph's tensor, in torch's order.
        channels_last: whether the Program holds it as N x H x W x C (H = 1 for N x C x L) instead of torch's order.
        codes: whether it is u8.
        padding: zeros around it (top, bottom, left, right) that the convolution reading it adds.
    """

    name: str
    dims: Dims
    channels_last: bool
    codes: bool
    padding: tuple[int, int, int, int] = NO_PADDING


@dataclass(frozen=True)
class Pending:
    """An accumulator whose epilogue is still open; nothing is emitted until somebody needs its value.

    Attributes:
        emit: the operation, given the output's name and the finished epilogue.
        dims, channels_last: as in `Stored`.
        gain, shift: float64 [C], [8, C] or [64, C]; None for 1 and 0.
        before, residual, low, high: as in `Epilogue`.
    """

    emit: Callable[[str, Epilogue], AnyOperation]
    dims: Dims
    channels_last: bool
    gain: Tensor | None = None
    shift: Tensor | None = None
    before: tuple[str, ...] = ()
    residual: str | None = None
    low: float | None = None
    high: float | None = None

    @property
    def takes_affine(self) -> bool:
        """Whether a BatchNorm or a residual may still follow."""
        return self.residual is None and not self.clamped

    @property
    def clamped(self) -> bool:
        """Whether a clamp is already part of it."""
        return self.low is not None or self.high is not None


@dataclass(frozen=True)
class Table:
    """Element-wise functions on codes, to become one lookup."""

    source: Stored
    functions: tuple[AtenCall, ...]


@dataclass(frozen=True)
class Joined:
    """Codes to be concatenated once the output's grid is known; `dim` counts in the Program's order."""

    sources: tuple[Stored, ...]
    dims: Dims
    dim: int


@dataclass(frozen=True)
class Parameter:
    """A tensor of the model, or what is computed from such tensors alone, that is used as it is."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Number:
    """A whole number; -k stands for k times the batch size, as in `Dims`."""

    value: int


@dataclass(frozen=True)
class Several:
    """The parts of an operation with more than one result."""

    parts: tuple[Stored, ...]


State = Stored | Pending | Table | Joined | Parameter | Number | Several
