"""Aten calls made calls of modules, named after the modules and parameters of the user's model."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, fx, nn

from mbqc.errors import TraceError
from mbqc.ir.aten import arguments, op_name
from mbqc.ir.graph import get_tensor, replace_call
from mbqc.ir.shapes import place
from mbqc.ir.types import type_of
from mbqc.ir.vocabulary import is_aten
from mbqc.passes.normalize.builders import BUILDERS, TENSORS, build

_NO_SCOPE = ("", "")


def raise_to_modules(gm: fx.GraphModule) -> None:
    """Replace every aten call that a module means by a call of that module, in place. Nodes must have types.

    A layer is named by its module in the user's model (`blocks.0.qkv`), else by its weight without `.weight`; calls of
    one user module become calls of one module. A function without weights is named by the module that calls it:
    `layer1.0.relu`. Parameters are shared with the model, not copied.

    Raises:
        TraceError: a BatchNorm has no running statistics.
    """
    gm.graph.eliminate_dead_code()
    found = [(node, _module_for(gm, node)) for node in gm.graph.nodes if is_aten(node)]
    made: dict[tuple[Any, ...], str] = {}
    # layers first: `block.conv` must not lose its name to an activation inside of it
    for node, module in sorted(found, key=lambda pair: pair[1] is None or not _tensors(pair[1])):
        if module is None:
            continue
        base = _own_path(node, module)
        key = (base, repr(module), *map(id, _tensors(module)))
        path = made.get(key) if base is not None else None
        if path is None:
            path = made[key] = _free_path(gm, node, base, module)
            gm.add_submodule(path, module)
        new = replace_call(node, "call_module", path, (_input(node),))
        new.meta["scope"] = (path, type(module).__name__)


def _module_for(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What the call of `node` means, with its tensors; None where no module does or an argument is computed."""
    name = op_name(node)
    source = _input(node)
    if name not in BUILDERS or source is None:
        return None
    bound = arguments(node)
    if bound.get("training"):
        raise TraceError(
            "a BatchNorm uses the statistics of the batch in eval mode",
            where=place(node),
            hint="let it track running statistics (track_running_stats=True)",
        )
    for key, value in bound.items():
        if isinstance(value, fx.Node) and value.op == "get_attr":
            bound[key] = get_tensor(gm, str(value.target))
    constant = {key: value for key, value in bound.items() if value is not source}
    if any(isinstance(v, fx.Node) for value in constant.values() for v in _flat(value)):
        return None
    return build(name, bound, type_of(source).dims)


def _input(node: fx.Node) -> fx.Node | None:
    """The argument that is data: the first one, but for an embedding its indices."""
    value = node.args[1] if is_aten(node, "embedding.default") else node.args[0]
    return value if isinstance(value, fx.Node) else None


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _tensors(module: nn.Module) -> list[Tensor]:
    found = [getattr(module, key, None) for key in TENSORS]
    return [t for t in found if isinstance(t, Tensor)]


def _own_path(node: fx.Node, module: nn.Module) -> str | None:
    """Where the user's model has this very module, or the weights of this function; None for a plain function."""
    path, cls = node.meta.get("scope", _NO_SCOPE)
    # nn.ZeroPad2d, a ConstantPad2d, comes back from its aten call as one
    if cls == type(module).__name__ or issubclass(getattr(nn, cls, nn.Module), type(module)):
        return str(path)
    weight = arguments(node).get("weight")
    return str(weight.target).removesuffix("weight").rstrip("._") if isinstance(weight, fx.Node) else None


def _free_path(gm: fx.GraphModule, node: fx.Node, base: str | None, module: nn.Module) -> str:
    """`base` if that is free, else a name from the module that calls the function and the operation."""
    targets = [n for n in gm.graph.nodes if n.op in ("call_module", "get_attr")]
    # tensors of the module itself may stay below its name
    others = [n for n in targets if n.users and not _reads_any(gm, n, module)]

    def is_taken(path: str) -> bool:
        return any(f"{path}.".startswith(f"{n.target}.") for n in targets)

    def is_free(path: str) -> bool:
        return not is_taken(path) and not any(str(n.target).startswith(f"{path}.") for n in others)

    if base and is_free(base):
        return base
    op = op_name(node).partition(".")[0]
    scope = node.meta.get("scope", _NO_SCOPE)[0] if base is None else base
    stem = f"{scope}{'_' if is_taken(scope) else '.'}{op}" if scope else op
    return next(path for path in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1))) if is_free(path))


def _reads_any(gm: fx.GraphModule, node: fx.Node, module: nn.Module) -> bool:
    return node.op == "get_attr" and any(get_tensor(gm, str(node.target)) is t for t in _tensors(module))
