"""SIGTERM and SIGINT as a request that the training loop reads between steps, so that it can save before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Whether somebody asked the process to end.

    Attributes:
        signal: the first one that came, None before.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Notes SIGTERM and SIGINT instead of ending the process, until the block ends.

    A SIGINT after another signal raises KeyboardInterrupt at once, for whoever does not want to wait for the end of
    the step. A signal that the process ignores stays ignored (`nohup`, background jobs). Outside the main thread,
    where Python allows no handlers, nothing is ever requested.
    """
    interrupt = Interrupt()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # None: installed by native code, which Python could not put back
    taken = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    if threading.current_thread() is not threading.main_thread():
        taken = []
    try:
        for number in taken:
            signal.signal(number, interrupt._receive)
        yield interrupt
    finally:
        for number in taken:
            signal.signal(number, before[number])
