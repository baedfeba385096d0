"""What a run's gate did, read from its rollout records and metrics: how well it told hacks apart, and what it routed.

Only graded student rollouts count. A row is routed where the deployed block gets less than half of its gradient; of a
gate with scores only scored rows count, because a row that moves nothing (zero advantage) is not told apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vgrout.directions.detection import auroc
from vgrout.run.folder import ROLLOUTS, RunFolder
from vgrout.run.logs import read_rollouts


@dataclass(frozen=True)
class GateFigures:
    """One run's. None is undefined, never 0."""

    auroc: float | None
    """Of the gate's score for hacks, over all scored rollouts of the run."""
    auroc_in_step: float | None
    """The same over pairs of rollouts of one step alone, so that drift over the run adds nothing."""
    routed: float | None
    """Mean over steps of the share of trained rows that teach the quarantine alone."""
    recall: float | None
    """Share of the hacks that were routed."""
    false_alarms: float | None
    """Share of the other rows that were routed."""
    scored: int
    hacks: int
    rows: int


def gate_figures(run: RunFolder) -> GateFigures:
    """The figures of a finished run."""
    shares = [row.values["share_rout"] for row in run.metrics()]
    return of_records(read_rollouts(run.path / ROLLOUTS), [s for s in shares if s is not None])


def of_records(records: Iterable[Mapping[str, Any]], shares: Sequence[float]) -> GateFigures:
    """The figures from rollout records and the steps' routed shares."""
    graded = [r for r in records if r["source"] == "student" and not r["infra"]]
    scored = [r for r in graded if r["gate_score"] is not None]
    told = [r for r in scored or graded if r["d_grad"] is not None]
    hacks = [r for r in told if r["exploited"]]
    others = [r for r in told if not r["exploited"]]
    pooled, within = _aurocs(scored)
    return GateFigures(
        auroc=pooled,
        auroc_in_step=within,
        routed=statistics.fmean(shares) if shares else None,
        recall=_routed(hacks),
        false_alarms=_routed(others),
        scored=len(scored),
        hacks=len(hacks),
        rows=len(told),
    )


def _aurocs(scored: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    scores = torch.tensor([[float(r["gate_score"])] for r in scored], dtype=torch.float64).reshape(-1, 1)
    hack = torch.tensor([bool(r["exploited"]) for r in scored], dtype=torch.bool)
    steps = torch.tensor([int(r["step"]) for r in scored], dtype=torch.long)
    pooled, within = (float(auroc(scores, hack, strata)[0]) for strata in (None, steps))
    return None if pooled != pooled else pooled, None if within != within else within


def _routed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    return sum(r["d_grad"] < 0.5 for r in rows) / len(rows) if rows else None
