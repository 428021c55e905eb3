"""The `.mbqc` file: a safetensors file whose metadata holds the Program's listing and a manifest as JSON.

Reading one runs no code from it: the JSON is decoded into typed records, every rule of a Program is checked, and a
checksum covers listing, manifest and tensors. Writing goes through a temporary file: no reader ever sees half a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mbqc.errors import ArtifactError, VerifyError
from mbqc.files import write_atomically
from mbqc.program.operations import Listing, Program
from mbqc.program.record import Record
from mbqc.program.verify import verify_program

FORMAT = 1
"""Raised whenever an older reader would misunderstand a newer file."""


class StoredNote(Record, frozen=True):
    """What a pass told the user: see `mbqc.pipeline.Note`."""

    source: str
    kind: str
    subject: str
    message: str


class Manifest(Record, frozen=True):
    """How an artifact was made.

    Attributes:
        mbqc: version of the compiler.
        model: name of the model's class.
        pipeline: the passes that ran, as text.
        traced_by: `torch.fx` or `torch.export`.
        parameters: how many numbers the float model holds.
        notes: what the passes reported.
        sqnr: decibels of each layer's output against the float model's, by layer and width ("8" to "1").
    """

    mbqc: str
    model: str
    pipeline: str
    traced_by: str
    parameters: int
    notes: tuple[StoredNote, ...] = ()
    sqnr: Mapping[str, Mapping[str, float]] = msgspec.field(default_factory=dict)


def write(path: Path, program: Program, manifest: Manifest) -> None:
    """Writes an artifact; an existing file is replaced only when the new one is complete.

    Raises:
        ArtifactError: the folder is missing, not writable, or the disk is full.
    """
    listing_json, manifest_json = _to_json(program.listing), _to_json(manifest)
    metadata = {
        "format": str(FORMAT),
        "listing": listing_json,
        "manifest": manifest_json,
        "checksum": _checksum(listing_json, manifest_json, program.tensors),
    }
    # safetensors refuses tensors that share memory
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in program.tensors.items()}
    try:
        write_atomically(path, _canonical(save(tensors, metadata)))
    except OSError as error:
        raise ArtifactError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _canonical(content: bytes) -> bytes:
    """The same safetensors file with its header in order: safetensors shuffles the metadata."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def read(path: Path) -> tuple[Program, Manifest]:
    """Reads and verifies an artifact.

    Raises:
        ArtifactError: the file is missing, truncated, changed, of another format, or breaks a rule of Programs.
    """
    if not path.is_file():
        raise ArtifactError("is no file" if path.exists() else "there is no such file", where=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"not a readable artifact: {error}", where=str(path)) from error
    program, manifest = _decode(path, metadata, tensors)
    try:
        verify_program(program)
    except VerifyError as error:
        raise ArtifactError(error.message, where=f"{path}, {error.where}" if error.where else str(path)) from error
    except RecursionError as error:
        raise ArtifactError("arguments are nested too deeply", where=str(path)) from error
    return program, manifest


def _decode(path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> tuple[Program, Manifest]:
    if "format" not in metadata or not metadata.keys() >= {"listing", "manifest", "checksum"}:
        raise ArtifactError("a safetensors file, but not an mbqc artifact", where=str(path))
    if metadata["format"] != str(FORMAT):
        raise ArtifactError(
            f"written in format {metadata['format']}, this mbqc reads format {FORMAT}",
            where=str(path),
            hint="compile the model again, or install the mbqc that wrote it",
        )
    if metadata["checksum"] != _checksum(metadata["listing"], metadata["manifest"], tensors):
        raise ArtifactError("the checksum does not match: the file was damaged or changed", where=str(path))
    try:
        listing = msgspec.convert(json.loads(metadata["listing"]), Listing)
        manifest = msgspec.convert(json.loads(metadata["manifest"]), Manifest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ArtifactError(f"the description does not fit format {FORMAT}: {error}", where=str(path)) from error
    return Program(listing, tensors), manifest


def _to_json(record: Record) -> str:
    """By the json module, which keeps infinity and NaN; msgspec's own encoder writes them as null."""
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":"))


def _checksum(listing: str, manifest: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for text in (listing, manifest):
        digest.update(f"{len(text)}:{text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
