"""The rules of graphs, checked: those of every graph, and those of the canonical float graph."""

from __future__ import annotations

import inspect
import operator

from torch import fx, nn
from torch._ops import OpOverload

from mbqc.errors import VerifyError
from mbqc.ir.aten import bind
from mbqc.ir.graph import get_tensor, is_int
from mbqc.ir.types import TensorType
from mbqc.ir.vocabulary import CANONICAL_MODULES, is_aten, module_of

IDENTITIES = (
    "dropout.default",
    "feature_dropout.default",
    "alias.default",
    "detach.default",
    "contiguous.default",
)
"""Aten calls that a canonical graph does without."""


def check_well_formed(gm: fx.GraphModule) -> None:
    """Check what holds for every graph between passes.

    Each node comes after what it uses, is used, names a module or tensor that exists and calls it with arguments that
    fit; the output is a tensor or a flat tuple of tensors; no module, parameter or buffer is left over.

    Raises:
        VerifyError: names the node, module or tensor and the rule it breaks.
    """
    seen: set[fx.Node] = set()
    for node in gm.graph.nodes:
        _raise_for(node, _broken_order(node, seen) or _broken_reference(gm, node) or _broken_call(node))
        seen.add(node)
    _check_nothing_left_over(gm)


def check_canonical(gm: fx.GraphModule) -> None:
    """Check that `gm` is a canonical float graph.

    It is well-formed and holds placeholders, `get_attr` of tensors, calls of CANONICAL_MODULES in eval mode and of
    functional aten overloads, arithmetic on sizes, items of nodes with several outputs, and one output. Every tensor
    has a type, and those that enter layers and BatchNorms have the channels these expect.

    Raises:
        VerifyError: names the node, module or tensor and the rule it breaks.
    """
    check_well_formed(gm)
    for node in gm.graph.nodes:
        _raise_for(node, _broken_operation(node) or _broken_type(node) or _broken_channels(node))
    for path, module in gm.named_modules():
        if module.training:
            raise VerifyError("the module is in training mode", where=f"module {path or '(root)'}")


def _raise_for(node: fx.Node, reason: str | None) -> None:
    if reason is not None:
        source = node.meta.get("source")
        raise VerifyError(reason, where=f"node {node.name}" + (f" ({source})" if source else ""))


def _broken_order(node: fx.Node, seen: set[fx.Node]) -> str | None:
    late = next((n.name for n in node.all_input_nodes if n not in seen), None)
    if late is not None:
        return f"it uses {late} before that is computed"
    if not node.users and node.op not in ("placeholder", "output"):
        return "nothing uses it"
    return None


def _broken_reference(gm: fx.GraphModule, node: fx.Node) -> str | None:
    try:
        if node.op == "call_module":
            gm.get_submodule(str(node.target))
        elif node.op == "get_attr":
            get_tensor(gm, str(node.target))
    except AttributeError:
        return f"there is no {'module' if node.op == 'call_module' else 'tensor'} '{node.target}'"
    return None


def _broken_call(node: fx.Node) -> str | None:
    module = module_of(node)
    try:
        if module is not None:
            inspect.signature(type(module).forward).bind(module, *node.args, **node.kwargs)
        elif isinstance(node.target, OpOverload):
            bind(node.target, node.args, node.kwargs)
    except TypeError as exc:
        return f"wrong arguments for {type(module).__name__ if module is not None else node.target}: {exc}"
    if node.op == "output":
        value = node.args[0]
        flat = value if isinstance(value, tuple) and value else (value,)
        if not all(isinstance(v, fx.Node) and not is_int(v) for v in flat):
            return "the output must be a tensor or a flat tuple of tensors"
    return None


def _check_nothing_left_over(gm: fx.GraphModule) -> None:
    called = {str(n.target) for n in gm.graph.nodes if n.op == "call_module"}
    read = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
    inside_called = tuple(f"{path}." for path in called)
    for path, _ in gm.named_modules(remove_duplicate=False):
        leads_to_used = any(f"{used}.".startswith(f"{path}.") for used in called | read)
        if path and not leads_to_used and not path.startswith(inside_called):
            raise VerifyError("nothing calls the module", where=f"module {path}")
    tensors = (*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False))
    for name, _ in tensors:
        if name not in read and not name.startswith(inside_called):
            raise VerifyError("nothing reads the tensor", where=f"tensor {name}")


def _broken_operation(node: fx.Node) -> str | None:
    module = module_of(node)
    if module is not None:
        fits = isinstance(module, CANONICAL_MODULES)
        return None if fits else f"module class {type(module).__name__} is not canonical"
    if node.op == "call_function" and not is_int(node):
        return _broken_function(node)
    return f"operation {node.op} is not canonical" if node.op == "call_method" else None


def _broken_function(node: fx.Node) -> str | None:
    if node.target is operator.getitem:
        source = node.args[0]
        several = isinstance(source, fx.Node) and isinstance(source.meta.get("type"), tuple)
        return None if several else "getitem of a node with one output"
    if not isinstance(node.target, OpOverload) or not is_aten(node):
        return f"function {node.target} is no aten overload"
    if node.target._schema.is_mutable:
        return f"{node.target} changes its argument in place"
    return f"{node.target} does nothing in eval mode" if is_aten(node, *IDENTITIES) else None


def _broken_type(node: fx.Node) -> str | None:
    found = node.meta.get("type")
    if node.op == "output" or is_int(node):
        return None if found is None else "a size has a tensor type"
    types = found if isinstance(found, tuple) and found else (found,)
    return None if all(isinstance(t, TensorType) for t in types) else "it has no type"


def _broken_channels(node: fx.Node) -> str | None:
    module = module_of(node)
    if module is None or not node.all_input_nodes:
        return None
    found = node.all_input_nodes[0].meta.get("type")
    if not isinstance(found, TensorType):
        return None
    expected, dim = _channels(module)
    actual = found.dims[dim] if len(found.dims) >= abs(dim) + (dim >= 0) else None
    if expected is None or actual == expected:
        return None
    return f"{type(module).__name__} for {expected} channels gets {actual}: {found}"


def _channels(module: nn.Module) -> tuple[int | None, int]:
    """How many channels a module expects, and in which dimension of its input."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return module.num_features, 1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return module.in_channels, 1
    if isinstance(module, nn.Linear):
        return module.in_features, -1
    return None, 0
