"""What stops a run that has gone wrong, so that nobody finds out days later. None of it needs a teacher.

    anchors   mean log-prob of the anchor texts, nats a token below the best seen: warn at 3, stop at 5
    gradient  norm over the median of the last 20: warn at 10, stop at 100
    format    share of fenced answers, mean of 5 steps over the best such mean: warn below 1/2, stop below 1/10
    routing   more than .6 of the rows routed away and none kept
    sampler   mean gap of sampling and training log-probs above a bound

Each stops after `patience` steps in a row; between the first and the last of them no checkpoint is written, nor after a
step whose own format rate is that low while the mean still is not. What is not finite stops at once, where it is found. The anchor texts are canonical solutions of training problems, shown without hint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch
from loguru import logger

from vgrout.models import LoadedModel, render_prompt
from vgrout.policy import Policy, micro_batches
from vgrout.types import Problem, Prompt, Rollout, UserError

GAP_BOUNDS: Final = {"fp32": 1e-3, "bf16": 0.1}
"""Largest mean |sampler - trainer log-prob|, nats a token: rounding of fp32 is far below; of bf16 it was seen up to .1."""
RECENT: Final = 20
FORMAT_STEPS: Final = 5


class Tripped(UserError):
    """A tripwire has stopped the run."""


@dataclass(frozen=True)
class TripwireConfig:
    """Tripwires: what stops a run that has gone wrong."""

    anchors: int = 8
    """Training problems whose canonical solutions are the anchor texts; 0: none."""
    anchor_warn: float = 3.0
    """Nats a token below the best seen at which a warning is logged."""
    anchor_stop: float = 5.0
    """Nats a token below the best seen that stop the run."""
    grad_warn: float = 10.0
    """Gradient norm over the median of the last 20 at which a warning is logged."""
    grad_stop: float = 100.0
    """Gradient norm over the median of the last 20 that stops the run."""
    format_warn: float = 0.5
    """Format rate (mean of 5 steps) over the best one so far, below which a warning is logged."""
    format_stop: float = 0.1
    """Format rate (mean of 5 steps) over the best one so far, below which the run stops."""
    rout_stop: float = 0.6
    """Share of routed rows above which the run stops where not a single row is kept."""
    gap_stop: float | None = None
    """Mean gap of sampling and training log-probs (nats a token) that stops the run; none: 0.001 in fp32, 0.1 in bf16."""
    patience: int = 2
    """Steps in a row that it takes to stop."""
    stop: bool = True
    """Whether tripwires stop the run or only warn; what is not finite stops it in any case."""

    def __post_init__(self) -> None:
        checks = (
            ("anchors", self.anchors >= 0, "at least 0"),
            ("anchor_stop", 0 < self.anchor_warn <= self.anchor_stop, "anchor_warn or more, and that above 0"),
            ("grad_stop", 1 < self.grad_warn <= self.grad_stop, "grad_warn or more, and that above 1"),
            (
                "format_stop",
                0 <= self.format_stop <= self.format_warn <= 1,
                "from 0 to format_warn, and that at most 1",
            ),
            ("rout_stop", 0 < self.rout_stop <= 1, "above 0 and at most 1"),
            ("gap_stop", self.gap_stop is None or self.gap_stop > 0, "above 0, or none"),
            ("patience", self.patience >= 1, "at least 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise UserError(f"--tripwires.{name.replace('_', '-')} {getattr(self, name)}: expected {expected}")


class Anchors:
    """The anchor texts, and their log-probability under the adapter's `full` view."""

    def __init__(self, policy: Policy, texts: Sequence[Rollout], *, token_budget: int):
        self.policy = policy
        self.batches = (
            micro_batches(texts, range(len(texts)), token_budget=token_budget, device=policy.device) if texts else []
        )

    @torch.no_grad()
    def logp(self) -> float | None:
        """Mean over texts of a text's mean log-prob a token, nats; None without texts."""
        means: list[float] = []
        for batch in self.batches:
            with self.policy.adapter.view("full"):
                logps = self.policy.logps(batch).double()
            sums = torch.zeros(len(batch.rows), dtype=logps.dtype, device=logps.device).index_add(0, batch.owner, logps)
            means += (sums / batch.lengths).tolist()
        return sum(means) / len(means) if means else None


