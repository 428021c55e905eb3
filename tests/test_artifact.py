"""Artifacts: what is written comes back bit for bit; nothing that was damaged or made up gets through."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mbqc import artifact
from mbqc.errors import ArtifactError, MbqcError
from mbqc.program.aten import ALLOWED, overload
from mbqc.program.operations import Program
from mbqc.runtime import load, make
from tests.mutations import Parts, change_listing, change_manifest, change_tensor
from tests.samples import sample_compiled, sample_inputs, sample_manifest, sample_program

MUTATIONS = 2000
SMALL = 10**6
"""Elements of all values for a batch of one, up to which a changed Program is also run."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "sample.mbqc"
    sample_compiled().save(path)
    return path


def same_program(a: Program, b: Program) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
    return tensors and a.listing == b.listing


def test_round_trip(stored: Path) -> None:
    program, manifest = artifact.read(stored)
    assert same_program(program, sample_program())
    assert manifest == sample_manifest()  # infinite decibels among it
    for bits in (8, 5, 1):
        before, after = (c(*sample_inputs(), bits=bits) for c in (sample_compiled(), load(stored, "reference")))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_same_program_same_bytes(stored: Path, tmp_path: Path) -> None:
    sample_compiled().save(tmp_path / "again.mbqc")
    assert (tmp_path / "again.mbqc").read_bytes() == stored.read_bytes()


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    program = sample_program()
    codes = program.tensors["t0"]
    shared = Program(program.listing, {**program.tensors, "same": codes, "turned": codes.transpose(0, -1)})
    artifact.write(tmp_path / "m.mbqc", shared, sample_manifest())
    assert same_program(artifact.read(tmp_path / "m.mbqc")[0], shared)


def test_every_allowed_function_exists() -> None:
    for name in ALLOWED:
        assert not overload(name)._schema.is_mutable, name


def test_damaged_bytes(stored: Path, tmp_path: Path) -> None:
    """Truncations and flipped bits are always found: a checksum covers all that is not the container's own."""
    content, rng, path = stored.read_bytes(), random.Random(1), tmp_path / "m.mbqc"
    for index in range(300):
        damaged = bytearray(content)
        if index % 3 == 0:
            damaged = damaged[: rng.randrange(len(content))]
        else:
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ArtifactError):
            assert same_program(artifact.read(path)[0], sample_program()), index


def test_made_up_files(stored: Path, tmp_path: Path) -> None:
    """Changed fields with a checksum that fits: refused, or a Program that both backends run without harm."""
    rng, path = random.Random(2), tmp_path / "m.mbqc"
    loaded = 0
    original = Parts(stored)
    for index in range(MUTATIONS):
        parts = copy.deepcopy(original)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            change = rng.choice((change_listing,) * 8 + (change_manifest, change_tensor))
            change(parts, rng)
        try:
            program, manifest = artifact.read(parts.write(path))
        except ArtifactError:
            continue
        loaded += 1
        size = sum(math.prod(abs(d) for d in value.shape) for value in program.listing.values.values())
        if index % 4 == 0 and size < SMALL:
            run_everywhere(program, manifest)
    assert 0.05 * MUTATIONS < loaded < 0.5 * MUTATIONS, "the changes are too harmless or too wild to test anything"


def run_everywhere(program: Program, manifest: artifact.Manifest) -> None:
    dtypes = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
    values = [program.listing.values[name] for name in program.listing.inputs]
    inputs = [torch.ones([-2 * d if d < 0 else d for d in v.shape], dtype=dtypes[v.dtype]) for v in values]
    for backend in ("reference", "cpu"):
        compiled = make(program, manifest, backend)
        with contextlib.suppress(MbqcError):
            compiled(*inputs, bits=dict.fromkeys(compiled.layers, 3))


def operation(parts: Parts, name: str) -> dict[str, Any]:
    """The first operation of a kind, or the first call of an aten function."""
    found = (o for o in parts.listing["operations"] if name in (o["op"], o.get("call", {}).get("name")))
    return next(found)


def retype_codes(parts: Parts) -> None:
    name = operation(parts, "conv")["weight"]["codes"]
    parts.tensors[name] = parts.tensors[name].to(torch.float32)


