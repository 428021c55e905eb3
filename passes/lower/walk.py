"""The walk over a quantized graph: what is known about each node, and the order in which forms are tried."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from mbqc.errors import PassError
from mbqc.ir.modules import MomentCorrection, WeightQuantizer
from mbqc.ir.types import TensorType, type_of
from mbqc.ir.vocabulary import is_aten, module_of
from mbqc.passes.lower.builder import Builder
from mbqc.passes.lower.states import NO_PADDING, Number, Parameter, Pending, Several, State, Stored
from mbqc.program.operations import Affine, AnyOperation, Epilogue


@dataclass(frozen=True)
class Walk:
    """What no input reaches, states of all nodes visited so far, and the Program that grows."""

    constants: Mapping[fx.Node, Any]
    builder: Builder
    states: dict[fx.Node, State] = field(default_factory=dict)
    floats: dict[fx.Node, Stored] = field(default_factory=dict)

    def state(self, node: fx.Node, index: int = 0) -> State:
        """State of an argument of `node`."""
        return self.states[argument_node(node, index)]

    def float_value(self, node: fx.Node) -> Stored:
        """The node's value as float32 in torch's order, computed once."""
        if node not in self.floats:
            state = self.states[node]
            if isinstance(state, Parameter | Number | Several):
                raise PassError("is no tensor that was computed", where=f"node {node.name}")
            codes = isinstance(state, Stored) and state.codes
            self.floats[node] = self.builder.floats(f"{node.name}_float" if codes else node.name, state)
        return self.floats[node]

    def stored(self, node: fx.Node) -> Stored:
        """The node's value as codes where it is, as float otherwise."""
        state = self.states[node]
        return state if isinstance(state, Stored) and state.codes else self.float_value(node)

    def codes(self, node: fx.Node) -> Stored | None:
        """The node's value where it is codes without padding to come."""
        state = self.states.get(node)
        found = isinstance(state, Stored) and state.codes and state.padding == NO_PADDING
        return state if found and isinstance(state, Stored) else None

    def accumulator(self, source: fx.Node, needs_channels: bool) -> Pending | None:
        """An accumulator that the only reader of `source` may continue: its own, or its codes as they are."""
        state = self.states.get(source)
        if isinstance(state, Pending):
            channels_are_last = state.channels_last or len(state.dims) == 2
            return state if len(source.users) == 1 and (channels_are_last or not needs_channels) else None
        codes = self.codes(source)
        if codes is None:
            return None
        stored = self.builder.channels_last(codes) if needs_channels else codes

        def affine(output: str, epilogue: Epilogue) -> AnyOperation:
            return Affine(stored.name, output, epilogue)

        return Pending(affine, codes.dims, stored.channels_last)


def argument_node(node: fx.Node, index: int = 0) -> fx.Node:
    """An argument that must be a node."""
    source = node.args[index]
    assert isinstance(source, fx.Node), f"argument {index} of {node.name} is no node"
    return source


def structural_form(walk: Walk, node: fx.Node) -> State | None:
    """Constants, sizes and parts of results; None where the node computes a tensor from an input."""
    constant = walk.constants.get(node)
    if isinstance(constant, Tensor):
        return Parameter(str(node.target) if node.op == "get_attr" else node.name, constant)
    if node.target is operator.getitem:
        source, index = walk.state(node), node.args[1]
        if isinstance(source, Several) and isinstance(index, int):
            return source.parts[index]
    if is_aten(node, "sym_size.int"):
        dim = node.args[1]
        assert isinstance(dim, int)
        return Number(type_of(argument_node(node)).dims[dim])
    return None if isinstance(node.meta.get("type"), TensorType | tuple) else _arithmetic(walk, node)


def _arithmetic(walk: Walk, node: fx.Node) -> Number | None:
    """Arithmetic on sizes; it commutes with counting in batches (see `Number`)."""
    values: list[int] = []
    for argument in node.args:
        state = walk.states[argument] if isinstance(argument, fx.Node) else argument
        value = state.value if isinstance(state, Number) else state
        if not isinstance(value, int):
            return None
        values.append(value)
    return Number(int(node.target(*values))) if callable(node.target) else None


def is_read_through_layer(node: fx.Node) -> bool:
    """Weight quantizers and corrections have no operation of their own: the layer stores what they need."""
    return isinstance(module_of(node), WeightQuantizer | MomentCorrection)
