"""A list of passes: parsed from text, checked as a whole before anything runs, run with instruments around."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import fx

from mbqc.errors import MbqcError, PassError, PipelineError
from mbqc.pipeline.context import Context
from mbqc.pipeline.instruments import Instrument
from mbqc.pipeline.passes import Pass, Property
from mbqc.program.operations import Program
from mbqc.spec import format_dataclass, parse_dataclass, split_specs


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Attributes:
        places: how each pass was named where it was found, such as `file.py:Class`; empty where that is its name.
    """

    passes: tuple[Pass, ...]
    places: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str, find: Callable[[str], type[Pass]]) -> Pipeline:
        """Passes from `name{key=value},name,...`.

        Args:
            find: the class of a pass by name.

        Raises:
            PipelineError: unbalanced text, an unknown pass or option, a value of the wrong type.
        """
        specs = split_specs(text)
        passes = tuple(parse_dataclass(find(name), options, name) for name, options in specs)
        return cls(passes, tuple(name for name, _ in specs))

    def __str__(self) -> str:
        places = self.places or tuple(item.name for item in self.passes)
        return ",".join(format_dataclass(item, place) for item, place in zip(self.passes, places, strict=True))

    def between(self, first: tuple[Pass, ...], last: tuple[Pass, ...]) -> Pipeline:
        """The same passes with others before and behind them."""
        places = self.places or tuple(item.name for item in self.passes)
        outer = [tuple(item.name for item in passes) for passes in (first, last)]
        return Pipeline((*first, *self.passes, *last), (*outer[0], *places, *outer[1]))

    def check(self, start: frozenset[str] = frozenset()) -> None:
        """Refuses an order that cannot work, with all reasons at once.

        Args:
            start: names of properties that hold before the first pass.

        Raises:
            PipelineError: a pass requires what no pass before it sets, or what one of them cleared.
        """
        holds, cleared_by, problems = set(start), dict[str, str](), list[str]()
        for index, item in enumerate(self.passes):
            for needed in item.requires:
                if needed.name not in holds:
                    problems.append(self._missing(item, needed, cleared_by))
            for gone in item.clears:
                holds.discard(gone.name)
                cleared_by[gone.name] = item.name
            holds |= {p.name for p in item.sets}
            if item.name in [other.name for other in self.passes[:index]] and not _repeatable(item):
                problems.append(f"{item.name} appears twice")
        if problems:
            raise PipelineError("; ".join(problems), where=f"pipeline {self}")

    def _missing(self, item: Pass, needed: Property, cleared_by: dict[str, str]) -> str:
        setters = [other.name for other in self.passes if needed in other.sets]
        if needed.name in cleared_by:
            reason = f"which {cleared_by[needed.name]} cleared"
        elif setters:
            reason = f"which {setters[0]} sets only later"
        else:
            reason = "which no pass before it sets"
        return f"{item.name} needs '{needed}' ({needed.meaning}), {reason}"

    def run(
        self, graph: fx.GraphModule, context: Context, instruments: Sequence[Instrument] = ()
    ) -> fx.GraphModule | Program:
        """Runs the passes on a copy of `graph`.

        Raises:
            PipelineError: the order cannot work.
            MbqcError: a pass failed; the message names it.
        """
        self.check(properties_of(graph))
        current: fx.GraphModule | Program = copy.deepcopy(graph)
        for index, item in enumerate(self.passes):
            if isinstance(current, Program):
                raise PipelineError(f"nothing can run after the Program is made, but {item.name} follows")
            for instrument in instruments:
                instrument.before(index, item, current)
            held, ran = properties_of(current), passes_of(current)
            current = _run_pass(item, current, context)
            if isinstance(current, fx.GraphModule):
                kept = held - {p.name for p in item.clears}
                current.meta["properties"] = kept | {p.name for p in item.sets}
                current.meta["passes"] = (*ran, item)
            for instrument in instruments:
                instrument.after(index, item, current)
        return current


def properties_of(graph: fx.GraphModule) -> frozenset[str]:
    """Names of the properties that hold for a graph."""
    held = graph.meta.get("properties", frozenset())
    assert isinstance(held, frozenset)
    return held


def passes_of(graph: fx.GraphModule) -> tuple[Pass, ...]:
    """The passes that made a graph of the traced one, in their order."""
    ran = graph.meta.get("passes", ())
    assert isinstance(ran, tuple)
    return ran


def _repeatable(item: Pass) -> bool:
    """A pass that sets nothing and trains nothing may run as often as one likes."""
    return not item.sets and not item.trains


def _run_pass(item: Pass, graph: fx.GraphModule, context: Context) -> fx.GraphModule | Program:
    place = f"pass {item.name}"
    try:
        result: object = item.run(graph, context)
    except MbqcError as error:
        if error.where is None or not error.where.startswith("pass "):
            error.where = f"{place}, {error.where}" if error.where else place
        raise
    except (Exception, SystemExit) as error:
        if _is_ours(item):
            raise
        raise PassError(f"raised {type(error).__name__}: {error}", where=f"{place}{_line_of(item, error)}") from error
    if not isinstance(result, fx.GraphModule | Program):
        raise PassError(f"run() returned an object of type {type(result).__name__}, expected the graph", where=place)
    return result


def _is_ours(item: Pass) -> bool:
    return type(item).__module__.startswith("mbqc.")


def _line_of(item: Pass, error: BaseException) -> str:
    """` (file:line)` of the innermost frame of an exception that lies in the file of a pass."""
    file = inspect.getfile(type(item))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}:{lines[-1]})" if lines else ""
