"""What a metric column is, and the check that a run logs what is declared and nothing else. The table: `run/declared.py`.

A column says what it means, its unit, its range, how the step table prints it, and when it is undefined. Undefined values
are null in metrics.jsonl, never 0: a hack rate of a step without teacher rows is not a hack rate of zero.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vgrout.types import StepRow

ANYTHING = "(-inf, inf)"


@dataclass(frozen=True, slots=True)
class Column:
    """One metric: `undefined` says when the value is null, and is empty where it never may be."""

    name: str
    meaning: str
    unit: str
    format: str
    undefined: str = ""
    short: str = ""
    """Heading in the step table; the name where empty."""
    range: str = ANYTHING
    """The values that it can take, as an interval: `[0, 1]`, `(0, inf)`."""
    rounding: float = 0.0
    """How far rounding may carry a value past an end of the range."""

    @property
    def heading(self) -> str:
        return self.short or self.name

    @property
    def width(self) -> int:
        return max(len(self.heading), 6 if self.format == "d" else 8 if "e" in self.format else 7)

    def text(self, value: float | int | None) -> str:
        """The value as the step table prints it; `-` where undefined."""
        if value is None:
            return "-"
        text = f"{value:.0f}" if self.format == "d" else f"{value:{self.format}}"
        return text if len(text) <= self.width else f"{value:.0e}"


COUNT = "[0, inf)"
RANGES = {
    **dict.fromkeys(("axes", "groups", "modules", "norm", "ratio", "rows", "s", "steps", "tokens"), COUNT),
    "cosine": "[-1, 1]",
    "loss": ANYTHING,
    "reward": "[0, 3.5]",
    "score": ANYTHING,
    "share": "[0, 1]",
}
"""Range of a column of each unit, where the column names no other. The rewards of the environment go from 0 to 3.5."""


def column(
    name: str,
    meaning: str,
    unit: str,
    format: str,
    undefined: str = "",
    short: str = "",
    *,
    range: str | None = None,
    rounding: float = 0.0,
) -> Column:
    """A column with its unit's range, or with one of its own. KeyError for a unit that has none."""
    return Column(name, meaning, unit, format, undefined, short, range or RANGES[unit], rounding)


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers from `low` to `high`; an end that is `open` is not among them."""

    low: float
    high: float
    open: tuple[bool, bool]

    def holds(self, value: float | int, rounding: float = 0.0) -> bool:
        """Whether the value lies in it, or outside by no more than `rounding`."""
        low, high = self.low - rounding, self.high + rounding
        return (low < value if self.open[0] else low <= value) and (value < high if self.open[1] else value <= high)


@functools.cache
def interval(text: str) -> Interval:
    """`[0, 1]`, `(0, inf)`, `(-inf, 0]`: square brackets hold their end, round ones do not. ValueError for anything else."""
    found = re.fullmatch(r"([\[(])([^,\s]+), ([^,\s]+)([\])])", text)
    if found is None:
        raise ValueError(f"range {text!r}: expected an interval such as [0, 1] or (0, inf)")
    low, high = float(found[2]), float(found[3])
    at_low, at_high = found[1] == "(", found[4] == ")"
    if not low < high or (math.isinf(low) and not at_low) or (math.isinf(high) and not at_high):
        raise ValueError(f"range {text!r}: expected low < high, and infinite ends in round brackets")
    return Interval(low, high, (at_low, at_high))


def check_row(row: StepRow, declared: Sequence[Column]) -> dict[str, float | int | None]:
    """The row as it is written: every declared column once, in order.

    Raises ValueError for an undeclared, missing, mistyped or wrongly null column and for a value out of its range,
    FloatingPointError for NaN and inf.
    """
    if "step" in row.values and row.values["step"] != row.step:
        raise ValueError(f"metrics: the row of step {row.step} holds step {row.values['step']}")
    values = {**row.values, "step": row.step}
    names = [column.name for column in declared]
    if undeclared := sorted(values.keys() - set(names)):
        raise ValueError(f"metrics: undeclared columns {undeclared}; declare each in vgrout.run.declared")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"metrics: step {row.step} lacks the columns {missing}; an undefined value is written as None")
    for column in declared:
        _check_value(column, values[column.name], row.step)
    return {name: values[name] for name in names}


def _check_value(column: Column, value: object, step: int) -> None:
    if value is None:
        if not column.undefined:
            raise ValueError(f"metrics: {column.name} is None at step {step}, but this column is always defined")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"metrics: {column.name} is a {type(value).__name__} at step {step}, expected a number or None"
        )
    if not math.isfinite(value):
        raise FloatingPointError(f"metrics: {column.name} is {value} at step {step}")
    if not interval(column.range).holds(value, column.rounding):
        slack = f" (rounding by up to {column.rounding:g} allowed)" if column.rounding else ""
        raise ValueError(f"metrics: {column.name} is {value} at step {step}, outside its range {column.range}{slack}")


def legend(declared: Iterable[Column]) -> str:
    """One line per column: heading, full name, unit, meaning, and when it is undefined."""
    shown = list(declared)
    heading = max(len(column.heading) for column in shown)
    name = max(len(column.name) for column in shown)
    unit = max(len(column.unit) for column in shown)
    lines = []
    for column in shown:
        null = f" (- where {column.undefined})" if column.undefined else ""
        lines.append(f"{column.heading:{heading}}  {column.name:{name}}  {column.unit:{unit}}  {column.meaning}{null}")
    return "\n".join(lines)
