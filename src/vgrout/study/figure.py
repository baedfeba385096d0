"""Hack and solve over the steps of a study's runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vgrout.run.disk import write_atomic
from vgrout.run.folder import RunFolder

WINDOWS = {"hack": 5, "solve": 15}
"""Steps of the centred moving averages: a step has a few dozen hinted rows, and hint-free ones of one or two problems."""
STYLES: dict[str, tuple[str, Literal["-", "--"], str]] = {
    "full": ("#c1440e", "-", "as trained"),
    "deploy": ("#1f6f8b", "--", "quarantine-ablated"),
}


def training_figure(
    arms: Sequence[tuple[str, Sequence[RunFolder]]], base: tuple[float, float] | None, path: Path
) -> Path:
    """One column per arm: hack of hinted prompts above, solve of hint-free prompts below; thin lines are seeds.

    `base` is (hack, solve) of the base model on the held-out problems, drawn as a dotted line.
    """
    figure, axes = plt.subplots(
        2, len(arms), figsize=(2.5 * len(arms) + 1.2, 5.2), sharex=True, sharey="row", squeeze=False
    )
    for column, (label, runs) in enumerate(arms):
        table = pd.concat([_metrics(run) for run in runs], keys=range(len(runs)), names=["run"])
        for row, rate in enumerate(("hack", "solve")):
            _panel(axes[row][column], table, rate, None if base is None else base[row])
        axes[0][column].set_title(label, fontsize=9)
        axes[1][column].set_xlabel("step")
    axes[0][0].set(ylabel="hack, hinted prompts", ylim=(-0.02, 1.02))
    axes[1][0].set(ylabel="solve, no hint", ylim=(-0.02, None))
    handles = [plt.Line2D([], [], color=c, linestyle=s, label=text) for c, s, text in STYLES.values()]
    handles.append(plt.Line2D([], [], color="0.4", linestyle=":", label="base model on held-out problems"))
    figure.legend(handles=handles, loc="lower center", ncol=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"Rollouts on training problems (moving averages over {WINDOWS['hack']} and {WINDOWS['solve']} steps; thin: one seed, thick: mean; *: upper bound)",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    plt.close(figure)
    write_atomic(path, image.getvalue())
    return path


def _metrics(run: RunFolder) -> pd.DataFrame:
    return pd.DataFrame([{"step": row.step, **row.values} for row in run.metrics()]).set_index("step").astype(float)


def _panel(ax: Axes, table: pd.DataFrame, rate: str, base: float | None) -> None:
    for view, (colour, line, _) in STYLES.items():
        seeds = table[f"{rate}_{view}"].unstack("run")
        if seeds.isna().all().all():
            continue  # this arm samples no row in that view
        smooth = seeds.rolling(WINDOWS[rate], center=True, min_periods=1).mean()
        ax.plot(smooth.index, smooth, color=colour, linestyle=line, linewidth=0.6, alpha=0.45)
        ax.plot(smooth.index, np.nanmean(smooth, axis=1), color=colour, linestyle=line, linewidth=1.8)
    if base is not None:
        ax.axhline(base, color="0.4", linestyle=":", linewidth=1)
    ax.grid(alpha=0.25)
