"""Widths: which layer runs at how many bits. A value that is passed along, never a state of the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from types import EllipsisType, MappingProxyType

from mbqc.errors import WidthsError

FULL_BITS = 8
"""The width of every integer tensor that no quantized layer reads: residual sums, pooling inputs, table inputs."""

Bits = int | Mapping[str, int] | Mapping[str | EllipsisType, int]
"""What a user may ask for: one width for all layers, or a map from layer to width; `...` stands for the rest."""


@dataclass(frozen=True)
class Widths:
    """The width of every quantized layer, or float arithmetic for all of them.

    Attributes:
        layers: pairs (layer, bits), in the order of the graph; hashable, so it can key a cache.
        is_float: quantizers let their input pass unchanged (the float model inside a quantized graph).
    """

    layers: tuple[tuple[str, int], ...] = ()
    is_float: bool = False

    @cached_property
    def _hash(self) -> int:
        return hash((self.layers, self.is_float))

    def __hash__(self) -> int:  # asked for at every call
        return self._hash

    def __reduce__(self) -> tuple[type[Widths], tuple[tuple[tuple[str, int], ...], bool]]:
        return Widths, (self.layers, self.is_float)  # not what is cached: another process hashes texts differently

    @cached_property
    def by_layer(self) -> Mapping[str, int]:
        """Layer to width, in the order of the graph."""
        return MappingProxyType(dict(self.layers))

    def governing(self, layers: Iterable[str]) -> int:
        """Width of a tensor that `layers` read: the widest of them, or 8 bits where none does."""
        return max((self.by_layer[layer] for layer in layers), default=FULL_BITS)

    def pair(self, layer: str, before: tuple[str, ...]) -> int:
        """The row of a table that has one for each width of a layer, or one for each pair of widths.

        Rows go by the width of `layer` from 1 to 8; with `before`, eight such blocks go by the widest of these.
        """
        own = self.by_layer[layer] - 1
        return own + FULL_BITS * (self.governing(before) - 1) if before else own

    def __str__(self) -> str:
        if self.is_float:
            return "float"
        bits = sorted({b for _, b in self.layers}, reverse=True)
        return str(bits[0]) if len(bits) == 1 else ":".join(map(str, bits)) + " mixed"


FLOAT = Widths(is_float=True)


def resolve(bits: Bits, layers: Mapping[str, int | None]) -> Widths:
    """The widths that `bits` means for a model.

    Args:
        bits: one width, or a map from layer to width with `...` for the layers not named.
        layers: the quantized layers in graph order, each with its pinned width or None. A pinned layer (by default
            the first and the last) keeps its width unless `bits` names it.

    Raises:
        WidthsError: a width outside 1..8, an unknown layer, or a layer without a width.
    """
    if isinstance(bits, Mapping):
        named = {name: width for name, width in bits.items() if name is not ...}
        rest = next((width for name, width in bits.items() if name is ...), None)
    else:
        named, rest = {}, bits
    for name, value in [*named.items(), *([] if rest is None else [("all layers", rest)])]:
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= FULL_BITS:
            raise WidthsError(f"width {value!r} of {name} is not a whole number from 1 to {FULL_BITS}")
    for name in named:
        if name not in layers:
            raise WidthsError(f"there is no quantized layer {name!r}", hint=_suggest(name, layers))
    chosen = []
    for layer, pinned in layers.items():
        width = named.get(layer, pinned if pinned is not None else rest)
        if width is None:
            raise WidthsError(f"layer {layer!r} is given no width", hint="name it, or give the rest a width with '...'")
        chosen.append((layer, int(width)))
    return Widths(tuple(chosen))


def _suggest(name: object, known: Iterable[str]) -> str:
    if not isinstance(name, str):
        return "layers are named by text"
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else "`mbqc inspect` lists the layers"
