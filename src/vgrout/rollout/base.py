"""What every sampler takes and gives, and how the rows of a step are shared out among samplers and views.

A sampler turns requests (a prompt, a view, an id) into rollouts. `GroupSampler` knows how many rows of a group come from
the teacher pool, how many are sampled with the quarantine ablated, and puts the groups together; neither it nor a
sampler ever sees a verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Protocol, runtime_checkable

from vgrout.types import Group, Prompt, Rollout, UserError, View

OnFinish = Callable[[Rollout], None]
"""Called with each rollout as soon as it is complete, so that grading can start."""
Progress = Callable[[int, int], None]
"""Called after each decoding step with (tokens sampled so far, rows still alive)."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off."""

    max_new: int
    """Tokens of a completion at most."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this share (after top_k)."""
    top_k: int = 0
    """Keep this many most likely tokens."""

    def __post_init__(self) -> None:
        checks = (
            ("max_new", self.max_new >= 1, "a whole number of at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)"),
            ("top_k", self.top_k >= 0, "0 (off) or a positive whole number"),
        )
        _check(self, checks)


@dataclass(frozen=True, slots=True)
class Request:
    """One row to sample."""

    prompt: Prompt
    view: View
    rollout_id: str
    """`step/prompt index/row index`, unique in a run; with the sampler's seed it decides the row's random draws."""


@runtime_checkable
class Sampler(Protocol):
    """Where rollouts come from: the policy, an inference engine, or a pool of stored answers."""

    def sample(self, requests: Sequence[Request], step: int, on_finish: OnFinish | None = None) -> list[Rollout]:
        """One rollout per request, in the order of the requests."""
        ...

    def sync(self, adapter: object) -> None:
        """Take over the adapter's current weights (nothing to do where the sampler reads them itself)."""
        ...


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """How the G rows of each group are made up."""

    group_size: int
    """Rows of a group (G)."""
    rollout_ablate_frac: float = 0.25
    """Share of the group sampled with the quarantine ablated (view `deploy`); rounded half up."""
    mix_ratio: float = 0.0
    """Share of the group taken from the teacher pool; rounded half up."""
    teacher_off_step: int | None = None
    """First step without teacher rows; None keeps them to the end."""
    teacher_modes: tuple[str, ...] | None = None
    """Loophole modes that get teacher rows; None means every mode. Held-out modes get no demonstrations."""

    def __post_init__(self) -> None:
        checks = (
            ("group_size", self.group_size >= 1, "a whole number of at least 1"),
            ("rollout_ablate_frac", 0 <= self.rollout_ablate_frac <= 1, "a share between 0 and 1"),
            ("mix_ratio", 0 <= self.mix_ratio <= 1, "a share between 0 and 1"),
            ("teacher_off_step", (self.teacher_off_step or 0) >= 0, "a step number or none"),
        )
        _check(self, checks)

    def teacher_rows(self, mode: str, step: int) -> int:
        """Teacher rows in a group of this mode at this step."""
        if self.teacher_off_step is not None and step >= self.teacher_off_step:
            return 0
        if self.teacher_modes is not None and mode not in self.teacher_modes:
            return 0
        return round_half_up(self.mix_ratio, self.group_size)

    def deploy_rows(self, sampled: int) -> int:
        """Rows in the `deploy` view among `sampled` rows of one group."""
        return min(round_half_up(self.rollout_ablate_frac, self.group_size), sampled)

    def wants_teacher(self) -> bool:
        """Whether any step at all takes teacher rows."""
        return round_half_up(self.mix_ratio, self.group_size) > 0 and self.teacher_off_step != 0


def _check(settings: object, checks: Sequence[tuple[str, bool, str]]) -> None:
    for name, holds, expected in checks:
        if not holds:
            raise UserError(f"{name} is {getattr(settings, name)!r}: expected {expected}")


def round_half_up(share: float, of: int) -> int:
    """`share * of` rounded half up, exact for the share as written in decimals (0.29 * 50 is 14.5, so 15)."""
    return int((Decimal(repr(float(share))) * of).to_integral_value(ROUND_HALF_UP))


def seed_from(*parts: object) -> int:
    """A 63-bit seed from any printable parts; stable over processes, machines and Python versions."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class GroupSampler:
    """Draws the groups of a step: exactly G rows each, from the teacher pool and from the student in two views."""

    def __init__(self, student: Sampler, pool: Sampler | None, plan: GroupPlan, *, deploy_view: bool = True) -> None:
        """`deploy_view=False` samples every row in view `full`: for interventions without a quarantine block."""
        if pool is None and plan.wants_teacher():
            raise UserError(f"mix_ratio is {plan.mix_ratio} but there is no teacher pool: name a pool or set it to 0")
        self.student, self.pool, self.plan, self.deploy_view = student, pool, plan, deploy_view

    def sample(self, prompts: Sequence[Prompt], step: int, on_finish: OnFinish | None = None) -> tuple[Group, ...]:
        """One group per prompt; rows in a group are ordered teacher, `full`, `deploy`.

        Rollout ids are `step/prompt index/row index`. `on_finish` sees each row once, as soon as it is complete.
        """
        teacher: list[Request] = []
        student: list[Request] = []
        for index, prompt in enumerate(prompts):
            from_pool = self.plan.teacher_rows(prompt.mode, step)
            sampled = self.plan.group_size - from_pool
            deploy = self.plan.deploy_rows(sampled) if self.deploy_view else 0
            for row in range(self.plan.group_size):
                view: View = "deploy" if row >= self.plan.group_size - deploy else "full"
                (teacher if row < from_pool else student).append(Request(prompt, view, f"{step}/{index}/{row}"))
        rollouts: dict[str, Rollout] = {}
        if self.pool is not None and teacher:
            rollouts.update((rollout.id, rollout) for rollout in self.pool.sample(teacher, step, on_finish))
        if student:
            rollouts.update((rollout.id, rollout) for rollout in self.student.sample(student, step, on_finish))
        rows = range(self.plan.group_size)
        return tuple(
            Group(prompt=prompt, rollouts=tuple(rollouts[f"{step}/{index}/{row}"] for row in rows))
            for index, prompt in enumerate(prompts)
        )

    def sync(self, adapter: object) -> None:
        """Hand the adapter's current weights to the student."""
        self.student.sync(adapter)
