"""The training loop, for every intervention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.env.verdicts import Verdicts
from vgrout.measure import gradient_norms, rollout_records, step_row, update_share
from vgrout.observe import observe
from vgrout.opening import open_session
from vgrout.optim import learning_rate
from vgrout.resume import Resumed, reopen
from vgrout.run.folder import LIMITS, RunFolder
from vgrout.run.interrupt import stop_after_step, terminable
from vgrout.session import Session
from vgrout.stored import stored_config, stored_limits
from vgrout.update import update


def train(
    config: RunConfig[Any],
    limits: Mapping[str, float] | None = None,
    *,
    resumed: Resumed | None = None,
    graceful: bool = False,
) -> Path:
    """Runs the whole job, or what is left of a resumed one, and returns its run folder. Raises `UserError` for bad input
    before anything is written.

    `limits` are CPU limits by problem id that were measured before; what is not there is measured. With `graceful` (in the
    main thread only) a first Ctrl-C ends the run after its step, with a checkpoint.
    """
    with terminable() if graceful else nullcontext(), open_session(config, limits, resumed) as session:
        with stop_after_step(session.stop) if graceful else nullcontext():
            loop(session)
        session.final_evaluation()  # first: what a run without a movement scores is a result as well
        session.require_moved()
        return session.run.path


def resume(folder: Path, asked: Callable[[RunConfig[Any]], RunConfig[Any]], *, override: bool) -> Path:
    """Continues a run, bit for bit on the same machine, with what `asked` makes of its stored configuration.

    Raises `UserError` where a setting differs and `override` was not given, where the run is finished or being trained, and
    where its files do not allow it; the folder is unchanged then.
    """
    run = RunFolder.open(folder)
    stored = stored_config(run)
    try:
        resumed = reopen(run, stored, config := asked(stored), override=override)
        limits = stored_limits(run) if (folder / LIMITS).exists() else None
        return train(config, limits, resumed=resumed, graceful=True)
    finally:
        run.close()


def loop(s: Session) -> None:
    """GRPO with routing: draw, sample, grade, advantages, routed backward, step, sync, log."""
    config, adapter = s.config, s.policy.adapter
    for step in s.steps():
        clock = s.clock(step)
        prompts = s.draw.prompts(step)
        with clock.phase("generate"):
            groups = s.sampler.sample(prompts, step, on_finish=s.submit)
        with clock.phase("grade"):
            verdicts = Verdicts(groups, s.collect(groups))
        seen = verdicts.visible_to(s.intervention, allow_oracle=config.allow_oracle)

        with clock.phase("observe"):
            features = observe(s.policy, groups, s.intervention.needs, token_budget=config.grpo.token_budget)
        with clock.phase("update"):
            rewards, keep = s.intervention.shape_rewards(seen, features, step)
            stats = update(
                s.policy,
                groups,
                seen,
                rewards,
                keep,
                s.intervention,
                config.grpo,
                features=features,
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
            norms |= update_share(adapter, updates)
            adapter.apply(updates, decay=lr * config.optim.weight_decay)
            s.intervention.after_step(step)
            s.sampler.sync(adapter)
        with clock.phase("direction"):
            direction = s.renew_direction(step)

        measured = norms | s.meter.values | direction | s.intervention.stats() | s.anchored(clock) | {"lr": lr}
        row = step_row(step, verdicts, stats, measured, beta=config.grpo.beta, declared=s.run.columns)
        s.log(row, rollout_records(verdicts, stats))
        s.watch(row)
        s.maybe_evaluate(step + 1)
        s.checkpoint(step + 1, first_hack=verdicts.student_hack)
