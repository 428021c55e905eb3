"""What happens around passes: verifying, timing, dumping, comparing with float. Passes themselves do none of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from mbqc.errors import VerifyError
from mbqc.ir.compare import sqnr
from mbqc.ir.text import print_graph
from mbqc.program.operations import Program
from mbqc.program.text import print_program
from mbqc.program.verify import verify_program
from mbqc.widths import FLOAT

if TYPE_CHECKING:
    from mbqc.pipeline.context import Context, Report
    from mbqc.pipeline.passes import Pass, Property

FLOAT_ROUNDING = 90.0
"""Decibels; what reordering float32 operations costs stays above."""


class Instrument:
    """Base: does nothing before and after each pass."""

    def before(self, index: int, item: Pass, graph: fx.GraphModule) -> None:
        """Called with the graph that the pass gets."""

    def after(self, index: int, item: Pass, result: fx.GraphModule | Program) -> None:
        """Called with what the pass gave back."""


class Verify(Instrument):
    """Checks every property that should hold, on the result of each pass."""

    def __init__(self, properties: tuple[Property, ...]) -> None:
        self._properties = {p.name: p for p in properties}

    def after(self, index: int, item: Pass, result: fx.GraphModule | Program) -> None:
        """Raises VerifyError that names the pass, the node, and shows the graph around it."""
        try:
            if isinstance(result, Program):
                verify_program(result)
                return
            for name in sorted(result.meta["properties"]):
                self._properties[name].check(result)
        except VerifyError as error:
            text = print_graph(result) if isinstance(result, fx.GraphModule) else print_program(result)
            raise VerifyError(
                f"{error.message}\n{_around(text, error.where)}",
                where=f"after pass {item.name}, {error.where or 'graph'}",
            ) from error


class Compare(Instrument):
    """Tells which passes change the float model, by running it before and after each on the example inputs.

    A quantized graph contains its float model (`widths.FLOAT`), so passes over it are compared too.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before: Tensor | None = None

    def before(self, index: int, item: Pass, graph: fx.GraphModule) -> None:
        """Runs the float model once before the first pass; later passes start from the result before."""
        if self._before is None:
            self._before = self._output(graph)

    def after(self, index: int, item: Pass, result: fx.GraphModule | Program) -> None:
        """Adds a note where the output moved by more than float rounding, unless that is what the pass is for."""
        if isinstance(result, Program):
            return
        assert self._before is not None, "before() ran first"
        output = self._output(result)
        decibels = sqnr(self._before, output)
        if decibels < FLOAT_ROUNDING and not item.trains:
            message = f"changes the float model: its output is {decibels:.1f} dB from what it was"
            self._context.report.add(item.name, "info", "", message)
        self._before = output

    def _output(self, graph: fx.GraphModule) -> Tensor:
        """All outputs as one vector."""
        widths = [FLOAT] if any(node.target == "widths" for node in graph.graph.find_nodes(op="placeholder")) else []
        with torch.no_grad():
            result = graph(*self._context.example_inputs, *widths)
        return torch.cat([part.flatten().double() for part in (result if isinstance(result, tuple) else (result,))])


class Timing(Instrument):
    """Writes the seconds of each pass into the report."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start = 0.0

    def before(self, index: int, item: Pass, graph: fx.GraphModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def after(self, index: int, item: Pass, result: fx.GraphModule | Program) -> None:
        """Stops it."""
        self._report.seconds.append((item.name, time.perf_counter() - self._start))


class Dump(Instrument):
    """Writes the text of the graph after each pass to `NNN_name.ir` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def after(self, index: int, item: Pass, result: fx.GraphModule | Program) -> None:
        """Writes one file; the numbers go on through several runs, as `compile` makes two."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = print_program(result) if isinstance(result, Program) else print_graph(result)
        (self._folder / f"{self._count:03d}_{item.name}.ir").write_text(text)
        self._count += 1


def _around(text: str, where: str | None, lines: int = 3) -> str:
    """The lines of an IR text around the node that `where` names, marked."""
    name = (where or "").removeprefix("node ").removeprefix("value ")
    rows = text.splitlines()
    hit = next((i for i, row in enumerate(rows) if name and row.lstrip().startswith(f"%{name} ")), None)
    if hit is None:
        return "\n".join(rows[: 2 * lines])
    return "\n".join(
        ("> " if i == hit else "  ") + rows[i] for i in range(max(0, hit - lines), min(len(rows), hit + lines + 1))
    )
