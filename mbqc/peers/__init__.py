"""Other runtimes on the same float model, for comparison in one process. One module each, imported when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mbqc.errors import UsageError

PEERS = {"torch": "mbqc.peers.eager", "onnxruntime": "mbqc.peers.onnx", "openvino": "mbqc.peers.openvino"}
"""Name to module, which gives `runners`."""

Batch = tuple[Tensor, ...]
"""Inputs of a model."""

Call = Callable[[], Sequence[Tensor | npt.NDArray[np.generic]]]
"""One run on inputs that are bound to it, which is what is timed; the next run may overwrite its outputs."""

Runner = Callable[[Batch], Call]
"""Binds inputs."""


@dataclass(frozen=True)
class Subject:
    """What is compared.

    Attributes:
        net: the float model, in evaluation mode.
        batches: inputs for calibration; all inputs, also those of later calls, have their shapes.
        threads: how many a runtime may use.
    """

    net: nn.Module
    batches: Sequence[Batch]
    threads: int


class Peer(Protocol):
    """A module of `PEERS`."""

    def runners(self, subject: Subject) -> dict[str, Runner]:
        """The subject on this runtime, in one or several precisions, by a name for tables.

        Raises:
            Exception: the runtime's own, where it cannot run the model.
        """
        ...


def parse_peers(text: str) -> tuple[str, ...]:
    """Names between commas, each once.

    Raises:
        UsageError: there is no peer of such a name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PEERS:
            raise UsageError(f"there is no runtime {name!r} to compare with", hint=", ".join(PEERS))
    return names


def find_peer(name: str) -> Peer:
    """The module of a peer.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed.
    """
    return cast(Peer, importlib.import_module(PEERS[name]))
