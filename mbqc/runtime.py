"""A compiled model in memory: run it at any widths, save it, load it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbqc import artifact
from mbqc.artifact import Manifest
from mbqc.backend import Backend, Executable
from mbqc.errors import BackendError, InputError, UsageError
from mbqc.ir.types import at_batch, format_dims
from mbqc.numerics import ALL_BITS
from mbqc.program.operations import TORCH_DTYPES, Program
from mbqc.widths import FULL_BITS, Bits, Widths, resolve

BACKENDS = ("cpu", "reference")
"""Names of the folders in `mbqc.backends`."""

MOST_THREADS = 1024
"""More are surely a mistake; more than there are cores are allowed, and slow."""

Array = Tensor | npt.NDArray[np.generic]


@dataclass(frozen=True)
class Compiled:
    """A Program with a backend. Calls at different widths may run at once in several threads.

    Attributes:
        program: what runs.
        manifest: how it was made.
        backend: name of the backend.
        executable: the Program as loaded by the backend.
    """

    program: Program = field(repr=False)
    manifest: Manifest = field(repr=False)
    backend: str
    executable: Executable = field(repr=False)

    @cached_property
    def _uniform(self) -> Mapping[int, Widths]:
        """Uniform widths are asked for at every call: this saves 6 us of it for 20 layers."""
        return {bits: self.widths(bits) for bits in ALL_BITS}

    @property
    def layers(self) -> Mapping[str, int | None]:
        """The quantized layers in order, each with the width it keeps under a uniform width, or None."""
        return MappingProxyType({name: info.pinned for name, info in self.program.listing.layers.items()})

    def widths(self, bits: Bits = FULL_BITS) -> Widths:
        """The width of every layer that `bits` means.

        Raises:
            WidthsError: a width outside 1..8, an unknown layer, or a layer without a width.
        """
        return resolve(bits, self.layers)

    def __call__(self, *inputs: Array, bits: Bits = FULL_BITS) -> Tensor | tuple[Tensor, ...]:
        """Runs the model.

        Args:
            inputs: as the model takes them, tensors or arrays; dimension 0 is the batch, of any size.
            bits: one width for all layers (pinned ones keep theirs), or a map from layer to width, `...` for the rest.

        Raises:
            WidthsError, InputError: the call is wrong; the message says how.
        """
        widths = self._uniform.get(bits) if type(bits) is int else None
        outputs = self.executable.run(self.check_inputs(inputs), widths or self.widths(bits))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def prepare(self, bits: Bits = FULL_BITS, batch: int = 1) -> None:
        """Makes ahead what calls at these widths need, so that the first one takes no longer than the others.

        That is above all packed copies of linear layers' weights, which make calls of few samples faster and are kept.

        Args:
            bits: as for a call.
            batch: samples of the calls to come.

        Raises:
            WidthsError: as for a call.
        """
        self.executable.prepare(self.widths(bits), batch)

    def check_inputs(self, inputs: tuple[Array, ...]) -> list[Tensor]:
        """Inputs as contiguous CPU tensors that fit the Program.

        Raises:
            InputError: count, dtype, shape or batch size does not fit.
        """
        names = self.program.listing.inputs
        if len(inputs) != len(names):
            raise InputError(f"the model takes {len(names)} input(s) ({', '.join(names)}), {len(inputs)} given")
        tensors = [_tensor(given, name) for given, name in zip(inputs, names, strict=True)]
        batch = tensors[0].shape[0] if tensors[0].dim() else 0
        for name, tensor in zip(names, tensors, strict=True):
            value = self.program.listing.values[name]
            fits = tensor.dtype == TORCH_DTYPES[value.dtype], tensor.shape == at_batch(value.shape, batch)
            if not all(fits):
                wrong = f"shape {tuple(tensor.shape)}" if fits[0] else f"dtype {tensor.dtype}"
                expected = f"{TORCH_DTYPES[value.dtype]} {format_dims(value.shape)}"
                raise InputError(f"has {wrong}, expected {expected}", where=f"input {name}")
        return tensors

    def on(self, backend: str, *, threads: int = 1) -> Compiled:
        """The same Program on another backend, or on other threads.

        Raises:
            UsageError: there is no such backend, or no such number of threads.
            BackendError: it is not available here.
        """
        return make(self.program, self.manifest, backend, threads)

    def save(self, path: str | Path) -> None:
        """Writes the artifact, atomically.

        Raises:
            ArtifactError: the file cannot be written.
        """
        artifact.write(Path(path), self.program, self.manifest)


def load(path: str | Path, backend: str = "cpu", *, threads: int = 1) -> Compiled:
    """A compiled model from an artifact.

    Args:
        threads: how many threads a call may use, the caller's included. They are the model's own, apart from torch's;
            calls at the same time do not share them: while one has them, the others run on their callers' alone.

    Raises:
        ArtifactError: the file is missing, damaged, or no artifact of this format.
        UsageError: there is no such backend, or no such number of threads.
        BackendError: the backend is not available here.
    """
    program, manifest = artifact.read(Path(path))
    return make(program, manifest, backend, threads)


def make(program: Program, manifest: Manifest, backend: str, threads: int = 1) -> Compiled:
    """A verified Program on a backend, by name.

    Raises:
        UsageError: there is no such backend, or no such number of threads.
        BackendError: the backend is not available here.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"there is no running on {threads} threads", hint=f"1 to {MOST_THREADS}")
    return Compiled(program, manifest, backend, find_backend(backend).load(program, threads))


def find_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}", hint=f"one of {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(f"mbqc.backends.{name}"))


def _tensor(given: object, name: str) -> Tensor:
    if isinstance(given, np.ndarray):
        try:
            given = torch.from_numpy(np.require(given, requirements=["C", "W"]))
        except (TypeError, ValueError):
            raise InputError(f"has dtype {given.dtype}, which torch does not know", where=f"input {name}") from None
    if not isinstance(given, Tensor):
        raise InputError(f"is a {type(given).__name__}, expected a tensor or an array", where=f"input {name}")
    if given.device.type != "cpu":
        raise InputError(f"lies on {given.device}, expected the cpu", where=f"input {name}", hint="move it with .cpu()")
    if given.layout != torch.strided:
        raise InputError(
            "is sparse, expected a dense tensor", where=f"input {name}", hint="convert it with .to_dense()"
        )
    return given.detach().contiguous()


__all__ = ["BACKENDS", "BackendError", "Compiled", "find_backend", "load", "make"]
