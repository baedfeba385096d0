"""Steps of the training loop on the small model with every mixture of rows, and what is said of each of them by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from _mixed_step import MAX_NEW
from _models import Step, step_of
from _routers import config_of, rig
from vgrout.directions.meter import Meter
from vgrout.env.verdicts import Verdicts
from vgrout.measure import COLUMNS, Clock, gradient_norms, rollout_records, step_row, update_share
from vgrout.observe import observe
from vgrout.run.columns import Column
from vgrout.types import Rollout, StepRow, Verdict
from vgrout.update import update

G = 6
SPREAD = [[0.5, 3.0, 0.5, 2.0, 3.0, 0.0], [0.5, 3.0, 2.0, 0.0, 3.0, 1.5]]
"""A reward of 3 stands for a hack. The last row of each group is sampled in the deploy view."""
FLAT = [[0.5] * G] * 2
ONE_HACK = [[0.5] * (G - 1) + [3.0]] * 2
"""Sampled in the deploy view, where it teaches nothing; the others do not differ among themselves."""


@dataclass(frozen=True)
class Case:
    """One kind of step: the intervention, its rows, and by hand which groups of columns say something of it."""

    name: str
    intervention: str
    defined: str
    """Names of `GROUPS` of the gate, with blanks between; every other column is undefined."""
    rewards: Sequence[Sequence[float]] = field(default_factory=lambda: SPREAD)
    modes: tuple[str, str] = ("run_tests", "gt_only")
    teachers: tuple[int, ...] = ()
    """Rows of each group that come from the pool."""
    masked: tuple[int, ...] = ()
    """Rows of each group whose grade failed."""
    steps: int = 1
    beta: float = 0.0
    direction: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def step_for(case: Case) -> Step:
    """The rows of a case."""
    drawn = step_of([list(row) for row in case.rewards])
    groups = []
    for p, group in enumerate(drawn.groups):
        prompt = dataclasses.replace(group.prompt, mode=case.modes[p])
        groups.append(dataclasses.replace(group, prompt=prompt, rollouts=tuple(
            _row(dataclasses.replace(r, prompt=prompt), i in case.teachers) for i, r in enumerate(group.rollouts)
        )))  # fmt: skip
    return Step(tuple(groups), drawn.seen)


def _row(rollout: Rollout, teacher: bool) -> Rollout:
    if teacher:
        return dataclasses.replace(rollout, source="teacher", view="full")
    return dataclasses.replace(rollout, sampler_logps=(-1.0,) * len(rollout.completion_ids))


def verdict(reward: float, *, infra: bool = False, **changed: Any) -> Verdict:
    """A verdict as the grader gives it, 3 standing for a hack."""
    hack = reward == 3.0
    v = Verdict(reward, False, hack, hack, hack, "Incorrect", False, True, True, infra, "ok", "", 0.1, 0.1, "1")
    return dataclasses.replace(v, **changed)


def verdicts_of(case: Case, step: Step) -> Verdicts:
    return Verdicts(step.groups, {
        r.id: verdict(reward, infra=i in case.masked)
        for group, rewards in zip(step.groups, case.rewards, strict=True)
        for i, (r, reward) in enumerate(zip(group.rollouts, rewards, strict=True))
    })  # fmt: skip


def taken(case: Case, declared: Sequence[Column] = COLUMNS) -> tuple[StepRow, list[dict[str, Any]]]:
    """The row and the records of the case's last step, taken as the training loop takes it."""
    r, step = rig(case.intervention, moved=0.05, **case.settings), step_for(case)
    it, verdicts = r.intervention, verdicts_of(case, step)
    meter = Meter(r.adapter, r.direction if case.direction and r.direction.subspace.axes else None)
    for n in range(case.steps):
        clock, seen = Clock(), verdicts.visible_to(it, allow_oracle=True)
        features = observe(r.policy, step.groups, it.needs, token_budget=10_000)
        rewards, keep = it.shape_rewards(seen, features, n)
        config = config_of(step, beta=case.beta, **case.options)
        stats = update(
            r.policy, step.groups, seen, rewards, keep, it, config,
            max_new=MAX_NEW, step=n, features=features, by_source=meter.active,
        )  # fmt: skip
        with meter.edit(stats.teacher_gradient):
            it.edit_gradients(r.adapter)
        norms = gradient_norms(r.adapter)
        r.optimizer.clip()
        updates = meter.update(it.edit_update(r.optimizer.propose(1e-2)))
        norms |= update_share(r.adapter, updates)
        r.adapter.apply(updates, decay=0.0)
        it.after_step(n)
        r.direction.after_step(n)
        direction = r.direction.stats() if case.direction else {}
        measured = norms | meter.values | direction | it.stats() | clock.columns() | {"lr": 1e-2}
        if "anchors" in case.defined:
            measured |= {"anchor_lp": -1.5, "anchor_drop": 0.0}
        row = step_row(n, verdicts, stats, measured, beta=case.beta, declared=declared)
    return row, rollout_records(verdicts, stats)
