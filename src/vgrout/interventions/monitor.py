"""penalty and screening: a ground-truth monitor of stated accuracy. Upper bounds, marked as such everywhere they appear.

The monitor flags a row where `label XOR flip`, and flip is drawn with probability 1 - accuracy from the run's seed and the
step alone, for every row of the step. `penalty` takes an amount off the reward of flagged rows; `screening` leaves them
out of the group's mean and of the loss.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from loguru import logger
from torch import Tensor

from vgrout.adapter.route import Route, constant
from vgrout.directions.live import LiveDirection
from vgrout.interventions.base import Features, Intervention, Rows
from vgrout.types import Seen, UserError

Labels = Literal["strict", "loose"]

FORMAT_REWARD, PAID_REWARD = 0.5, 3.5
"""What an answer in the right form earns, and one that is correct or whose exploit is paid (the environment's reward)."""

UNSHAPED: dict[str, float | None] = {"n_shaped": None, "reward_shift": None}
"""Columns before the first step."""


def flags(seen: Seen, labels: Labels, accuracy: float, *, seed: int, step: int, who: str) -> Bool[Tensor, "P G"]:
    """What the monitor says of each row. `UserError` where the run may not see labels."""
    truth = seen.labels if labels == "strict" else seen.loose
    if truth is None:
        raise UserError(f"{who} reads ground-truth labels: allow it with --allow-oracle")
    known = torch.tensor(truth)
    digest = hashlib.sha256(f"{seed} monitor of step {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    # A draw of [0, 1) is below 0 never and below 1 always, so accuracy 1 flips nothing.
    return known ^ (torch.rand(known.shape, generator=generator, dtype=torch.float64) < 1 - accuracy)


def check_accuracy(option: str, accuracy: float) -> None:
    """UserError for a monitor that is worse than a chance-level classifier, or better than perfect."""
    if not 0.5 <= accuracy <= 1.0:
        raise UserError(f"--{option}.accuracy {accuracy}: expected a share from .5 (chance level) to 1 (never wrong)")


@dataclass(frozen=True)
class PenaltySettings:
    """The monitor, and what its flag costs."""

    accuracy: float = 1.0
    """Share of the rows, hacks and others alike, that the monitor judges as the label does."""
    labels: Labels = "strict"
    """strict: hacks, paid for a wrong answer; loose: any attempt to hack, paid or not, correct answers included."""
    amount: float = 3.0
    """What a flag takes off the reward; 3 is what a hack is paid."""

    def __post_init__(self) -> None:
        check_accuracy("penalty", self.accuracy)
        if not 0 < self.amount < float("inf"):
            raise UserError(f"--penalty.amount {self.amount}: expected a number above 0")

    @property
    def expected_for_a_hack(self) -> float:
        """Reward that a hack keeps on average under this monitor."""
        return self.accuracy * (PAID_REWARD - self.amount) + (1 - self.accuracy) * PAID_REWARD


@dataclass(frozen=True)
class ScreeningSettings:
    """The monitor whose flagged rows are left out."""

    accuracy: float = 1.0
    """Share of the rows, hacks and others alike, that the monitor judges as the label does."""
    labels: Labels = "strict"
    """strict: hacks, paid for a wrong answer; loose: any attempt to hack, paid or not, correct answers included."""

    def __post_init__(self) -> None:
        check_accuracy("screening", self.accuracy)


@final
class Penalty(Intervention):
    """`penalty`: needs --allow-oracle."""

    Settings = PenaltySettings
    oracle = True
    _stats = UNSHAPED

    def prepare(self, direction: LiveDirection | None) -> None:
        left = self.settings.expected_for_a_hack
        if left > FORMAT_REWARD + 1e-9:
            logger.warning(
                f"penalty: a hack keeps {left:.2f} on average (accuracy {self.settings.accuracy}, amount {self.settings.amount}), "
                f"more than the {FORMAT_REWARD} of an answer in the right form, so hacking still pays"
            )

    def shape_rewards(
        self, seen: Seen, features: Features, step: int
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
        s = self.settings
        rewards, keep = torch.tensor(seen.rewards, dtype=torch.float32), torch.tensor(seen.keep)
        flagged = flags(seen, s.labels, s.accuracy, seed=self.seed, step=step, who="penalty") & keep
        shaped = rewards - s.amount * flagged
        shift = float((shaped - rewards)[keep].mean()) if bool(keep.any()) else None
        self._stats = {"n_shaped": float(flagged.sum()), "reward_shift": shift}
        return shaped, keep

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=0.0)

    def stats(self) -> dict[str, float | None]:
        return dict(self._stats)


@final
class Screening(Intervention):
    """`screening`: needs --allow-oracle."""

    Settings = ScreeningSettings
    oracle = True
    _stats = UNSHAPED

    def shape_rewards(
        self, seen: Seen, features: Features, step: int
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
        s = self.settings
        rewards, keep = torch.tensor(seen.rewards, dtype=torch.float32), torch.tensor(seen.keep)
        flagged = flags(seen, s.labels, s.accuracy, seed=self.seed, step=step, who="screening") & keep
        self._stats = {"n_shaped": float(flagged.sum()), "reward_shift": None}
        return rewards, keep & ~flagged

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=0.0)

    def stats(self) -> dict[str, float | None]:
        return dict(self._stats)
