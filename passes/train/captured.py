"""Passes recorded as CUDA graphs: one launch for the thousand short kernels of a forward and backward pass.

Not `torch.cuda.make_graphed_callables`: it records a module, without the loss, and would copy each gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn

from mbqc.errors import DataError, PassError
from mbqc.passes.train.objective import Objective
from mbqc.passes.train.randomness import on_the_host
from mbqc.pipeline.data import Batch
from mbqc.pipeline.objective import each_tensor
from mbqc.widths import Widths

WARM_UPS = 3
"""Passes before a recording, in which libraries choose their algorithms and kernels are compiled."""

Result = TypeVar("Result")


class Graph(Protocol):
    """What `GraphRecorder.record` makes; `torch.cuda.CUDAGraph` is one."""

    def replay(self) -> None:
        """Repeats the recorded kernels on the same memory."""


class GraphRecorder:
    """Records CUDA graphs of one device that share their memory: no two of them ever run at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs `work` a few times where it will be recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], Result]) -> tuple[Graph, Result]:
        """The kernels of `work`, none of which runs yet, and the tensors that a replay fills.

        Raises:
            RuntimeError: something in `work` cannot be recorded: it made the host wait for the device.
            Exception: what else `work` raises.
        """
        graph, cause = torch.cuda.CUDAGraph(), None
        try:
            # the end of a broken recording raises too, and leaves its own stream behind
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                # thread_local: a DataLoader pins memory in a thread of its own
                torch.cuda.graph(graph, self._pool, self._stream, "thread_local"),
            ):
                try:
                    result = work()
                except Exception as error:
                    cause = error
                    raise
        except RuntimeError as error:
            raise cause or error from None
        return graph, result


@dataclass(frozen=True)
class _Recording:
    """One pass.

    Attributes:
        given: inputs, target, and the output that teaches, if one does: a replay reads them.
        gradients: of the parameters that have one.
    """

    graph: Graph
    given: tuple[Tensor, ...]
    output: Any
    loss: Tensor
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]

    def takes(self, given: tuple[Tensor, ...]) -> bool:
        """Whether tensors are of the shapes and types of those that were recorded."""
        return [(t.shape, t.dtype) for t in given] == [(t.shape, t.dtype) for t in self.given]


class Captured:
    """`Objective.backward`, recorded at its first call for each of the widths and replayed at all others.

    A replay repeats what was recorded: what Python decides in a layer or a loss is not decided again. Draws on the GPU
    are new ones.

    Args:
        graph: whose parameters get the gradients.

    Attributes:
        others: how many passes were not replayed, because their batch had another shape than the first.
    """

    def __init__(self, objective: Objective, graph: fx.GraphModule, device: torch.device) -> None:
        self._objective, self._graph, self._device = objective, graph, device
        self.others = 0
        self.forget()

    def forget(self) -> None:
        """Records all passes anew, since the graph computes in another way from now on."""
        self._recordings: dict[Widths, _Recording] = {}
        self._recorder = GraphRecorder(self._device)

    def backward(
        self, inputs: Batch, target: Tensor, widths: Widths, highest: Tensor | None, share: float
    ) -> tuple[Any, Tensor]:
        """As `Objective.backward`; `share` and whether there is `highest` must be those of the first call.

        Raises:
            PassError: the pass cannot be recorded.
        """
        given = (*inputs, target) if highest is None else (*inputs, target, highest)
        recording = self._recordings.get(widths)
        if recording is None:
            recording = self._recordings[widths] = self._record(given, len(inputs), widths, share)
        if not recording.takes(given):
            self.others += 1
            return self._objective.backward(inputs, target, widths, highest, share)
        for ours, theirs in zip(recording.given, given, strict=True):
            ours.copy_(theirs, non_blocking=True)
        recording.graph.replay()
        # a sum of several widths grows in the memory of the first one's recording, whose next replay overwrites it
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return each_tensor(recording.output, Tensor.clone), recording.loss.clone()

    def _record(self, given: tuple[Tensor, ...], inputs: int, widths: Widths, share: float) -> _Recording:
        given = tuple(tensor.clone() for tensor in given)
        highest = given[inputs + 1] if len(given) > inputs + 1 else None
        parameters = list(self._graph.parameters())

        def work() -> tuple[Any, Tensor]:
            for parameter in parameters:  # so that the backward writes a gradient instead of adding to one
                parameter.grad = None
            return self._objective.backward(given[:inputs], given[inputs], widths, highest, share)

        before = [parameter.grad for parameter in parameters]
        with self._unchanged():
            self._recorder.warm_up(work)
        drawn = on_the_host()
        try:
            graph, (output, loss) = self._recorder.record(work)
        except torch.OutOfMemoryError:
            raise
        except (DataError, RuntimeError) as error:  # a loss's failure is a DataError that names its line
            raise PassError(
                f"the pass at {widths} bits cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}",
                hint="capture=false; or a loss() and layers that read no number from the GPU (.item(), if, print)",
            ) from error
        if on_the_host() != drawn:
            raise PassError(
                f"the pass at {widths} bits cannot be recorded as a CUDA graph: it draws random numbers from Python or "
                "numpy, which every replay would repeat",
                hint="capture=false; or draw on the device, with torch",
            )
        gradients = tuple((p, p.grad) for p in parameters if p.grad is not None)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        return _Recording(graph, given, output, loss, gradients)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Afterwards statistics and random generators are as they were before."""
        buffers = list(self._graph.buffers())
        before = [buffer.clone() for buffer in buffers]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
