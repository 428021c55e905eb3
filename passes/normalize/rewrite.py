"""From a traced graph to the canonical float graph."""

from __future__ import annotations

from torch import Tensor, fx

from mbqc.errors import TraceError
from mbqc.ir.graph import replace_value
from mbqc.ir.shapes import infer_types, place
from mbqc.ir.vocabulary import BATCH_NORMS, CANONICAL_MODULES, module_of
from mbqc.passes.normalize.layout import lay_out
from mbqc.passes.normalize.modules import raise_to_modules
from mbqc.passes.normalize.padding import make_padding_explicit
from mbqc.passes.normalize.simplify import simplify


def canonicalize(gm: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Bring a graph from `frontend.trace` to the canonical form, in place; a canonical graph stays as it is.

    Removes what does nothing in eval mode, gives each aten call its one spelling, makes modules of the calls that a
    module means, convolutions zero-padded by numbers; then orders and names nodes and infers types.

    Raises:
        TraceError: dropout is active, or a BatchNorm without running statistics.
    """
    infer_types(gm, example_inputs)
    _remove_identities(gm)
    simplify(gm, example_inputs)
    raise_to_modules(gm)
    make_padding_explicit(gm)
    lay_out(gm)
    infer_types(gm, example_inputs)


def _remove_identities(gm: fx.GraphModule) -> None:
    """Remove calls of modules that do nothing in eval mode: the ones that trace leaves whole, not in the vocabulary."""
    for node in list(gm.graph.nodes):
        module = module_of(node)
        if module is not None and not isinstance(module, CANONICAL_MODULES):
            replace_value(node, node.args[0])
        elif isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise TraceError(
                "a BatchNorm uses the statistics of the batch in eval mode",
                where=place(node),
                hint="let it track running statistics (track_running_stats=True)",
            )
