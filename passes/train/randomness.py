"""The global random numbers, from which a user's augmentation or loss may draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
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


@contextmanager
def seeded(text: str, device: torch.device) -> Iterator[None]:
    """What is drawn within the block depends on `text` alone, and what is drawn behind it not on the block."""
    with kept(device):
        seed_everything(text)
        yield


def seed_everything(text: str) -> None:
    """Seeds all of them, other ones for each text."""
    draw = random.Random(text)
    torch.manual_seed(draw.getrandbits(63))
    np.random.seed(draw.getrandbits(32))
    random.seed(draw.getrandbits(63))


def on_the_host() -> tuple[object, ...]:
    """Where Python's and numpy's random numbers stand; equal where none was drawn in between."""
    of_numpy: Any = np.random.get_state()
    return random.getstate(), of_numpy[1].tobytes(), *of_numpy[2:]
