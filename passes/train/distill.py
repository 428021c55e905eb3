"""Distillation: the highest width, or the float model, teaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mbqc.errors import DataError


def divergence(output: Any, teacher: Any) -> Tensor:
    """Kullback-Leibler divergence of scores [N, classes] from the teacher's, mean over the batch; no gradient to it.

    Raises:
        DataError: the outputs are no scores.
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise DataError(
            "distillation compares scores [N, classes], which this model does not give", hint="distill=none"
        )
    return torch.nn.functional.kl_div(
        output.log_softmax(1), teacher.detach().log_softmax(1), reduction="batchmean", log_target=True
    )
