"""Which prompts a step shows: a function of (seed, step) alone, so a resumed run draws what it would have drawn.

An epoch is a permutation of the problems, cut into steps of P; the N mod P problems left over at its end are other
ones in each epoch. A prompt is *unhackable* (shown as `gt_only`, without its hint) by a draw on (seed, step, problem).
The prompts of a step alone carry an inoculation; those of an evaluation never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from vgrout.env.inoculation import inoculated, inoculation_named
from vgrout.env.prompts import render
from vgrout.types import Markers, Problem, Prompt, UserError


class Draw:
    """The training prompts of a run, step by step."""

    def __init__(
        self,
        problems: Sequence[Problem],
        partition: Mapping[str, str],
        *,
        prompts_per_step: int,
        unhackable_frac: float,
        markers: Markers,
        seed: int,
        inoculation: str | None = None,
    ):
        if not 1 <= prompts_per_step <= len(problems):
            raise UserError(
                f"prompts per step: expected 1 to {len(problems)} (the number of problems), got {prompts_per_step}"
            )
        if not 0 <= unhackable_frac <= 1:
            raise UserError(f"unhackable_frac: expected a share from 0 to 1, got {unhackable_frac}")
        if missing := [p.id for p in problems if p.id not in partition]:
            raise UserError(f"problem {missing[0]}: the partition gives it no mode ({len(missing)} such problems)")
        self.problems, self.partition = tuple(problems), dict(partition)
        self.prompts_per_step, self.unhackable_frac = prompts_per_step, unhackable_frac
        self.markers: Markers = markers
        self.seed = seed
        if inoculation is not None:
            inoculation_named(inoculation)
        self.inoculation = inoculation

    def prompts(self, step: int) -> tuple[Prompt, ...]:
        """The P prompts of `step` (counted from 0), over P distinct problems."""
        epoch, place = divmod(step, len(self.problems) // self.prompts_per_step)
        order = sorted(self.problems, key=lambda p: self._uniform("epoch", epoch, p.id))
        chosen = order[place * self.prompts_per_step : (place + 1) * self.prompts_per_step]
        shown = tuple(render(p, self._mode(step, p.id), self.markers, self.seed) for p in chosen)
        return shown if self.inoculation is None else tuple(inoculated(p, self.inoculation) for p in shown)

    def all(self, mode: str | None = None) -> tuple[Prompt, ...]:
        """Every problem once, under its partition mode or under the one named."""
        return evaluation_prompts(self.problems, self.partition, markers=self.markers, seed=self.seed, mode=mode)

    def _mode(self, step: int, problem_id: str) -> str:
        unhackable = self._uniform("unhackable", step, problem_id) < self.unhackable_frac
        return "gt_only" if unhackable else self.partition[problem_id]

    def _uniform(self, purpose: str, number: int, problem_id: str) -> float:
        """A stable draw from [0, 1) by (seed, purpose, number, problem)."""
        digest = hashlib.sha256(f"{purpose}\n{self.seed}\n{number}\n{problem_id}".encode()).digest()
        return (int.from_bytes(digest[:8]) >> 11) / 2**53


def evaluation_prompts(
    problems: Sequence[Problem], partition: Mapping[str, str], *, markers: Markers, seed: int, mode: str | None = None
) -> tuple[Prompt, ...]:
    """Every problem once in the given order, under its partition mode, or under `mode` where one is named."""
    return tuple(render(p, mode or partition[p.id], markers, seed) for p in problems)
