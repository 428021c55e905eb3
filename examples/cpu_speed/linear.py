"""How fast linear layers run on the cpu backend: every width against 8 bits, the measured peak, and ONNX Runtime.

    taskset -c 1 python linear.py

One thread, random weights, activations of 8 bits at every width. Within one shape all take turns, in short bursts of
which the first call is not counted; figures are medians and 5th percentiles of the layer alone (ONNX Runtime: of the
call, which quantizes its input). ONNX Runtime's low-bit layers (MatMulNBits) are skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mbqc.backends.cpu.executor import CpuExecutable, load
from mbqc.program.operations import Epilogue, Grid, LayerInfo, Linear, Listing, Program, Quantize, Value, Weight
from mbqc.widths import Widths

BURST = 4
SHAPES = ((1024, 1), (4096, 1), (8192, 1), (16384, 1), (8192, 4), (8192, 16), (8192, 64))
WIDTHS = (8, 4, 3, 2, 1)

OWED = {(4, 8192, 1): 1.9, (4, 16384, 1): 1.9, (2, 16384, 1): 3.0, (1, 16384, 1): 5.0}
"""Speed against 8 bits by width, size and batch."""

OWED_OF_PEAK = {16: 0.70, 64: 0.85}
"""Share of the peak by batch."""

OWED_PEER = {4: 1.25, 2: 1.3}
"""Speed against ONNX Runtime at the same width, weights beyond the cache, one row."""


@dataclass(frozen=True)
class Time:
    """Microseconds."""

    median: float
    fifth: float


def layer(size: int) -> Program:
    """A linear layer with float32 outputs, and the rounding of its inputs, which no layer's width governs."""
    random = torch.Generator().manual_seed(0)
    grid = Grid(tuple(6.0 / (2**bits - 1) for bits in range(1, 9)), tuple(2 ** (bits - 1) for bits in range(1, 9)), ())
    codes = torch.randint(-128, 128, (size, size), generator=random, dtype=torch.int8)
    tensors = {"codes": codes, "scale": torch.full((size,), 0.01 / 128)}
    values = {
        "x": Value("f32", (-1, size), None),
        "q": Value("u8", (-1, size), "grid"),
        "y": Value("f32", (-1, size), None),
    }
    operations = (
        Quantize("x", "q", False),
        Linear("q", "y", Weight("layer", "codes", "scale", None, None), Epilogue()),
    )
    return Program(
        Listing("round", ("x",), ("y",), values, {"grid": grid}, {"layer": LayerInfo()}, operations), tensors
    )


def own_calls(executable: CpuExecutable, size: int, batch: int) -> dict[str, Callable[[], float]]:
    """Calls that return the seconds which the layer took, by width."""
    x = torch.randn(batch, size)

    def call(bits: int) -> Callable[[], float]:
        widths = Widths((("layer", bits),))
        executable.prepare(widths, batch)
        return lambda: executable.profile([x], widths)[1]

    return {f"{bits} bit": call(bits) for bits in WIDTHS}


def peer_calls(size: int, batch: int) -> dict[str, Callable[[], float]]:
    """Calls of ONNX Runtime's 4- and 2-bit layers (block 128, int8 arithmetic), which return their seconds."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    x = np.random.default_rng(0).standard_normal((batch, size), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def call(bits: int) -> Callable[[], float]:
        blocks, block_bytes = size // 128, 128 * bits // 8
        random = np.random.default_rng(bits)
        packed = random.integers(0, 256, (size, blocks, block_bytes), dtype=np.uint8)
        scales = np.full(size * blocks, 0.01, dtype=np.float32)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "w", "s"],
            ["y"],
            domain="com.microsoft",
            K=size,
            N=size,
            bits=bits,
            block_size=128,
            accuracy_level=4,
        )
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, size])],
            [onnx.numpy_helper.from_array(packed, "w"), onnx.numpy_helper.from_array(scales, "s")],
        )
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        def run() -> float:
            start = time.perf_counter()
            session.run(None, {"x": x})
            return time.perf_counter() - start

        return run

    return {f"ONNX Runtime {bits} bit": call(bits) for bits in OWED_PEER}


def measure(calls: dict[str, Callable[[], float]], seconds: float) -> dict[str, Time]:
    """Times of all, in bursts that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(calls))]) < 2 * BURST:
        for name, call in calls.items():
            call()
            times[name] += [1e6 * call() for _ in range(BURST)]
    return {name: Time(statistics.median(v), sorted(v)[len(v) // 20]) for name, v in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def show(size: int, batch: int, executable: CpuExecutable, times: dict[str, Time]) -> None:
    ceilings = executable.ceilings()
    peak = next(iter(ceilings.peaks.values())).gops
    full = times["8 bit"]
    print(f"{size} x {size}, batch {batch} (peak {peak:.0f} GOP/s)")
    for bits in WIDTHS:
        name, found = f"{bits} bit", times[f"{bits} bit"]
        kernel = executable.kernels(Widths((("layer", bits),)), batch)[1]
        gops = 2e-3 * batch * size * size / found.fifth
        notes = [f"{full.median / found.median:.2f}x own 8 bit (5 %: {full.fifth / found.fifth:.2f}x)"]
        if (bits, size, batch) in OWED:
            notes.append(f"owed {OWED[bits, size, batch]}x")
        if batch in OWED_OF_PEAK:
            notes.append(f"{gops / peak:.0%} of peak, owed {OWED_OF_PEAK[batch]:.0%}")
        peer = times.get(f"ONNX Runtime {bits} bit")
        if peer is not None:
            notes.append(f"{peer.median / found.median:.2f}x ONNX Runtime, owed {OWED_PEER[bits]}x beyond the cache")
        print(f"  {name:20} {kernel:15} {found.median:9.1f} us  (5 %: {found.fifth:.1f})  {'; '.join(notes)}")
    for name in times.keys() - {f"{bits} bit" for bits in WIDTHS}:
        print(f"  {name:36} {times[name].median:9.1f} us  (5 %: {times[name].fifth:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times linear layers at every width.")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a shape takes [1]")
    parser.add_argument("--size", type=int, help="this one only")
    parser.add_argument("--batch", type=int, help="this one only")
    arguments = parser.parse_args()
    has_peer = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if not has_peer:
        print("ONNX Runtime is not installed: no comparison with it.")
    with one_thread():
        executable, made = None, 0
        for size, batch in SHAPES:
            if size != (arguments.size or size) or batch != (arguments.batch or batch):
                continue
            if executable is None or made != size:
                executable, made = load(layer(size)), size
            calls = own_calls(executable, size, batch)
            if has_peer and batch == 1:
                calls |= peer_calls(size, batch)
            show(size, batch, executable, measure(calls, arguments.seconds))


if __name__ == "__main__":
    main()