def spoil_scale(parts: Parts) -> None:
    parts.tensors[operation(parts, "conv")["weight"]["scale"]] *= math.nan


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: operation(p, "conv").update(input="v9"), "read before it is defined"),
        (lambda p: p.listing["values"]["v1"].update(shape=[-1, 1 << 20, 1 << 20, 3]), "too large"),
        (lambda p: operation(p, "conv").update(stride=[-1, 1]), "window size is not positive"),
        (lambda p: operation(p, "conv").update(padding=[-1, 1, 1, 1]), "padding is negative"),
        (lambda p: operation(p, "concat").update(inputs=[]), "no input"),
        (lambda p: operation(p, "gelu.default")["call"].update(name="system.default"), "not in the list of functions"),
        (lambda p: operation(p, "softmax.int")["call"]["args"].__setitem__(2, 99), "ScalarType"),
        (lambda p: operation(p, "add.Tensor")["call"].update(args=["@nested 100", 1]), "takes Tensor"),
        (lambda p: operation(p, "add.Tensor")["call"].update(args=["@nested 100000", 1]), "does not fit format"),
        (lambda p: p.listing["grids"]["grid0"].update(scales=[math.inf] * 8), "not positive and finite"),
        (lambda p: p.listing.update(ladder="down"), "does not fit format"),
        (lambda p: p.listing.update(surprise=1), "does not fit format"),
        (retype_codes, "expected torch.int8"),
        (spoil_scale, "NaN"),
        (lambda p: p.tensors.pop("t0"), "is missing"),
    ],
)
def test_refusal_names_the_reason(stored: Path, tmp_path: Path, edit: Callable[[Parts], object], message: str) -> None:
    parts = Parts(stored)
    edit(parts)
    path = parts.write(tmp_path / "m.mbqc")
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.read(path)
    assert str(path) in str(caught.value)


def test_parts_without_end_are_not_made(stored: Path, tmp_path: Path) -> None:
    """A function that takes a tensor apart is not called before the number of parts is known."""
    parts, size = Parts(stored), 1 << 27
    rows = operation(parts, "embedding.default")["outputs"][0]
    shape = {"is": "list", "items": [{"is": "batch", "factor": 1}, 2, 4, size]}
    for name, dims in (("column", [-1, 2, 4, 1]), ("wide", [-1, 2, 4, size]), ("part", [-1, 2, 4])):
        parts.listing["values"][name] = {"dtype": "f32", "shape": dims, "grid": None}
    for name, output, *args in (
        ("unsqueeze.default", "column", rows, 3),
        ("expand.default", "wide", "column", shape),
        ("unbind.int", "part", "wide", 3),
    ):
        call = {"name": name, "args": [{"is": "value", "name": args[0]}, args[1]], "kwargs": {}}
        parts.listing["operations"].append({"op": "aten", "call": call, "outputs": [output]})
    with pytest.raises(ArtifactError, match=f"gives {size} parts, declared are 1"):
        artifact.read(parts.write(tmp_path / "m.mbqc"))


def test_other_files(stored: Path, tmp_path: Path) -> None:
    def message(content: bytes | None) -> str:
        path = tmp_path / "m.mbqc"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            artifact.read(path)
        return str(caught.value)

    assert "there is no such file" in message(None)
    assert "not a readable artifact" in message(b"")
    assert "not a readable artifact" in message(b"\xff" * 100)
    save_file({"x": torch.zeros(2)}, tmp_path / "plain")
    assert "not an mbqc artifact" in message((tmp_path / "plain").read_bytes())
    newer = Parts(stored).write(tmp_path / "newer", format="2").read_bytes()
    assert "written in format 2" in message(newer)
    with pytest.raises(ArtifactError, match="is no file"):
        artifact.read(tmp_path)


def test_failed_write_leaves_the_old_file(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.mbqc"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        sample_compiled().save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.mbqc"]


@pytest.mark.parametrize("place", ["missing/m.mbqc", "file/m.mbqc", "."])
def test_no_place_to_write(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot write"):
        sample_compiled().save(tmp_path / place)
    assert os.listdir(tmp_path) == ["file"]


def test_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    sample_compiled().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "target").program.listing == sample_program().listing
