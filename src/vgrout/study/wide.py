"""A study's table with one line for each arm, in Markdown, for a page or a paper: rates without intervals, with the seeds' range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vgrout.evals import VIEW_NAMES, tabulate
from vgrout.run.intervals import short
from vgrout.study.summary import ArmResult, Rows, selectivities
from vgrout.study.verdicts import rates_of, view_rates
from vgrout.types import View

VIEWS: tuple[View, ...] = ("full", "deploy", "clean_ablated", "random_removal")
HEAD = (
    *("arm", *(VIEW_NAMES[view] for view in VIEWS), "ablated, by seed", "AUROC (in a step)", "routed", "recall"),
    *("false alarms", "selectivity of the ablation", "collapsed"),
)


def wide_table(base: Rows, arms: Sequence[ArmResult]) -> str:
    """Markdown: hack under train markers / solve without a hint of each view pooled over seeds, those of the
    quarantine-ablated model seed by seed, means over seeds of what the gate did, and the seeds in which a view collapsed.
    """
    lines = [HEAD, tuple("---" for _ in HEAD)]
    lines.append(("base", _pair(view_rates(tabulate(base), "base")), *[""] * (len(HEAD) - 2)))
    for arm in arms:
        pooled = tabulate([row for rows in arm.rows.values() for row in rows])
        rates = [_pair(view_rates(pooled, view)) if view in arm.views else "" for view in VIEWS]
        seeds = (
            "; ".join(_pair(rates_of(arm, seed, "deploy")) for seed in sorted(arm.rows)) if len(arm.rows) > 1 else ""
        )
        lines.append(
            (arm.name, *rates, seeds, *_gate(arm), selectivities(arm).get("deploy", ""), _collapsed(arm, base))
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _pair(rates: tuple[float, float] | None) -> str:
    return "-" if rates is None else f"{short(rates[0])} / {short(rates[1])}"


def _gate(arm: ArmResult) -> tuple[str, str, str, str]:
    if not arm.gates:
        return ("", "", "", "")
    within = _mean(arm, "auroc_in_step")
    auroc = _mean(arm, "auroc") + ("" if within == "-" else f" ({within})")
    return auroc, _mean(arm, "routed"), _mean(arm, "recall"), _mean(arm, "false_alarms")


def _mean(arm: ArmResult, name: str) -> str:
    known = [value for figures in arm.gates.values() if (value := getattr(figures, name)) is not None]
    return short(statistics.fmean(known)) if known else "-"


def _collapsed(arm: ArmResult, base: Rows) -> str:
    """`full 0 2; deploy 1`: views that ship or were trained, with their seeds."""
    bad = arm.collapses(base)
    by_view = {view: sorted(seed for seed, of in bad if of == view) for view in ("full", "deploy")}
    return "; ".join(f"{VIEW_NAMES[view]} {' '.join(map(str, seeds))}" for view, seeds in by_view.items() if seeds)
