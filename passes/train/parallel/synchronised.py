"""BatchNorm over the batch of all ranks. `torch.nn.SyncBatchNorm` is for GPUs alone and knows no rows by width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class SynchronisedBatchNorm(TorchFunctionMode):
    """Within it `torch.nn.functional.batch_norm` with `training=True` normalizes with the batch of all ranks.

    So do the modules that call it, which need not know. Output, running statistics (the variance unbiased over the
    whole batch) and gradients are those of one process on the whole batch; ranks may hold unequal shares.

    Args:
        world: number of ranks in the default process group.
    """

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`func`, or the BatchNorm over all ranks in its place."""
        kwargs = kwargs or {}
        if func is nn.functional.batch_norm and kwargs.get("training"):
            return _batch_norm(self.world, *args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    world: int,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    with torch.no_grad():
        mean, variance, count = _moments(x, world)
        alone = x.numel() < 2 * x.shape[1]
        if alone and float(count[0]) < 2:  # seldom asked, since the answer makes the host wait for a GPU
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return cast(Tensor, _Normalize.apply(x, weight, bias, mean, variance, count, eps))  # type: ignore[no-untyped-call]


def _moments(x: Tensor, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and population variance [C] of the batch of all ranks, and how many values each channel has.

    Joined from the moments of each rank, as in Chan et al. 1979, equations 1.1: no difference of large sums.
    """
    values = x.transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    count = values.new_full((1, values.shape[0]), values.shape[1])
    variance, mean = torch.var_mean(values, 1, correction=0, keepdim=True)
    own = torch.cat([count, mean.T, variance.T]) if values.shape[1] else torch.zeros_like(count).expand(3, -1)
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own.contiguous())
    counts, means, variances = torch.stack(parts).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, total


class _Normalize(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps) * weight + bias`; backward sees that the statistics are those of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With g the gradient, u the normalized input: dx = gain (g - mean(g) - u mean(g u)), means over all ranks."""
        x, weight, mean, variance, count = ctx.saved_tensors
        deviation = (variance + ctx.eps).sqrt()
        dx, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )  # with fixed statistics: gain g, and the sums of this rank
        sums = torch.stack([by_bias, by_weight]).to(mean.dtype)
        dist.all_reduce(sums)
        gain = 1 / deviation if weight is None else weight.to(mean.dtype) / deviation
        slope = -gain * sums[1] / (count * deviation)
        constant = -gain * sums[0] / count - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        dx = dx.to(mean.dtype) + x * slope.reshape(shape) + constant.reshape(shape)
        learns = ctx.needs_input_grad
        return dx.to(x.dtype), by_weight if learns[1] else None, by_bias if learns[2] else None, None, None, None, None
