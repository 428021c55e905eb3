"""What executables tell about themselves: time by operation, kernels, memory, limits of the machine."""

from __future__ import annotations

import math

import pytest
import torch

from mbqc.backend import Ceilings
from mbqc.backends import cpu, reference
from mbqc.backends.cpu import native
from mbqc.backends.cpu.ceiling import READ_SIZES, measure
from mbqc.backends.cpu.native import Kernels
from mbqc.runtime import Compiled, make
from tests.samples import sample_inputs, sample_manifest, sample_program


def sample(backend: str, threads: int = 1) -> Compiled:
    return make(sample_program(), sample_manifest(), backend, threads)


@pytest.mark.parametrize(("backend", "threads"), [("cpu", 1), ("cpu", 2), ("reference", 1)])
def test_every_operation_is_timed(backend: str, threads: int) -> None:
    compiled = sample(backend, threads)
    executable, widths = compiled.executable, compiled.widths(4)
    seconds = executable.profile(compiled.check_inputs(sample_inputs()), widths)
    assert len(seconds) == len(executable.kernels(widths, 2)) == len(compiled.program.listing.operations)
    assert all(0 <= spent < 10 for spent in seconds)
    assert sum(seconds) > 0


def test_profiling_leaves_results_alone() -> None:
    compiled = sample("cpu")
    inputs, widths = compiled.check_inputs(sample_inputs()), compiled.widths(4)
    before = compiled.executable.run(inputs, widths)
    compiled.executable.profile(inputs, widths)
    assert all(torch.equal(a, b) for a, b in zip(before, compiled.executable.run(inputs, widths), strict=True))


def test_steps_of_one_operation_add_up() -> None:
    """A concatenation is a step for each input."""
    run = next(part for part in cpu.load(sample_program())._plan(sample("cpu").widths(8), False, 1))
    assert isinstance(run, cpu.plan.NativeRun)
    assert max(run.steps_each) == 2
    ticks = run.ticks()
    ticks[:] = [10 * index for index in range(len(ticks))]
    assert run.seconds_each(ticks) == pytest.approx([1e-8 * count for count in run.steps_each])


def test_memory_of_the_cpu_backend() -> None:
    compiled = sample("cpu")
    loaded = compiled.executable.memory()
    assert loaded["tensors as stored"] == sum(tensor.nbytes for tensor in compiled.program.tensors.values())
    assert loaded["tables and steps"] == loaded["numbers by layer and width"] == 0
    stored = sum(t.numel() for t in compiled.program.tensors.values() if t.dtype == torch.int8)
    assert loaded["weights for kernels"] >= stored
    compiled(*sample_inputs(), bits=8)
    one = compiled.executable.memory()
    compiled(*sample_inputs(), bits=8)
    assert compiled.executable.memory() == one
    compiled(*sample_inputs(), bits=3)
    two = compiled.executable.memory()
    for part in ("tables and steps", "numbers by layer and width"):
        assert loaded[part] < one[part] < two[part]
    for part in ("tensors as stored", "weights for kernels", "arena at batch 1"):
        assert loaded[part] == one[part] == two[part]


def test_memory_of_the_reference() -> None:
    compiled = sample("reference")
    assert compiled.executable.memory() == {
        "tensors as stored": sum(tensor.nbytes for tensor in compiled.program.tensors.values())
    }


@pytest.mark.parametrize("isa", native.supported_isas())
def test_probes_count_what_they_do(isa: str) -> None:
    kernels = Kernels(isa, native.kernels().library)
    memory = torch.ones(1 << 14, dtype=torch.uint8)
    assert kernels.probe("multiply", 0) == 0
    assert kernels.probe("multiply", 6) == 6 * kernels.probe("multiply", 1) > 0
    assert kernels.probe("read", 3, memory.data_ptr(), memory.nbytes) == 3 * memory.nbytes
    assert kernels.probe("read", 1, memory.data_ptr(), 1) == 0  # whole vectors only
    assert kernels.probe("count_bits", 4) == 4 * kernels.probe("count_bits", 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_limits(threads: int) -> None:
    kernels = native.kernels()
    found = measure(kernels, threads)
    assert kernels.isa in found.peaks
    assert all(math.isfinite(peak.gops) and peak.gops > 0 for peak in found.peaks.values())
    assert tuple(found.reads) == READ_SIZES
    rates = list(found.reads.values())
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_every_kernel_of_a_layer_has_a_limit() -> None:
    compiled = sample("cpu")
    ceilings = compiled.executable.ceilings()
    assert ceilings is not None
    for bits in (8, 4, 2, 1):
        names = set(compiled.executable.kernels(compiled.widths(bits), 1)) - {"torch"}
        assert names <= set(ceilings.peaks)


def test_the_reference_knows_no_limits() -> None:
    assert reference.load(sample_program()).ceilings() is None


def test_reading_takes_the_time_of_the_nearest_size() -> None:
    ceilings = Ceilings({}, {1 << 10: 100.0, 1 << 20: 10.0})
    assert ceilings.read_seconds(1000, 2000) == pytest.approx(1e-8)
    assert ceilings.read_seconds(1000, 1 << 18) == pytest.approx(1e-7)
    assert ceilings.read_seconds(1000, 1 << 30) == pytest.approx(1e-7)
    assert ceilings.read_seconds(0, 0) == 0
