"""Small networks with all that makes calls disturb each other: scratch, residuals, long-lived values, float parts."""

from __future__ import annotations

import torch
from torch import Tensor

from mbqc.program.operations import AtenCall, AveragePool, Concat, Epilogue, Program, Reference, Reshape
from mbqc.widths import Widths
from tests.backends.program_builder import Builder


def residual_network(*, with_float: bool = False, seed: int = 7) -> Program:
    """Blocks with residuals, a depthwise layer, a concatenation of an early and a late value, and a classifier."""
    build = Builder(seed)

    def grid() -> str:
        return build.new_grid()

    image = build.quantize(build.new_input((-1, 3, 12, 12)), grid(), channels_last=True)
    early = value = build.conv(image, 16, (3, 3), padding=(1, 1, 1, 1), grid=grid(), epilogue=Epilogue(low=0.0))
    for corrected in ("none", "mean", "both"):
        inner = build.conv(value, 24, grid=grid(), corrected=corrected, epilogue=Epilogue(low=0.0, high=1.0))
        inner = build.conv(inner, 24, (3, 3), padding=(1, 1, 1, 1), groups=24, grid=grid(), corrected=corrected)
        value = build.conv(inner, 16, grid=grid(), epilogue=Epilogue(residual=value))
    both = build.add(lambda out: Concat((early, value), out, 3), (-1, 12, 12, 32), grid())
    if with_float:
        real = build.affine(both, grid=None)
        gelu = build.aten(AtenCall("gelu.default", (Reference(real),)), build.shape(real))
        both = build.quantize(gelu, grid())
    mean = build.add(
        lambda out: AveragePool(both, out, (12, 12), (1, 1), (0, 0, 0, 0), Epilogue()), (-1, 1, 1, 32), grid()
    )
    flat = build.add(lambda out: Reshape(mean, out), (-1, 32), build.values[mean].grid)
    return build.finish((build.linear(flat, 10, grid=None), build.affine(both, grid=None)))


def uniform(program: Program, bits: int) -> Widths:
    return Widths(tuple((layer, bits) for layer in program.listing.layers))


def images(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
