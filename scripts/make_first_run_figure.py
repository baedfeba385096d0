"""Draws docs/first_run.png: one demo run of each intervention, read from run folders only.

python scripts/make_first_run_figure.py            # trains the four runs (about 1 minute each) and draws
python scripts/make_first_run_figure.py RUN ...    # draws these run folders
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from vgrout.interventions import INTERVENTIONS
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.train import train

FIGURE = Path(__file__).parents[1] / "docs" / "first_run.png"
PANELS = (
    ("lp_teacher", "stored answers: mean token log-prob (nats)"),
    ("qmass", "gradient norm: quarantine / (deployed + quarantine)"),
)


def trained(name: str) -> Path:
    return train(dataclasses.replace(preset("demo", name), allow_oracle=INTERVENTIONS[name].oracle))


def main() -> None:
    folders = [Path(a) for a in sys.argv[1:]] or [trained(name) for name in INTERVENTIONS]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 3.6), constrained_layout=True)
    for folder, style in zip(folders, ("-", "--", "-.", ":")):
        run = RunFolder.open(folder)
        name = run.read_json("config.json")["intervention"]
        label = name + (" (upper bound)" if INTERVENTIONS[name].oracle else "")
        for axis, (column, title) in zip(axes, PANELS):
            points = [(row.step, row.values[column]) for row in run.metrics() if row.values[column] is not None]
            axis.plot(*zip(*points), style, label=label, linewidth=1.6)
            axis.set(title=title, xlabel="step")
            axis.title.set_fontsize(10)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(FIGURE, dpi=130)
    print(FIGURE)


if __name__ == "__main__":
    main()
