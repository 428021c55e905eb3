"""Where values and scratch live during a call: one arena per call, and tensors from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mbqc.backends.cpu.abi import BLOCK, PANEL_BLOCKS, QUAD, Place
from mbqc.backends.cpu.geometry import ConvGeometry, bands, extent
from mbqc.backends.cpu.popcount import MOST_PLANES, countable
from mbqc.errors import BackendError
from mbqc.ir.types import at_batch
from mbqc.program.arena import ALIGNMENT, ITEM_BYTES, Arena, plan, sample_bytes
from mbqc.program.operations import TORCH_DTYPES, Aten, Listing, outputs_of

SLACK = 64
"""Bytes behind the arena and some scratch: kernels read (and in scratch write) whole vectors, past the end."""


@dataclass(frozen=True)
class Scratch:
    """Memory that a convolution needs besides its values (see csrc/abi.h); all convolutions share it.

    Each thread has `columns` and `panel` to itself: thread t's lie t times `Layout.own` bytes further on.
    """

    bordered: Place
    pixel_sums: Place
    windows: Place
    columns: Place
    planes: Place
    panel: Place


@dataclass(frozen=True)
class Layout:
    """Places of all values, and the size of the arena.

    Attributes:
        places: of values by name; base 0 is the arena.
        external: values in tensors of their own, in the order of their bases, which follow the arena's.
        made: those of them that kernels write.
        sample: bytes of the arena per sample.
        own: bytes of the arena per thread.
    """

    places: dict[str, Place]
    external: tuple[str, ...]
    made: tuple[str, ...]
    scratch: Scratch
    sample: int
    own: int

    def arena_bytes(self, batch: int, threads: int) -> int:
        """Size of the arena for `batch` samples; values without batch dimension need their place even for none."""
        return max(batch, 1) * self.sample + threads * self.own + SLACK

    def view(self, listing: Listing, name: str, arena: Tensor, batch: int) -> Tensor:
        """The memory of a value in an arena."""
        value, place = listing.values[name], self.places[name]
        shape = at_batch(value.shape, batch)
        start = max(batch, 1) * place.sample
        count = torch.Size(shape).numel()
        memory = arena[start : start + count * ITEM_BYTES[value.dtype]]
        return memory.view(TORCH_DTYPES[value.dtype]).view(shape)


def layout(listing: Listing, geometries: Iterable[ConvGeometry], *, reuse: bool) -> Layout:
    """Places for a Program; without `reuse` every value keeps its memory to the end of the call.

    Codes are always in the arena: kernels may read past their end. Other outputs outlive it.

    Raises:
        BackendError: a value in the arena has two batch dimensions.
    """
    given = {name for op in listing.operations if isinstance(op, Aten) for name in outputs_of(op)}.union(listing.inputs)
    outside = given.union(listing.outputs) if reuse else given
    external = tuple(name for name in listing.values if name in outside and listing.values[name].dtype != "u8")
    inside = frozenset(listing.values) - frozenset(external)
    for name in inside:
        extent(listing.values[name].shape)  # the arena grows with the batch, not with its square
    arena = plan(listing, inside) if reuse else _side_by_side(listing, inside)
    places = {name: Place(0, offset, 0) for name, offset in arena.offsets.items()}
    places |= {name: Place(index, 0, 0) for index, name in enumerate(external, start=1)}
    scratch, sample, own = _scratch(list(geometries), arena.size)
    made = tuple(name for name in external if name not in given)
    return Layout(places, external, made, scratch, sample, own)


def _side_by_side(listing: Listing, values: frozenset[str]) -> Arena:
    offsets, size = {}, 0
    for name in sorted(values):
        offsets[name] = size
        size += _aligned(sample_bytes(listing, name))
    return Arena(offsets, size)


def _scratch(geometries: list[ConvGeometry], start: int) -> tuple[Scratch, int, int]:
    """The scratch behind `start` bytes per sample, where it ends per sample, and its bytes per thread."""

    def largest(sizes: Iterable[int]) -> int:
        return _aligned(max(sizes, default=0))

    def pixels(g: ConvGeometry) -> int:
        return abs(extent((g.images, *g.padded)))

    dense = [g for g in geometries if not g.depthwise]
    depthwise = [g for g in geometries if g.depthwise]

    def windows_of(g: ConvGeometry) -> int:
        return 4 * abs(extent((g.images, g.out_height, g.out_width))) * g.groups + SLACK

    pixel_sums = start + largest(
        pixels(g) * g.pixel_bytes for g in dense if any(g.padding) or g.pixel_bytes > g.channels
    )
    windows = pixel_sums + largest(4 * pixels(g) * g.groups for g in dense)
    planes = windows + largest(map(windows_of, dense))
    sample = planes + largest(MOST_PLANES * pixels(g) * g.channels // 8 + SLACK for g in dense if countable(g))
    dense_columns = (4 * g.padded[1] * g.groups + SLACK for g in dense if g.kernel != (1, 1) or g.stride != (1, 1))
    depthwise_columns = (bands(g.kernel[0]) * g.padded[1] * BLOCK * QUAD for g in depthwise)
    border_rows = (g.width * g.channels + SLACK for g in depthwise)
    columns = largest([*dense_columns, *depthwise_columns, *border_rows])
    panel = largest([*map(_dense_panels, dense), *map(_depthwise_panels, depthwise)])
    scratch = Scratch(
        bordered=Place(0, start, 0),
        pixel_sums=Place(0, pixel_sums, 0),
        windows=Place(0, windows, 0),
        columns=Place(0, sample, 0),
        planes=Place(0, planes, 0),
        panel=Place(0, sample, columns),
    )
    return scratch, sample, columns + panel


def _dense_panels(geometry: ConvGeometry) -> int:
    """Bytes of the panels that one kernel takes."""
    taps, run_taps = geometry.kernel[0] * geometry.kernel[1], geometry.run_taps
    run = run_taps * (geometry.channels // geometry.groups)
    return PANEL_BLOCKS * BLOCK * (taps // run_taps) * (run + -run % QUAD)


def _depthwise_panels(geometry: ConvGeometry) -> int:
    """Bytes of all panels."""
    blocks = -(-geometry.channels // BLOCK)
    return blocks * bands(geometry.kernel[0]) * geometry.kernel[1] * BLOCK * QUAD


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class ArenaPool:
    """Arenas between calls: as many as there were calls at once, each as large as its largest call.

    No lock: taking from a list is one step to other threads, and a process forked meanwhile would wait for it for ever.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @contextmanager
    def arena(self, size: int) -> Iterator[Tensor]:
        """An arena of at least `size` bytes for the duration of a call.

        Raises:
            BackendError: there is no memory of that size.
        """
        try:
            arena = self._free.pop()
        except IndexError:
            arena = None
        if arena is None or arena.numel() < size:
            try:
                arena = torch.empty(size, dtype=torch.uint8)
            except RuntimeError as error:
                message = f"the call needs {size / (1 << 30):.1f} GiB of memory, which there is not"
                raise BackendError(message, hint="give it a smaller batch") from error
        try:
            yield arena
        finally:
            self._free.append(arena)
