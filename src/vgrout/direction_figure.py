"""The figure of a check: held-out pairs, left-out pairs, AUROC beside the placebos, and what each family of pairs finds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from vgrout.directions.assessment import OVERALL, Detection
from vgrout.directions.check import HeldOut, LeaveOneOut
from vgrout.directions.verdict import CheckResult, short

REAL, OTHER, GREY = "#c1440e", "#1f6f8b", "0.75"
COORDINATES = {"routing": REAL, "erase": OTHER}
MARKERS = "sD^vP*"


def check_figure(result: CheckResult) -> bytes:
    """A PNG. One row of panels for the pairs, and one for each kind of feature that rollouts were scored by."""
    rows = 1 + len(result.detection)
    figure, axes = plt.subplots(
        rows, 2, figsize=(13, 4.5 * rows), squeeze=False, gridspec_kw={"width_ratios": [1, 1.15]}
    )
    _held_out(axes[0][0], result.held_out)
    _left_out(axes[0][1], result.leave_one_out)
    for (feature, part), (left, right) in zip(result.detection.items(), axes[1:], strict=True):
        _auroc(left, part, feature)
        _families(right, part, feature)
    figure.suptitle(f"direction {result.heading['direction']}; pairs {result.heading['pairs']}", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    plt.close(figure)
    return image.getvalue()


def _held_out(ax: Axes, parts: Mapping[str, HeldOut]) -> None:
    """Each module's cosine, sorted, with two null sizes as a band."""
    for name, part in parts.items():
        values = sorted(part.cosines.values())
        at = np.linspace(0, 1, len(values))
        colour = COORDINATES.get(name, "k")
        mark = "pass" if part.passed else "fail"
        label = f"{name}: {short(part.fraction)} above 0, needed more than {short(part.needed)}: {mark}"
        ax.plot(at, values, "o-", color=colour, markersize=3.5, linewidth=1, label=label)
        ax.axhspan(-part.null, part.null, color=colour, alpha=0.12, linewidth=0)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel="modules, sorted", ylabel="cosine with the direction", xticks=[])
    ax.set_title("held-out pairs (bands: 1/sqrt(d), the size of a chance cosine)", fontsize=10)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.22 * (high - low))
    ax.grid(alpha=0.25)


def _left_out(ax: Axes, part: LeaveOneOut) -> None:
    """Both completions of each pair, scored by the direction of the other pairs."""
    order = np.argsort(part.hack)
    hack, clean = np.array(part.hack)[order], np.array(part.clean)[order]
    at = np.arange(len(hack))
    ax.vlines(at, np.minimum(hack, clean), np.maximum(hack, clean), color=GREY, linewidth=1)
    ax.plot(at, hack, "o", color=REAL, markersize=4.5, label="hack")
    ax.plot(at, clean, "o", color=OTHER, markersize=4.5, label="clean")
    of = lambda name: f"{short(part.values[name])} (needed > {short(part.needed(name))})"  # noqa: E731
    mark = "pass" if part.passed else "fail"
    ax.set_title(f"left-out pairs: {mark}; hack above clean {of('paired')}, AUROC {of('auroc')}", fontsize=8)
    ax.set(xlabel="pairs, sorted by the score of the hack", ylabel="mean cosine", xticks=[])
    ax.legend(fontsize=8, frameon=False)
    ax.grid(alpha=0.25)


def _auroc(ax: Axes, part: Detection, feature: str) -> None:
    """AUROC of each group of rows: real with its interval, bands of the draws, single placebos, length."""
    names = list(part.groups)
    for y, group in enumerate(part.groups.values()):
        _bar(ax, y, group.haar, 0.62, "0.86", "Haar draws, 95 %")
        _bar(ax, y, group.shuffled, 0.3, "0.66", "exchanged sides, 95 %")
        for marker, (content, value) in zip(MARKERS, group.contents.items(), strict=False):
            ax.plot(value, y, marker, color=OTHER, markersize=6, label=content)
        ax.plot(group.length, y, "x", color="k", markersize=7, label="completion length")
        low, high = (v if v is not None else group.auroc for v in group.interval)
        ax.errorbar(
            group.auroc,
            y,
            xerr=[[max(group.auroc - low, 0)], [max(high - group.auroc, 0)]],
            fmt="o",
            color=REAL,
            capsize=3,
            markersize=7,
            label="direction, 95 %",
        )
    labels = [f"{name}\n{g.positives} hacks of {g.n}" for name, g in part.groups.items()]
    ax.set_yticks(range(len(names)), labels, fontsize=8)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="AUROC")
    ax.axvline(0.5, color="0.3", linewidth=0.8)
    ax.set_title(f"rollouts by {feature}: {'pass' if part.passed else 'fail'}", fontsize=10)
    found: dict[str, Any] = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        found.values(), found.keys(), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3, frameon=False
    )
    ax.grid(alpha=0.25, axis="x")


def _bar(ax: Axes, y: int, band: Sequence[float | None], height: float, colour: str, label: str) -> None:
    low, middle, high = band
    if low is None or middle is None or high is None:
        return
    ax.barh(y, high - low, left=low, height=height, color=colour, label=label)
    ax.vlines(middle, y - height / 2, y + height / 2, color="0.4", linewidth=0.8)


def _families(ax: Axes, part: Detection, feature: str) -> None:
    """Rows: which pairs the direction is made of. Columns: the modes. Numbers: AUROC."""
    kinds = [name for name in part.groups if name not in OVERALL]
    rows = [("all pairs", {k: part.groups[k].auroc for k in kinds})]
    rows += [(f"{family} alone", values) for family, values in part.families.items()]
    rows += [(f"without {family}", values) for family, values in part.without.items()]
    if not kinds:
        ax.axis("off")
        return
    values = np.array([[found[k] for k in kinds] for _, found in rows])
    ax.imshow(values, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*values.shape):
        strong = abs(values[i, j] - 0.5) > 0.3
        beaten = values[i, j] > (part.groups[kinds[j]].haar[2] or 1.0)
        text = short(float(values[i, j])) + ("" if beaten else " (in band)")
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="w" if strong else "k")
    columns = [f"{k}\n{part.groups[k].positives} of {part.groups[k].n}{_coverage(part, k)}" for k in kinds]
    ax.set_xticks(range(len(kinds)), columns, fontsize=8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    ax.set_title(f"AUROC by {feature}: pairs the direction is made of x loophole mode", fontsize=10)


def _coverage(part: Detection, kind: str) -> str:
    covered = kind not in part.uncovered or part.uncovered[kind]["covered"]
    return "\ncovered by pairs" if covered else "\nno pair covers it"
