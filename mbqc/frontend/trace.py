"""A user's model as a graph of plain modules and aten calls."""

from __future__ import annotations

import operator

from torch import Tensor, fx, nn

from mbqc.errors import TraceError
from mbqc.frontend.exported import trace_by_export
from mbqc.frontend.inplace import clear_flags, make_functional
from mbqc.frontend.reference import check_inputs, check_same, frozen_copy, run_reference
from mbqc.frontend.symbolic import trace_symbolically
from mbqc.ir.graph import is_int
from mbqc.ir.shapes import infer_types, place
from mbqc.ir.text import WIDTHS
from mbqc.ir.types import TensorType
from mbqc.ir.vocabulary import is_aten


def trace(
    model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: tuple[Tensor, ...] | None = None
) -> fx.GraphModule:
    """Bring a copy of `model`, in eval mode, into a graph; the model itself stays as it is.

    Tried first is symbolic tracing by torch.fx, then torch.export; `gm.meta["traced_by"]` says which one it was. The
    graph holds placeholders, `get_attr`, calls of plain torch modules and of functional aten overloads, arithmetic on
    sizes, and one output: a tensor or a tuple of tensors. It computes what the model computes, at several batch sizes.
    Nodes carry in `meta` their `type`, their `source` ("file:line" or None) and their `scope`, path and class name of
    the module that they come from.

    Args:
        model: takes `example_inputs` as positional arguments, returns a tensor or a flat tuple or list of them.
        example_inputs: tensors whose dimension 0 is the batch, of one size, any.
        calibration: a batch of data on which graph and model are compared as well.

    Raises:
        ModelError: the model fails on its example inputs or the calibration data, or the examples are no batch.
        TraceError: no graph that works for every batch size can be made of the model.
    """
    check_inputs(example_inputs)
    _check_names(model)
    model = frozen_copy(model)
    samples = run_reference(model, example_inputs, calibration)

    def finished(gm: fx.GraphModule, traced_by: str) -> fx.GraphModule:
        gm.meta["traced_by"] = traced_by
        make_functional(gm)
        _plain_output(gm, is_tuple=samples[0].result_is_tuple)
        _check_input_names(gm)
        _check_operations(gm)
        infer_types(gm, example_inputs)
        _check_batch(gm)
        check_same(gm, samples)
        clear_flags(gm)
        return gm

    # a copy for each, since the model may put what it computes, proxies, in the place of its own tensors
    try:
        return finished(trace_symbolically(frozen_copy(model), example_inputs), "torch.fx")
    except Exception:  # of any type: the model's own code has run on proxies
        return finished(trace_by_export(frozen_copy(model), example_inputs), "torch.export")


def _check_names(model: nn.Module) -> None:
    """Raise TraceError where a module or tensor of `model` hides what a GraphModule has under its name."""
    taken = set(dir(fx.GraphModule({}, fx.Graph()))) - set(dir(nn.Module()))
    for name, _ in (*model.named_children(), *model.named_parameters(), *model.named_buffers()):
        if name in taken:
            raise TraceError(
                f"the model has a module or tensor called '{name}', a name that torch.fx uses for its graphs",
                hint=f"rename {type(model).__name__}.{name}",
            )


def _plain_output(gm: fx.GraphModule, *, is_tuple: bool) -> None:
    """Make the output one tensor or a tuple, where export has tuples and a model may have lists."""
    output = gm.graph.output_node()
    value = output.args[0]
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    output.args = (values if is_tuple else values[0],)
    gm.recompile()


def _check_input_names(gm: fx.GraphModule) -> None:
    if any(node.target == WIDTHS for node in gm.graph.find_nodes(op="placeholder")):
        raise TraceError(
            f"an input of the model is called '{WIDTHS}', as the input that quantized graphs have for widths",
            hint="rename this argument of forward",
        )


def _check_operations(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op == "call_function" and not (is_aten(node) or is_int(node) or node.target is operator.getitem):
            raise TraceError(
                f"unknown operation {node.target}",
                where=place(node),
                hint="use operations of torch itself",
            )


def _check_batch(gm: fx.GraphModule) -> None:
    """Every output must have the batch as dimension 0."""
    value = gm.graph.output_node().args[0]
    for index, node in enumerate(value if isinstance(value, tuple) else (value,)):
        assert isinstance(node, fx.Node)
        found = node.meta["type"]
        if isinstance(found, TensorType) and (not found.dims or found.dims[0] >= 0):
            raise TraceError(
                f"dimension 0 of output {index} is not the batch: its shape is {found}",
                where=place(node),
                hint="return one result per sample; write shapes with x.shape[0] or -1 instead of a fixed batch size",
            )
