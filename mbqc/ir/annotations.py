"""Typed facts about nodes: at most one of each class per node, kept in `node.meta["annotations"]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from torch import fx

from mbqc.errors import VerifyError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Sensitivity:
    """Curvature of the loss at the weights of a layer.

    Attributes:
        trace: estimated trace of the Hessian block.
        stderr: standard error of `trace`.
        per_parameter: `trace` divided by the number of weights.
        probes: number of random vectors the estimate used.
    """

    trace: float
    stderr: float
    per_parameter: float
    probes: int


@dataclass(frozen=True)
class Switching:
    """Widths that training draws for a layer.

    Attributes:
        bits: the widths.
        probabilities: how likely each of them is; sums to 1.
    """

    bits: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Pinned:
    """The layer keeps this width unless a user names it.

    Attributes:
        bits: the width.
    """

    bits: int


@dataclass(frozen=True)
class Skipped:
    """The node stays in float.

    Attributes:
        reason: why, in one sentence.
    """

    reason: str


ANNOTATIONS: tuple[type[DataclassInstance], ...] = (Sensitivity, Switching, Pinned, Skipped)
"""The annotations that IR text can hold."""


def annotations_of(node: fx.Node) -> Mapping[type[DataclassInstance], DataclassInstance]:
    """All annotations of a node, by class."""
    return cast("Mapping[type[DataclassInstance], DataclassInstance]", node.meta.get("annotations", {}))


def find_annotation(node: fx.Node, cls: type[T]) -> T | None:
    """The node's annotation of class `cls`, None if it has none."""
    return cast("T | None", annotations_of(node).get(cls))


def annotation(node: fx.Node, cls: type[T]) -> T:
    """The node's annotation of class `cls`.

    Raises:
        VerifyError: it has none.
    """
    value = find_annotation(node, cls)
    if value is None:
        raise VerifyError(f"the node has no annotation {cls.__name__.lower()}", where=f"node {node.name}")
    return value


def annotate(node: fx.Node, value: DataclassInstance) -> None:
    """Gives a node an annotation, in place of any of the same class."""
    # A new dictionary: fx copies `meta` shallowly, so the old one may be shared with a node of another graph.
    node.meta["annotations"] = {**annotations_of(node), type(value): value}


def drop_annotations(graph: fx.GraphModule, *classes: type[DataclassInstance]) -> None:
    """Removes all annotations of some classes from the nodes of a graph."""
    for node in graph.graph.nodes:
        node.meta["annotations"] = {cls: value for cls, value in annotations_of(node).items() if cls not in classes}
