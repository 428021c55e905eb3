"""In-place operations rewritten as ordinary ones."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from mbqc.errors import TraceError
from mbqc.ir.graph import replace_call
from mbqc.ir.shapes import place
from mbqc.ir.vocabulary import module_of


def make_functional(gm: fx.GraphModule) -> None:
    """Replace in-place aten calls (`add_`) by those that return a new tensor, and let later readers read that.

    Readers of what an in-place module (`nn.ReLU(inplace=True)`) changed are redirected too, so that `clear_flags` may
    follow. A change through a view is not followed; `trace` notices because the graph then computes something else
    than the model.

    Raises:
        TraceError: the model changes its own parameter or buffer, or the operation has no other form.
    """
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        if not _writes_first_argument(node):
            continue
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        if changed.op == "get_attr":
            raise TraceError(
                f"the model changes its own tensor '{changed.target}' when it runs",
                where=place(node),
                hint="let forward compute outputs only",
            )
        new = node
        if node.op == "call_function":
            new = replace_call(node, "call_function", _functional(node), node.args, node.kwargs)
            order[new] = order.pop(node)
        for user in [u for u in changed.users if order[u] > order[new]]:
            user.replace_input_with(changed, new)


def clear_flags(gm: fx.GraphModule) -> None:
    """Make in-place modules ordinary ones. Not before the graph is final: `gm` shares its modules with the model."""
    for module in gm.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def _writes_first_argument(node: fx.Node) -> bool:
    module = module_of(node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional(node: fx.Node) -> OpOverload:
    """`aten.add.Tensor` for a call of `aten.add_.Tensor`."""
    assert isinstance(node.target, OpOverload)
    name, overload = str(node.target).removeprefix("aten.").rsplit(".", 1)
    found = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
    if not isinstance(found, OpOverload) or not name.endswith("_"):
        raise TraceError(
            f"the in-place operation {node.target} has no other form",
            where=place(node),
            hint="write it out of place, with torch.where or torch.cat",
        )
    return found
