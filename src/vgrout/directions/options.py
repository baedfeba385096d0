"""Options of `vgrout direction extract` and `vgrout direction check`, beside those of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vgrout.types import UserError

MIN_DRAWS = 100


@dataclass(frozen=True)
class CheckOptions:
    """Is a direction any good? Every option of `vgrout train PRESET` is taken as well, by the same name."""

    rollouts: tuple[Path, ...] = ()
    """Labelled rollouts (rollouts.jsonl.zst of runs on the same problems) on which the direction is measured."""
    content: tuple[str, ...] | None = None
    """Pair sets without hacks that must do worse; none: the placebo sets of the pairs' register."""
    draws: int = 200
    """Haar draws, and draws of exchanged sides, that a figure is compared with."""
    held_out: float = 0.25
    """Share of the pairs held out in each fold."""
    max_rollouts: int | None = None
    """Rollouts used at most, drawn by --seed; none: all of them."""
    out_dir: Path | None = None
    """New folder for check.json, check.txt and figure.png; none: checks/TIMESTAMP_PRESET_PAIRS under --out."""

    def __post_init__(self) -> None:
        checks = (
            ("draws", self.draws >= MIN_DRAWS, f"at least {MIN_DRAWS}, since percentiles are read from them"),
            ("held-out", 0 < self.held_out <= 0.5, "above 0 and at most .5"),
            ("max-rollouts", self.max_rollouts is None or self.max_rollouts >= 2, "at least 2, or none"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise UserError(f"--{name} {getattr(self, name.replace('-', '_'))}: expected {expected}")


@dataclass(frozen=True)
class ExtractOptions:
    """Extracts a direction from pairs. Every option of `vgrout train PRESET` is taken as well, by the same name."""

    to: Path | None = None
    """File to write; none: the one under --out that a run with these options looks for."""
