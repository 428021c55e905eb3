"""What a model is trained on and judged by: the user's loss and metric, or the usual ones for labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mbqc.errors import DataError, MbqcError, user_line

Loss = Callable[[Any, Tensor], Tensor]
Metric = Callable[[Any, Tensor], float]


def checked_loss(own: Loss) -> Loss:
    """The user's loss, whose failures are told.

    Raises (when called):
        DataError: it raises (names the user's line), returns anything but a tensor of one number, or one that does not
            depend on the output.
    """

    def loss(output: Any, target: Tensor) -> Tensor:
        try:
            value: object = own(output, target)
        except MbqcError:
            raise
        except (Exception, SystemExit) as error:  # the user's function may raise anything
            message = f"loss(output, target) failed: {type(error).__name__}: {error}"
            raise DataError(message, where=user_line(error)) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f" and shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise DataError(
                f"loss(output, target) returned an object of type {type(value).__name__}{shape}, expected a scalar",
                hint="average over the samples, with .mean()" if shape else "return a tensor of one number",
            )
        if not value.requires_grad:
            raise DataError("loss(output, target) does not depend on output in a way that torch can differentiate")
        return value

    return loss


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross entropy of scores [N, classes] and whole-number labels [N], which must be in range.

    Raises (when called):
        DataError: outputs or targets are of another form.
    """

    def loss(output: Any, target: Tensor) -> Tensor:
        require_labels(output, target, "training data", "loss")
        return torch.nn.functional.cross_entropy(output, target.long(), label_smoothing=label_smoothing)

    return loss


def require_labels(output: Any, target: Tensor, where: str, own: str) -> None:
    """Refuses what has not the form of a classification.

    Args:
        where: the targets are from.
        own: function with which the user could judge other targets.

    Raises:
        DataError: output is no tensor of scores [N, classes], target no whole-number labels [N].
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        what = f"has shape {tuple(output.shape)}" if isinstance(output, Tensor) else "is no tensor"
        raise DataError(
            f"the model's output {what}, not [N, classes]", where=where, hint=f"define {own}(output, target)"
        )
    if target.is_floating_point() or target.dtype == torch.bool or target.shape != output.shape[:1]:
        raise DataError(
            f"targets are {target.dtype} {tuple(target.shape)}, not whole-number labels [N]",
            where=where,
            hint=f"define {own}(output, target)",
        )


def require_in_range(target: Tensor, classes: int, where: str) -> None:
    """Refuses labels that no class has; makes the host wait for a GPU.

    Raises:
        DataError: a label is not from 0 to `classes` - 1.
    """
    low, high = torch.stack(torch.aminmax(target)).tolist()  # at once, so that the host waits once
    if low < 0 or high >= classes:
        raise DataError(
            f"label {low if low < 0 else high} is out of range: the model has {classes} classes",
            where=where,
            hint=f"labels count from 0 to {classes - 1}",
        )


def top1(output: Any, target: Tensor) -> float:
    """Top-1 accuracy in percent.

    Raises:
        DataError: as `require_labels` and `require_in_range`.
    """
    require_labels(output, target, "evaluation data", "metric")
    require_in_range(target, output.shape[1], "evaluation data")
    return 100.0 * float((output.argmax(1) == target).double().mean())


def metric_of(own: Metric | None) -> Metric:
    """The user's metric, whose failures are told, or top-1 accuracy.

    Raises (when called):
        DataError: it raises (names the user's line), or gives no number.
    """
    if own is None:
        return top1

    def metric(output: Any, target: Tensor) -> float:
        try:
            return float(own(output, target))
        except MbqcError:
            raise
        except (Exception, SystemExit) as error:  # the user's function may raise anything
            message = f"metric(output, target) failed: {type(error).__name__}: {error}"
            raise DataError(message, where=user_line(error)) from error

    return metric


def each_tensor(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An output in which each tensor is changed: the one, or all of a tuple."""
    return change(output) if isinstance(output, Tensor) else tuple(change(part) for part in output)


def join(batches: Sequence[Any]) -> Any:
    """Outputs of several batches as one: tensors joined along dimension 0, tuples part by part."""
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
