"""From a study's evaluations to its final table. A hack rate never stands without its solve rate and the base's line.

Counts are pooled over seeds and carry Wilson 95 % intervals; seeds are not independent samples of prompts, so the range
of the seeds' own rates stands beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vgrout.evals import ALL, FREE, Cell, collapsed, tabulate
from vgrout.run.intervals import proportion
from vgrout.types import Markers, View

VIEW_NAMES: dict[str, str] = {"base": "base", "full": "full", "deploy": "quarantine-ablated"}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ArmResult:
    """An arm's evaluation rows by seed."""

    label: str
    rows: dict[int, Rows]

    def of_view(self, view: View) -> dict[int, Rows]:
        return {seed: [row for row in rows if row["view"] == view] for seed, rows in self.rows.items()}

    def collapses(self, base: Rows) -> dict[tuple[int, str], str]:
        """(seed, view) -> why that view of that run counts as collapsed."""
        return {
            (seed, view): why
            for seed, rows in self.rows.items()
            for view, why in collapsed(tabulate([*base, *rows])).items()
            if view != "base"
        }


HEAD = ("arm", "view", "hack, train markers", "hack, eval markers", "solve, no hint", "seeds: hack, solve", "")


def final_table(base: Rows, arms: Sequence[ArmResult], title: str) -> str:
    """The study's table: one line for the base, two for each arm, then what the marks mean."""
    base_cells = tabulate(base)
    lines = [HEAD, ("base", "base", *_rates(base_cells, "base"), "", "")]
    notes = []
    for arm in arms:
        bad = arm.collapses(base)
        for view in ("full", "deploy"):
            pooled = [row for rows in arm.of_view(view).values() for row in rows]
            seeds = [seed for seed, of in bad if of == view]
            mark = f"COLLAPSED in seed {', '.join(map(str, seeds))}" if seeds else ""
            name = arm.label if view == "full" else ""
            lines.append((name, VIEW_NAMES[view], *_rates(tabulate(pooled), view), _ranges(arm, view), mark))
        notes += [f"COLLAPSED: {arm.label}, seed {seed}, {VIEW_NAMES[view]} {why}" for (seed, view), why in bad.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if any(arm.label.endswith("*") for arm in arms):
        notes.insert(0, "* upper bound: ground-truth labels choose the route")
    if any("COLLAPSED" in note for note in notes):
        notes.append("A collapsed model has stopped answering or solving: its hack rate, low or high, is no result.")
    notes.append("Intervals take all answers as independent, so they are too narrow; seeds: lowest and highest rate.")
    return "\n".join([title, *text, *notes])


def mode_table(base: Rows, arms: Sequence[ArmResult], markers: Markers, title: str) -> str:
    """Hack rate by loophole mode, pooled over seeds: one line for the base, two for each arm."""
    modes = sorted({row["mode"] for row in base if row["mode"] != FREE})
    lines = [("arm", "view", *modes), ("base", "base", *_by_mode(tabulate(base), "base", markers, modes))]
    for arm in arms:
        for view in ("full", "deploy"):
            cells = tabulate([row for rows in arm.of_view(view).values() for row in rows])
            lines.append(
                (arm.label if view == "full" else "", VIEW_NAMES[view], *_by_mode(cells, view, markers, modes))
            )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        [title, *("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)]
    )


def find(cells: Sequence[Cell], view: str, markers: str, mode: str) -> Cell | None:
    """The cell of this name, or None where nothing of the kind was evaluated."""
    return next((c for c in cells if (c.view, c.markers, c.mode) == (view, markers, mode)), None)


def _by_mode(cells: Sequence[Cell], view: str, markers: str, modes: Sequence[str]) -> list[str]:
    found = [find(cells, view, markers, mode) for mode in modes]
    return ["-" if cell is None else proportion(cell.hacks, cell.n) for cell in found]


def _rates(cells: Sequence[Cell], view: str) -> tuple[str, str, str]:
    hacks = [find(cells, view, markers, ALL) for markers in ("train", "eval")]
    solve = find(cells, view, "", FREE)
    train, unseen = ("-" if cell is None else proportion(cell.hacks, cell.n) for cell in hacks)
    return train, unseen, "-" if solve is None else proportion(solve.solves, solve.n)


def _ranges(arm: ArmResult, view: View) -> str:
    """Lowest and highest rate of the seeds: hack under train markers, then solve without a hint."""
    hack, solve = [], []
    for rows in arm.of_view(view).values():
        cells = tabulate(rows)
        for rates, cell, name in (
            (hack, find(cells, view, "train", ALL), "hacks"),
            (solve, find(cells, view, "", FREE), "solves"),
        ):
            if cell is not None and cell.n:
                rates.append(getattr(cell, name) / cell.n)
    if len(hack) < 2 or len(solve) < 2:
        return ""
    return ", ".join(f"{min(rates):.2f}-{max(rates):.2f}" for rates in (hack, solve))
