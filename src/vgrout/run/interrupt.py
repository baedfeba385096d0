"""Ctrl-C during training: the first one asks for a stop after the step, the second one stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a stop has been asked for."""

    def __init__(self) -> None:
        self.requested = ""
        """Name of the signal; empty where none came."""


@contextmanager
def terminable() -> Generator[None]:
    """Inside, SIGTERM is what Ctrl-C is: KeyboardInterrupt, so that the run says how it can be continued."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_after_step(stop: Stop) -> Generator[None]:
    """Inside, the first SIGINT or SIGTERM only sets `stop.requested`; the next one raises KeyboardInterrupt.

    To be used in the main thread, as Python delivers signals there.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name
        # Not through the log: the signal may have come in the middle of one of its lines.
        os.write(
            2, f"{stop.requested}: stopping after this step, with a checkpoint; a second one stops at once\n".encode()
        )

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
