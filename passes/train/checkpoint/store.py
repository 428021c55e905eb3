"""Checkpoints: all that training needs to go on, in one safetensors file that is whole or not there.

The file's metadata holds step, identity of the run and the loop's own record as JSON; a checksum covers every byte.
Reading runs no code from a file: the JSON is decoded into typed records, and what does not fit is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import torch
from safetensors.torch import load, save
from torch import Tensor

from mbqc.errors import CheckpointError, UsageError
from mbqc.files import check_writable, remove_parts, write_atomically

FORMAT = "2"
"""Raised whenever an older reader would misunderstand a newer file."""

Facts = TypeVar("Facts")
"""The loop's own record: a dataclass or msgspec.Struct that is stored as JSON."""

# listed, because safetensors also writes some that it cannot read
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}

_NAME = re.compile(r"step-(\d{8,18})\.safetensors")
_NO_CHECKSUM = "0" * 64
# within JSON text the quotes would be escaped, so this can only be the metadata's own field
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Checkpoint(Generic[Facts]):
    """The state of training after `step` steps.

    Attributes:
        step: not negative.
        tensors: parameters, buffers, moments of optimizers, random states, scores: any name, shape and device, any
            dtype that safetensors reads back. They may share memory; read back, each has its own, on the CPU and
            contiguous.
        facts: everything else.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Facts


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    step: Annotated[int, msgspec.Meta(ge=0)]
    identity: dict[str, str]
    facts: Any


class _DamagedError(Exception):
    """Why a file is no checkpoint."""


@dataclass(frozen=True)
class Store(Generic[Facts]):
    """The checkpoints of one run in a folder, `step-00001234.safetensors` each; one process at a time saves there.

    Attributes:
        folder: `prepare` makes it.
        identity: what tells the run from others, by name; `latest` refuses checkpoints of any other.
        facts: the type of `Checkpoint.facts`.
        keep: how many of the newest checkpoints stay, at least 1.
    """

    folder: Path
    identity: Mapping[str, str]
    facts: type[Facts]
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UsageError(f"keep={self.keep}: at least one checkpoint must be kept")

    def prepare(self) -> None:
        """Makes the folder, removes what a killed run left unfinished, and finds out early whether it can be written.

        Raises:
            CheckpointError: it cannot, or a file is in the folder's place.
        """
        with _explained("cannot keep checkpoints here", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_parts(self.folder)
            check_writable(self._path(0))

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, oldest first; whether it is readable is not known yet.

        Raises:
            CheckpointError: the folder cannot be read, or is a file.
        """
        with _explained("cannot look for checkpoints", self.folder):
            names = [path.name for path in self.folder.iterdir() if path.is_file()] if self.folder.exists() else []
        steps = sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)
        return [step for step in steps if self._path(step).name in names]  # not those with needless zeros

    def save(self, checkpoint: Checkpoint[Facts]) -> None:
        """Writes a checkpoint; once it is safely on the disk, removes those beyond `keep`.

        Raises:
            CheckpointError: the folder is missing or not writable, the disk is full, a tensor has a dtype that
                safetensors cannot store; or a later checkpoint is there, so that another run's would be lost. Those
                that were there stay.
        """
        path, before = self._path(checkpoint.step), self.steps()
        later = [step for step in before if step > checkpoint.step]
        for step in later:
            self._refuse_to_lose(step, checkpoint.step)
        content = self._encode(checkpoint)
        kept = f"step {before[-1]} is still there to resume from" if before else "there is no earlier checkpoint"
        with _explained(f"cannot save the checkpoint ({kept})", path, "make room or change its rights, then resume"):
            write_atomically(path, content)
        earlier = sorted({step for step in before if step < checkpoint.step} | {checkpoint.step})
        for step in [*later, *earlier[: -self.keep]]:
            with _explained("cannot remove this old checkpoint", self._path(step)):
                self._path(step).unlink(missing_ok=True)

    def latest(self, warn: Callable[[str], None]) -> Checkpoint[Facts] | None:
        """The newest checkpoint that can be read; None where there is none at all.

        Args:
            warn: told of each newer file that is damaged.

        Raises:
            CheckpointError: all are damaged, or it belongs to another model, other options or another format, or the
                file system fails.
        """
        damaged: dict[str, str] = {}
        for step in reversed(self.steps()):
            try:
                checkpoint = self._read(step)
            except _DamagedError as error:
                damaged[self._path(step).name] = str(error)
                continue
            for name, reason in damaged.items():
                warn(f"checkpoint {name} is damaged ({reason}): going on from step {step}")
            return checkpoint
        if damaged:
            reasons = ", ".join(f"{name} ({reason})" for name, reason in damaged.items())
            raise CheckpointError(
                f"every checkpoint is damaged: {reasons}",
                where=str(self.folder),
                hint="restore one from a backup, or start again in an empty folder",
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.safetensors"

    def _refuse_to_lose(self, later: int, step: int) -> None:
        try:
            self._read(later)
        except _DamagedError:
            return  # `latest` went back behind it
        raise CheckpointError(
            f"there is a checkpoint of step {later} already, later than step {step} that is to be saved",
            where=str(self.folder),
            hint="resume from it, or give an empty folder",
        )

    def _encode(self, checkpoint: Checkpoint[Facts]) -> bytes:
        facts = msgspec.to_builtins(checkpoint.facts, str_keys=True)
        header = _Header(checkpoint.step, dict(self.identity), facts)
        # the json module keeps infinity and NaN; msgspec's encoder writes them as null
        text = json.dumps(msgspec.to_builtins(header))
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            if tensor.dtype not in _DTYPES or name == "__metadata__":
                message = f"tensor {name!r} of dtype {tensor.dtype} cannot be stored in safetensors"
                raise CheckpointError(message, where=str(self.folder))
            # safetensors refuses tensors that share memory
            tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        content = save(tensors, {"format": FORMAT, "checkpoint": text, "checksum": _NO_CHECKSUM})
        start, end = _checksum_span(content)
        return b"".join((content[:start], _checksum(content).encode(), content[end:]))

    def _read(self, step: int) -> Checkpoint[Facts]:
        path = self._path(step)
        with _explained("cannot read the checkpoint", path):
            try:
                content = path.read_bytes()
            except MemoryError:
                raise _DamagedError("larger than the memory") from None
        metadata, tensors = _decode(content)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"written in format {metadata.get('format')}, this mbqc reads format {FORMAT}",
                where=str(path),
                hint="resume with the mbqc that wrote it",
            )
        try:
            header = msgspec.convert(json.loads(metadata["checkpoint"]), _Header)
            self._check_identity(header.identity, path)
            facts = msgspec.convert(header.facts, self.facts, str_keys=True)
        except (msgspec.MsgspecError, KeyError, RecursionError, ValueError) as error:
            raise _DamagedError(f"its description does not fit: {error}") from error
        if header.step != step:
            raise _DamagedError(f"holds step {header.step}")
        return Checkpoint(step, tensors, facts)

    def _check_identity(self, saved: Mapping[str, str], path: Path) -> None:
        now = self.identity
        names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
        if names:
            told = [f"{name}: saved {saved.get(name, 'none')}, now {now.get(name, 'none')}" for name in names]
            raise CheckpointError(
                f"belongs to another run; {'; '.join(told)}",
                where=str(path),
                hint="resume with what it was saved with, or start in an empty folder",
            )


