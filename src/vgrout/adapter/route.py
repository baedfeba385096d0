"""Routing is data: how much each rollout's gradient reaches each block, and what its forward was (spec 3.1).

    y = W x + [d_grad dep + (1 - d_grad) sg(dep)] + q_value [q_grad quar + (1 - q_grad) sg(quar)]

with dep and quar the net branches (trained part minus init part) and sg the stop-gradient. `q_value = None` stands for
"as sampled": the forward is the one that produced the rollout. The stop-gradient is one of two kinds (`mask`):
`parameter` stops each rollout's gradient of the block's own parameters and nothing else; `activation` stops it at the
branch output, as in the formula, which also cuts what reaches earlier layers through that branch. As-sampled values
with parameter masks need nothing but the sampling forward, so one backward serves (update strategy `gradient`);
everything else changes the forward (strategy `forward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.tokens import TokenIndex
from vgrout.types import View

BLOCKS = ("deployed", "quarantine")
"""The blocks of every adapter, in the order of the last axis of `Route.block_weights`."""

Mask = Literal["parameter", "activation"]
"""What a stop-gradient acts on: a rollout's own parameter gradients, or the block's output."""

Clean = Literal["detached", "zeroed"]
"""Clean rows: the quarantine acts as sampled and learns nothing, or does not act at all."""


@dataclass(frozen=True)
class ForwardMasks:
    """A route spread over the tokens of one batch; the last axis is `BLOCKS`. What the adapted linears read."""

    value: Float[Tensor, "R L 2"]
    """Factor of each net branch in the forward."""
    flow: Float[Tensor, "R L 2"]
    """Factor of each net branch in the backward: of its parameters' gradients and of what reaches earlier layers."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One row per rollout, every entry in [0, 1]."""

    q_grad: Float[Tensor, " N"]
    d_grad: Float[Tensor, " N"]
    q_value: Float[Tensor, " N"] | None = None
    mask: Mask = "parameter"
    score: Float[Tensor, " N"] | None = None
    """What the rows were told apart by, for the record alone: nan where a row was not scored."""

    def __post_init__(self) -> None:
        for name, value in (("q_grad", self.q_grad), ("d_grad", self.d_grad), ("q_value", self.q_value)):
            if value is None:
                continue
            if value.shape != self.d_grad.shape:
                raise ValueError(f"route: {name} {tuple(value.shape)} and d_grad {tuple(self.d_grad.shape)} differ")
            if not bool(((value >= 0) & (value <= 1)).all()):
                raise ValueError(f"route: {name} must lie in [0, 1] and be finite, got {value.tolist()}")

    @property
    def needs_forward(self) -> bool:
        """True where the route asks for another forward, or another graph, than the sampling one."""
        return self.q_value is not None or self.mask == "activation"

    def resolve(self, views: Sequence[View]) -> Route:
        """The same route with "as sampled" spelled out for rollouts sampled in these views."""
        return self if self.q_value is not None else replace(self, q_value=as_sampled(views).to(self.d_grad))

    def of(self, rows: Sequence[int]) -> Route:
        """The route of some of the rollouts, in this order."""
        at = list(rows)
        q_value = None if self.q_value is None else self.q_value[at]
        score = None if self.score is None else self.score[at]
        return replace(self, q_grad=self.q_grad[at], d_grad=self.d_grad[at], q_value=q_value, score=score)

    def block_weights(self, views: Sequence[View]) -> Float[Tensor, "N 2"]:
        """Share of each rollout's gradient that reaches (deployed, quarantine), given the views they were sampled in.

        A quarantine that is not in a rollout's forward learns nothing from it. So under "as sampled" a hack from the
        `deploy` view teaches neither block (it is discarded and counted).
        """
        q_value = self.resolve(views).q_value
        assert q_value is not None
        return torch.stack([self.d_grad, self.q_grad * (q_value > 0)], dim=1)

    def spread(self, index: TokenIndex) -> ForwardMasks:
        """What each token of a batch of these rollouts is run with. The route must be resolved."""
        if self.q_value is None:
            raise ValueError("route: q_value is None (as sampled): resolve the route against the sampling views first")

        def per_token(deployed: Tensor, quarantine: Tensor) -> Tensor:
            device = index.rollout.device
            return torch.cat([index.spread(deployed.to(device)), index.spread(quarantine.to(device))], dim=-1)

        value = per_token(torch.ones_like(self.d_grad), self.q_value)
        if self.mask == "parameter":
            return ForwardMasks(value, value)
        return ForwardMasks(value, per_token(self.d_grad, self.q_value * self.q_grad))


def as_sampled(views: Sequence[View]) -> Float[Tensor, " N"]:
    """The q_value of the forward that sampled each rollout: 1 in the `full` view, 0 in `deploy`.

    Raises ValueError for the controls of evaluations: no route describes the forward of a row sampled in one of them.
    """
    if controls := sorted({"clean_ablated", "random_removal"} & set(views)):
        raise ValueError(f"route: rollouts sampled in {', '.join(controls)}, which are controls of evaluations")
    return torch.tensor([float(view == "full") for view in views])


def constant(n: int, *, deployed: float, quarantine: float) -> Route:
    """The same label for all n rollouts: (1, 1) is mid, (1, 0) trains the deployed block alone."""
    return Route(d_grad=torch.full((n,), deployed), q_grad=torch.full((n,), quarantine))


def three_way(
    hack: Bool[Tensor, " N"],
    clean: Bool[Tensor, " N"],
    *,
    preset: Clean = "detached",
    mask: Mask = "parameter",
    views: Sequence[View] | None = None,
) -> Route:
    """(q_value, q_grad, d_grad): hack = (1, 1, 0); clean = (as sampled, 0, 1) `detached` or (0, 0, 1) `zeroed`; the
    other rows are mid = (1, 1, 1).

    `detached` with parameter masks leaves every value as sampled, so that one pass serves; the other three cells name
    q_value, for which `detached` reads the sampling `views`.
    """
    if bool((hack & clean).any()):
        raise ValueError("route: a rollout is labelled both hack and clean")
    d_grad, q_grad = (~hack).float(), (~clean).float()
    if preset == "detached" and mask == "parameter":
        return Route(d_grad=d_grad, q_grad=q_grad)
    if preset == "zeroed":
        return Route(d_grad=d_grad, q_grad=q_grad, q_value=q_grad, mask=mask)
    if views is None:
        raise ValueError("route: detached clean rows with activation masks keep their sampled value: give the views")
    return Route(d_grad=d_grad, q_grad=q_grad, q_value=torch.where(clean, as_sampled(views), 1.0), mask=mask)
