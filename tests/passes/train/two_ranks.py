"""Two processes that train together, of which the second one kills itself in the end."""

from __future__ import annotations

import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def two_ranks(work: Callable[[int, int, Path], None], folder: Path, seconds: int) -> Iterator[Path]:
    """Runs `work(rank, port, folder)` in two processes; `folder` holds what they left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    try:
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
        yield folder
    finally:
        for process in processes:
            process.kill()
