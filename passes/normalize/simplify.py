"""Aten calls in their one canonical spelling: rules by operation, each from the types that `infer_types` found.

| what | becomes |
| --- | --- |
| dropout, alias, contiguous, full slice, reshape to the same shape ... | nothing |
| view, flatten, unflatten, squeeze, unsqueeze | `reshape` with -1 for the batch |
| transpose, t, movedim | `permute` |
| chunk, split, unbind and their items | `slice`, `select` |
| mean over all positions of feature maps | `adaptive_avg_pool`, `reshape` |
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from mbqc.errors import TraceError
from mbqc.ir.aten import arguments, op_name
from mbqc.ir.graph import is_int, replace_call, replace_value
from mbqc.ir.shapes import BATCHES, evaluate, place, scaled_by_batch
from mbqc.ir.types import Dims, TensorType, type_of
from mbqc.ir.vocabulary import is_aten

aten = torch.ops.aten


def simplify(gm: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Apply all rules, in place. Nodes must have types.

    Raises:
        TraceError: dropout is active in eval mode.
    """
    _simplify_sizes(gm, example_inputs)
    for node in list(gm.graph.nodes):
        if not is_aten(node):
            continue
        name = op_name(node)
        if name in _MAY_BE_IDENTITY and _is_identity(node):
            replace_value(node, node.args[0])
        elif name in _RULES:
            _RULES[name](node)


def _simplify_sizes(gm: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Put numbers for fixed sizes and what is computed from them, multiples of the first input's batch for others."""
    if not any(is_int(n) for n in gm.graph.nodes):
        return
    values = [evaluate(gm, example_inputs, batch) for batch in BATCHES]
    *_, last_input = gm.graph.find_nodes(op="placeholder")
    with gm.graph.inserting_after(last_input):
        batch = gm.graph.call_function(aten.sym_size.int, (gm.graph.find_nodes(op="placeholder")[0], 0))
    for node in [n for n in values[0] if n.op == "call_function" and isinstance(values[0][n], int | float)]:
        first, second = values[0][node], values[1][node]
        if first == second:
            replace_value(node, first)
        elif is_int(node) and (scaled := scaled_by_batch((first, second))) is not None:
            if scaled == -1:
                replace_value(node, batch)
            else:
                replace_call(node, "call_function", operator.mul, (batch, -scaled))


_RESHAPES = frozenset(
    """
    view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int view_as.default
    squeeze.default squeeze.dim squeeze.dims unsqueeze.default
    """.split()  # noqa: SIM905
)
_PERMUTES = frozenset(
    """
    transpose.int swapaxes.default swapdims.default permute.default movedim.int t.default numpy_T.default mT.default
    """.split()  # noqa: SIM905
)
_DROPOUTS = frozenset({"dropout.default", "feature_dropout.default", "alpha_dropout.default"})
_COPIES = frozenset(
    """
    alias.default detach.default contiguous.default clone.default lift_fresh_copy.default
    to.dtype to.device to.dtype_layout to.other type_as.default _to_copy.default
    expand.default expand_as.default slice.Tensor narrow.default
    """.split()  # noqa: SIM905
)
_MAY_BE_IDENTITY = _RESHAPES | _COPIES | _DROPOUTS


def _is_identity(node: fx.Node) -> bool:
    """Whether the node returns its first argument, for operations that do so if they keep its type."""
    if is_aten(node, *_DROPOUTS):
        if arguments(node)["train"]:
            raise TraceError(
                "dropout is active in eval mode",
                where=place(node),
                hint="pass training=self.training to F.dropout",
            )
        return True
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    return type_of(source) == type_of(node) and arguments(node).get("step", 1) == 1


def _reshape(node: fx.Node) -> None:
    dims = type_of(node).dims
    if sum(d < 0 for d in dims) <= 1:
        _to_reshape(node, dims)


def _to_reshape(node: fx.Node, dims: Dims) -> None:
    """Make a node a reshape, of what the reshapes before it started from."""
    source = node.args[0]
    while isinstance(source, fx.Node) and is_aten(source, "reshape.default"):
        source = source.args[0]
    if isinstance(source, fx.Node) and type_of(source).dims == dims:
        replace_value(node, source)
    else:
        replace_call(node, "call_function", aten.reshape.default, (source, [max(d, -1) for d in dims]))


def _permute(node: fx.Node) -> None:
    """Any permutation of dimensions, found by applying it to their numbers."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    assert isinstance(node.target, OpOverload)
    rank = len(type_of(source).dims)
    # a tensor of shape (0, 1, 2, ...): permuting it permutes the numbers
    numbered = torch.empty(tuple(range(rank)), device="meta")
    order = list(node.target(numbered, *node.args[1:], **node.kwargs).shape)
    if order == list(range(rank)):
        replace_value(node, source)
    else:
        replace_call(node, "call_function", aten.permute.default, (source, order))


def _split(node: fx.Node) -> None:
    """Replace the items of a split by slices of its input; a split along the batch stays."""
    source, types = node.args[0], node.meta["type"]
    assert isinstance(source, fx.Node)
    rank = len(type_of(source).dims)
    dim: int = arguments(node)["dim"] % rank
    removed = is_aten(node, "unbind.int")
    sizes: list[int] = [1 if removed else t.dims[dim] for t in types]
    if type_of(source).dims[dim] < 0 or not all(u.target is operator.getitem for u in node.users):
        return
    for item in list(node.users):
        assert isinstance(item.args[1], int)
        index = item.args[1] % len(sizes)
        start = sum(sizes[:index])
        if removed:
            replace_call(item, "call_function", aten.select.int, (source, dim, start))
        else:
            args = (source, dim, start, start + sizes[index])
            replace_call(item, "call_function", aten.slice.Tensor, args)
    node.graph.erase_node(node)


def _mean(node: fx.Node) -> None:
    """The mean over every position: of N x C x H x W over H and W, of N x C x L over L."""
    bound = arguments(node)
    source = bound["self"]
    found = type_of(source)
    rank = len(found.dims)
    if rank not in _ADAPTIVE or bound["dtype"]:
        return
    if sorted(d % rank for d in bound["dim"] or range(rank)) != list(range(2, rank)):
        return
    pooled = (*found.dims[:2], *[1] * (rank - 2))
    with node.graph.inserting_before(node):
        pool = node.graph.call_function(_ADAPTIVE[rank], (source, [1] * (rank - 2)))
    pool.meta = {**node.meta, "type": TensorType(found.dtype, pooled)}
    if bound["keepdim"]:
        replace_value(node, pool)
    else:
        node.replace_input_with(source, pool)
        _to_reshape(node, found.dims[:2])


_ADAPTIVE = {3: aten.adaptive_avg_pool1d.default, 4: aten.adaptive_avg_pool2d.default}

_RULES: dict[str, Callable[[fx.Node], None]] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_PERMUTES, _permute),
    **dict.fromkeys(("chunk.default", "split.Tensor", "split.sizes", "split_with_sizes.default"), _split),
    "unbind.int": _split,
    "mean.dim": _mean,
}
