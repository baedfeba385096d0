"""Routing is data: how much each rollout's gradient reaches each block (spec 3.1).

    y = W x + [d_grad dep + (1 - d_grad) sg(dep)] + q_value [q_grad quar + (1 - q_grad) sg(quar)]

with dep and quar the net branches (trained part minus init part) and sg the stop-gradient. `q_value = None` stands for
"as sampled": the forward is the one that produced the rollout, so parameter masks on its own gradients are exact and
one backward serves (strategy `gradient`). A tensor in `q_value` changes the forward and needs the two-pass strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.types import View

BLOCKS = ("deployed", "quarantine")
"""The blocks of every adapter, in the order of the last axis of `Route.block_weights`."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One row per rollout of the step, every entry in [0, 1]."""

    q_grad: Float[Tensor, " N"]
    d_grad: Float[Tensor, " N"]
    q_value: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        if self.q_grad.shape != self.d_grad.shape:
            raise ValueError(f"route: q_grad {tuple(self.q_grad.shape)} and d_grad {tuple(self.d_grad.shape)} differ")
        for name, value in (("q_grad", self.q_grad), ("d_grad", self.d_grad), ("q_value", self.q_value)):
            if value is not None and not bool(((value >= 0) & (value <= 1)).all()):
                raise ValueError(f"route: {name} must lie in [0, 1] and be finite, got {value.tolist()}")

    @property
    def needs_forward(self) -> bool:
        """True where the route asks for another forward than the sampling one."""
        return self.q_value is not None

    def block_weights(self, views: Sequence[View]) -> Float[Tensor, "N 2"]:
        """Share of each rollout's gradient that reaches (deployed, quarantine), given the views they were sampled in.

        A rollout sampled in the `deploy` view has no quarantine in its forward, so nothing of it can reach that block:
        a hack among them teaches neither block (it is discarded and counted).
        """
        in_forward = torch.tensor([view == "full" for view in views], dtype=self.q_grad.dtype)
        return torch.stack([self.d_grad, self.q_grad * in_forward], dim=1)


def constant(n: int, *, deployed: float, quarantine: float) -> Route:
    """The same label for all n rollouts: (1, 1) is mid, (1, 0) trains the deployed block alone."""
    return Route(d_grad=torch.full((n,), deployed), q_grad=torch.full((n,), quarantine))


def three_way(hack: Bool[Tensor, " N"], clean: Bool[Tensor, " N"]) -> Route:
    """hack = (q_grad 1, d_grad 0), clean = (0, 1) in its `detached` preset, every other row mid = (1, 1)."""
    if bool((hack & clean).any()):
        raise ValueError("route: a rollout is labelled both hack and clean")
    return Route(d_grad=(~hack).float(), q_grad=(~clean).float())
