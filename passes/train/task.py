"""What a training is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from mbqc.ir.types import type_of
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.pipeline import Context

if TYPE_CHECKING:
    from mbqc.passes.train.train import Train


@dataclass(frozen=True)
class Task:
    """What is trained, how, on which data, and by whom.

    Attributes:
        graph: is trained in place.
        bits: the widths to train, highest first.
    """

    graph: fx.GraphModule
    options: Train
    bits: tuple[int, ...]
    context: Context
    ranks: Ranks

    @property
    def classes(self) -> int | None:
        """How many scores the model gives a sample, None where its output is something else than [N, classes]."""
        source = self.graph.graph.output_node().args[0]
        dims = type_of(source).dims if isinstance(source, fx.Node) else ()
        return dims[1] if len(dims) == 2 and dims[1] > 0 else None
