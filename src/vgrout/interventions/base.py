"""What an intervention may do, as hooks that the loop calls at named points. Every hook is empty by default.

Implementations are final: none inherits from another, and the settings of each live in its own dataclass. They never
import the environment, so nothing that knows the truth can reach them except through `Seen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.directions.direction import Part
from vgrout.directions.live import LiveDirection
from vgrout.types import Seen, View


@runtime_checkable
class TokenGradients(Protocol):
    """The gradients of one micro-batch, token by token."""

    def cosines(self, directions: Mapping[str, Float[Tensor, " d"]]) -> dict[str, Float[Tensor, "R L"]]:
        """Per module, each token's cosine with the module's vector in the routing coordinates; 0 where a norm is 0."""
        ...


@dataclass(frozen=True)
class NoSettings:
    """This intervention has no settings."""


Features = Mapping[str, Float[Tensor, "N d"]]
"""One row per rollout under each module's (or layer's) name; empty where nothing was asked for."""

Needs = Literal["nothing", "activations", "hidden", "training_gradients", "own_gradients", "token_gradients"]
"""What an intervention reads of a step's rollouts beside their rewards.

    activations         mean bottleneck of the completion tokens, quarantine ablated, from a pass without gradient
    hidden              hidden state of the last completion token in the layers at 60-75 % of the depth, same pass
    training_gradients  each row's gradient in the routing coordinates, read from the one training backward
    own_gradients       the same from a backward of its own (`gradient_loss`), before the training pass
    token_gradients     each token's, from the training backward; the route is decided token by token
"""


@dataclass(frozen=True)
class Rows:
    """Rollouts of a step as an intervention sees them, one entry per rollout: the whole step with groups in order, or,
    where the route is read from the training backward, those of one micro-batch."""

    advantages: Float[Tensor, " N"]
    """Against the group's mean; exactly 0 in masked rows and groups without spread."""
    views: tuple[View, ...]
    """The view each rollout was sampled in."""
    labels: Bool[Tensor, " N"] | None
    """Ground truth (exploited), only for the declared upper bounds; None for everyone else."""
    step: int
    features: Features = field(default_factory=dict)
    """What `needs` asked for."""
    at: tuple[int, ...] = ()
    """Position of each in the step; empty stands for the whole step in order."""

    @property
    def n(self) -> int:
        return len(self.views)

    @property
    def positions(self) -> tuple[int, ...]:
        return self.at or tuple(range(self.n))


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
    adapters: ClassVar[tuple[str, ...]] = ()
    """Kinds of adapter that it works on; empty: any."""
    needs_direction: ClassVar[bool] = False
    """Uses the direction of the run, which is then extracted before the first step."""
    measures_direction: ClassVar[bool] = False
    """Leaves the direction alone, but its gradients are measured along it, so that others can be compared with it."""
    permutes_labels: ClassVar[bool] = False
    """Permutes what its gate finds under `--direction random_label` (`gating.exchanged`); others refuse that control."""
    renews: ClassVar[frozenset[Part]] = frozenset()
    """Parts of the direction that are extracted anew every `refresh_every` steps."""

    needs: Needs = "nothing"
    gradient_loss: Literal["grpo", "nll"] = "grpo"
    """Of `own_gradients`: the step's loss, or each completion's NLL."""

    def __init__(self, settings: Any, adapter: Adapter, seed: int):
        self.settings, self.adapter, self.seed = settings, adapter, seed

    def prepare(self, direction: LiveDirection | None) -> None:
        """Called once, before the first step, with the run's direction; None where it has none."""

    def shape_rewards(
        self, seen: Seen, features: Features, step: int
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
        """(rewards, keep mask) that the advantages are computed from; by default as graded."""
        return torch.tensor(seen.rewards, dtype=torch.float32), torch.tensor(seen.keep)

    def route(self, rows: Rows) -> Route:
        """Which block each rollout's gradient reaches, and which blocks act in its forward."""
        raise NotImplementedError(f"{type(self).__name__} must say which block each rollout trains")

    def split_tokens(self, rows: Rows, gradients: TokenGradients) -> Float[Tensor, "R L"]:
        """Share of each token's gradient that the quarantine gets (`needs` token_gradients); the rest is the deployed
        block's."""
        raise NotImplementedError(f"{type(self).__name__} routes no tokens")

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
