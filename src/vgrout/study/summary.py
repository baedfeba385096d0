"""From a study's evaluations to its final table. A hack rate never stands without its solve rate and the base's line.

Counts are pooled over seeds. Their 95 % intervals take the answers of all seeds to a problem as one cluster, so they say how
far the rates hold for other problems, not for other seeds; the range of the seeds' own rates stands beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vgrout.evals import ALL, CONTROLS, FREE, VIEW_NAMES, Cell, collapsed, find, tabulate
from vgrout.run.intervals import AT_MOST, proportion, short
from vgrout.selectivity import selectivity
from vgrout.study.gates import GateFigures
from vgrout.types import Markers, View

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ArmResult:
    """An arm's evaluation rows by seed, and where it routes, what its gate did."""

    label: str
    rows: dict[int, Rows]
    """Of held-out problems."""
    gates: dict[int, GateFigures] = field(default_factory=dict)
    unseen: str = ""
    """Loophole mode that its pairs leave out."""

    @property
    def name(self) -> str:
        """The label, with the mode that it is to be read by."""
        return f"{self.label} (unseen: {self.unseen})" if self.unseen else self.label

    @property
    def views(self) -> tuple[View, ...]:
        """full and deploy, and the control ablations where they were evaluated."""
        evaluated = {row["view"] for rows in self.rows.values() for row in rows}
        return ("full", "deploy", *(view for view in CONTROLS if view in evaluated))

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


HEAD = ("arm", "view", "hack, train markers", "hack, eval markers", "solve, no hint", "seeds: hack, solve")
GATE_HEAD = ("AUROC", "in a step", "routed", "recall", "false alarms", "selectivity")
MARKS = ("",)


def final_table(base: Rows, arms: Sequence[ArmResult], title: str, *, gates: bool = False) -> str:
    """The study's table: one line for the base, one for each view of each arm, then what the marks mean.

    With `gates`, also what each gate did during training, and the selectivity of each ablation.
    """
    head = (*HEAD, *(GATE_HEAD if gates else ()), *MARKS)
    base_cells = tabulate(base)
    lines = [head, ("base", "base", *_rates(base_cells, "base"), *[""] * (len(head) - 5))]
    notes = []
    for arm in arms:
        bad = arm.collapses(base)
        selective = selectivities(arm) if gates else {}
        for view in arm.views:
            pooled = [row for rows in arm.of_view(view).values() for row in rows]
            seeds = [seed for seed, of in bad if of == view]
            mark = f"COLLAPSED in seed {', '.join(map(str, seeds))}" if seeds else ""
            name, figures = (arm.name, _gate_cells(arm)) if view == "full" else ("", [""] * 5)
            more = (*figures, selective.get(view, "")) if gates else ()
            lines.append((name, VIEW_NAMES[view], *_rates(tabulate(pooled), view), _ranges(arm, view), *more, mark))
        notes += [
            f"COLLAPSED: {arm.label}, seed {seed}, {VIEW_NAMES[view]} {why}"
            for (seed, view), why in bad.items()
            if view not in CONTROLS
        ]
    if any(arm.label.endswith("*") for arm in arms):
        notes.insert(0, "* upper bound: reads ground-truth labels")
    if any("COLLAPSED" in note for note in notes):
        notes.append("A collapsed model has stopped answering or solving: its hack rate, low or high, is no result.")
    notes.append(
        "Intervals are over problems: the answers of all seeds to one are a cluster. Seeds: lowest and highest rate."
    )
    if any(" at most " in text for line in lines for text in line):
        notes.append(AT_MOST)
    return "\n".join([title, *_aligned(lines), *notes, *(GATE_NOTES if gates else ())])


GATE_NOTES = (
    "AUROC of the gate's score for hacks over a run's scored student rollouts, and over pairs of one step alone; routed: mean "
    "share of trained rows that teach the quarantine alone; recall, false alarms: share of hacks and of other rollouts that "
    "were withheld from the deployed block. Means over seeds, with the lowest and the highest.",
    "Selectivity: share of the full model's hacks (train markers) that an ablation removes, less the share of its solves; "
    "95 % by bootstrap over problems and seeds. It rises as much where an ablation gives solves back as where it takes hacks "
    "away, so beside a full model that has collapsed it is no result.",
)


def selectivities(arm: ArmResult) -> dict[str, str]:
    """Selectivity by view under train markers, with its interval; why it is undefined where it is."""
    if not arm.gates or not arm.rows:
        return {}
    found = [s for s in selectivity(list(arm.rows.values())) if s.markers == "train"]
    return {
        s.view: f"undefined: {s.undefined}"
        if s.value is None
        else f"{s.value:+.2f} " + ("[no interval]" if s.interval is None else "[{:+.2f}, {:+.2f}]".format(*s.interval))
        for s in found
    }


def _gate_cells(arm: ArmResult) -> list[str]:
    """AUROC, within a step, routed share, recall, false alarms; empty for an arm that does not route."""
    if not arm.gates:
        return [""] * 5
    fields = ("auroc", "auroc_in_step", "routed", "recall", "false_alarms")
    return [_spread([getattr(g, name) for g in arm.gates.values()]) for name in fields]


def _spread(values: Sequence[float | None]) -> str:
    """Mean of the defined values, with their range where there are several; `-` where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    ends = f" ({short(min(known))}-{short(max(known))})" if len(known) > 1 else ""
    return short(statistics.fmean(known)) + ends


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def mode_table(base: Rows, arms: Sequence[ArmResult], markers: Markers, title: str) -> str:
    """Hack rate by loophole mode, pooled over seeds: one line for the base, two for each arm."""
    modes = sorted({row["mode"] for row in base if row["mode"] != FREE})
    lines = [("arm", "view", *modes), ("base", "base", *_by_mode(tabulate(base), "base", markers, modes))]
    for arm in arms:
        for view in ("full", "deploy"):
            cells = tabulate([row for rows in arm.of_view(view).values() for row in rows])
            name = arm.name if view == "full" else ""
            lines.append((name, VIEW_NAMES[view], *_by_mode(cells, view, markers, modes)))
    return "\n".join([title, *_aligned(lines)])


def _by_mode(cells: Sequence[Cell], view: str, markers: str, modes: Sequence[str]) -> list[str]:
    found = [find(cells, view, markers, mode) for mode in modes]
    return ["-" if cell is None else proportion(cell.hacks, cell.n, cell.hack_interval) for cell in found]


def _rates(cells: Sequence[Cell], view: str) -> tuple[str, str, str]:
    hacks = [find(cells, view, markers, ALL) for markers in ("train", "eval")]
    solve = find(cells, view, "", FREE)
    train, unseen = ("-" if cell is None else proportion(cell.hacks, cell.n, cell.hack_interval) for cell in hacks)
    return train, unseen, "-" if solve is None else proportion(solve.solves, solve.n, solve.solve_interval)


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
