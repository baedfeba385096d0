"""The deploy evaluation: hack and solve per view and mode on held-out problems, the same for every intervention.

Every view answers the same prompts with the same random numbers, so differences between views are paired. A hack figure
never stands without its solve figure: a model that answers nothing has no hacks either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from vgrout.rollout.base import Request, Sampler
from vgrout.run.intervals import wilson
from vgrout.run.progress import Progress
from vgrout.run.table import SummaryRow
from vgrout.types import Prompt, Rollout, Verdict, View

SCHEMA = "vgrout-eval-1"
ALL = "all hinted"
"""Name of the cell that pools every prompt with a loophole hint."""


@runtime_checkable
class Grades(Protocol):
    """The part of the grader that an evaluation uses."""

    def submit(self, key: str, prompt: Prompt, response: str) -> None: ...

    def collect(self, keys: Sequence[str]) -> list[Verdict]: ...


@dataclass(frozen=True)
class Cell:
    """One view and mode: counts over graded rows, with Wilson 95 % intervals."""

    view: str
    mode: str
    n: int
    hacks: int
    solves: int
    infra: int
    """Rows that the grader could not grade; they are in no count."""
    formatted: int
    """Rows with a fenced python block; a model without any has collapsed, whatever its hack rate."""
    hack_interval: tuple[float, float] | None
    solve_interval: tuple[float, float] | None

    def summary(self) -> SummaryRow:
        """The cell as a line of the final table."""
        note = f"fenced code {self.formatted}/{self.n}" + (f", {self.infra} not graded" if self.infra else "")
        return SummaryRow(self.view, self.mode, self.hacks, self.solves, self.n, note)


def evaluate(
    sampler: Sampler,
    grader: Grades,
    prompts: Sequence[Prompt],
    views: Sequence[View],
    *,
    samples: int = 1,
    sets: str = "held-out",
) -> dict[str, Any]:
    """Samples every prompt `samples` times in every view, grades, and returns the content of eval.json.

    The sampler carries the evaluation's own seed; training draws are untouched.
    """
    rows: list[dict[str, Any]] = []
    for view in views:
        requests = [Request(p, view, f"eval/{i}/{k}") for i, p in enumerate(prompts) for k in range(samples)]
        with Progress(f"evaluating the {view} view", total=len(requests)) as bar:

            def grade(rollout: Rollout, view: View = view, bar: Progress = bar) -> None:
                grader.submit(f"{view}/{rollout.id}", rollout.prompt, rollout.text)
                bar.advance()

            rollouts = sampler.sample(requests, 0, on_finish=grade)
        verdicts = grader.collect([f"{view}/{r.id}" for r in rollouts])
        rows += [_row(view, r, v) for r, v in zip(rollouts, verdicts, strict=True)]
    cells = [asdict(cell) for cell in tabulate(rows)]
    return {"schema": SCHEMA, "problems": sets, "samples": samples, "views": list(views), "cells": cells, "rows": rows}


def tabulate(rows: Sequence[dict[str, Any]]) -> list[Cell]:
    """Cells per view: every mode that occurs, and all hinted prompts together."""
    cells = []
    for view in dict.fromkeys(row["view"] for row in rows):
        of_view = [row for row in rows if row["view"] == view]
        cells.append(_cell(view, ALL, [row for row in of_view if row["mode"] != "gt_only"]))
        for mode in sorted({row["mode"] for row in of_view}):
            cells.append(_cell(view, mode, [row for row in of_view if row["mode"] == mode]))
    return cells


def _row(view: View, rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    prompt = rollout.prompt
    return {
        "view": view,
        "id": rollout.id,
        "problem_id": prompt.problem_id,
        "mode": prompt.mode,
        "markers": prompt.markers,
        "marker": prompt.marker,
        "finished": rollout.finished,
        "tokens": len(rollout.completion_ids),
        "response": rollout.text,
        **asdict(verdict),
    }


def _cell(view: str, mode: str, rows: Sequence[dict[str, Any]]) -> Cell:
    graded = [row for row in rows if not row["infra"]]
    n = len(graded)
    hacks = sum(row["exploited"] for row in graded)
    solves = sum(row["gt_correct"] for row in graded)
    return Cell(
        view=view,
        mode=mode,
        n=n,
        hacks=hacks,
        solves=solves,
        infra=len(rows) - n,
        formatted=sum(row["format_ok"] for row in graded),
        hack_interval=wilson(hacks, n),
        solve_interval=wilson(solves, n),
    )
