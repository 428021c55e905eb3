"""A device of which PyTorch believes that it is none of the CPU's, for tests on machines without another one.

Its tensors say that they are on `device()`, hold their numbers on the CPU, and are computed there; so results are those
of the CPU bit for bit. A tensor of each device in one operation is an error, as with a GPU. It is stricter than CUDA in
that an index must be on the device too. Once installed it stays: run what needs it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
Result = TypeVar("Result")


@contextmanager
def with_second_device() -> Iterator[Callable[..., Any]]:
    """`call(function, *arguments)` runs it in a process that has the device, and gives or raises what it does."""
    with ProcessPoolExecutor(1, get_context("spawn"), _install) as pool:
        yield lambda function, *arguments: pool.submit(_call, function, arguments).result()


def device() -> torch.device:
    """The device, in a process that has it."""
    return torch.device(NAME, 0)


def _install() -> None:
    _setup_privateuseone_for_python_backend(NAME)


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    with _Mode():
        return function(*arguments)


class _There(Tensor):
    """A tensor on the device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device(),
        )
        made.held = held
        return made

    # what torch does for its own devices below the level at which a subclass can see it

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any) -> Tensor:  # type: ignore[override]
        return self.held.new_tensor(data).to(self.device)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(torch.tensor(index).to(self.device) if isinstance(index, list) else index)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what makes a tensor on the device of none, or of one on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []

    def held(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.held if isinstance(tensor, _There) else tensor

    inside = _mapped(held, args), {name: _mapped(held, value) for name, value in kwargs.items()}
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, _There)}
    if func is torch.ops.aten.copy_.default:
        stays = isinstance(args[0], _There)
    else:
        forgotten = [tensor for tensor in tensors if not isinstance(tensor, _There) and tensor.dim()]
        if there and forgotten:  # a number may come from the CPU
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in forgotten)
            raise RuntimeError(f"{func}: tensors of shapes {shapes} are on the CPU, others on {device()}")
        stays = bool(there)
    if (named := kwargs.get("device")) is not None:
        inside[1]["device"], stays = torch.device("cpu"), torch.device(named).type == NAME
    result = func(*inside[0], **inside[1])
    # what was changed in place is the tensor that it was
    return _mapped(lambda made: there[id(made)] if id(made) in there else _There(made), result) if stays else result


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_mapped(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value
