"""Single convolutions at 8 bits: share of the measured peak, and oneDNN's int8 kernels beside them.

Multiply-adds on padding count, though rows of zeros are left out: so 3 x 3 layers of small images can pass 100 %.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rows import Row, peak_of, summary
from torch import nn

import mbqc
from mbqc.cli.timing import in_turn, timed
from mbqc.program.work import work_of
from mbqc.runtime import Compiled


@dataclass(frozen=True)
class Shape:
    """A square convolution; `owed` and `aimed` are shares of the peak."""

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    owed: float
    aimed: float

    def __str__(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel} {self.inputs}->{self.outputs} {self.size}{stride}"


SHAPES = (
    *(
        Shape(*channels, size, 3, stride, 90, 97)
        for channels, size, stride in (
            ((32, 32), 16, 1),
            ((64, 64), 56, 1),
            ((128, 128), 28, 1),
            ((256, 256), 14, 1),
            ((512, 512), 7, 1),
            ((64, 128), 56, 2),
            ((256, 512), 14, 2),
        )
    ),
    *(
        Shape(*channels, size, 1, 1, *goals)
        for channels, size, goals in (
            ((256, 64), 56, (88, 95)),
            ((512, 128), 28, (88, 95)),
            ((256, 256), 14, (88, 95)),
            ((512, 2048), 7, (88, 95)),
            ((64, 256), 56, (75, 82)),
        )
    ),
    Shape(3, 64, 224, 7, 2, 65, 79),
    Shape(3, 32, 224, 3, 2, 45, 54),
)

WITH_PEER = 32
"""oneDNN is measured beside 3 x 3 layers of at least so many channels."""


def rows(repeats: int) -> Iterator[Row]:
    """Two rows a shape, or one."""
    for shape in SHAPES:
        compiled, x = _compile(shape)
        widths = compiled.widths({"0": 8})
        counts = [work_of(compiled.program, op, 1).multiply_adds for op in compiled.program.listing.operations]
        index, work = next((i, 2 * count) for i, count in enumerate(counts) if count)
        calls: dict[str, Callable[[], float]] = {
            "own": lambda c=compiled, x=x, w=widths, i=index: 1e3 * c.executable.profile([x], w)[i]
        }
        if shape.kernel == 3 and shape.inputs >= WITH_PEER:
            calls["peer"] = timed(_onednn(shape))
        peak = peak_of(compiled.executable)
        times = in_turn(f"measuring {shape}", calls, repeats)
        peak = max(peak, peak_of(compiled.executable))
        shares = [100 * work / (1e6 * ms) / peak for ms in summary(times["own"])]
        yield Row(str(shape), *shares, "%", shape.owed, shape.aimed, f"of {peak:.0f} GOP/s")
        if "peer" in times:
            own, peer = summary(times["own"]), summary(times["peer"])
            yield Row(
                f"{shape} / oneDNN", peer[0] / own[0], peer[1] / own[1], "x", 1.0, 1.2, "its call includes torch's"
            )


def _compile(shape: Shape) -> tuple[Compiled, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2)
    x = torch.rand(1, shape.inputs, shape.size, shape.size)  # not negative, as after a ReLU: the zero-point is 0
    network = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(shape.outputs, 8, 1))  # a reader: the layer stores codes
    return mbqc.compile(network.eval(), x, "quant{calibration=minmax}"), x


def _onednn(shape: Shape) -> Callable[[], object]:
    """torch's quantized convolution with the zero-point it is fastest with, 0."""
    torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales, zeros = torch.full((shape.outputs,), 0.02), torch.zeros(shape.outputs, dtype=torch.long)
        real = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel)
        weight = torch.quantize_per_channel(real, scales, zeros, 0, torch.qint8)
        image = torch.rand(1, shape.inputs, shape.size, shape.size)
        x = torch.quantize_per_tensor(image, 0.01, 0, torch.quint8).contiguous(memory_format=torch.channels_last)
        padding, stride = [shape.kernel // 2] * 2, [shape.stride] * 2
        packed = torch.ops.quantized.conv2d_prepack(weight, torch.zeros(shape.outputs), stride, padding, [1, 1], 1)
    return lambda: torch.ops.quantized.conv2d_relu(x, packed, 0.05, 0)
