"""The global random numbers, from which a user's augmentation may draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_for_the_caller(device: torch.device) -> Iterator[None]:
    """Within it torch (on all GPUs too), numpy and Python's random may be seeded; afterwards they go on as before.

    Args:
        device: where the block computes; for one on the CPU no GPU is woken up.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()
    # a seed of torch's is one of all GPUs
    used = device.type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else [], device_type="cuda"):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
