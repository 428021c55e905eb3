"""The second way to a graph: `torch.export`, for models that symbolic tracing cannot follow."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from mbqc.errors import TraceError
from mbqc.frontend.source import line_in_stack, line_of_error
from mbqc.ir.graph import get_tensor

_UNREACHABLE = 2**31
"""A batch that no memory holds: torch's own checks for overflow bound it beyond."""


def trace_by_export(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph of `model` in aten calls, sharing its parameters; `meta` as `frontend.trace` says.

    Raises:
        TraceError: control flow depends on data or the batch size, that is fixed, or export fails otherwise.
    """
    # a batch of one would become a constant
    inputs = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example_inputs)
    dynamic: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in inputs:
        dynamic[x] = {0: torch.export.Dim.DYNAMIC}
    try:
        # under no_grad, for a model may ask for that itself: a change of grad mode would become a node
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
            exported = program.module(check_guards=False)
    except Exception as exc:
        raise _explain(exc) from exc
    assert isinstance(exported, fx.GraphModule)
    _check_batch_is_free(program)
    return _plain(model, exported)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep export's warnings and printed graphs from the user: what goes wrong is raised as one error."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = disabled


def _check_batch_is_free(program: torch.export.ExportedProgram) -> None:
    """Raise TraceError where the program holds up to some batch size only, because the model decides on it."""
    for values in program.range_constraints.values():
        if values.upper < _UNREACHABLE:
            raise TraceError(
                f"the model decides on the batch size, this way for {values.upper} samples at most",
                hint="treat every batch alike, or move the decision out of the model",
            )


def _explain(error: Exception) -> TraceError:
    where = line_of_error(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return TraceError(
            "the model's control flow or shapes depend on the values of its input",
            where=where,
            hint="use torch.where, or move the decision out of the model",
        )
    if isinstance(error, ConstraintViolationError) or "Constraints violated" in str(error):
        return TraceError(
            "the model works for one batch size only",
            where=where,
            hint="write shapes with x.shape[0] or -1 instead of a fixed batch size",
        )
    reason = str(error).strip().split("\n")[0]
    if "ScriptModule" in reason:
        return TraceError("the model is a ScriptModule, or holds one", hint="give the nn.Module that it was made from")
    return TraceError(
        f"neither torch.fx nor torch.export can trace the model: {type(error).__name__}: {reason}",
        where=where,
        hint="rewrite this line with plain tensor operations",
    )


def _plain(model: nn.Module, exported: fx.GraphModule) -> fx.GraphModule:
    """Export's graph without its wrapping of inputs and outputs, tensors and modules by their first name in `model`."""
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    paths = _first_paths(model)
    tensors: dict[str, Tensor] = {}
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], env.__getitem__))
            continue
        env[node] = copied = graph.node_copy(node, env.__getitem__)
        if node.op == "get_attr":
            tensor = get_tensor(exported, str(node.target))
            copied.target = names.get(id(tensor), node.target)
            tensors[str(copied.target)] = tensor
        copied.meta = {"source": line_in_stack(node.meta.get("stack_trace")), "scope": _scope(node, paths)}
    return fx.GraphModule(tensors, graph)


def _first_paths(model: nn.Module) -> dict[str, str]:
    """The first path of each module, by every path that leads to it."""
    first = {id(module): path for path, module in model.named_modules()}
    return {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}


def _scope(node: fx.Node, paths: dict[str, str]) -> tuple[str, str]:
    """Path and class name of the innermost module whose forward made the node."""
    stack = [entry for entry in node.meta.get("nn_module_stack", {}).values() if entry[0] in paths]
    path, cls = stack[-1] if stack else ("", "Module")
    return paths[path], str(cls).rpartition(".")[2]
