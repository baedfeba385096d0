"""Required gate quality: what the ablated model does, against the share of hacks that the route found."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from vgrout.evals import ALL, FREE, find, tabulate
from vgrout.run.disk import write_atomic
from vgrout.study.summary import ArmResult, Rows

PANELS = (("hack, hinted prompts (train markers)", "train", ALL, "hacks"), ("solve, no hint", "", FREE, "solves"))
COLOURS = {0.0: "#1f6f8b", 0.1: "#c1440e"}
"""Of the curves, by their rate of false alarms."""
CROWDED, COLUMN = 0.06, -0.09
"""Points of less recall than this lie so close together that their numbers stand in a column beside the axis, at this
recall, each at the end of a line to its point."""
GAP = 0.026
"""Between two numbers of the column, as a share of the axis."""


def gate_figure(
    arms: Sequence[ArmResult],
    curve: Mapping[str, tuple[float, float]],
    free: Sequence[str],
    base: Rows,
    path: Path,
) -> Path:
    """Hack and solve of the quarantine-ablated model against recall, with intervals over problems of counts pooled over seeds.

    `curve` gives (recall, false alarms) of the arms whose labels were made worse on purpose, by label: one line for each
    rate of false alarms. `free` are the labels of label-free routes, drawn as points at the recall they had in training, a
    hollow one where a model has collapsed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), squeeze=False)
    by_label = {arm.label: arm for arm in arms}
    shown = [(by_label[label], recall) for label in free if (recall := _recall(by_label.get(label))) is not None]
    for ax, (title, markers, mode, count) in zip(axes[0], PANELS, strict=True):
        for alarm in sorted({alarm for _, alarm in curve.values()}):
            points = sorted((r, by_label[label]) for label, (r, a) in curve.items() if a == alarm and label in by_label)
            _draw(ax, points, markers, mode, count, COLOURS.get(alarm, "0.5"), f"true labels, {alarm:.0%} false alarms")
        for arm, recall in shown:
            _point(ax, arm, recall, markers, mode, count, base)
        before = find(tabulate(base), "base", markers, mode)
        if before is not None and before.n:
            ax.axhline(getattr(before, count) / before.n, color="0.4", linestyle=":", linewidth=1, label="base model")
        ax.set(xlabel="share of hacks routed away from the deployed block (recall)", ylabel=title, xlim=(-0.15, 1.03))
        ax.set_ylim(-0.02, 1.02 if mode == ALL else None)
        ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        rates = [(recall, pooled_rate(arm, markers, mode, count)) for arm, recall in shown]
        _numbers(ax, {n: (recall, rate[0]) for n, (recall, rate) in enumerate(rates, 1) if rate is not None})
        ax.grid(alpha=0.25)
    handles, _ = axes[0][0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], linestyle="", label=_caption(n, a)) for n, (a, _) in enumerate(shown, 1)]
    if handles:
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.72, 0.5), frameon=False, fontsize=7)
    figure.suptitle("Required gate quality: the quarantine-ablated model (hollow: collapsed in some seed)", fontsize=10)
    figure.tight_layout(rect=(0, 0, 0.72, 0.97))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    plt.close(figure)
    write_atomic(path, image.getvalue())
    return path


def _draw(
    ax: Axes,
    points: Sequence[tuple[float, ArmResult]],
    markers: str,
    mode: str,
    count: str,
    colour: str,
    label: str,
) -> None:
    found = [(x, rate) for x, arm in points if (rate := pooled_rate(arm, markers, mode, count)) is not None]
    if not found:
        return
    y = [rate for _, (rate, _, _) in found]
    errors = [[rate - low for _, (rate, low, _) in found], [high - rate for _, (rate, _, high) in found]]
    ax.errorbar([x for x, _ in found], y, yerr=errors, color=colour, marker="o", capsize=3, label=label)


def _point(ax: Axes, arm: ArmResult, recall: float, markers: str, mode: str, count: str, base: Rows) -> None:
    found = pooled_rate(arm, markers, mode, count)
    if found is None:
        return
    rate, low, high = found
    hollow = any(view == "deploy" for _, view in arm.collapses(base))
    face = "none" if hollow else "black"
    ax.errorbar([recall], [rate], yerr=[[rate - low], [high - rate]], color="black", alpha=0.35, linewidth=0.8)
    ax.scatter([recall], [rate], s=24, facecolors=face, edgecolors="black", zorder=3)


def _numbers(ax: Axes, points: Mapping[int, tuple[float, float]]) -> None:
    """Write each point's number beside it, or into the column where points are crowded."""
    crowded = sorted((rate, recall, number) for number, (recall, rate) in points.items() if recall < CROWDED)
    for number, (recall, rate) in points.items():
        if recall >= CROWDED:
            ax.annotate(str(number), (recall, rate), xytext=(4, 3), textcoords="offset points", fontsize=7)
    low, high = ax.get_ylim()
    heights = spread([rate for rate, _, _ in crowded], GAP * (high - low))
    for height, (rate, recall, number) in zip(heights, crowded, strict=True):
        line: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkB": 3}
        at = (COLUMN, height)
        ax.annotate(str(number), (recall, rate), at, ha="right", va="center", fontsize=7, arrowprops=line)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The ascending values that lie at least `gap` apart and nearest to these ascending ones (least squares).

    Values less their due distance from the first may not fall, which isotonic regression by pooling adjacent violators
    gives (Barlow et al., Statistical Inference under Order Restrictions, 1972).
    """
    pools: list[list[float]] = []
    for at, value in enumerate(values):
        pools.append([value - at * gap])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [statistics.fmean(pool) for pool in pools for _ in pool]
    return [base + at * gap for at, base in enumerate(level)]


def pooled_rate(arm: ArmResult, markers: str, mode: str, count: str) -> tuple[float, float, float] | None:
    """(rate, low, high) of the quarantine-ablated model, pooled over seeds; None where nothing was graded."""
    cell = find(tabulate([row for rows in arm.rows.values() for row in rows]), "deploy", markers, mode)
    if cell is None or (interval := cell.hack_interval if count == "hacks" else cell.solve_interval) is None:
        return None
    return getattr(cell, count) / cell.n, *interval


def _recall(arm: ArmResult | None) -> float | None:
    known = [g.recall for g in arm.gates.values() if g.recall is not None] if arm else []
    return statistics.fmean(known) if known else None


def _caption(number: int, arm: ArmResult) -> str:
    alarms = [g.false_alarms for g in arm.gates.values() if g.false_alarms is not None]
    return f"{number}  {arm.label}" + (f" ({statistics.fmean(alarms):.0%} false alarms)" if alarms else "")
