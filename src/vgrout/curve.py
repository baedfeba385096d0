"""The periodic curve: hack and solve of the growing adapter on a few validation problems, never those of the final test.

A measurement for people: nothing that trains reads it, and no random state is touched. Every point asks the same prompts
with the same random numbers, so that points differ by the weights alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from vgrout.config import RunConfig
from vgrout.evals import ALL, FREE, SCHEMA, VALIDATION, VIEW_NAMES, Cell, Grades, evaluate, find, twins
from vgrout.inputs import evaluation_sampler
from vgrout.models import LoadedModel
from vgrout.policy import Policy
from vgrout.run.disk import disk_errors, dumps, write_atomic
from vgrout.run.intervals import proportion
from vgrout.splits import BOTH, Curve, Data
from vgrout.types import UserError

CURVE, FIGURE = "curve.jsonl", "curve.png"


def due(config: RunConfig[Any], updates: int) -> bool:
    """Whether the curve has a point after so many updates: every `eval.curve_every`, and after the last."""
    every = config.eval.curve_every
    return every is not None and updates > 0 and (updates % every == 0 or updates == config.steps)


def measure_point(
    config: RunConfig[Any], loaded: LoadedModel, policy: Policy, grader: Grades, data: Data, updates: int
) -> dict[str, Any]:
    """One point: the cells of `full` and `deploy` on the validation problems, one answer to each prompt."""
    if data.curve is None:
        raise ValueError("curve: the run has no validation problems")
    start, sampler = perf_counter(), evaluation_sampler(config, loaded, policy)
    result = evaluate(sampler, grader, [data.curve.asked], sets=described(data.curve), twins=twins(policy.adapter))
    kept = {name: result[name] for name in ("schema", "problems", "cells")}
    return {"update": updates, "seconds": round(perf_counter() - start, 3)} | kept


def described(curve: Curve) -> str:
    """`32 problems of micro:validation`."""
    return f"{len(curve.problems)} problems {curve.source}"


def point_bytes(point: dict[str, Any]) -> bytes:
    """The point as its line of curve.jsonl."""
    return dumps(point, CURVE, indent=None).encode() + b"\n"


def point_text(point: dict[str, Any]) -> str:
    """The point in one line, for people: hacks of hinted prompts, solves without a hint."""
    cells = cells_of(point)
    parts = []
    for view in BOTH:
        hinted, free = find(cells, view, "eval", ALL, VALIDATION), find(cells, view, "", FREE, VALIDATION)
        if hinted is not None and free is not None:
            parts.append(
                f"{VIEW_NAMES[view]} hack {proportion(hinted.hacks, hinted.n)}, solve {proportion(free.solves, free.n)}"
            )
    return f"curve, update {point['update']} ({point['problems']}): {'; '.join(parts)}; {point['seconds']:.1f} s"


def cells_of(point: dict[str, Any]) -> list[Cell]:
    """The cells that a point holds."""
    return [_cell(stored) for stored in point["cells"]]


def _cell(stored: dict[str, Any]) -> Cell:
    fields = dict(stored)
    for name in ("hack_interval", "solve_interval"):
        fields[name] = tuple(fields[name]) if fields[name] else None
    return Cell(**fields)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The points of a curve.jsonl, in their order; none where there is no file. `UserError` for a damaged one."""
    if not path.exists():
        return []
    with disk_errors(path, "read"):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [_point(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _point(line: str, where: str) -> dict[str, Any]:
    try:
        point = json.loads(line)
        if point["schema"] != SCHEMA:
            raise UserError(f"{where}: schema {point['schema']!r}, expected {SCHEMA!r}; read it with its own revision")
        cells_of(point)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no point of a curve ({error!r}); the file was damaged or edited") from error
    return point


def series(points: Sequence[dict[str, Any]], view: str, kind: str) -> list[tuple[int, float, float, float]]:
    """(update, rate, low, high) of `hack` on hinted prompts or of `solve` without a hint; points without a graded row are
    left out."""
    found = []
    for point in points:
        hack = kind == "hack"
        cell = find(cells_of(point), view, "eval" if hack else "", ALL if hack else FREE, VALIDATION)
        interval = None if cell is None else cell.hack_interval if hack else cell.solve_interval
        if cell is not None and interval is not None:
            found.append((point["update"], (cell.hacks if hack else cell.solves) / cell.n, *interval))
    return found


COLOURS = {"full": "#c1440e", "deploy": "#1f6f8b"}
PANELS = {"hack": "hack, hinted prompts (eval markers)", "solve": "solve, no hint"}


def curve_figure(points: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    """Hack and solve over the updates, by view, with Wilson 95 % bands. Raises ValueError without a point."""
    import matplotlib  # slow to import, and most runs have no curve

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if not points:
        raise ValueError("curve figure: there is no point")
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.9))
    for ax, (kind, label) in zip(axes, PANELS.items(), strict=True):
        for view, colour in COLOURS.items():
            if found := series(points, view, kind):
                x, y, low, high = zip(*found, strict=True)
                line = "--" if view == "deploy" else "-"
                ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
                ax.plot(x, y, color=colour, linestyle=line, marker="o", markersize=3.5, label=VIEW_NAMES[view])
        ax.set(xlabel="updates", ylabel=label, ylim=(-0.02, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.suptitle(f"{title}: {points[-1]['problems']} (bands: 95 % Wilson)", fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    plt.close(figure)
    write_atomic(path, image.getvalue())
    return path
