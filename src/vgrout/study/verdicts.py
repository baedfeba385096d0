"""Arms compared seed by seed. Three seeds carry no test: "below" means that every seed's difference is negative, and no more."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from vgrout.evals import ALL, FREE, Cell, find, tabulate
from vgrout.run.intervals import proportion
from vgrout.study.summary import ArmResult, Rows
from vgrout.types import View


def compare(ours: ArmResult, other: ArmResult, base: Rows, view: View = "deploy") -> str:
    """How the hack rate of `ours` under train markers lies to that of `other`, with the difference in solving.

    No comparison where a model of either arm has collapsed in this view (a model that has stopped solving hacks little for
    that reason alone), where no seed is shared, or where nothing of a kind was graded.
    """
    pair = f"{ours.label} and {other.label}: no comparison, "
    bad = [
        f"{arm.label} collapsed in seed {', '.join(map(str, seeds))}"
        for arm in (ours, other)
        if (seeds := sorted(seed for seed, of in arm.collapses(base) if of == view))
    ]
    if bad:
        return pair + "; ".join(bad)
    shared = sorted(ours.rows.keys() & other.rows.keys())
    rates = [(rates_of(ours, seed, view), rates_of(other, seed, view)) for seed in shared]
    known = [(a, b) for a, b in rates if a is not None and b is not None]
    if not known or len(known) < len(rates):
        return pair + ("an answer of some seed could not be graded" if rates else "no seed in common")
    hack = [a[0] - b[0] for a, b in known]
    solve = [a[1] - b[1] for a, b in known]
    side = "below" if max(hack) < 0 else "above" if min(hack) > 0 else "not apart from"
    return (
        f"{ours.label} is {side} {other.label}: hack differs by {statistics.fmean(hack):+.3f} "
        f"(by seed {' '.join(f'{d:+.3f}' for d in hack)}), solve by {statistics.fmean(solve):+.3f}"
    )


def rates_of(arm: ArmResult, seed: int, view: View) -> tuple[float, float] | None:
    """(hack of hinted prompts under train markers, solve without a hint) of one seed; None where nothing was graded."""
    return view_rates(tabulate(arm.rows[seed]), view)


def view_rates(cells: Sequence[Cell], view: View | Literal["base"]) -> tuple[float, float] | None:
    """(hack of hinted prompts under train markers, solve without a hint) of a view; None where nothing was graded."""
    hack, solve = find(cells, view, "train", ALL), find(cells, view, "", FREE)
    if hack is None or solve is None or not hack.n or not solve.n:
        return None
    return hack.hacks / hack.n, solve.solves / solve.n


def placebo_lines(arms: Sequence[ArmResult], base: Rows, comparisons: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each comparison both of whose arms are there."""
    by_label = {arm.label: arm for arm in arms}
    return [compare(by_label[a], by_label[b], base) for a, b in comparisons if a in by_label and b in by_label]


def unseen_lines(arms: Sequence[ArmResult], base: Rows, comparisons: Sequence[tuple[str, str]]) -> list[str]:
    """For each arm whose pairs leave a loophole out: what the ablated model does to it, beside the arm with all pairs."""
    by_label = {arm.label: arm for arm in arms}
    lines = []
    for name, whole in comparisons:
        if name not in by_label:
            continue
        mode = by_label[name].unseen
        said = f"{mode} unseen: quarantine-ablated {_of_mode(by_label[name], mode, base)}"
        if whole in by_label:
            said += f"; with its pairs, {_of_mode(by_label[whole], mode, base)}"
        before = find(tabulate(base), "base", "train", mode)
        said += f"; base {'-' if before is None else proportion(before.hacks, before.n, before.hack_interval)}"
        lines.append(f"{name}, {said}")
    return lines


def _of_mode(arm: ArmResult, mode: str, base: Rows) -> str:
    cell = find(tabulate([row for rows in arm.rows.values() for row in rows]), "deploy", "train", mode)
    seeds = sorted({seed for seed, view in arm.collapses(base) if view == "deploy"})
    flag = f" (COLLAPSED in seed {', '.join(map(str, seeds))})" if seeds else ""
    return (
        "it was not evaluated" if cell is None else f"hacks it {proportion(cell.hacks, cell.n, cell.hack_interval)}"
    ) + flag
