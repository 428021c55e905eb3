"""The words of the canonical graph: module classes by what they do, and the aten functions between them.

A canonical graph holds placeholders, `get_attr` of plain tensors, calls of the modules below, calls of
`torch.ops.aten` overloads, and one output. `normalize` brings every traced model to this form.
"""

from __future__ import annotations

from torch import fx, nn
from torch._ops import OpOverload

LAYERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""What a width can be chosen for: a weight matrix times an activation."""

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d)

BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d)

CLAMPS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
"""Activations that are a clamp: free in an integer epilogue."""

UNARY: tuple[type[nn.Module], ...] = (
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.Softplus,
    nn.Mish,
)
"""Other element-wise activations: a table of 256 entries on integer codes."""

MAX_POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d)
AVERAGE_POOLS: tuple[type[nn.Module], ...] = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)

PADS: tuple[type[nn.Module], ...] = (nn.ConstantPad1d, nn.ConstantPad2d)
"""Padding as a module of its own (nn.ZeroPad2d is a ConstantPad2d)."""

FLOAT_MODULES: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.Softmax,
    nn.PReLU,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Conv3d,
    nn.BatchNorm3d,
)
"""Modules without an integer form: they run in float and are reported."""

CANONICAL_MODULES = (
    *LAYERS,
    *BATCH_NORMS,
    *CLAMPS,
    *UNARY,
    *MAX_POOLS,
    *AVERAGE_POOLS,
    *PADS,
    nn.Flatten,
    *FLOAT_MODULES,
)


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a `call_module` node calls, None for every other node."""
    if node.op != "call_module":
        return None
    owner = node.graph.owning_module
    assert owner is not None, "a node outside a GraphModule has no module"
    return owner.get_submodule(str(node.target))


def is_module(node: fx.Node, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether the node calls a module of one of `classes`."""
    return isinstance(module_of(node), classes)


def is_aten(node: fx.Node, *names: str) -> bool:
    """Whether the node calls an aten overload, of one of `names` (`"add.Tensor"`) if any is given."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    namespace, _, name = str(node.target).partition(".")
    return namespace == "aten" and (not names or name in names)
