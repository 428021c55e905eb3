"""Decides which tensors of a graph become codes, before anything is edited.

A layer's accumulator flows on through BatchNorm, one residual addition and a clamp as long as nobody else reads it;
the tensor at the end of such a run is where a quantizer belongs. A tensor that other integer operations read (residual
sums, pooling, tables) is kept at 8 bits; the layers that read it too get a second, narrower quantizer behind the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from mbqc.ir.types import type_of
from mbqc.ir.vocabulary import is_module
from mbqc.passes.quant.roles import Role


@dataclass(frozen=True)
class QuantizerPlan:
    """One activation quantizer.

    Attributes:
        tensor: the node whose value it quantizes.
        layers: names of the layers that decide its width; empty for 8 bits.
        readers: the nodes that shall read its output instead of `tensor`.
        observed: the node whose values calibrate it.
    """

    tensor: fx.Node
    layers: tuple[str, ...]
    readers: tuple[fx.Node, ...]
    observed: fx.Node


def plan(graph: fx.GraphModule, roles: dict[fx.Node, Role]) -> list[QuantizerPlan]:
    """All activation quantizers that the graph needs, in the order of their tensors."""
    return _Planner(graph, roles).plan()


FLOWING = (Role.LAYER, Role.AVERAGE, Role.NORM, Role.ADD, Role.CLAMP, Role.TABLE)
"""What may pass its value on before it is stored."""


class _Planner:
    def __init__(self, graph: fx.GraphModule, roles: dict[fx.Node, Role]) -> None:
        self.graph, self.roles = graph, roles
        self.integer = self._integer_nodes()
        self.absorbed = self._absorbed_nodes()

    def plan(self) -> list[QuantizerPlan]:
        plans: list[QuantizerPlan] = []
        for node in self.graph.graph.nodes:
            if not self._is_root(node):
                continue
            tensors = self._same_codes(node)
            layer_readers = {t: [u for u in t.users if self._is_layer(u)] for t in tensors}
            every_layer = tuple(dict.fromkeys(str(u.target) for t in tensors for u in layer_readers[t]))
            others = [u for t in tensors for u in t.users if self._reads_at_full_width(t, u)]
            if not every_layer and not others:
                continue
            if not others:
                plans.append(QuantizerPlan(node, every_layer, self._readers(node), node))
                continue
            plans.append(QuantizerPlan(node, (), self._readers(node), node))
            for tensor, readers in layer_readers.items():
                if readers:
                    names = tuple(dict.fromkeys(str(u.target) for u in readers))
                    plans.append(QuantizerPlan(tensor, names, tuple(readers), node))
        return plans

    def _integer_nodes(self) -> set[fx.Node]:
        """Nodes that compute on codes: layers, and whatever stands between an integer tensor and a layer."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.graph.nodes):
            role = self.roles[node]
            if role is Role.LAYER or (role not in (Role.INPUT, Role.FLOAT) and any(u in found for u in node.users)):
                found.add(node)
        for node in self.graph.graph.nodes:  # an epilogue is free, also where only float operations follow
            if self.roles[node] in (Role.NORM, Role.CLAMP) and self._only_reader_of_accumulator(node, found):
                found.add(node)
        return found

    def _only_reader_of_accumulator(self, node: fx.Node, integer: set[fx.Node]) -> bool:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in integer or len(source.users) != 1:
            return False
        if self.roles[node] is Role.NORM and _channels_differ(source):
            return False
        allowed = (Role.LAYER,) if self.roles[node] is Role.NORM else (Role.LAYER, Role.NORM)
        return self.roles[source] in allowed

    def _absorbed_nodes(self) -> set[fx.Node]:
        """Nodes whose value is never stored: it flows on in the accumulator of its only reader."""
        absorbed: set[fx.Node] = set()
        for node in self.graph.graph.nodes:
            role = self.roles[node]
            if node not in self.integer or role not in FLOWING:
                continue
            user = next(iter(node.users)) if len(node.users) == 1 else None
            if user is not None and user in self.integer and self._flows_into(node, user, absorbed):
                absorbed.add(node)
        return absorbed

    def _flows_into(self, node: fx.Node, user: fx.Node, absorbed: set[fx.Node]) -> bool:
        """An epilogue is affine, then a residual, then a clamp; a table goes on in a table: what is open decides."""
        if Role.TABLE in (self.roles[node], self.roles[user]):
            return self.roles[node] is self.roles[user]
        affine_only = self.roles[node] not in (Role.ADD, Role.CLAMP)
        match self.roles[user]:
            case Role.NORM:
                return affine_only and not _channels_differ(node)
            case Role.CLAMP:
                return self.roles[node] is not Role.CLAMP
            case Role.ADD:
                others = [a for a in user.all_input_nodes if a is not node]
                return affine_only and len(others) == 1 and others[0] not in absorbed
            case _:
                return False

    def _is_layer(self, node: fx.Node) -> bool:
        return self.roles[node] is Role.LAYER

    def _is_root(self, node: fx.Node) -> bool:
        """Whether the node's value is a tensor of its own, rather than an accumulator or somebody else's codes."""
        if node.op in ("output", "get_attr") or node in self.absorbed:
            return False
        return not (self.roles[node] is Role.MOVE and node in self.integer)

    def _same_codes(self, root: fx.Node) -> list[fx.Node]:
        """The root and the tensors that hold its codes moved about."""
        found = [root]
        for tensor in found:
            found += [u for u in tensor.users if self.roles[u] is Role.MOVE and u in self.integer]
        return found

    def _reads_at_full_width(self, tensor: fx.Node, user: fx.Node) -> bool:
        if self._is_layer(user) or (self.roles[user] is Role.MOVE and user in self.integer):
            return False
        return user in self.integer or self._is_integer_tensor(tensor)

    def _is_integer_tensor(self, tensor: fx.Node) -> bool:
        """A float reader of an integer result reads its codes too, so that the result is computed once."""
        return tensor in self.integer and any(self._takes_codes(u) for t in self._same_codes(tensor) for u in t.users)

    def _takes_codes(self, user: fx.Node) -> bool:
        return user in self.integer and self.roles[user] is not Role.MOVE

    def _readers(self, root: fx.Node) -> tuple[fx.Node, ...]:
        """Who reads codes directly from the root; float readers of a float value keep reading it."""
        if root in self.integer:
            return tuple(root.users)
        return tuple(u for u in root.users if u in self.integer)


def _channels_differ(node: fx.Node) -> bool:
    """A linear layer on [N, T, C] counts channels last, a BatchNorm behind it in dimension 1."""
    return is_module(node, (nn.Linear,)) and len(type_of(node).dims) > 2
