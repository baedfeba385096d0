"""What an intervention may do, as hooks that the loop calls at named points. Every hook is empty by default.

Implementations are final: none inherits from another, and the settings of each live in its own dataclass. They never
import the environment, so nothing that knows the truth can reach them except through `Seen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.directions.live import LiveDirection
from vgrout.types import Seen, View


@dataclass(frozen=True)
class NoSettings:
    """This intervention has no settings."""


@dataclass(frozen=True)
class Rows:
    """The rollouts of a step as an intervention sees them: one entry per rollout, groups in order."""

    advantages: Float[Tensor, " N"]
    """Against the group's mean; exactly 0 in masked rows and groups without spread."""
    views: tuple[View, ...]
    """The view each rollout was sampled in."""
    labels: Bool[Tensor, " N"] | None
    """Ground truth (exploited), only for the declared upper bounds; None for everyone else."""
    step: int

    @property
    def n(self) -> int:
        return len(self.views)


class Intervention:
    """Base with empty hooks. Class attributes declare what the loop must know beforehand."""

    Settings: ClassVar[type] = NoSettings
    routed: ClassVar[bool] = False
    """Two blocks train: part of the rows is sampled in the deploy view, and the block baseline applies."""
    deploy_view: ClassVar[View] = "deploy"
    """The view that ships."""
    moves: ClassVar[frozenset[str]] = frozenset({"deployed"})
    """Blocks that must have moved at the end of a run; the others must not have."""
    oracle: ClassVar[bool] = False
    """An upper bound that reads ground truth; marked in every output and refused without --allow-oracle."""

    default_adapter: ClassVar[str] = "lora2r"
    """The adapter of presets where none is named."""
    needs_direction: ClassVar[bool] = False
    """Uses the direction of the run, which is then extracted before the first step."""
    measures_direction: ClassVar[bool] = False
    """Leaves the direction alone, but its gradients are measured along it, so that others can be compared with it."""

    def __init__(self, settings: Any, adapter: Adapter, seed: int):
        self.settings, self.adapter, self.seed = settings, adapter, seed

    def prepare(self, direction: LiveDirection | None) -> None:
        """Called once, before the first step, with the run's direction; None where it has none."""

    def shape_rewards(self, seen: Seen) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
        """(rewards, keep mask) that the advantages are computed from; by default as graded."""
        return torch.tensor(seen.rewards, dtype=torch.float32), torch.tensor(seen.keep)

    def route(self, rows: Rows) -> Route:
        """Which block each rollout's gradient reaches, and which blocks act in its forward."""
        raise NotImplementedError(f"{type(self).__name__} must say which block each rollout trains")

    def edit_gradients(self, adapter: Adapter) -> None:
        """Called once per step, after the last backward and before clipping."""

    def edit_update(self, updates: list[Tensor]) -> list[Tensor]:
        """Called with the optimizer's proposed updates, one tensor per trainable of the adapter, before they are applied."""
        return updates

    def after_step(self, step: int) -> None:
        """Called once per optimizer step (refresh of directions, buffers)."""

    def stats(self) -> dict[str, float | None]:
        """Declared metric columns of this step; None is undefined, never 0."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to continue bit-exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {sorted(state)}")