def _decode(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file whose checksum is right."""
    start, end = _checksum_span(content)
    if content[start:end] != _checksum(content).encode():
        raise _DamagedError("its checksum does not match")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + _header_size(content)])
        return dict(header["__metadata__"]), tensors
    except Exception as error:  # safetensors has no common one: also KeyError, AssertionError, RuntimeError
        raise _DamagedError(f"no readable safetensors file: {error}") from error


def _checksum(content: bytes) -> str:
    """Of the whole file, with zeros in the checksum's own place."""
    start, end = _checksum_span(content)
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(view[end:])
    return digest.hexdigest()


def _checksum_span(content: bytes) -> tuple[int, int]:
    match = _CHECKSUM.search(content, 8, 8 + _header_size(content))
    if match is None:
        raise _DamagedError("truncated, or no checkpoint")
    return match.span(1)


def _header_size(content: bytes) -> int:
    """Length of the JSON behind the first 8 bytes, which say it."""
    return min(int.from_bytes(content[:8], "little"), len(content))


@contextmanager
def _explained(message: str, path: Path, hint: str | None = None) -> Iterator[None]:
    """Tells what failed and where, instead of the system's error."""
    try:
        yield
    except OSError as error:
        reason = "a file is in the folder's place" if isinstance(error, FileExistsError) else error.strerror or error
        raise CheckpointError(f"{message}: {reason}", where=str(path), hint=hint) from error
