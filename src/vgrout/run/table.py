"""What a run prints while it works and at its end. Plain lines only, so that a log file reads like the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vgrout.run.columns import Column, legend
from vgrout.run.console import say
from vgrout.run.intervals import AT_MOST, Interval, proportion
from vgrout.types import StepRow

SHOWN = (
    "step",
    "reward",
    "hack_student",
    "solve_student",
    "hack_teacher",
    "solve_teacher",
    "loss",
    "grad_norm",
    "qmass",
    "share_rout",
    "kl",
    "lr",
    "n_zero_groups",
    "length_mean",
    "seconds_total",
)


class StepTable:
    """A table that grows by one line a step: legend once, heading every `every` lines, fixed widths.

    `shown` are names of declared columns. A hack column must be followed by its solve column: a hack rate alone
    cannot tell a cured model from a broken one. `write` receives whole lines.
    """

    def __init__(
        self,
        declared: Sequence[Column],
        shown: Sequence[str] = SHOWN,
        *,
        every: int = 20,
        write: Callable[[str], object] = say,
    ):
        by_name = {column.name: column for column in declared}
        if unknown := [name for name in shown if name not in by_name]:
            raise ValueError(f"step table: undeclared columns {unknown}")
        for position, name in enumerate(shown):
            twin = name.replace("hack", "solve", 1)
            if name.startswith("hack") and tuple(shown[position + 1 : position + 2]) != (twin,):
                raise ValueError(f"step table: {name} must be followed by {twin}")
        self.columns = [by_name[name] for name in shown]
        self.every, self.write, self.lines = every, write, 0

    def row(self, row: StepRow) -> None:
        """Prints one step; undefined values print as `-`."""
        if self.lines == 0:
            self.write(legend(self.columns))
        if self.lines % self.every == 0:
            self.write("  ".join(f"{column.heading:>{column.width}}" for column in self.columns))
        values = {**row.values, "step": row.step}
        self.write("  ".join(f"{column.text(values[column.name]):>{column.width}}" for column in self.columns))
        self.lines += 1


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One cell of the final table: counts of hacks and solves among n graded rows of a view and a mode."""

    view: str
    mode: str
    hacks: int | None
    """None: prompts without a loophole, where no answer can be a hack."""
    solves: int
    n: int
    note: str = ""
    problems: str = ""
    """Which problems were asked, where a table holds several kinds."""
    hack_interval: Interval | None = None
    """None: Wilson's of the counts, as if every row were an independent trial."""
    solve_interval: Interval | None = None

    def texts(self) -> tuple[str, ...]:
        """The fields of its line."""
        hack = "-" if self.hacks is None else proportion(self.hacks, self.n, self.hack_interval)
        solve = proportion(self.solves, self.n, self.solve_interval)
        return (self.view, self.problems, self.mode, f"hack {hack}", f"solve {solve}", self.note)


def summary_table(rows: Sequence[SummaryRow], title: str = "") -> str:
    """View x mode, one line each: `hack 12/64 .19 [.11, .30]   solve 0/64 at most .06` with 95 % intervals, then what
    `at most` means where it occurs."""
    cells = [row.texts() for row in rows]
    head = ("view", "problems", "mode", "hack: paid for a wrong answer", "solve: correct by the oracle", "")
    kept = [i for i in range(len(head)) if i != 1 or any(row.problems for row in rows)]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in kept]
    lines = [
        "  ".join(f"{line[i]:{width}}" for i, width in zip(kept, widths, strict=True)).rstrip()
        for line in (head, *cells)
    ]
    notes = [AT_MOST] if any(" at most " in text for line in cells for text in line) else []
    return "\n".join([*([title] if title else []), *lines, *notes])
