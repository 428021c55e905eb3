"""The kernel library: found, checked and called."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from mbqc.backends.cpu import abi
from mbqc.errors import BackendError
from mbqc.float_functions import outside_table

ISAS = ("portable", "avx2", "avx512")
"""Instruction sets, the best one last. `avx512` includes VNNI."""

ISA_VARIABLE = "MBQC_CPU_ISA"

LIMITS = ("multiply", "read", "count_bits")
"""What `Kernels.probe` does, see csrc/abi.h."""

LIBRARY_VARIABLE = "MBQC_CPU_LIBRARY"
"""Names a folder with another build of the kernels, such as one with a sanitizer in it."""


class Team:
    """Native threads that run calls together, the caller's thread being one of them. One call at a time has them."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.threads = threads
        self._library = library
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._process = 0

    @contextmanager
    def reserved(self) -> Iterator[int | None]:
        """The native team for one call; None where one thread is asked for or another call has the team."""
        if self.threads == 1 or not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            if self._process != os.getpid():  # the first call, or the first one after a fork, which copies no threads
                self._handle = self._library.mbqc_new_team(self.threads)
                self._process = os.getpid()
                if self._handle is None:
                    raise BackendError(f"the system has no room for {self.threads} threads", hint="ask for fewer")
            yield self._handle
        finally:
            self._lock.release()

    def __del__(self) -> None:
        if self._handle is not None and self._process == os.getpid():
            self._library.mbqc_free_team(self._handle)


@dataclass(frozen=True)
class Kernels:
    """The kernels for one instruction set.

    Attributes:
        isa: its name, one of `ISAS`.
    """

    isa: str
    library: ctypes.CDLL

    @property
    def popcount(self) -> bool:
        """Whether counting ones is fast on this machine."""
        return bool(self.library.mbqc_counts_fast(ISAS.index(self.isa)))

    def team(self, threads: int) -> Team:
        """A team for calls of one Program."""
        return Team(self.library, threads)

    def pack(self, stored: abi.StoredWeights, blocks: int, depth: int, packed: int) -> None:
        """Writes a copy of a linear layer's weights at the width and field of `stored` to the address `packed`."""
        self.library.mbqc_pack(stored, blocks, depth, packed)

    def run(
        self,
        steps: ctypes.Array[abi.Step],
        batch: int,
        bases: ctypes.Array[ctypes.c_void_p],
        own_bytes: int,
        team: int | None,
        ticks: ctypes.Array[ctypes.c_int64] | None = None,
    ) -> None:
        """Runs `steps`; the interpreter's lock is released meanwhile.

        Args:
            own_bytes: size of the scratch that each thread has to itself.
            team: from `Team.reserved`.
            ticks: gets the time in nanoseconds at the start and after each step.

        Raises:
            BackendError: an index is outside its table; outputs mean nothing then.
        """
        isa = ISAS.index(self.isa)
        failed = self.library.mbqc_run(isa, steps, len(steps), batch, bases, own_bytes, team, ticks)
        if failed:
            raise outside_table(steps[failed - 1].body.embedding.rows)

    def probe(self, limit: str, rounds: int, address: int = 0, size: int = 0) -> int:
        """Does nothing but one of `LIMITS`, as fast as the machine can; the interpreter's lock is released meanwhile.

        Args:
            address, size: the buffer for `read`.

        Returns:
            how many operations, or bytes, that was; 0 where the machine has no instruction for it.
        """
        count: int = self.library.mbqc_probe(ISAS.index(self.isa), LIMITS.index(limit), rounds, address, size)
        return count


def kernels() -> Kernels:
    """The kernels for this machine, or for what the environment variable MBQC_CPU_ISA names.

    Raises:
        BackendError: the library was not built or is another version's, or the machine lacks the instruction set.
    """
    library = open_library(library_folder())
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
    library = open_library(library_folder())
    return [isa for index, isa in enumerate(ISAS) if library.mbqc_supports(index)]


def library_folder() -> Path:
    """Where the kernel library is: here, or where the environment variable MBQC_CPU_LIBRARY says."""
    return Path(os.environ.get(LIBRARY_VARIABLE, Path(__file__).parent))


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
    library.mbqc_counts_fast.argtypes = [ctypes.c_int64]
    library.mbqc_counts_fast.restype = ctypes.c_int64
    library.mbqc_run.argtypes = [
        ctypes.c_int64,
        ctypes.POINTER(abi.Step),
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_int64),
    ]
    library.mbqc_run.restype = ctypes.c_int64
    library.mbqc_probe.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p, ctypes.c_int64]
    library.mbqc_probe.restype = ctypes.c_int64
    library.mbqc_pack.argtypes = [ctypes.POINTER(abi.StoredWeights), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    library.mbqc_pack.restype = None
    library.mbqc_new_team.argtypes = [ctypes.c_int64]
    library.mbqc_new_team.restype = ctypes.c_void_p
    library.mbqc_free_team.argtypes = [ctypes.c_void_p]
    library.mbqc_free_team.restype = None
    return library
