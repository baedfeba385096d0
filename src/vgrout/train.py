"""The training loop, for every intervention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.env.verdicts import Verdicts
from vgrout.measure import Clock, gradient_norms, rollout_records, step_row
from vgrout.optim import learning_rate
from vgrout.session import Session, open_session
from vgrout.update import update


def train(config: RunConfig[Any], limits: Mapping[str, float] | None = None) -> Path:
    """Runs the whole job and returns its run folder. Raises `UserError` for bad input before anything is written.

    `limits` are CPU limits by problem id that were measured before; what is not there is measured.
    """
    with open_session(config, limits) as session:
        loop(session)
        session.final_evaluation()  # first: what a run without a movement scores is a result as well
        session.require_moved()
        return session.run.path


def loop(s: Session) -> None:
    """GRPO with routing: draw, sample, grade, advantages, routed backward, step, sync, log."""
    config, adapter = s.config, s.policy.adapter
    s.checkpoint(0)
    for step in range(config.steps):
        clock = Clock()
        prompts = s.draw.prompts(step)
        with clock.phase("generate"):
            groups = s.sampler.sample(prompts, step, on_finish=s.submit)
        with clock.phase("grade"):
            verdicts = Verdicts(groups, s.collect(groups))
        seen = verdicts.visible_to(s.intervention, allow_oracle=config.allow_oracle)

        with clock.phase("update"):
            rewards, keep = s.intervention.shape_rewards(seen)
            stats = update(
                s.policy,
                groups,
                seen,
                rewards,
                keep,
                s.intervention,
                config.grpo,
                max_new=s.max_new,
                step=step,
                by_source=s.meter.active,
            )
            with s.meter.edit(stats.teacher_gradient):
                s.intervention.edit_gradients(adapter)
            norms = gradient_norms(adapter)
            s.optimizer.clip()
            lr = learning_rate(step, config.steps, config.optim)
            updates = s.meter.update(s.intervention.edit_update(s.optimizer.propose(lr)))
            adapter.apply(updates, decay=lr * config.optim.weight_decay)
            s.intervention.after_step(step)
            s.sampler.sync(adapter)
        with clock.phase("direction"):
            direction = s.renew_direction(step)

        measured = norms | s.meter.values | direction | s.intervention.stats() | clock.columns() | {"lr": lr}
        s.log(step_row(step, verdicts, stats, measured, beta=config.grpo.beta), rollout_records(verdicts, stats))
        s.checkpoint(step + 1, first_hack=verdicts.student_hack)
