"""What one update did, for the metrics and the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.policy import Batch
from vgrout.types import Rollout

Zone = Literal["keep", "mid", "rout"]
ZONES: dict[tuple[bool, bool], Zone] = {(True, False): "keep", (True, True): "mid", (False, True): "rout"}
"""By whether the deployed block, and whether the quarantine, learns from a row."""


@dataclass
class UpdateStats:
    """Per-rollout entries are None where a rollout was not forwarded, or not scored."""

    advantages: list[float]
    n_moving: int
    """Rows with a non-zero advantage."""
    n_keep: int
    """Of these, rows that teach the deployed block alone."""
    n_rout: int
    """Of these, rows that teach the quarantine alone."""
    n_discarded: int
    """Of these, rows that teach neither block (hack rows sampled in the deploy view); the remaining ones teach both."""
    mean_logp: list[float | None]
    """Mean log-probability of each rollout's completion tokens before the update."""
    gap: list[float | None]
    """Mean absolute difference, in nats per token, of the sampler's and the trainer's log-probabilities."""
    ratio: list[float | None]
    """Mean over each rollout's tokens of the ratio to its sampling view; exactly 1 where one forward serves as both."""
    weights: list[tuple[float, float]]
    """Share of each rollout's gradient that the route sends to (deployed, quarantine)."""
    scores: list[float | None]
    """What the route told each rollout apart by."""
    hack: list[bool]
    """Whether the route withholds a rollout from the deployed block by more than half."""
    trains_quarantine: bool = True
    """Whether the run trains a quarantine block at all."""
    gap_max: float | None = None
    teacher_gradient: list[Tensor] | None = None
    """The teacher rows' part of the gradient, one tensor per trainable; None: no such row, or not asked for."""
    n_zero_groups: int = 0
    n_tokens: int = 0
    loss: float = 0.0
    kl_sum: float = 0.0
    n_clipped: int = 0
    """Tokens whose policy gradient the ratio clip has cut off."""

    def note_logps(
        self,
        batch: Batch,
        rollouts: Sequence[Rollout],
        old: Float[Tensor, " n"],
        new: Float[Tensor, " n"] | None = None,
    ) -> None:
        """Keeps what the metrics say of a batch's log-probabilities in the views that it was sampled in; `new` are those
        under the route, None where they are the same."""
        self.n_tokens += len(old)
        lengths = batch.lengths.tolist()
        ratios = (torch.ones_like(old) if new is None else (new - old).exp()).cpu().split(lengths)
        for i, logps, ratio in zip(batch.rows, old.cpu().split(lengths), ratios, strict=True):
            self.mean_logp[i], self.ratio[i] = float(logps.mean()), float(ratio.mean())
            if rollouts[i].sampler_logps:
                difference = (logps - torch.tensor(rollouts[i].sampler_logps)).abs()
                self.gap[i] = float(difference.mean())
                self.gap_max = max(self.gap_max or 0.0, float(difference.max()))

    @property
    def zones(self) -> list[Zone | None]:
        """Which blocks learn from each rollout; None for rows without advantage and for discarded ones."""
        return [
            ZONES.get((deployed > 0, quarantine > 0)) if advantage != 0 else None
            for advantage, (deployed, quarantine) in zip(self.advantages, self.weights, strict=True)
        ]

    def note_route(
        self, A: Float[Tensor, " N"], weights: Float[Tensor, "N 2"], score: Float[Tensor, " N"] | None
    ) -> None:
        """Keeps what the metrics say of the final advantages and of the route."""
        moving = A != 0
        deployed, quarantine = (weights > 0).unbind(dim=1)
        self.advantages = A.tolist()
        self.n_moving = int(moving.sum())
        self.n_keep = int((moving & deployed & ~quarantine).sum())
        self.n_rout = int((moving & quarantine & ~deployed).sum())
        self.n_discarded = int((moving & ~deployed & ~quarantine).sum())
        self.weights = [(d, q) for d, q in weights.tolist()]
        self.hack = (weights[:, 0] < 0.5).tolist()
        read = [float("nan")] * len(A) if score is None else score.tolist()
        self.scores = [None if s != s else s for s in read]


def empty(n: int) -> UpdateStats:
    """Of n rollouts, before anything has happened."""
    return UpdateStats(
        advantages=[0.0] * n,
        n_moving=0,
        n_keep=0,
        n_rout=0,
        n_discarded=0,
        mean_logp=[None] * n,
        gap=[None] * n,
        ratio=[None] * n,
        weights=[(0.0, 0.0)] * n,
        scores=[None] * n,
        hack=[False] * n,
    )
