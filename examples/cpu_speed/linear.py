"""Linear layers: every width against 8 bits, the measured peak, and ONNX Runtime's low-bit layers (MatMulNBits).

One thread, random weights, activations of 8 bits at every width. Times are of the layer alone; ONNX Runtime's are of
the call, which quantizes its input.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from rows import Row, peak_of, summary

from mbqc.backends.cpu.executor import CpuExecutable, load
from mbqc.cli.timing import in_turn
from mbqc.program.operations import Epilogue, Grid, LayerInfo, Linear, Listing, Program, Quantize, Value, Weight
from mbqc.widths import Widths

SHAPES = ((8192, 1), (16384, 1), (8192, 16), (8192, 64))
WIDTHS = (8, 4, 2, 1)

OWN = {(4, 8192): (1.9, 2.0), (4, 16384): (1.9, 2.0), (2, 16384): (3.0, 3.5), (1, 16384): (5.0, 6.3)}
"""Owed and aimed at: speed of one row against 8 bits, by width and size."""

PEER = {(4, 8192): (1.25, 1.5), (4, 16384): (1.25, 1.5), (2, 16384): (1.3, 1.55)}
"""Likewise against ONNX Runtime at the same width."""

PEAK = {16: (70, 83), 64: (85, 94)}
"""Likewise in percent of the peak, by batch."""


def rows(repeats: int) -> Iterator[Row]:
    """A row a goal."""
    has_peer = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if not has_peer:
        print("ONNX Runtime is not installed: linear layers are not compared with it.")
    for size, batch in SHAPES:
        executable = load(layer(size))
        calls = own_calls(executable, size, batch)
        if has_peer and batch == 1:
            calls |= peer_calls(size)
        item, peak = f"linear {size} x {size}, batch {batch}", peak_of(executable)
        times = {name: summary(found) for name, found in in_turn(item, calls, repeats).items()}
        peak = max(peak, peak_of(executable))
        for bits in WIDTHS:
            own, note = times[f"{bits} bit"], f"{1e6 * times[f'{bits} bit'][0]:.0f} us"
            if batch in PEAK:
                shares = [100 * 2e-9 * batch * size * size / seconds / peak for seconds in own]
                yield Row(f"{item}: {bits} bit", *shares, "%", *PEAK[batch], f"{note}, peak {peak:.0f} GOP/s")
            elif (bits, size) in OWN:
                ratios = [times["8 bit"][i] / own[i] for i in range(2)]
                yield Row(f"{item}: {bits} bit / 8", *ratios, "x", *OWN[bits, size], note)
            peer = times.get(f"ONNX Runtime {bits} bit")
            if peer and (bits, size) in PEER:
                ratios = [peer[i] / own[i] for i in range(2)]
                yield Row(f"{item}: {bits} bit / ONNX Runtime", *ratios, "x", *PEER[bits, size], note)


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


def peer_calls(size: int) -> dict[str, Callable[[], float]]:
    """Calls of ONNX Runtime's 4- and 2-bit layers (block 128, int8 arithmetic), which return their seconds."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    x = np.random.default_rng(0).standard_normal((1, size), dtype=np.float32)
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
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])],
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

    return {f"ONNX Runtime {bits} bit": call(bits) for bits in (4, 2)}