def anchor_texts(
    problems: Sequence[Problem], prompts: Sequence[Prompt], loaded: LoadedModel, count: int
) -> list[Rollout]:
    """Canonical solutions of `count` of the problems, chosen by a hash of their ids, as answers to these prompts.

    Problems without a canonical solution, and those for which the model has too few positions, are passed over.
    """
    positions = getattr(loaded.model.config, "max_position_embeddings", None) or float("inf")
    known = {prompt.problem_id: prompt for prompt in prompts}
    texts: list[Rollout] = []
    for problem in sorted(problems, key=lambda p: hashlib.sha256(f"anchor\n{p.id}".encode()).digest()):
        if len(texts) == count:
            break
        answer = f"```python\n{problem.canonical_solution.strip()}\n```"
        prompt, ids = known[problem.id], tuple(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"])
        prompt_ids = tuple(render_prompt(loaded.tokenizer, prompt.messages))
        if problem.canonical_solution.strip() and len(prompt_ids) + len(ids) <= positions:
            name = f"anchor/{problem.id}"
            texts.append(Rollout(name, prompt, prompt_ids, ids, answer, "teacher", "full", finished=False))
    return texts


@dataclass(frozen=True)
class Alarm:
    """What a tripwire says of a step."""

    wire: str
    stops: bool
    reason: str
    doubtful: bool = False
    """Whether the state may be a bad one already, though the wire does not yet say so."""


class Tripwires:
    """Judges each step by its metrics row."""

    def __init__(self, config: TripwireConfig, dtype: str):
        self.config, self.gap = config, config.gap_stop or GAP_BOUNDS[dtype]
        self.best_anchor: float | None = None
        self.norms: list[float] = []
        self.formats: list[float] = []
        self.best_format = 0.0
        self.counts: dict[str, int] = {}
        self.doubted: set[str] = set()

    @property
    def suspicious(self) -> str:
        """The wires that the last step has touched, so that its state may be a bad one; empty where there are none."""
        return ", ".join(sorted(self.counts.keys() | self.doubted)) if self.config.stop else ""

    def anchor_columns(self, logp: float | None) -> dict[str, float | None]:
        """Columns of the anchors' log-prob and of its distance from the best one so far."""
        best = logp if logp is None or self.best_anchor is None else max(self.best_anchor, logp)
        return {"anchor_lp": logp, "anchor_drop": None if logp is None or best is None else best - logp}

    def check(self, step: int, row: Mapping[str, float | int | None]) -> None:
        """Takes a step's row in. Warns, and raises `Tripped` where a wire was touched for the last time allowed."""
        alarms = list(self._alarms(row))
        stopping = {alarm.wire: self.counts.get(alarm.wire, 0) + 1 for alarm in alarms if alarm.stops}
        self.counts, self.doubted = stopping, {alarm.wire for alarm in alarms if alarm.doubtful}
        for alarm in alarms:
            logger.warning(f"step {step}: {alarm.reason}")
        for alarm in alarms:
            if self.config.stop and stopping.get(alarm.wire, 0) >= self.config.patience:
                raise Tripped(
                    f"step {step}: {alarm.reason}, {stopping[alarm.wire]} steps in a row (with --tripwires.no-stop it goes on)"
                )

    def _alarms(self, row: Mapping[str, float | int | None]) -> Iterator[Alarm]:
        wires: tuple[Callable[[Mapping[str, float | int | None]], Alarm | None], ...] = (
            self._anchors,
            self._gradient,
            self._format,
            self._routing,
            self._sampler,
        )
        return (alarm for wire in wires if (alarm := wire(row)) is not None)

    def _anchors(self, row: Mapping[str, float | int | None]) -> Alarm | None:
        logp, drop = row["anchor_lp"], row["anchor_drop"]
        if logp is None or drop is None:
            return None
        self.best_anchor = logp + drop
        if drop < self.config.anchor_warn:
            return None
        reason = f"the anchor texts' log-prob is {drop:.1f} nats a token below its best ({logp:.2f})"
        return Alarm("anchors", drop >= self.config.anchor_stop, reason)

    def _gradient(self, row: Mapping[str, float | int | None]) -> Alarm | None:
        norm = row["grad_norm"]
        if norm is None:
            return None
        usual = median(self.norms) if len(self.norms) == RECENT else 0.0
        ratio = norm / usual if usual > 0 else 0.0
        stops = ratio >= self.config.grad_stop
        if not stops:  # what stops a run does not become usual
            self.norms = [*self.norms, float(norm)][-RECENT:]
        if ratio < self.config.grad_warn:
            return None
        return Alarm(
            "gradient", stops, f"the gradient's norm {norm:.3g} is {ratio:.0f} times the median of the last {RECENT}"
        )

    def _format(self, row: Mapping[str, float | int | None]) -> Alarm | None:
        rate = row["format_rate"]
        if rate is None:
            return None
        self.formats = [*self.formats, float(rate)][-FORMAT_STEPS:]
        if len(self.formats) < FORMAT_STEPS:
            return None
        mean = sum(self.formats) / FORMAT_STEPS
        self.best_format = max(self.best_format, mean)
        bound = self.config.format_stop * self.best_format
        stops, doubtful = mean < bound, rate < bound
        if mean < self.config.format_warn * self.best_format:
            reason = f"the format rate has fallen from {self.best_format:.2f} to {mean:.2f} (means of 5 steps)"
        elif doubtful:
            reason = f"the format rate is {rate:.2f}, the best mean of 5 steps was {self.best_format:.2f}"
        else:
            return None
        return Alarm("format", stops, reason, doubtful)

    def _routing(self, row: Mapping[str, float | int | None]) -> Alarm | None:
        routed, kept = row["share_rout"], row["share_keep"]
        if routed is None or kept is None or kept > 0 or routed <= self.config.rout_stop:
            return None
        return Alarm("routing", True, f"{routed:.2f} of the trained rows are routed to the quarantine and none is kept")

    def _sampler(self, row: Mapping[str, float | int | None]) -> Alarm | None:
        gap = row["sampler_gap_mean"]
        if gap is None or gap <= self.gap:
            return None
        return Alarm(
            "sampler", True, f"sampler and trainer differ by {gap:.2g} nats a token, above the bound {self.gap:g}"
        )

    def state_dict(self) -> dict[str, Any]:
        names = ("best_anchor", "norms", "formats", "best_format", "counts")
        return {
            name: (value.copy() if isinstance(value := getattr(self, name), list | dict) else value) for name in names
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
