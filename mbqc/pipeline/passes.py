"""A pass is a frozen dataclass whose fields are its options; a property is a checkable fact about a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mbqc.pipeline.context import Context
from mbqc.program.operations import Program


@dataclass(frozen=True)
class Property:
    """A fact about a graph that passes require, establish or destroy.

    Attributes:
        name: as printed in a graph's header and in messages.
        meaning: one sentence.
        check: raises VerifyError where the fact does not hold.
    """

    name: str
    meaning: str
    check: Callable[[fx.GraphModule], None]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pass(ABC):
    """Base of passes. A subclass is a frozen dataclass; its docstring tells what it does, shown by `mbqc passes`.

    Attributes:
        name: as written in a pipeline.
        requires: properties that must hold before it runs.
        sets: properties that hold afterwards.
        clears: properties that no longer hold afterwards.
        trains: whether it changes the float model on purpose; one such pass is the most that a pipeline may hold.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Property, ...]] = ()
    sets: ClassVar[tuple[Property, ...]] = ()
    clears: ClassVar[tuple[Property, ...]] = ()
    trains: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule | Program:
        """The graph after the pass, edited in place or new; a Program ends a pipeline.

        It decides and checks before it edits, and raises PassError where it cannot do its work.
        """
