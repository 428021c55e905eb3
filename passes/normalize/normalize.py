"""The pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mbqc.passes.normalize.rewrite import canonicalize
from mbqc.pipeline import Context, Pass, Property
from mbqc.properties import CANONICAL


@dataclass(frozen=True)
class Normalize(Pass):
    """Brings a traced graph to one canonical form: plain modules, aten functions, known shapes, nothing dead.

    Float semantics do not change. It comes first in every pipeline; `mbqc compile` adds it.
    """

    name: ClassVar[str] = "normalize"
    sets: ClassVar[tuple[Property, ...]] = (CANONICAL,)

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The canonical graph.

        Raises:
            TraceError: the graph has no canonical form.
        """
        canonicalize(graph, context.example_inputs)
        return graph
