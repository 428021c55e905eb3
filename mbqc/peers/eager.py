"""torch itself: the float32 model, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mbqc.peers import Batch, Call, Runner, Subject


def runners(subject: Subject) -> dict[str, Runner]:
    """The model as it is; its threads are torch's, which the caller sets."""

    def bind(inputs: Batch) -> Call:
        @torch.inference_mode()
        def call() -> Sequence[Tensor]:
            outputs = subject.net(*inputs)
            return outputs if isinstance(outputs, tuple | list) else (outputs,)

        return call

    return {"torch float32": bind}
