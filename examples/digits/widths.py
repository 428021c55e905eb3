"""Held-out accuracy of the digits network at every width, with and without moment correction, without any training.

python examples/digits/widths.py
"""

from __future__ import annotations

import model as digits
import torch
from rich.console import Console
from rich.table import Table

import mbqc


def main() -> None:
    """Compiles twice and prints one table."""
    network = digits.model()
    inputs, labels = digits.images("test")
    with torch.no_grad():
        float_accuracy = digits.metric(network(inputs), labels)
    plain, corrected = (
        mbqc.compile(network, digits.example_inputs(), passes, calibration=digits.calibration_data())
        for passes in ("quant", "quant,bncorrect")
    )
    table = Table(title=f"{len(labels)} held-out digits, accuracy in %, float {float_accuracy:.2f}")
    for heading in ("bits", "quant", "quant,bncorrect", "gain"):
        table.add_column(heading, justify="right")
    for bits in range(8, 0, -1):
        without, with_it = (digits.metric(m(inputs, bits=bits), labels) for m in (plain, corrected))
        table.add_row(str(bits), f"{without:.2f}", f"{with_it:.2f}", f"{with_it - without:+.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
