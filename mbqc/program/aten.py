"""Aten functions inside a Program: the allow-list, and how torch runs them.

Only names in `ALLOWED` are ever looked up, and all of them are pure functions of their arguments, so that an artifact
from an untrusted source cannot make torch do anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from mbqc.errors import BackendError, VerifyError
from mbqc.program.operations import (
    Argument,
    AtenCall,
    BatchMultiple,
    Constant,
    DTypeArgument,
    ListArgument,
    Reference,
)

ELEMENTWISE = frozenset(
    """
    hardswish.default silu.default gelu.default sigmoid.default hardsigmoid.default tanh.default leaky_relu.default
    elu.default softplus.default mish.default relu.default hardtanh.default clamp.default exp.default sqrt.default
    abs.default neg.default add.Tensor sub.Tensor mul.Tensor div.Tensor pow.Tensor_Scalar
    """.split()  # noqa: SIM905 - words read best as a paragraph
)
"""Functions of one tensor and numbers that a `Lookup` may tabulate."""

ALLOWED = ELEMENTWISE | frozenset(
    """
    cat.default stack.default matmul.default bmm.default softmax.int _softmax.default log_softmax.int
    scaled_dot_product_attention.default layer_norm.default group_norm.default batch_norm.default embedding.default
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose1d.default
    conv_transpose2d.input linear.default prelu.default max_pool1d.default max_pool2d.default avg_pool1d.default
    avg_pool2d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default constant_pad_nd.default pad.default
    flatten.using_ints reshape.default view.default permute.default transpose.int unsqueeze.default squeeze.dim
    squeeze.dims expand.default expand_as.default select.int slice.Tensor split.Tensor split_with_sizes.default
    chunk.default unbind.int narrow.default repeat.default roll.default flip.default mean.dim mean.default
    sum.dim_IntList amax.default amin.default maximum.default minimum.default where.self eq.Scalar ne.Scalar
    lt.Scalar gt.Scalar le.Scalar ge.Scalar rsqrt.default reciprocal.default cos.default sin.default erf.default
    log.default clamp.Tensor clamp_min.default clamp_max.default pow.Tensor_Tensor rsub.Scalar add.Scalar mul.Scalar
    sub.Scalar div.Scalar relu6.default hardtanh.default pixel_shuffle.default upsample_nearest2d.vec
    upsample_bilinear2d.vec upsample_bicubic2d.vec movedim.int zeros_like.default ones_like.default to.dtype
    _to_copy.default max.dim min.dim argmax.default topk.default cumsum.default index.Tensor einsum.default
    adaptive_max_pool1d.default adaptive_max_pool2d.default glu.default selu.default celu.default log_sigmoid.default
    softshrink.default threshold.default log1p.default expm1.default square.default sign.default floor.default
    ceil.default round.default instance_norm.default rms_norm.default std.correction std.dim var.correction var.dim
    linalg_vector_norm.default channel_shuffle.default pixel_unshuffle.default tril.default triu.default
    masked_fill.Scalar masked_fill.Tensor bitwise_not.default full_like.default new_zeros.default new_ones.default
    new_full.default index_select.default nan_to_num.default one_hot.default tile.default sort.default sort.stable
    """.split()  # noqa: SIM905
)
"""Every function that a Program may call."""


def overload(name: str) -> OpOverload:
    """The aten overload `name`, such as `gelu.default`.

    Raises:
        VerifyError: it is not in the allow-list.
    """
    if name not in ALLOWED:
        raise VerifyError(f"aten.{name} is not in the list of functions that a Program may call")
    packet, _, variant = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet), variant)
    assert isinstance(found, OpOverload)
    return found


def call(
    function: AtenCall, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor], batch: int
) -> tuple[Tensor, ...]:
    """Runs an aten call on named values; a result that is a list of tensors comes back as a tuple.

    Raises:
        BackendError: the function fails on these values, for instance on an index outside its table.
    """

    def resolve(argument: Argument) -> Any:
        match argument:
            case Reference(name):
                return values[name]
            case Constant(name):
                return tensors[name]
            case BatchMultiple(factor):
                return factor * batch
            case DTypeArgument(name):
                return getattr(torch, name)
            case ListArgument(items):
                return [resolve(item) for item in items]
            case _:
                return argument

    arguments = [resolve(argument) for argument in function.args]
    keywords = {key: resolve(argument) for key, argument in function.kwargs.items()}
    try:
        result = overload(function.name)(*arguments, **keywords)
    except Exception as error:  # torch raises errors of any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"aten.{function.name} failed: {reason}") from error
    return (result,) if isinstance(result, Tensor) else tuple(result)


def elementwise(function: AtenCall, x: Tensor) -> Tensor:
    """One function of a `Lookup` on real numbers: its first argument is `x`, the others are plain numbers."""
    if function.name not in ELEMENTWISE:
        raise VerifyError(f"aten.{function.name} is not an element-wise function")
    result: Tensor = overload(function.name)(x, *function.args, **function.kwargs)
    return result
