"""A run while it trains: its parts by name, and what the loop asks of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from loguru import logger

from vgrout.adapter.checkpoint import CheckpointInfo, save_checkpoint
from vgrout.config import RunConfig
from vgrout.curve import CURVE, FIGURE, curve_figure, due, measure_point, point_bytes, point_text, read_curve
from vgrout.diagnosis import warn_if_idle
from vgrout.directions.live import LiveDirection
from vgrout.directions.meter import Meter
from vgrout.env.draw import Draw
from vgrout.env.grader import Grader
from vgrout.final import eval_table, evaluate_views, marked
from vgrout.inputs import (
    Data,
)
from vgrout.interventions.base import Intervention
from vgrout.measure import Clock
from vgrout.models import LoadedModel
from vgrout.optim import Optimizer
from vgrout.policy import Policy
from vgrout.resume import log_marks
from vgrout.rollout.base import GroupSampler
from vgrout.run.console import say
from vgrout.run.disk import append, dumps
from vgrout.run.folder import RunFolder
from vgrout.run.generators import random_states, set_random_states
from vgrout.run.heartbeat import Heartbeat
from vgrout.run.interrupt import Stop
from vgrout.run.states import newest_update, save_state
from vgrout.run.table import StepTable
from vgrout.tripwires import Anchors, Tripped, Tripwires
from vgrout.types import Group, Interrupted, Rollout, StepRow, UserError, Verdict


@dataclass
class Session:
    """A run's parts; `train.loop` reads them by these names."""

    config: RunConfig[Any]
    run: RunFolder
    loaded: LoadedModel
    policy: Policy
    intervention: Intervention
    optimizer: Optimizer
    draw: Draw
    sampler: GroupSampler
    grader: Grader
    data: Data
    table: StepTable
    direction: LiveDirection | None
    meter: Meter
    inputs: dict[str, str]
    """Hashes of what lies outside the run folder."""
    heart: Heartbeat
    tripwires: Tripwires
    anchors: Anchors
    first: int = 0
    """Updates that were made before, by the process that this one continues."""
    hacked: bool = False
    evaluated: bool = False
    stop: Stop = field(default_factory=Stop)

    @property
    def max_new(self) -> int:
        return self.config.rollout.max_new

    def submit(self, rollout: Rollout) -> None:
        """Starts grading a finished rollout."""
        self.grader.submit(rollout.id, rollout.prompt, rollout.text)

    def collect(self, groups: Sequence[Group]) -> dict[str, Verdict]:
        """Waits for the verdicts of a step's rollouts."""
        ids = [r.id for group in groups for r in group.rollouts]
        return dict(zip(ids, self.grader.collect(ids), strict=True))

    def renew_direction(self, step: int) -> dict[str, float | None]:
        """Renews the direction where it is due; its columns of the metrics."""
        if self.direction is None:
            return {}
        self.direction.after_step(step)
        return self.direction.stats()

    def log(self, row: StepRow, records: list[dict[str, Any]]) -> None:
        """Rollouts first: a metrics line vouches for them."""
        self.run.log_rollouts(row.step, records)
        self.run.log_step(row)
        self.table.row(row)
        warn_if_idle(row.step, records)

    def steps(self) -> Iterator[int]:
        """The steps that are left; the init is saved before the first of all."""
        if self.first == 0:
            self.checkpoint(0)
        for step in range(self.first, self.config.steps):
            yield step
            self.heart.at(step + 1, "between steps")

    def clock(self, step: int) -> Clock:
        """Times a step's phases, and tells the heartbeat which one it is."""
        return Clock(lambda phase: self.heart.at(step, phase))

    def anchored(self, clock: Clock) -> dict[str, float | None]:
        """The anchors' columns, measured now, and with them the step's seconds."""
        with clock.phase("anchors"):
            anchors = self.tripwires.anchor_columns(self.anchors.logp())
        return anchors | clock.columns()

    def watch(self, row: StepRow) -> None:
        """Judges the step that has been logged. Raises `Tripped` or FloatingPointError where the run has gone wrong."""
        for name, t in self.policy.adapter.trainables():
            if not bool(t.value.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite after step {row.step}")
        self.tripwires.check(row.step, row.values)

    def checkpoint(self, updates: int, *, first_hack: bool = False) -> None:
        """Saves the init, every `checkpoint_every` updates, the end, and the first update after a student's hack was paid.

        What may be a bad state is not saved before the end. Raises `Interrupted` where a stop was asked for.
        """
        last = updates == self.config.steps
        stopping = bool(self.stop.requested)
        due = updates % self.config.checkpoint_every == 0 or last
        names: list[int | str] = [updates] if due else []
        if first_hack and not self.hacked and (last or not self.tripwires.suspicious):
            self.hacked = True
            names.append("first_hack")
        self.heart.at(updates, "checkpoint")
        doubt = self.tripwires.suspicious if names or stopping else ""
        if doubt and not last:
            logger.warning(f"no checkpoint after {updates} updates: {doubt} may have gone wrong")
        else:
            if doubt:
                logger.warning(f"the last checkpoint may be a bad one: {doubt} was touched in the last step")
            self._save(updates, names, state=due or stopping)
        if stopping:
            raise Interrupted(f"{self.stop.requested} after {updates} of {self.config.steps} updates")

    def _save(self, updates: int, names: Sequence[int | str], *, state: bool) -> None:
        """The checkpoints that ship first: a state vouches for them."""
        for name in names:
            path, info = self.run.checkpoint_path(name), identity(self.loaded)
            save_checkpoint(path, self.policy.adapter, info, step=updates, config=self.config.to_dict())
        if state:
            save_state(self.run.path, updates, self.state(), owner=self.run.known_status().get("started"))

    def state(self) -> dict[str, Any]:
        """What the next step depends on, beside the configuration and the base model."""
        return {
            "config": dumps(self.config.to_dict(), "the configuration"),
            "inputs": self.inputs,
            "parameters": [p.detach() for p in self.policy.adapter.parameters()],
            "optimizer": self.optimizer.state_dict(),
            "intervention": self.intervention.state_dict(),
            "direction": self.direction.state_dict() if self.direction is not None else None,
            "tripwires": self.tripwires.state_dict(),
            "hacked": self.hacked,
            "random": random_states(),
            "logs": log_marks(self.run.path),
        }

    def restore(self, state: Mapping[str, Any], updates: int) -> None:
        """Continues from what `state` gave."""
        with torch.no_grad():
            for p, value in zip(self.policy.adapter.parameters(), state["parameters"], strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.direction is not None:
            self.direction.load_state_dict(state["direction"])
        self.intervention.load_state_dict(state["intervention"])
        self.tripwires.load_state_dict(state["tripwires"])
        self.hacked, self.first = state["hacked"], updates
        set_random_states(state["random"])
        self.sampler.sync(self.policy.adapter)

    def explained(self, error: BaseException) -> BaseException:
        """The error that ends the run, with how to go on from the last good checkpoint."""
        if self.evaluated:
            return error
        updates = newest_update(self.run.path)
        good = (
            "it has no checkpoint yet" if updates is None else f"the last good checkpoint is that of update {updates}"
        )
        text = f"{str(error) or type(error).__name__}; {good}, continue with `vgrout train --resume {self.run.path}`"
        if isinstance(error, FloatingPointError | Tripped):
            return Tripped(text)
        if isinstance(error, Interrupted | KeyboardInterrupt):
            return Interrupted(text)
        if isinstance(error, UserError):
            return UserError(text)
        logger.error(text)
        return error

    def require_moved(self) -> None:
        """The blocks that this intervention trains have moved, the others are exactly at their init."""
        for block in ("deployed", "quarantine"):
            moved = self.policy.adapter.block_norm(block, "moved")
            if moved == 0 and block in self.intervention.moves:
                raise UserError(
                    f"the {block} block has not moved in {self.config.steps} steps of {self.config.intervention}: no rollout "
                    "with a non-zero advantage reached it; mix in teacher rows (--rollout.mix-ratio) or use a model that "
                    f"earns rewards (see {self.run.path / 'metrics.jsonl'})"
                )
            if moved > 0 and block not in self.intervention.moves:
                raise RuntimeError(f"the {block} block has moved by {moved:.3g} under {self.config.intervention}")

    def maybe_evaluate(self, updates: int) -> None:
        """A point of the curve where one is due: a line of curve.jsonl, which nothing that trains reads."""
        if due(self.config, updates):
            self.heart.at(updates, "curve")
            point = measure_point(self.config, self.loaded, self.policy, self.grader, self.data, updates)
            append(self.run.path / CURVE, point_bytes(point))
            say(point_text(point))

    def final_evaluation(self) -> dict[str, Any]:
        """Evaluates held-out and training problems, writes eval.json and the curve's figure, prints the tables."""
        self.heart.at(self.config.steps, "evaluate")
        result = evaluate_views(self.config, self.loaded, self.policy, self.grader, self.data)
        gap = sampler_gap(self.run.metrics())
        result |= {"step": self.config.steps, "deploy_view": self.intervention.deploy_view, "sampler_gap": gap}
        self.run.write_json("eval.json", result)
        say(eval_table(result, self.config))
        if gap is not None:
            say(
                f"Sampler (merged weights) and trainer (folded) differ by {gap['mean']:.1e} nats a token on average and by "
                f"{gap['max']:.1e} at most; the bound on a step's mean is {self.tripwires.gap:g}."
            )
        if points := read_curve(self.run.path / CURVE):
            curve_figure(points, marked(self.config), self.run.path / FIGURE)
        self.evaluated = True
        self.heart.at(self.config.steps, "end")
        return result


def sampler_gap(rows: Sequence[StepRow]) -> dict[str, float] | None:
    """|sampler - trainer log-prob| of a token over a run's steps: mean of their means, and largest; None without students."""
    means = [mean for row in rows if (mean := row.values["sampler_gap_mean"]) is not None]
    most = [value for row in rows if (value := row.values["sampler_gap_max"]) is not None]
    return {"mean": sum(means) / len(means), "max": max(most)} if means and most else None


def identity(loaded: LoadedModel) -> CheckpointInfo:
    """What a checkpoint of this model must share with the run that loads it."""
    return CheckpointInfo(model=loaded.name, revision=loaded.revision or "none", dtype=loaded.dtype)
