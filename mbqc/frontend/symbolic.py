"""The first way to a graph: `torch.fx` symbolic tracing, with canonical modules as leaves."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from mbqc.frontend.source import line_in_stack
from mbqc.frontend.spelling import spell_as_aten
from mbqc.ir.vocabulary import CANONICAL_MODULES

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

IDENTITIES: tuple[type[nn.Module], ...] = (nn.Identity, *DROPOUTS)
"""Modules that do nothing in eval mode."""

# a reshape has one canonical spelling, the aten one, so Flatten is traced into
_LEAVES = tuple(cls for cls in (*CANONICAL_MODULES, *IDENTITIES) if cls is not nn.Flatten)

# a subclass may change what a leaf computes through any of these
_BEHAVIOUR = ("forward", "_conv_forward", "_check_input_dim", "_output_padding", "weight", "bias")


def trace_symbolically(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph of `model` in aten calls and leaf modules, sharing its parameters; `meta` as `frontend.trace` says.

    Raises:
        Exception: torch.fx cannot follow the model; any type, since the model's own code runs on proxies.
        UnknownSpelling: the model calls a function outside the table in `frontend.spelling`.
    """
    tracer = _Tracer(len(example_inputs))
    graph = tracer.trace(model)
    for node in graph.nodes:
        node.meta = {"source": line_in_stack(node.stack_trace), "scope": _scope(node)}
    spell_as_aten(graph)
    gm = fx.GraphModule(tracer.root, graph)
    _bind_by_position(gm)
    return gm


class _Tracer(fx.Tracer):
    record_stack_traces = True
    proxy_buffer_attributes = True

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments of the model: proxies for the inputs, their defaults for arguments left out."""
        function, values = super().create_args_for_root(*args, **kwargs)
        proxies = [value for value in values if isinstance(value, fx.Proxy)]
        left_out = {proxy.node: _default(proxy.node) for proxy in proxies[self.inputs :]}
        for node in left_out:
            self.graph.erase_node(node)
        for proxy in proxies[: self.inputs]:
            proxy.node.args = ()  # an input that is given has no default: other inputs may follow it
        return function, [left_out.get(v.node, v) if isinstance(v, fx.Proxy) else v for v in values]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_plain(m)

    def create_arg(self, a: Any) -> Any:
        # `x.shape` used whole is a torch.Size on real tensors only; lists keep one spelling
        return super().create_arg(tuple(a) if isinstance(a, torch.Size) else a)


def _default(argument: fx.Node) -> Any:
    """What an argument is that the caller leaves out; only `*args` and `**kwargs` have no default in the signature."""
    stars = str(argument.target).count("*")
    return ((), {})[stars - 1] if stars else argument.args[0]


def _bind_by_position(gm: fx.GraphModule) -> None:
    """Give modules called by keyword (`self.relu(input=x)`) their arguments by position, where passes look for them."""
    for node in gm.graph.find_nodes(op="call_module"):
        bound = inspect.signature(gm.get_submodule(str(node.target)).forward).bind(*node.args, **node.kwargs)
        node.args, node.kwargs = bound.args, bound.kwargs
    gm.recompile()


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its torch class computes: no override, hook or parametrization changes it."""
    base = next((cls for cls in type(module).__mro__ if cls in _LEAVES), None)
    if base is None or module._forward_hooks or module._forward_pre_hooks:
        return False
    if getattr(module, "return_indices", False):  # a second output
        return False
    return all(getattr(type(module), name, None) is getattr(base, name, None) for name in _BEHAVIOUR)


def _scope(node: fx.Node) -> tuple[str, str]:
    """Path and class name of the innermost module whose forward made the node."""
    stack = node.meta.get("nn_module_stack") or {"": ("", nn.Module)}
    path, cls = list(stack.values())[-1]
    return path, cls.__name__
