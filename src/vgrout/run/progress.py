"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Item = TypeVar("Item")


def _log(line: str) -> None:
    logger.info(line)


class Progress:
    """Shows how far a phase is: `with Progress("grading", total=119) as bar: ... bar.advance()`.

    `total` None means that the end is not known. `phase(name, total)` starts the next phase in the same place.
    In a log the heartbeat comes from a thread of its own, so that work which is stuck still shows where.
    """

    def __init__(
        self,
        phase: str,
        total: int | None = None,
        *,
        every: float = 10.0,
        terminal: bool | None = None,
        write: Callable[[str], object] = _log,
    ):
        self.every, self.write = every, write
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._stop = threading.Event()
        self._begin(phase, total)

    def _begin(self, phase: str, total: int | None) -> None:
        self.name, self.total, self.done, self.note = phase, total, 0, ""
        self.started = time.monotonic()

    def __enter__(self) -> Progress:
        if self.terminal:
            console = Console(stderr=True)
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            timing = [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
            self._bar = RichProgress(*columns, *timing, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, note="")
        else:
            self._thread = threading.Thread(target=self._beat, daemon=True, name="progress")
            self._thread.start()
        return self

    def phase(self, name: str, total: int | None = None) -> None:
        """Starts the next phase, counted from 0."""
        self._begin(name, total)
        if self.terminal:
            self._bar.reset(self._task, total=total, description=name, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """Sets how many units are done."""
        self.done, self.note = done, note
        if self.terminal:
            self._bar.update(self._task, completed=done, note=note)

    def line(self) -> str:
        """The heartbeat: `grading 12/119, 34 s, about 300 s left`."""
        seconds = time.monotonic() - self.started
        text = f"{self.name} {self.done}" + (f"/{self.total}" if self.total is not None else "") + f", {seconds:.0f} s"
        if self.total and 0 < self.done < self.total:
            text += f", about {seconds * (self.total - self.done) / self.done:.0f} s left"
        return text + (f" ({self.note})" if self.note else "")

    def _beat(self) -> None:
        while not self._stop.wait(self.every):
            self.write(self.line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self.terminal:
            self._bar.stop()
        else:
            self._thread.join()


def track(items: Iterable[Item], phase: str, total: int | None = None, *, every: float = 10.0) -> Iterator[Item]:
    """Yields the items and shows how many have been worked off; the total is taken from the items where they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(phase, total, every=every) as bar:
        for item in items:
            yield item
            bar.advance()
