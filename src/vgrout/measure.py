"""From one step's rollouts, verdicts and update to the declared metrics columns and the rollout records.

Undefined values are None, never 0: a hack rate without student rows is not a hack rate of zero.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

from vgrout.adapter.base import Adapter
from vgrout.env.modes import MODES
from vgrout.env.verdicts import Verdicts
from vgrout.evals import FREE
from vgrout.run.columns import Column, columns
from vgrout.types import Rollout, StepRow, Verdict
from vgrout.update import UpdateStats

COLUMNS: tuple[Column, ...] = columns(tuple(MODES))

Graded = Sequence[tuple[Rollout, Verdict]]


class Clock:
    """Seconds of the phases of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Adds the time inside the block to `name`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def columns(self) -> dict[str, float]:
        """The seconds_* columns; what a step did not do took no time."""
        phases = {
            f"seconds_{name}": self.seconds.get(name, 0.0) for name in ("generate", "grade", "update", "direction")
        }
        return phases | {"seconds_total": perf_counter() - self._start}


def gradient_norms(adapter: Adapter) -> dict[str, float]:
    """Norms of the routed gradient before clipping, whole and by block, and the quarantine's share of their sum."""
    deployed, quarantine = adapter.block_norm("deployed", "grad"), adapter.block_norm("quarantine", "grad")
    norms = {
        "grad_norm": (deployed**2 + quarantine**2) ** 0.5,
        "grad_norm_deployed": deployed,
        "grad_norm_quarantine": quarantine,
    }
    return norms | ({"qmass": quarantine / (deployed + quarantine)} if deployed + quarantine > 0 else {})


def step_row(
    step: int, verdicts: Verdicts, stats: UpdateStats, measured: Mapping[str, float | None], *, beta: float
) -> StepRow:
    """One line of metrics.jsonl. `measured` holds what the loop measured itself (norms, learning rate, seconds)."""
    every = [(r, verdicts.by_id[r.id]) for group in verdicts.groups for r in group.rollouts]
    graded = [(r, v) for r, v in every if not v.infra]
    student = [(r, v) for r, v in graded if r.source == "student"]
    teacher = [(r, v) for r, v in graded if r.source == "teacher"]
    by_source = {
        source: [lp for (r, _), lp in zip(every, stats.mean_logp, strict=True) if lp is not None and r.source == source]
        for source in ("student", "teacher")
    }
    gaps = [gap for gap in stats.gap if gap is not None]
    taught = stats.n_moving - stats.n_discarded
    values: dict[str, float | int | None] = dict.fromkeys(column.name for column in COLUMNS)
    values |= {
        "reward": _mean([v.reward for _, v in graded]),
        "reward_student": _mean([v.reward for _, v in student]),
        **_hack_solve("student", student),
        **_hack_solve("teacher", teacher),
        "n_infra": len(every) - len(graded),
        "n_zero_groups": stats.n_zero_groups,
        "n_rows_trained": sum(lp is not None for lp in stats.mean_logp),
        "n_discarded": stats.n_discarded,
        "format_rate": _mean([v.format_ok for _, v in student]),
        "length_mean": _mean([len(r.completion_ids) for r, _ in student]),
        "truncated_share": _mean([not r.finished for r, _ in student]),
        "kl": stats.kl_sum / stats.n_tokens if beta > 0 and stats.n_tokens else None,
        "clip_frac": stats.n_clipped / stats.n_tokens if stats.n_tokens else None,
        "sampler_gap_mean": _mean(gaps),
        "sampler_gap_max": stats.gap_max,
        "lp_student": _mean(by_source["student"]),
        "lp_teacher": _mean(by_source["teacher"]),
        "share_keep": stats.n_keep / taught if taught else None,
        "share_mid": (taught - stats.n_keep - stats.n_rout) / taught if taught else None,
        "share_rout": stats.n_rout / taught if taught else None,
        "loss": stats.loss if stats.n_tokens else None,
    }
    for view in ("full", "deploy"):
        of_view = [(r, v) for r, v in student if r.view == view]
        values[f"hack_{view}"] = _mean([v.exploited for r, v in of_view if r.prompt.mode != FREE])
        values[f"solve_{view}"] = _mean([v.gt_correct for r, v in of_view if r.prompt.mode == FREE])
    for mode in MODES:
        of_mode = [(r, v) for r, v in student if r.prompt.mode == mode]
        hack_solve = _hack_solve("student", of_mode)
        values |= {f"hack_{mode}": hack_solve["hack_student"], f"solve_{mode}": hack_solve["solve_student"]}
    values |= measured
    if not stats.n_tokens:  # a gradient that nothing was added to is not one of norm 0
        values |= dict.fromkeys(("grad_norm", "grad_norm_deployed", "grad_norm_quarantine"))
    return StepRow(step, values | {"step": step})


def rollout_records(verdicts: Verdicts, stats: UpdateStats) -> list[dict[str, Any]]:
    """What rollouts.jsonl.zst keeps of a step: text, provenance, verdict, advantage. Training never reads it."""
    rows = [r for group in verdicts.groups for r in group.rollouts]
    records = []
    for rollout, advantage in zip(rows, stats.advantages, strict=True):
        prompt = rollout.prompt
        records.append(
            {
                "id": rollout.id,
                "problem_id": prompt.problem_id,
                "mode": prompt.mode,
                "markers": prompt.markers,
                "marker": prompt.marker,
                "source": rollout.source,
                "view": rollout.view,
                "finished": rollout.finished,
                "tokens": len(rollout.completion_ids),
                "response": rollout.text,
                "advantage": advantage,
                **asdict(verdicts.by_id[rollout.id]),
            }
        )
    return records


def _hack_solve(source: str, graded: Graded) -> dict[str, float | None]:
    return {
        f"hack_{source}": _mean([v.exploited for _, v in graded]),
        f"solve_{source}": _mean([v.gt_correct for _, v in graded]),
    }


def _mean(values: Sequence[float | int]) -> float | None:
    return sum(values) / len(values) if values else None
