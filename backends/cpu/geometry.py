"""Shapes and weights as the kernels take them. No shape depends on the batch: an extent of -k is k times the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mbqc import numerics
from mbqc.backends.cpu.abi import BLOCK, QUAD
from mbqc.backends.cpu.pages import weight_copy
from mbqc.errors import BackendError
from mbqc.program.operations import Conv, Linear, Program

FIRST_POSITION, FILLING = -128, 127
"""Positions are bytes that vector instructions compare as signed; FILLING is behind them all."""

CACHE_LINE = 64
CACHE_SETS_BYTES = 4096
"""A line in each set of the first cache, which has 64 of them on every x86 processor of note."""


def extent(dims: Iterable[int]) -> int:
    """The product of dimensions, of which one may be a multiple of the batch."""
    product, signs = 1, 0
    for dim in dims:
        product *= abs(dim)
        signs += dim < 0
    if signs > 1:
        raise BackendError("the cpu backend has no values with two batch dimensions")
    return -product if signs else product


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution or linear layer: `images` of `height` x `width` pixels to `out_height` x `out_width`.

    Kernels of one tap that read every pixel are one row of pixels, so that tiles need not end with a row.
    """

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether each output channel has an input channel of its own."""
        return self.groups > 1 and self.groups == self.channels == self.out_channels

    @property
    def linear(self) -> bool:
        """Whether it is a product of rows, the pixels, and a matrix."""
        one_tap = self.kernel == self.stride == (1, 1) and not any(self.padding)
        return one_tap and self.images == self.out_height == self.groups == 1

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input with its border."""
        top, bottom, left, right = self.padding
        return self.height + top + bottom, self.width + left + right

    @property
    def pixel_bytes(self) -> int:
        """From pixel to pixel when a kernel reads many at once.

        Addresses a multiple of 4096 bytes apart share a set of the first cache, which has fewer places than a tile has
        pixels. With 64 rows of 8192 bytes that cost 10 % of the time.
        """
        apart = self.linear and self.channels % CACHE_SETS_BYTES == 0
        return self.channels + CACHE_LINE if apart else self.channels

    @property
    def run_taps(self) -> int:
        """How many neighbouring taps have contiguous inputs: a row of the kernel, if it is dense."""
        return self.kernel[1] if self.groups == 1 and self.dilation[1] == 1 else 1


def conv_geometry(program: Program, operation: Conv | Linear) -> ConvGeometry:
    """The geometry of an operation of `program`."""
    values = program.listing.values
    source, target = values[operation.input].shape, values[operation.output].shape
    every_pixel = ConvGeometry(1, 1, extent(source[:-1]), source[-1], 1, extent(target[:-1]), target[-1])
    if isinstance(operation, Linear):
        return every_pixel
    _, kernel_height, kernel_width, _ = program.tensors[operation.weight.codes].shape
    images, height, width, channels = source
    _, out_height, out_width, out_channels = target
    geometry = ConvGeometry(
        images,
        height,
        width,
        channels,
        out_height,
        out_width,
        out_channels,
        kernel=(kernel_height, kernel_width),
        stride=operation.stride,
        padding=operation.padding,
        dilation=operation.dilation,
        groups=operation.groups,
    )
    pointwise = geometry.kernel == geometry.stride == (1, 1) and geometry.padded == source[1:3] and geometry.groups == 1
    return every_pixel if pointwise else geometry


@dataclass(frozen=True)
class LayerData:
    """What every width of a convolution or linear layer shares.

    Attributes:
        weights: the stored codes, packed.
        positions: where each input of a packed block lies in the kernel, in steps of the shift's granularity from
            FIRST_POSITION on, FILLING for what fills up; None where codes are never shifted.
        ones: for a depthwise kernel, which rows of its bands there are.
    """

    geometry: ConvGeometry
    weights: Tensor
    positions: Tensor | None
    ones: Tensor | None

    def by_block(self, *values: Tensor) -> Tensor:
        """Numbers of each channel as int8 [groups][blocks][values][BLOCK]."""
        groups = 1 if self.geometry.depthwise else self.geometry.groups
        grouped = torch.stack(values).to(torch.int8).reshape(len(values), groups, -1)
        filled = torch.nn.functional.pad(grouped, (0, -grouped.shape[2] % BLOCK))
        return filled.reshape(len(values), groups, -1, BLOCK).permute(1, 2, 0, 3).contiguous()


