"""Convolutions with padding by numbers and zeros only: `same` and the other modes get a padding of their own."""

from __future__ import annotations

import torch
from torch import fx, nn

from mbqc.ir.graph import fresh_path
from mbqc.ir.vocabulary import CONVOLUTIONS, module_of

Pads = list[int]
"""Numbers as `F.pad` has them: (left, right) of the last dimension, then of the one before."""


def make_padding_explicit(gm: fx.GraphModule) -> None:
    """Give every convolution of `gm` integer padding with zeros, in place.

    `padding="same"` becomes numbers where left and right are equal, else a ConstantPad module before the convolution;
    reflecting and circular padding become an aten.pad before it.
    """
    done: dict[nn.Module, tuple[Pads, str] | None] = {}
    for node in list(gm.graph.nodes):
        module = module_of(node)
        if not isinstance(module, CONVOLUTIONS):
            continue
        if module not in done:
            done[module] = _take_padding(module)
        taken = done[module]
        if taken is not None:
            _insert_padding(gm, node, *taken)


def _take_padding(module: nn.Module) -> tuple[Pads, str] | None:
    """Make the module's padding integer zeros; what it cannot hold of it is returned."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    pads, mode = list(module._reversed_padding_repeated_twice), module.padding_mode
    if mode == "zeros" and pads[::2] == pads[1::2]:
        module.padding = tuple(pads[::-2])
        return None
    module.padding, module.padding_mode = (0,) * (len(pads) // 2), "zeros"
    module._reversed_padding_repeated_twice = [0] * len(pads)
    return (pads, "constant" if mode == "zeros" else mode) if any(pads) else None


def _insert_padding(gm: fx.GraphModule, node: fx.Node, pads: Pads, mode: str) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    with gm.graph.inserting_before(node):
        if mode == "constant":
            path = fresh_path(gm, f"{node.target}_pad")
            gm.add_submodule(path, _zero_pad(*pads))
            padded = gm.graph.call_module(path, (source,))
        else:
            padded = gm.graph.call_function(torch.ops.aten.pad.default, (source, pads, mode))
    padded.meta = {key: value for key, value in node.meta.items() if key != "type"}
    node.replace_input_with(source, padded)


def _zero_pad(left: int, right: int, *rows: int) -> nn.Module:
    if not rows:
        return nn.ConstantPad1d((left, right), 0.0)
    return nn.ConstantPad2d((left, right, rows[0], rows[1]), 0.0)
