"""The cpu backend as an object: one call, many threads and widths, clear errors."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mbqc
from mbqc.backends import cpu, reference
from mbqc.backends.cpu import abi, native
from mbqc.backends.cpu.memory import ArenaPool
from mbqc.errors import BackendError
from mbqc.numerics import ALL_BITS
from mbqc.program.float_operations import Activation, Arithmetic, Embedding
from mbqc.program.operations import Aten, AtenCall, Constant, Permute, Reference, Value
from tests import zoo
from tests.backends.networks import images, residual_network, uniform
from tests.backends.program_builder import Builder
from tests.backends.stress import results


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_float_operations_a_run_is_one_native_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = native.Kernels.run
    monkeypatch.setattr(native.Kernels, "run", lambda self, *args: (calls.append(1), run(self, *args)))
    for with_float, expected in ((False, 1), (True, 2)):
        program = residual_network(with_float=with_float)
        calls.clear()
        executable = cpu.load(program)
        executable.run([images(2)], uniform(program, 4))
        assert len(calls) == expected
        assert executable.kernels(uniform(program, 4), 2).count("torch") == int(with_float)


def test_a_transformer_runs_in_one_native_call() -> None:
    program, (words,) = zoo.program("text_net"), zoo.example("text_net")[1]
    executable = cpu.load(program)
    for bits in (8, 4, 1):
        widths = uniform(program, bits)
        assert equal(executable.run([words], widths), reference.load(program).run([words], widths))
        assert set(executable.kernels(widths, 2)) == {executable._kernels.isa}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.view(-1, 4, 2) @ x[:, :2].t()).mean(1) @ x,
        lambda x: (x.view(-1, 4, 2) @ x[:, :2].t()).select(1, 0) @ x,
        lambda x: (x @ x.t()).t() @ x,
        lambda x: torch.softmax((x @ x.t()) * 0.3, -1) @ x,
        lambda x: nn.functional.gelu((x @ x.t()) * 1) @ x,
    ],
)
def test_values_that_grow_with_the_square_of_the_batch_are_left_to_torch(function: Callable[[Tensor], Tensor]) -> None:
    """Of a batch so large that they would not fit where a kernel would put them."""

    class Pairs(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](function(self[0](x)))

    model, x = Pairs(nn.Linear(8, 8), nn.Linear(8, 8)).eval(), torch.randn(2000, 8)
    compiled = mbqc.compile(model, x[:4], passes="quant", calibration=[x[:4]])
    expected = reference.load(compiled.program).run([x], compiled.widths(8))
    assert equal([compiled(x)], expected)


def test_a_program_whose_memory_would_grow_with_the_square_of_the_batch_is_refused() -> None:
    build = Builder(seed=9)
    build.values |= {"x": Value("f32", (-1, 4)), "turned": Value("f32", (4, -1))}
    build.values |= {name: Value("f32", (-1, -1)) for name in ("y", "z", "end")}
    build.inputs.append("x")
    product = AtenCall("matmul.default", (Reference("x"), Reference("turned")))
    build.operations += [Permute("x", "turned", (1, 0)), Aten(product, ("y",))]
    build.operations += [Activation("y", "z", "gelu"), Activation("z", "end", "silu")]
    program = build.finish(("end",))
    with pytest.raises(BackendError, match="no values with two batch dimensions"):
        cpu.load(program)


def test_all_threads_flush_subnormal_numbers_as_the_caller_does() -> None:
    build = Builder(seed=9)
    build.values |= {"x": Value("f32", (-1, 32_768)), "y": Value("f32", (-1, 32_768))}
    build.inputs.append("x")
    build.tensor(torch.tensor(1e-3))
    build.operations.append(Arithmetic("x", "y", "mul", None, "t0"))
    program, x = build.finish(("y",)), torch.full((1, 32_768), 1e-36)
    executable = cpu.load(program, threads=3)
    widths = uniform(program, 8)
    assert int(executable.run([x], widths)[0].count_nonzero()) == x.numel()
    torch.set_flush_denormal(True)
    try:
        flushed = int(executable.run([x], widths)[0].count_nonzero())
    finally:
        torch.set_flush_denormal(False)
    assert flushed == 0
    assert int(executable.run([x], widths)[0].count_nonzero()) == x.numel()


@pytest.mark.parametrize("with_float", [False, True])
def test_switching_widths_back_and_forth_is_exact(with_float: bool) -> None:
    program = residual_network(with_float=with_float)
    executable, definition = cpu.load(program), reference.load(program)
    expected = {bits: definition.run([images(2)], uniform(program, bits)) for bits in ALL_BITS}
    for bits in (8, 2, 8, 1, 4, 3, 8, 5, 6, 7, 8):
        assert equal(executable.run([images(2)], uniform(program, bits)), expected[bits])


def test_batches_of_any_size_share_one_executable() -> None:
    program = residual_network()
    executable, definition = cpu.load(program), reference.load(program)
    for batch in (3, 0, 9, 1):
        expected = definition.run([images(batch)], uniform(program, 3))
        assert equal(executable.run([images(batch)], uniform(program, 3)), expected)


def test_results_outlive_later_runs() -> None:
    program = residual_network()
    executable = cpu.load(program)
    first = executable.run([images(2)], uniform(program, 8))
    kept = [t.clone() for t in first]
    traced = executable.trace([images(2)], uniform(program, 8))
    executable.run([images(2, seed=1)], uniform(program, 8))
    assert equal(first, kept)
    assert equal([traced[name] for name in program.listing.outputs], kept)


def test_many_callers_at_all_widths_at_once() -> None:
    """A slice of tests/backends/stress.py."""
    assert all(results(calls=400))


def test_a_process_that_forks_after_a_call() -> None:
    """A fork copies no threads: the child makes its own."""
    program = residual_network()
    executable = cpu.load(program, threads=2)
    expected = executable.run([images(2)], uniform(program, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons advise against forking beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if equal(executable.run([images(2)], uniform(program, 3)), expected) else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        raise AssertionError("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert equal(executable.run([images(2)], uniform(program, 3)), expected)


def test_calls_that_are_interrupted_leave_nothing_behind() -> None:
    """An exception out of a signal handler, at any moment of a call."""
    program = residual_network(with_float=True)
    executable = cpu.load(program, threads=2)
    expected = executable.run([images(3)], uniform(program, 4))

    within, interrupted = False, 0

    def interrupt(*_: object) -> None:
        if within:  # a signal may arrive late
            raise KeyboardInterrupt

    gc.collect()
    gc.disable()  # Python drops exceptions out of the collector, where other tests' garbage would end
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(200):
            try:
                within = True
                signal.setitimer(signal.ITIMER_REAL, 2e-5 * (1 + i % 50))
                executable.run([images(3)], uniform(program, 4))
                within = False
            except KeyboardInterrupt:
                within, interrupted = False, interrupted + 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert interrupted > 20
    assert equal(executable.run([images(3)], uniform(program, 4)), expected)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Embedding("ids", "rows", "t0"), "an index is outside the 7 rows of its table"),
        (Aten(AtenCall("embedding.default", (Constant("t0"), Reference("ids"))), ("rows",)), "index out of range"),
    ],
)
@pytest.mark.parametrize("bad", [[[0, 7]], [[-1, 6]], [[1 << 40, 0]]])
def test_a_call_that_fails_in_the_middle(operation: Embedding | Aten, message: str, bad: list[list[int]]) -> None:
    """A kernel, or torch between native runs, refuses an index; the next call has the team and an arena."""
    build = Builder(seed=9)
    build.values |= {"ids": Value("i64", (-1, 2)), "rows": Value("f32", (-1, 2, 4))}
    build.inputs.append("ids")
    build.tensor(build.normal(7, 4))
    build.operations.append(operation)
    program = build.finish((build.linear(build.quantize("rows", build.new_grid()), 3, grid=None),))
    executable = cpu.load(program, threads=2)
    good = torch.tensor([[0, 6]])
    expected = reference.load(program).run([good], uniform(program, 5))
    with pytest.raises(BackendError, match=message):
        reference.load(program).run([torch.tensor(bad)], uniform(program, 5))
    for _ in range(3):
        with pytest.raises(BackendError, match=message):
            executable.run([torch.tensor(bad)], uniform(program, 5))
        assert equal(executable.run([good], uniform(program, 5)), expected)


def test_stored_weights_are_never_modified() -> None:
    program = residual_network()
    executable = cpu.load(program)
    before = {name: tensor.clone() for name, tensor in program.tensors.items()}
    eight = executable.run([images(1)], uniform(program, 8))
    for bits in ALL_BITS:
        executable.run([images(1)], uniform(program, bits))
    assert all(torch.equal(program.tensors[name], tensor) for name, tensor in before.items())
    assert equal(executable.run([images(1)], uniform(program, 8)), eight)


def test_a_process_forked_while_another_thread_gives_an_arena_back_still_gets_one() -> None:
    giving, forked = threading.Event(), threading.Event()

    class Slow(list[Tensor]):
        def append(self, arena: Tensor) -> None:
            giving.set()
            forked.wait()
            super().append(arena)

    pool = ArenaPool()
    pool._free = Slow()

    def call() -> None:
        with pool.arena(64):
            pass

    other = threading.Thread(target=call)
    other.start()
    giving.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as above
        child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a process that waits for ever
        with pool.arena(64):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    forked.set()
    other.join()
    assert status == 0


def test_missing_library(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"not built: no C\+\+ compiler(.|\n)*--backend reference"):
        native.open_library(tmp_path)


def test_library_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = next(Path(native.__file__).parent.glob("_native*"))
    shutil.copy(built, tmp_path)
    monkeypatch.setattr(abi, "VERSION", abi.VERSION + 1)
    with pytest.raises(BackendError, match="another version"):
        native.open_library(tmp_path)


def test_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / next(Path(native.__file__).parent.glob("_native*")).name).write_bytes(b"not a library")
    with pytest.raises(BackendError, match="cannot be loaded"):
        native.open_library(tmp_path)


def test_instruction_set_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    program = residual_network()
    for isa in native.supported_isas():
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        assert set(cpu.load(program).kernels(uniform(program, 8), 1)) == {isa}
    monkeypatch.delenv(native.ISA_VARIABLE)
    assert set(cpu.load(program).kernels(uniform(program, 8), 1)) == {native.supported_isas()[-1]}


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "sse9")
    with pytest.raises(BackendError, match=r"MBQC_CPU_ISA=sse9(.|\n)*portable"):
        native.kernels()


def test_unsupported_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "avx512")
    monkeypatch.setattr(native, "supported_isas", lambda: ["portable", "avx2"])
    with pytest.raises(BackendError, match=r"does not support it(.|\n)*avx2"):
        native.kernels()
