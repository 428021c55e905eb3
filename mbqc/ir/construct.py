"""Modules as text, `Conv2d{in_channels=3,...}`, and back; attributes of a graph by dotted name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mbqc.errors import PipelineError, VerifyError
from mbqc.ir.modules import QUANTIZED_MODULES
from mbqc.ir.vocabulary import CANONICAL_MODULES
from mbqc.spec import format_spec
from mbqc.values import format_value, parse_literal

MODULES: tuple[type[nn.Module], ...] = (*CANONICAL_MODULES, nn.ZeroPad1d, nn.ZeroPad2d, *QUANTIZED_MODULES)
"""The module classes that IR text can hold."""

_UNPRINTED = ("device", "dtype", "inplace")
"""Where and how a module computes, not what: the first two come from its tensors."""


def format_module(module: nn.Module) -> str:
    """A module as its class and the constructor arguments that differ from the defaults.

    Every argument is read from the attribute of the same name. What has no text form, as may be in a class
    that is none of `MODULES`, stands in angle brackets.
    """
    arguments = {key: (_argument(module, p), p.default) for key, p in _arguments(type(module)).items()}
    texts = {key: _text(value) for key, (value, default) in arguments.items() if not _is_default(value, default)}
    return format_spec(type(module).__name__, texts)


def build_module(cls: type[nn.Module], options: Mapping[str, str]) -> nn.Module:
    """A module without data (its tensors are on the meta device) from option texts.

    Raises:
        VerifyError: the class does not take these options.
    """
    known = _arguments(cls)
    for key in options:
        if key not in known:
            raise VerifyError(f"{cls.__name__} has no option {key!r}", hint=f"its options are {', '.join(known)}")
    values = {key: parse_literal(text) for key, text in options.items()}
    try:
        with torch.device("meta"):  # no time, memory or random numbers spent on weights that are replaced
            return cls(**values).eval()
    except Exception as error:  # whatever a constructor raises, the text is at fault
        raise VerifyError(f"{cls.__name__} cannot be built: {error}") from error


class TensorStore:
    """The tensors of a graph under construction, each wanted as parameter or buffer.

    Names that refer to one memory come back as one object, so tied weights stay tied.

    Args:
        tensors: name to tensor; they are used, not copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._shared: dict[tuple[object, ...], Tensor] = {}

    def get(self, name: str, as_parameter: bool) -> Tensor:
        """The tensor `name`.

        Raises:
            VerifyError: there is none.
        """
        if name not in self._tensors:
            raise VerifyError(f"there is no tensor {name!r}", hint="give the tensors of graph_tensors(gm)")
        tensor = self._tensors[name]
        if as_parameter and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        memory = tensor.untyped_storage()._cdata  # not data_ptr: it is 0 for every empty or meta tensor
        key = (memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, as_parameter)
        return self._shared.setdefault(key, tensor)

    def fill(self, name: str, module: nn.Module) -> None:
        """Gives a module its tensors.

        Raises:
            VerifyError: one is missing or has another shape.
        """
        for slots, as_parameter in ((module._parameters, True), (module._buffers, False)):
            for key, empty in slots.items():
                if empty is None:
                    continue
                tensor = self.get(f"{name}.{key}", as_parameter)
                if tensor.shape != empty.shape:
                    message = f"tensor {name}.{key} has shape {tuple(tensor.shape)}, expected {tuple(empty.shape)}"
                    raise VerifyError(message)
                setattr(module, key, tensor)


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """The tensor attribute with a dotted name.

    Raises:
        VerifyError: there is none.
    """
    owner, _, leaf = name.rpartition(".")
    try:
        value = getattr(root.get_submodule(owner), leaf)
    except AttributeError as error:
        raise VerifyError(f"there is no attribute {name!r}") from error
    if not isinstance(value, Tensor):
        raise VerifyError(f"attribute {name!r} is no tensor", hint="a get_attr node can only read tensors")
    return value


def install(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Puts a module, parameter or buffer under a dotted name, with empty modules in between.

    Raises:
        VerifyError: the name is taken.
    """
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            _check_free(owner, part, name)
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    _check_free(owner, leaf, name)
    if isinstance(value, nn.Module):
        owner.add_module(leaf, value)
    elif isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)


def _check_free(owner: nn.Module, part: str, name: str) -> None:
    if hasattr(owner, part):
        raise VerifyError(f"{name!r} cannot be a name: the attribute {part!r} exists")


def _arguments(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return {
        p.name: p
        for p in inspect.signature(cls).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in _UNPRINTED and p.name[0] != "_"
    }


def _argument(module: nn.Module, parameter: inspect.Parameter) -> object:
    # An argument with a default but no attribute is a deprecated spelling of another (Hardtanh's min_value).
    value = getattr(module, parameter.name, parameter.default)
    if parameter.name == "bias":
        return isinstance(value, Tensor)
    return tuple(value) if isinstance(value, list) else value


def _is_default(value: object, default: object) -> bool:
    """Whether a value is the default, or the tuple that a layer makes of it: stride 1 is kept as (1, 1)."""
    if default is inspect.Parameter.empty:
        return False
    items = value if isinstance(value, tuple) and value and not isinstance(default, tuple) else (value,)
    return all(_text(item) == _text(default) for item in items)


def _text(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "<missing>"
    try:
        return format_value(value)
    except PipelineError:
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
