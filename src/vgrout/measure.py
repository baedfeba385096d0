"""From one step's rollouts, verdicts and update to the declared metrics columns and the rollout records.

Undefined values are None, never 0: a hack rate without student rows is not a hack rate of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.directions.detection import auroc, f_half_at
from vgrout.env.modes import EXTRA, LOOPHOLES, MODES, STANDARD
from vgrout.env.verdicts import Verdicts
from vgrout.evals import FREE
from vgrout.run.columns import Column
from vgrout.run.declared import columns
from vgrout.types import Rollout, StepRow, Verdict
from vgrout.update import UpdateStats

COLUMNS: tuple[Column, ...] = columns(STANDARD)
"""Those of a run without extra modes."""

Graded = Sequence[tuple[Rollout, Verdict]]


def columns_of(modes: Sequence[str]) -> tuple[Column, ...]:
    """The columns of a run that trains on these modes: each extra mode among them has its rates too."""
    return columns((*LOOPHOLES, *(mode for mode in EXTRA if mode in modes), FREE))


class Clock:
    """Seconds of the phases of one step; `on_phase` hears each phase's name as it begins."""

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        self._on_phase = on_phase
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Adds the time inside the block to `name`."""
        self._on_phase(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def columns(self) -> dict[str, float]:
        """The seconds_* columns; what a step did not do took no time."""
        phases = {
            f"seconds_{name}": self.seconds.get(name, 0.0)
            for name in ("generate", "grade", "observe", "update", "direction")
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


def update_share(adapter: Adapter, updates: Sequence[Tensor]) -> dict[str, float]:
    """The quarantine's share of the update: Adam undoes a constant scale, so a block that is sent little gradient may still
    be moved as far as the other."""
    deployed, quarantine = (adapter.norm_of(block, updates) for block in ("deployed", "quarantine"))
    return {"qmass_update": quarantine / (deployed + quarantine)} if deployed + quarantine > 0 else {}


def step_row(
    step: int,
    verdicts: Verdicts,
    stats: UpdateStats,
    measured: Mapping[str, float | None],
    *,
    beta: float,
    declared: Sequence[Column] = COLUMNS,
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
    taught = [zone for zone in stats.zones if zone is not None]
    values: dict[str, float | int | None] = dict.fromkeys(column.name for column in declared)
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
        "loss": stats.loss,
    }
    for zone in ("keep", "mid", "rout"):
        ratios = [x for x, of in zip(stats.ratio, stats.zones, strict=True) if of == zone and x is not None]
        values |= {f"share_{zone}": _mean([of == zone for of in taught]), f"ratio_{zone}": _mean(ratios)}
    for view in ("full", "deploy"):
        of_view = [(r, v) for r, v in student if r.view == view]
        values[f"hack_{view}"] = _mean([v.exploited for r, v in of_view if r.prompt.mode != FREE])
        values[f"solve_{view}"] = _mean([v.gt_correct for r, v in of_view if r.prompt.mode == FREE])
    for mode in (mode for mode in MODES if f"hack_{mode}" in values):
        of_mode = [(r, v) for r, v in student if r.prompt.mode == mode]
        hack_solve = _hack_solve("student", of_mode)
        values |= {f"hack_{mode}": hack_solve["hack_student"], f"solve_{mode}": hack_solve["solve_student"]}
    values |= {**_gate_quality(every, stats), **measured}
    values |= dict.fromkeys(_undefined(stats, taught=bool(taught), beta=beta))
    return StepRow(step, values | {"step": step})


def _undefined(stats: UpdateStats, *, taught: bool, beta: float) -> Iterator[str]:
    """Columns that are measured in every step and say nothing of this one: a gradient that nothing was added to is not one of
    norm 0, nor is the share of a block that the run does not train."""
    forwarded = zip(stats.mean_logp, stats.weights, strict=True)
    kl_only = beta > 0 and any(lp is not None and max(weights) > 0 for lp, weights in forwarded)
    if not (taught or kl_only):
        yield from ("loss", "grad_norm", "grad_norm_deployed", "grad_norm_quarantine", "qmass", "router_grad_grpo")
    if not stats.trains_quarantine:
        yield from ("grad_norm_quarantine", "qmass", "qmass_update")


def _gate_quality(every: Graded, stats: UpdateStats) -> dict[str, float | None]:
    """How well the route tells hacks from other rows: a measurement, which nothing that trains ever sees."""
    scored = [
        (score, called, v.exploited)
        for score, called, (_, v) in zip(stats.scores, stats.hack, every, strict=True)
        if score is not None and not v.infra
    ]
    found: dict[str, float | None] = {
        f"score_{source}": _mean(
            [s for s, (r, _) in zip(stats.scores, every, strict=True) if s is not None and r.source == source]
        )
        for source in ("student", "teacher")
    }
    read = torch.tensor([s for s in stats.scores if s is not None], dtype=torch.float64)
    if len(read):
        found |= {f"gate_p{q}": float(read.quantile(q / 100)) for q in (10, 50, 90)}
    truth = torch.tensor([hack for _, _, hack in scored], dtype=torch.bool)
    if not 0 < int(truth.sum()) < len(scored):
        return found
    scores = torch.tensor([[score] for score, _, _ in scored], dtype=torch.float64)
    called = torch.tensor([[float(hack)] for _, hack, _ in scored], dtype=torch.float64)
    return found | {
        "gate_auroc": float(auroc(scores, truth)),
        "gate_f05": float(f_half_at(called, truth, 0.5)),
    }


def rollout_records(verdicts: Verdicts, stats: UpdateStats) -> list[dict[str, Any]]:
    """What rollouts.jsonl.zst keeps of a step: text, provenance, verdict, advantage. Training never reads it."""
    rows = [r for group in verdicts.groups for r in group.rollouts]
    records = []
    read = zip(rows, stats.advantages, stats.weights, stats.scores, strict=True)
    for rollout, advantage, (deployed, quarantine), score in read:
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
                "gate_score": score,
                "d_grad": deployed,
                "q_grad": quarantine,
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
