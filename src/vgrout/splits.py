"""Problems and prompts by split: what is trained on, what the final evaluation shows, what the curve shows.

Choices among problems are made by a stable hash of seed, purpose and id, so they are the same on every machine and in any
order of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vgrout.env.draw import Draw, evaluation_prompts
from vgrout.env.partition import make_partition
from vgrout.evals import TRAIN, VALIDATION, Asked
from vgrout.types import Markers, Problem, Prompt, View

BOTH: tuple[View, ...] = ("full", "deploy")
"""Views that training and validation problems are shown to: what training did, and what the ablation undoes."""


@dataclass(frozen=True)
class Curve:
    """The validation problems of the curve."""

    problems: tuple[Problem, ...]
    asked: Asked
    source: str
    """Where they come from, for people."""


@dataclass
class Data:
    """Problems and prompts of a run."""

    train: tuple[Problem, ...]
    """Those that are drawn from; problems held out of them for the curve are not among them."""
    held_out: tuple[Problem, ...]
    draw: Draw
    eval_partition: dict[str, str]
    """Modes of the held-out problems."""
    final: tuple[Asked, ...]
    """What the evaluation at the end shows: held-out problems, then training problems."""
    curve: Curve | None

    @property
    def eval_prompts(self) -> tuple[Prompt, ...]:
        """Every prompt that any evaluation of the run shows."""
        curve = self.curve.asked.prompts if self.curve else ()
        return (*(prompt for part in self.final for prompt in part.prompts), *curve)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them, each once."""
        return (*self.train, *self.held_out, *(self.curve.problems if self.curve else ()))

    @property
    def curve_words(self) -> str:
        """What the start-up line says of the curve; empty without one."""
        return f"; curve on {len(self.curve.problems)} problems {self.curve.source}" if self.curve else ""

    def shown(self, prompts: Iterable[Prompt]) -> list[Problem]:
        """The problems of these prompts."""
        ids = {prompt.problem_id for prompt in prompts}
        return [problem for problem in self.problems if problem.id in ids]


def choose(problems: Sequence[Problem], count: int, *, seed: int, purpose: str) -> tuple[Problem, ...]:
    """`count` of the problems (all, where there are fewer), in the order in which they were given.

    Not the first ones: files are often sorted by date or difficulty. Choices for different purposes do not depend on
    each other.
    """

    def place(problem: Problem) -> bytes:
        return hashlib.sha256(f"{purpose}\n{seed}\n{problem.id}".encode()).digest()

    chosen = {problem.id for problem in sorted(problems, key=place)[:count]}
    return tuple(problem for problem in problems if problem.id in chosen)


def prompts_of(
    problems: Sequence[Problem], partition: Mapping[str, str], families: Iterable[Markers], seed: int, *, free: bool
) -> tuple[Prompt, ...]:
    """Every problem once with each marker family, then, with `free`, once without its hint."""
    prompts: tuple[Prompt, ...] = ()
    for family in families:
        prompts += evaluation_prompts(problems, partition, markers=family, seed=seed)
    if free:
        prompts += evaluation_prompts(problems, partition, markers="eval", seed=seed, mode="gt_only")
    return prompts


def train_part(draw: Draw, count: int, views: Sequence[View], seed: int) -> Asked:
    """`count` training problems as training shows them with their hint, but without an inoculation, to those of `views`
    that are in `BOTH`."""
    shown = tuple(view for view in views if view in BOTH)
    chosen = choose(draw.problems, count, seed=seed, purpose="evaluated training problems") if shown else ()
    prompts = evaluation_prompts(chosen, draw.partition, markers=draw.markers, seed=draw.seed)
    return Asked(TRAIN, prompts, shown if prompts else ())


def curve_of(problems: Sequence[Problem], source: str, modes: Sequence[str], seed: int) -> Curve:
    """These problems with eval markers and without a hint, whatever the final evaluation shows."""
    partition = make_partition([problem.id for problem in problems], modes, seed)
    prompts = prompts_of(problems, partition, ("eval",), seed, free=True)
    return Curve(tuple(problems), Asked(VALIDATION, prompts, BOTH), source)
