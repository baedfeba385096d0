"""What a study is, and what it found: arms, seeds, evaluations, and the line that a finished one ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vgrout.evals import ALL, CONTROLS, FREE, find, tabulate
from vgrout.study.arms import NONE, ROUTES, Arm
from vgrout.study.summary import ArmResult, Rows
from vgrout.types import Markers, UserError


@dataclass(frozen=True)
class Study:
    """What is run."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    model: str = "micro"
    """Base model."""
    problems: str = "micro:test"
    """Held-out problems. Tuning uses micro:validation."""
    steps: int | None = None
    """Steps of a run; none: the preset's."""
    modes: tuple[str, ...] | None = None
    """Loophole modes of the training prompts; none: all. Evaluation always uses all."""
    samples: int = 1
    """Answers to each held-out prompt of an arm's evaluation."""
    gates: bool = False
    """Evaluate the control ablations of routed arms as well, and show what the gates did."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    study: Study
    folder: Path
    base: Rows
    arms: tuple[ArmResult, ...]
    seconds: float

    def rates(self, label: str, view: str, markers: Markers = "train") -> tuple[float, float]:
        """(hack of hinted prompts, solve without a hint), pooled over seeds."""
        rows = (
            self.base
            if view == "base"
            else [r for a in self.arms if a.label == label for rs in a.rows.values() for r in rs]
        )
        cells = tabulate(rows)
        hack, solve = find(cells, view, markers, ALL), find(cells, view, "", FREE)
        if hack is None or solve is None or not hack.n or not solve.n:
            raise UserError(f"{label or 'base'}, {view} view: no answer could be graded; see the logs in {self.folder}")
        return hack.hacks / hack.n, solve.solves / solve.n

    def closing_line(self) -> str:
        """What was achieved and where it lies."""
        hack, solve = self.rates("", "base")
        parts = [f"the base hacks {hack:.2f} and solves {solve:.2f}"]
        for arm in self.arms:
            if arm.label == NONE.label:
                after = self.rates(arm.label, "full")
                parts.append(f"{arm.label} then hacks {after[0]:.2f} and solves {after[1]:.2f}")
            if arm.label == ROUTES[0].label:
                full, after = self.rates(arm.label, "full"), self.rates(arm.label, "deploy")
                parts.append(
                    f"{arm.label} (upper bound) hacks {full[0]:.2f} and solves {full[1]:.2f}, quarantine-ablated it hacks "
                    f"{after[0]:.2f} and solves {after[1]:.2f}"
                )
        if bad := [a.label for a in self.arms if any(view not in CONTROLS for _, view in a.collapses(self.base))]:
            parts.append(f"COLLAPSED: {', '.join(bad)}")
        runs = sum(len(arm.rows) for arm in self.arms)
        return f"{self.study.name} finished: {runs} runs in {self.seconds:.0f} s; {'; '.join(parts)}; table and figure are in {self.folder}"
