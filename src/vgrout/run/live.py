"""A table of several runs that redraws itself on a terminal, and grows by a few lines now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vgrout.run.console import say


class LiveTable:
    """`with LiveTable("demo", ("run", "state")) as live: live.update([("none_seed0", "running"), ...])`.

    The first column names a line. In a log a line is written whenever its `state` (the second column) changes, and all
    lines in that state `running` are written every `every` seconds.
    """

    def __init__(
        self,
        title: str,
        head: Sequence[str],
        *,
        every: float = 30.0,
        terminal: bool | None = None,
        write: Callable[[str], object] = say,
    ):
        self.title, self.head, self.every, self.write = title, tuple(head), every, write
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._states: dict[str, str] = {}
        self._last = time.monotonic()

    def __enter__(self) -> LiveTable:
        if self.terminal:
            self._live = Live(self._table([]), console=Console(stderr=True), refresh_per_second=2)
            self._live.start()
        else:
            self.write(self.title)
            self.write(self._text(self.head))
        return self

    def update(self, lines: Sequence[Sequence[str]]) -> None:
        """Shows the current lines, one tuple of strings per run."""
        if self.terminal:
            self._live.update(self._table(lines))
            return
        due = time.monotonic() - self._last >= self.every
        for line in lines:
            name, state = line[0], line[1]
            changed = self._states.get(name, "waiting") != state
            if changed or (due and state == "running"):
                self.write(self._text(line))
            self._states[name] = state
        if due:
            self._last = time.monotonic()

    def _table(self, lines: Sequence[Sequence[str]]) -> Table:
        table = Table(title=self.title)
        for i, name in enumerate(self.head):
            table.add_column(name, justify="left" if i < 2 else "right")
        for line in lines:
            table.add_row(*line)
        return table

    @staticmethod
    def _text(line: Sequence[str]) -> str:
        name, state, *rest = line
        return f"{name:44} {state:9} " + " ".join(f"{value:>8}" for value in rest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            self._live.stop()
