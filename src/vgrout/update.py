"""One step's gradients: loss, KL, backward, and which block each rollout's gradient reaches.

Strategy `gradient`: every row is forwarded once, in the view it was sampled in, so the ratio to the old log-probabilities
is 1 and no pass is spent on them; the route decides which block each rollout's gradient reaches, as an exact parameter
mask in the one backward. Legal cells:

| strategy   | forward              | serves                                |
|------------|----------------------|---------------------------------------|
| `gradient` | as sampled (no value mask) | none, none_full, absorb, label_route |

A route with a value mask (`Route.needs_forward`) asks for another forward than the sampling one and is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.gradients import BlockSums
from vgrout.adapter.route import Route
from vgrout.grpo import GrpoConfig, advantage, has_spread, kl_k3, policy_loss, token_weights
from vgrout.interventions.base import Intervention, Rows
from vgrout.policy import Batch, Policy, micro_batches
from vgrout.types import Group, Rollout, Seen


@dataclass
class UpdateStats:
    """What one update did. Per-rollout entries are None where a rollout was not forwarded."""

    advantages: list[float]
    n_moving: int
    """Rows with a non-zero advantage."""
    n_keep: int
    """Of these, rows routed clean (only the deployed block learns)."""
    n_rout: int
    """Of these, rows routed hack (only the quarantine learns); the remaining ones are mid."""
    n_discarded: int
    """Of these, rows that teach neither block (hack rows sampled in the deploy view)."""
    mean_logp: list[float | None]
    """Mean log-probability of each rollout's completion tokens before the update."""
    gap: list[float | None]
    """Mean absolute difference, in nats per token, of the sampler's and the trainer's log-probabilities."""
    gap_max: float | None = None
    n_zero_groups: int = 0
    n_tokens: int = 0
    loss: float = 0.0
    kl_sum: float = 0.0

    def note_logps(self, batch: Batch, rollouts: Sequence[Rollout], new: Float[Tensor, " n"]) -> None:
        """Keeps what the metrics say of a batch's log-probabilities."""
        self.n_tokens += len(new)
        for i, logps in zip(batch.rows, new.cpu().split(batch.lengths.tolist()), strict=True):
            self.mean_logp[i] = float(logps.mean())
            if rollouts[i].sampler_logps:
                difference = (logps - torch.tensor(rollouts[i].sampler_logps)).abs()
                self.gap[i] = float(difference.mean())
                self.gap_max = max(self.gap_max or 0.0, float(difference.max()))


def update(
    policy: Policy,
    groups: Sequence[Group],
    seen: Seen,
    rewards: Float[Tensor, "P G"],
    keep: Bool[Tensor, "P G"],
    intervention: Intervention,
    config: GrpoConfig,
    *,
    max_new: int,
    step: int,
) -> UpdateStats:
    """Leaves the routed gradient of the step's loss in the adapter's `.grad`.

    `loss = sum over tokens of (policy loss + beta KL) * weight`, with the fixed weights of `grpo.token_weights`.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    A = advantage(rewards, keep, std_norm=config.std_norm)
    labels = None if seen.labels is None else torch.tensor(seen.labels).flatten()
    rows = Rows(advantages=A.flatten(), views=tuple(r.view for r in rollouts), labels=labels, step=step)
    route = intervention.route(rows)
    if route.needs_forward:
        raise ValueError(f"{type(intervention).__name__}: a route with a value mask needs a forward of its own")
    weights = route.block_weights(rows.views)
    if intervention.routed and config.advantage_baseline == "block":
        A = advantage(rewards, keep, deployed=weights[:, 0].view_as(rewards), std_norm=config.std_norm)

    stats = _route_stats(A.flatten(), route, weights)
    stats.n_zero_groups = int((~has_spread(rewards, keep)).sum())
    policy.adapter.zero_grad()
    live = _rows_to_forward(weights, rewards, keep, config)
    for batch in micro_batches(rollouts, live, token_budget=config.token_budget, device=policy.device):
        with policy.adapter.view(batch.view):
            _backward(policy, batch, rollouts, A.flatten(), weights, config, max_new, stats)
    return stats


def _rows_to_forward(weights: Tensor, rewards: Tensor, keep: Tensor, config: GrpoConfig) -> list[int]:
    """Kept rows that teach some block, in groups with spread (or in every group where their KL is asked for)."""
    group_live = has_spread(rewards, keep) | (config.kl_on_zero_spread and config.beta > 0)
    live = (keep & group_live[:, None]).flatten() & (weights > 0).any(dim=1)
    return live.nonzero().flatten().tolist()


def _backward(
    policy: Policy,
    batch: Batch,
    rollouts: Sequence[Rollout],
    A: Float[Tensor, " N"],
    weights: Float[Tensor, "N 2"],
    config: GrpoConfig,
    max_new: int,
    stats: UpdateStats,
) -> None:
    """Forward in the sampling view, loss, and the backward whose parameter gradients are routed as they appear."""
    rows = torch.tensor(batch.rows)
    with policy.adapter.recording(BlockSums(batch.index, weights[rows])):
        new = policy.logps(batch)
        old = new.detach()  # the forward is the sampling view's own
        loss = policy_loss(new, old, A[rows].to(new)[batch.owner], clip=config.clip)
        if config.beta > 0:
            with torch.no_grad(), policy.adapter.view("base"):
                reference = policy.logps(batch)
            kl = kl_k3(new, reference)
            stats.kl_sum += float(kl.detach().sum())
            loss = loss + config.beta * kl
        weight = token_weights(batch.owner, batch.lengths, max_new=max_new, config=config)
        total = (loss * weight).sum()
        total.backward()
    stats.loss += float(total.detach())
    stats.note_logps(batch, rollouts, new.detach())


def _route_stats(A: Float[Tensor, " N"], route: Route, weights: Float[Tensor, "N 2"]) -> UpdateStats:
    moving = A != 0
    clean, hack = route.q_grad == 0, route.d_grad == 0
    return UpdateStats(
        advantages=A.tolist(),
        n_moving=int(moving.sum()),
        n_keep=int((moving & clean & ~hack).sum()),
        n_rout=int((moving & hack & ~clean).sum()),
        n_discarded=int((moving & (weights == 0).all(dim=1)).sum()),
        mean_logp=[None] * len(A),
        gap=[None] * len(A),
    )
