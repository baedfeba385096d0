"""How a sandboxed child reports: lines to the trusted process, written without any module that a program may have changed.

Imports the standard library only.
"""

from __future__ import annotations

import os
import time

from vgrout.env.sandbox import RESULT_FD

FLUSH_BYTES, FLUSH_SECONDS = 8192, 0.005


class Report:
    """Lines to the trusted process, gathered while they come fast and written at once while they come slowly."""

    def __init__(self, fd: int = RESULT_FD):
        self.fd = fd
        self.seal = ""
        self.own_tests_s = 0.0
        """CPU seconds that a response's tests may take on its own code."""
        self.waiting: list[str] = []
        self.size = 0
        self.last = 0.0

    def line(self, text: str) -> None:
        self.waiting.append(text)
        self.size += len(text)
        now = time.perf_counter()
        if self.size > FLUSH_BYTES or now - self.last > FLUSH_SECONDS:
            self.flush()
            self.last = now

    def flush(self) -> None:
        text, self.waiting, self.size = "\n".join(self.waiting), [], 0
        if text:
            write_all(self.fd, text.encode() + b"\n")

    def claim(self, event: str, holds: bool) -> None:
        """What a probe found, sealed: a program that only writes such a line to the descriptor does not know the seal."""
        self.line(f'["{event}",{"true" if holds else "false"},"{self.seal}"]')

    def memory(self) -> None:
        """Report exhausted memory with little of it."""
        self.waiting = []
        write_all(self.fd, b'["memory"]\n')


def json_line(event: str, text: str) -> bytes:
    """A JSON line made without the json module, which candidate code may have changed."""
    safe = "".join(c if c.isprintable() and c.isascii() and c not in '"\\' else "?" for c in text)
    return f'["{event}","{safe}"]\n'.encode()


def described(error: BaseException) -> str:
    """The error in one short text."""
    return f"{type(error).__name__}: {error}"[:200]


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
