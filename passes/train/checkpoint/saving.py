"""Checkpoints of a training: what of it is stored, and how it goes on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Protocol

from safetensors.torch import save
from torch import Tensor, fx

from mbqc.errors import CheckpointError
from mbqc.ir.modules import ActivationQuantizer, WeightQuantizer, WidthBatchNorm
from mbqc.ir.text import print_graph
from mbqc.passes.train.checkpoint.store import Checkpoint, Store
from mbqc.passes.train.state import State
from mbqc.passes.train.task import Task
from mbqc.pipeline import Pass
from mbqc.pipeline.pipeline import passes_of
from mbqc.spec import options_of
from mbqc.values import format_value


class Part(Protocol):
    """Whatever has tensors to keep."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""


class Saver:
    """Writes and reads the checkpoints of one training in `context.folder`; without a folder nothing is kept.

    Of several ranks the first one alone touches the folder; what it cannot do there ends all.

    Args:
        task: its graph as it is before training, without annotations that a pass has measured.
        parts: what is stored beside the graph, by name.
        data: what tells the data from others, in words.
    """

    def __init__(self, task: Task, parts: Mapping[str, Part], data: str) -> None:
        self._graph, self._parts, self._context, self._ranks = task.graph, parts, task.context, task.ranks
        self._store: Store[State] | None = None
        if (folder := task.context.folder) is not None:
            self._store = Store(folder, _identity(task, data), State)

    def save(self, state: State) -> None:
        """Stores where the training stands; all ranks call it.

        Raises:
            CheckpointError: it cannot be written; earlier ones are still there.
        """
        if (store := self._store) is None:
            return
        tensors = {f"graph.{name}": value for name, value in self._graph.state_dict().items()}
        for part, owner in self._parts.items():
            tensors |= {f"{part}.{name}": value for name, value in owner.state().items()}
        with state.clock("checkpoints"):
            self._ranks.by_first(lambda: store.save(Checkpoint(state.done, tensors, state)))

    def start(self) -> State | None:
        """Where to go on, the graph and all parts as they were there; None to start anew. All ranks call it.

        Raises:
            CheckpointError: nothing can be kept in the folder, there are checkpoints and nobody asked to resume, or
                none that fits where somebody did.
        """
        if (store := self._store) is None:
            return None
        tensors: dict[str, Tensor] = {}
        state = self._ranks.by_first(lambda: self._read(store, tensors))
        if state is None:
            return None
        tensors = self._ranks.tensors_of_first(tensors)
        self._graph.load_state_dict(_of("graph", tensors))
        for part, owner in self._parts.items():
            owner.restore(_of(part, tensors))
        return state

    def _read(self, store: Store[State], tensors: dict[str, Tensor]) -> State | None:
        """The state of the newest checkpoint, if it is to be resumed; its tensors are added to `tensors`."""
        store.prepare()
        if not self._context.resume:
            if store.steps():
                raise CheckpointError(
                    "there are checkpoints of an earlier training",
                    where=str(store.folder),
                    hint="go on with --resume, or name an empty folder",
                )
            return None
        found = store.latest(lambda text: self._context.report.add("train", "warning", "", text))
        if found is None:
            raise CheckpointError("there is no checkpoint to resume from", where=str(store.folder))
        tensors.update(found.tensors)
        return found.facts


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def _identity(task: Task, data: str) -> dict[str, str]:
    """What a user gave that decides the numbers; nothing measured: threads of another number round in another way."""
    passes = (*passes_of(task.graph), task.options)
    return {
        "mbqc": version("mbqc"),
        "model": _fingerprint(task.graph),
        "seed": str(task.context.seed),
        "data": data,
        "passes": ",".join(item.name for item in passes),
        **_options(passes),
    }


def _options(passes: Iterable[Pass]) -> dict[str, str]:
    """The options of all passes, those left at their defaults too: another mbqc may have others."""
    found: dict[str, str] = {}
    for item in passes:
        for option in options_of(type(item)):
            name, value = f"{item.name} {option.name}", format_value(getattr(item, option.name))
            found[name] = f"{found[name]}, then {value}" if name in found else value
    return found


def _fingerprint(graph: fx.GraphModule) -> str:
    """Of a graph's text, and of its numbers but those that passes measure."""
    numbers = graph.state_dict()
    for name, module in graph.named_modules(remove_duplicate=False):
        if isinstance(module, WeightQuantizer | ActivationQuantizer):
            for key in module.state_dict():
                del numbers[f"{name}.{key}"]
        if isinstance(module, WidthBatchNorm):  # row 0 is the float model's
            for key in ("running_mean", "running_var"):
                numbers[f"{name}.{key}"] = numbers[f"{name}.{key}"][0]
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in numbers.items()}
    return hashlib.sha256(print_graph(graph).encode() + save(tensors)).hexdigest()[:16]
