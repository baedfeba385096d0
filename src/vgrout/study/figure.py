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
COLUMNS = 8
"""Arms side by side."""
STYLES: dict[str, tuple[str, Literal["-", "--"], str]] = {
    "full": ("#c1440e", "-", "as trained"),
    "deploy": ("#1f6f8b", "--", "quarantine-ablated"),
}


def training_figure(
    arms: Sequence[tuple[str, Sequence[RunFolder]]], base: tuple[float, float] | None, path: Path
) -> Path:
    """One column per arm: hack of hinted prompts above, solve of hint-free prompts below; thin lines are seeds.

    More than `COLUMNS` arms go on in further bands below. `base` is (hack, solve) of the base model on the held-out
    problems, drawn as a dotted line.
    """
    width, bands = min(len(arms), COLUMNS), -(-len(arms) // COLUMNS)
    size = (2.5 * width + 1.2, 5.2 * bands)
    figure, axes = plt.subplots(2 * bands, width, figsize=size, sharex=True, sharey="row", squeeze=False)
    for place in range(len(arms), bands * width):
        for row in (0, 1):
            axes[2 * (place // width) + row][place % width].axis("off")
    for place, (label, runs) in enumerate(arms):
        table = pd.concat([_metrics(run) for run in runs], keys=range(len(runs)), names=["run"])
        above, below = (axes[2 * (place // width) + row][place % width] for row in (0, 1))
        for row, (ax, rate) in enumerate(((above, "hack"), (below, "solve"))):
            _panel(ax, table, rate, None if base is None else base[row])
        above.set_title(label, fontsize=9)
        below.set_xlabel("step")
        below.tick_params(labelbottom=True)
    highest = max(float(ax.get_ylim()[1]) for ax in axes[1::2, 0])
    for above, below in zip(axes[0::2, 0], axes[1::2, 0], strict=True):
        above.set(ylabel="hack, hinted prompts", ylim=(-0.02, 1.02))
        below.set(ylabel="solve, no hint", ylim=(-0.02, highest))
    handles = [plt.Line2D([], [], color=c, linestyle=s, label=text) for c, s, text in STYLES.values()]
    handles.append(plt.Line2D([], [], color="0.4", linestyle=":", label="base model on held-out problems"))
    figure.legend(handles=handles, loc="lower center", ncol=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"Rollouts on training problems (moving averages over {WINDOWS['hack']} and {WINDOWS['solve']} steps; thin: one seed, thick: mean; *: upper bound)",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0.05 / bands, 1, 1 - 0.02 / bands))
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
