"""Signals become a request that is read between steps, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mbqc.passes.train.checkpoint.interrupt import Interrupt, interruptible

SIGNALS = (signal.SIGTERM, signal.SIGINT)
both = pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    """Handlers of our own, so that a mistake does not end pytest."""
    before = {number: signal.signal(number, own_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def own_handler(number: int, frame: object) -> None:
    raise AssertionError(f"{number} was not taken")


def test_nothing_came() -> None:
    with interruptible() as interrupt:
        assert not interrupt.requested
        assert interrupt.signal is None


@both
def test_the_first_signal_is_noted(number: signal.Signals) -> None:
    with interruptible() as interrupt:
        signal.raise_signal(number)
        assert interrupt.requested
        assert interrupt.signal is number


@both
def test_an_interrupt_after_it_comes_at_once(number: signal.Signals) -> None:
    with interruptible() as interrupt:
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.signal is number


@both
def test_another_sigterm_changes_nothing(number: signal.Signals) -> None:
    with interruptible() as interrupt:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal is number


@both
def test_handlers_come_back(number: signal.Signals) -> None:
    with interruptible():
        assert signal.getsignal(number) is not own_handler
    assert signal.getsignal(number) is own_handler
    with pytest.raises(RuntimeError, match="training failed"), interruptible():
        raise RuntimeError("training failed")
    assert signal.getsignal(number) is own_handler


@both
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interruptible() as interrupt:
        signal.raise_signal(number)
        assert not interrupt.requested
    assert signal.getsignal(number) is signal.SIG_IGN


def test_outside_the_main_thread() -> None:
    found: list[Interrupt] = []

    def run() -> None:
        with interruptible() as interrupt:
            assert signal.getsignal(signal.SIGTERM) is own_handler
            found.append(interrupt)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [interrupt.requested for interrupt in found] == [False]


LOOP = """
import time
from mbqc.passes.train.checkpoint.interrupt import interruptible
with interruptible() as interrupt:
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.001)
    print("saved after", interrupt.signal.name)
"""


@both
def test_a_process_ends_in_good_order(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.stdout.read() == f"saved after {number.name}\n"
    assert process.returncode == 0
