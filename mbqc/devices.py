"""Devices: what a user names, whether it is there, and what fits on it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mbqc.errors import UsageError

CPU = torch.device("cpu")

ROOM = 0.5
"""Share of a device's free memory that data may take; the rest is for the model, its gradients and activations."""


def find_device(asked: str | torch.device) -> torch.device:
    """The device that a user names: `cpu`, `cuda`, or `cuda:1` for one GPU of several.

    Raises:
        UsageError: these are no such words, or the device is not there.
    """
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{asked!r} is no device", where="device", hint="cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{device.type} is not supported", where="device", hint="cpu or cuda")
    if device.type == "cuda" and not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise UsageError(f"{device}: this PyTorch has no CUDA", where="device", hint="a PyTorch built for CUDA, or cpu")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if not found:
        raise UsageError(f"{device}: PyTorch finds no GPU", where="device", hint="nvidia-smi says more; or cpu")
    if device.index is not None and device.index >= found:
        listed = f"there are {found}" if found > 1 else "there is 1"
        raise UsageError(f"{device}: no device {device.index}: {listed}, counted from 0", where="device")
    return device if device.type == "cuda" else CPU


def fits(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether they may all stay on a device: where they are on it already, or take at most half of its free memory."""
    needed = sum(tensor.nbytes for tensor in tensors if tensor.device.type != device.type)
    return needed == 0 or needed <= ROOM * free_memory(device)


def free_memory(device: torch.device) -> int:
    """Free bytes on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def moved(tensors: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on a device; from pinned memory the host does not wait until they are there."""
    return tuple(tensor.to(device, non_blocking=device.type != "cpu") for tensor in tensors)
