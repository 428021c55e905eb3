"""How closely the Program follows the quantized graph, beside how closely the graph follows itself in float64.

    python examples/agreement.py examples/digits/model.py [samples]

In a deep network one value that rounds the other way changes what many later values round to, so differences of float
rounding grow to the size of the quantization noise. The last columns show that this is no property of the lowering.
"""

from __future__ import annotations

import copy
import sys

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mbqc.api import compile_model, pipeline_of
from mbqc.ir.compare import sqnr
from mbqc.ir.quantized import quantized_layers
from mbqc.pipeline import Context
from mbqc.runtime import make
from mbqc.userfile import load_user_model
from mbqc.widths import resolve


def compare(expected: Tensor, output: Tensor) -> tuple[str, str]:
    """SQNR in decibels and the number of equal top-1 classes."""
    same = int((expected.argmax(1) == output.argmax(1)).sum())
    return f"{sqnr(expected, output):.1f}", str(same)


def main(path: str, samples: int = 256) -> None:
    """Compiles without training and prints one row a width."""
    user = load_user_model(path)
    context = Context(user.example_inputs(), user.data("calibration_data"))
    made = compile_model(user.model(), pipeline_of("quant,bncorrect"), context)
    program, graph = make(made.program, made.manifest, "cpu"), made.quantized
    double = copy.deepcopy(graph).double()
    inputs = torch.cat([batch for (batch,) in context.calibration_batches()])[:samples]
    table = Table(title=f"{path}, {len(inputs)} samples")
    for heading in ("bits", "Program: dB", "same top-1", "graph in float64: dB", "same top-1"):
        table.add_column(heading, justify="right")
    for bits in range(8, 0, -1):
        widths = resolve(bits, quantized_layers(graph))
        with torch.no_grad():
            expected, exact = graph(inputs, widths), double(inputs.double(), widths)
        found = program(inputs, bits=bits)
        assert isinstance(found, Tensor)
        rows = [
            (f"{sqnr(expected, y):.1f}", str(int((expected.argmax(1) == y.argmax(1)).sum()))) for y in (found, exact)
        ]
        table.add_row(str(bits), *rows[0], *rows[1])
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
