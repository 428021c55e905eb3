"""The kernel library: found, checked and called."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from mbqc.backends.cpu import abi
from mbqc.errors import BackendError

ISAS = ("portable", "avx2", "avx512")
"""Instruction sets, the best one last. `avx512` includes VNNI."""

ISA_VARIABLE = "MBQC_CPU_ISA"


@dataclass(frozen=True)
class Kernels:
    """The kernels for one instruction set.

    Attributes:
        isa: its name, one of `ISAS`.
    """

    isa: str
    library: ctypes.CDLL

    def run(self, steps: ctypes.Array[abi.Step], batch: int, bases: ctypes.Array[ctypes.c_void_p]) -> None:
        """Runs `steps`; the interpreter's lock is released meanwhile."""
        self.library.mbqc_run(ISAS.index(self.isa), steps, len(steps), batch, bases)


def kernels() -> Kernels:
    """The kernels for this machine, or for what the environment variable MBQC_CPU_ISA names.

    Raises:
        BackendError: the library was not built or is another version's, or the machine lacks the instruction set.
    """
    library = open_library(Path(__file__).parent)
    supported = supported_isas()
    wanted = os.environ.get(ISA_VARIABLE, supported[-1])
    hint = f"use {' or '.join(supported)}"
    if wanted not in ISAS:
        raise BackendError(f"{ISA_VARIABLE}={wanted} is no instruction set", hint=hint)
    if wanted not in supported:
        raise BackendError(f"{ISA_VARIABLE}={wanted}: this machine or build does not support it", hint=hint)
    return Kernels(wanted, library)


def supported_isas() -> list[str]:
    """The instruction sets that this machine and build support, the best one last."""
    library = open_library(Path(__file__).parent)
    return [isa for index, isa in enumerate(ISAS) if library.mbqc_supports(index)]


@lru_cache(maxsize=1)
def open_library(folder: Path) -> ctypes.CDLL:
    """The kernel library in `folder`, checked to be of this version.

    Raises:
        BackendError: there is none, or it cannot be used.
    """
    path = next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_native{suffix}").exists()), None)
    if path is None:
        raise BackendError(
            "the cpu kernels were not built: no C++ compiler at install time",
            hint="install one and reinstall, or use --backend reference",
        )
    try:
        library = ctypes.CDLL(str(path))
        expected = abi.layout()
        found = (ctypes.c_int64 * len(expected))()
        library.mbqc_layout(found)
    except (OSError, AttributeError) as error:
        message = f"the cpu kernels cannot be loaded: {error}"
        raise BackendError(message, where=str(path), hint="reinstall mbqc") from error
    if tuple(found) != expected:
        raise BackendError("the cpu kernels were built from another version", where=str(path), hint="reinstall mbqc")
    library.mbqc_supports.argtypes = [ctypes.c_int64]
    library.mbqc_supports.restype = ctypes.c_int64
    library.mbqc_run.argtypes = [
        ctypes.c_int64,
        ctypes.POINTER(abi.Step),
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    library.mbqc_run.restype = None
    return library