def pack_layers(program: Program) -> dict[str, LayerData]:
    """The data of each layer operation by the name of its output."""
    layers: dict[str, LayerData] = {}
    for operation in program.listing.operations:
        if isinstance(operation, Conv | Linear):
            geometry = conv_geometry(program, operation)
            codes = program.tensors[operation.weight.codes]
            if geometry.depthwise:
                pack, ones = depthwise_panels, band_rows(geometry.kernel[0])
            else:
                pack, ones = partial(panels, geometry=geometry), None
            groups = 1 if geometry.depthwise else geometry.groups
            positions = None if operation.weight.mean is None else _positions(codes, groups, pack)
            layers[operation.output] = LayerData(geometry, weight_copy(pack(codes)), positions, ones)
    return layers


def _positions(codes: Tensor, groups: int, pack: Callable[[Tensor], Tensor]) -> Tensor | None:
    """`LayerData.positions` of codes [out, ...]: what packing makes of numbers, with zeros for what fills up."""
    granularity = numerics.shift_granularity(codes.shape, numerics.STORED_BITS - 1)  # or 0 at fewer bits
    if not granularity:
        return None
    numbers = 1 + torch.arange(codes[0].numel()).reshape(1, *codes.shape[1:]) // granularity
    packed = pack(numbers.expand(groups, *codes.shape[1:]))  # an output a group, so a block a group
    quads = packed.reshape(groups, -1, BLOCK, QUAD)[0, :, 0]
    return torch.where(quads > 0, quads - 1 + FIRST_POSITION, FILLING).to(torch.int8).contiguous()


def panels(codes: Tensor, geometry: ConvGeometry) -> Tensor:
    """Stored codes [out, kernel height, kernel width, in / groups] in the order in which the dense kernel reads them.

    That is [groups][blocks of outputs][runs][quads of a run][BLOCK outputs][QUAD inputs], a run being `run_taps` taps;
    filled up with zeros, which are zero at every width.
    """
    groups, runs = geometry.groups, geometry.kernel[0] * geometry.kernel[1] // geometry.run_taps
    grouped = codes.reshape(groups, codes.shape[0] // groups, runs, -1)
    _, outputs, _, run = grouped.shape
    filled = torch.nn.functional.pad(grouped, (0, -run % QUAD, 0, 0, 0, -outputs % BLOCK))
    blocks = filled.reshape(groups, -1, BLOCK, runs, filled.shape[3] // QUAD, QUAD)
    return blocks.permute(0, 1, 3, 4, 2, 5)


def depthwise_panels(codes: Tensor) -> Tensor:
    """Stored codes [channels, kernel height, kernel width, 1] in the order in which the depthwise kernel reads them.

    That is [blocks of channels][bands of kernel rows][kernel width][BLOCK channels][QUAD rows].
    """
    channels, height, width, _ = codes.shape
    filled = torch.nn.functional.pad(codes[..., 0], (0, 0, 0, -height % QUAD, 0, -channels % BLOCK))
    return filled.reshape(-1, BLOCK, bands(height), QUAD, width).permute(0, 2, 4, 1, 3)


def band_rows(height: int) -> Tensor:
    """Which rows of the bands belong to a kernel of `height` rows: int8 [bands][BLOCK][QUAD] of 1 and 0."""
    rows = torch.arange(bands(height) * QUAD).reshape(-1, 1, QUAD) < height
    return rows.to(torch.int8).expand(-1, BLOCK, -1).contiguous()


def bands(height: int) -> int:
    """Groups of QUAD rows of a kernel."""
    return -(-height // QUAD)
