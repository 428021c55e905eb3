"""What is wrong with a model, an artifact, an input or a machine is a clear error, or does not matter."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mbqc
from mbqc.backends.cpu.memory import ArenaPool
from mbqc.errors import ArtifactError, BackendError, InputError, MbqcError, UsageError
from mbqc.ir.types import at_batch
from mbqc.program.operations import TORCH_DTYPES
from mbqc.runtime import Compiled
from tests.mutations import Parts, change_listing, change_tensor
from tests.samples import sample_compiled, sample_inputs


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "m.mbqc"
    sample_compiled().save(path)
    return path


def run(path: Path, *options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`mbqc run` on the sample's inputs, in a process of its own."""
    image, ids = sample_inputs()
    np.save(path.parent / "image.npy", image.numpy())
    np.save(path.parent / "ids.npy", ids.numpy())
    files = [f"--input={path.parent / name}.npy" for name in ("image", "ids")]
    files += [f"--output={path.parent / name}.npy" for name in ("a", "b", "c")]
    command = [sys.executable, "-m", "mbqc", "run", str(path), *files, *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False, timeout=120
    )


def test_shapes_that_do_not_chain(stored: Path, tmp_path: Path) -> None:
    parts = Parts(stored)
    name = next(op["output"] for op in parts.listing["operations"] if op["op"] == "conv")
    parts.listing["values"][name]["shape"][1] += 1
    ran = run(parts.write(tmp_path / "m.mbqc"))
    assert ran.returncode == 1
    assert f"(conv -> {name}): the output has shape Nx7x6x8, expected Nx6x6x8" in " ".join(ran.stderr.split())


def test_a_layer_whose_accumulator_could_overflow() -> None:
    model = nn.Sequential(nn.Linear(70_000, 2), nn.ReLU())
    with pytest.raises(MbqcError, match="an accumulator over 70000 inputs could reach 2284800000, more than 32 bits"):
        mbqc.compile(model, torch.randn(2, 70_000), passes="quant{pin_ends=false}")


def test_a_device_for_a_pipeline_that_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbqc.api.find_device", torch.device)
    with pytest.raises(UsageError, match="device is for pipelines with train"):
        mbqc.compile(torch.nn.Linear(4, 4), torch.randn(2, 4), passes="quant", device="cuda:0")


def test_tensors_at_odd_places_of_the_file(stored: Path, tmp_path: Path) -> None:
    content = stored.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip()
    header += b" " * (3 - len(header) % 4)  # so that no float32 lies at a multiple of four
    moved = tmp_path / "m.mbqc"
    moved.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    inputs = sample_inputs()
    assert same(mbqc.load(moved)(*inputs, bits=3), mbqc.load(stored)(*inputs, bits=3))


def test_changed_artifacts_that_load_run_as_the_reference_does(stored: Path, tmp_path: Path) -> None:
    """What verification lets through is safe to run, whatever it is."""
    ran = 0
    for seed in range(400):
        random_, parts = random.Random(seed), Parts(stored)
        random_.choice((change_listing, change_tensor))(parts, random_)
        try:
            compiled = mbqc.load(parts.write(tmp_path / "m.mbqc"))
        except ArtifactError:
            continue
        values = compiled.program.listing.values
        inputs = [
            torch.rand(at_batch(values[name].shape, 2)).to(TORCH_DTYPES[values[name].dtype])
            for name in compiled.program.listing.inputs
        ]
        assert outcome(compiled, inputs) == outcome(compiled.on("reference"), inputs), seed
        ran += 1
    assert ran > 40


def outcome(compiled: Compiled, inputs: list[Tensor]) -> list[bytes] | str:
    """The bytes of the results, or the error."""
    try:
        results = compiled(*inputs)
    except MbqcError as error:
        return str(error)
    return [result.numpy().tobytes() for result in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_tensor_that_claims_another_size(stored: Path, tmp_path: Path, size: int) -> None:
    content = stored.read_bytes()
    lie = content.replace(b'"shape":[8,3,3,3]', b'"shape":[%d,3,3,3]' % size)
    assert lie != content
    header = int.from_bytes(content[:8], "little") + len(lie) - len(content)
    (tmp_path / "m.mbqc").write_bytes(header.to_bytes(8, "little") + lie[8:])
    with pytest.raises(ArtifactError, match="not a readable artifact"):
        mbqc.load(tmp_path / "m.mbqc")


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_no_sample_at_all(stored: Path) -> None:
    image, ids = sample_inputs()
    for threads in (1, 2):
        scores, features, rows = mbqc.load(stored, threads=threads)(image[:0], ids[:0], bits=2)
        assert (scores.shape, features.shape, rows.shape) == ((0, 5), (0,), (0, 2, 4))


def test_a_dimension_too_many(stored: Path) -> None:
    image, ids = sample_inputs()
    with pytest.raises(InputError, match=r"has shape \(2, 3, 6, 6, 1\), expected torch.float32 Nx3x6x6"):
        mbqc.load(stored)(image[..., None], ids)


def test_a_model_of_five_dimensions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6))
    compiled = mbqc.compile(model, torch.randn(2, 2, 3, 4, 5), passes="quant{pin_ends=false}", backend="cpu")
    x = torch.randn(3, 2, 3, 4, 5)
    for bits in (8, 3, 1):
        found = compiled(x, bits=bits)
        assert isinstance(found, torch.Tensor)
        assert found.shape == (3, 2, 3, 4, 6)
        assert same(found, compiled.on("reference")(x, bits=bits))


def test_more_threads_than_cores_or_work(stored: Path) -> None:
    inputs = sample_inputs(1)
    expected = mbqc.load(stored)(*inputs, bits=5)
    crowded = mbqc.load(stored, threads=33)
    for _ in range(3):
        assert same(crowded(*inputs, bits=5), expected)


@pytest.mark.parametrize("threads", [0, -1, 1 << 20])
def test_no_such_number_of_threads(stored: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"no running on {threads} threads"):
        mbqc.load(stored, threads=threads)


def test_a_system_without_room_for_threads(stored: Path) -> None:
    """Each thread's stack takes address space, of which there is little here."""
    script = f"""
import resource, mbqc
from tests.samples import sample_inputs
compiled = mbqc.load({str(stored)!r}, threads=1000)
inputs = sample_inputs()
mbqc.load({str(stored)!r})(*inputs)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    compiled(*inputs)
except mbqc.MbqcError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert "the system has no room for 1000 threads" in ran.stdout, ran
    assert ran.returncode == 0


def test_a_machine_that_lacks_the_instruction_set(stored: Path) -> None:
    ran = run(stored, environment={"MBQC_CPU_ISA": "sse9"})
    assert ran.returncode == 1
    assert "MBQC_CPU_ISA=sse9 is no instruction set" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_more_memory_than_there_is() -> None:
    with (
        pytest.raises(BackendError, match=r"needs 1073741824\.0 GiB of memory(.|\n)*smaller batch"),
        ArenaPool().arena(1 << 60),
    ):
        pass
