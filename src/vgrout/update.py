"""One step's gradients: loss, KL, backward, and which block each rollout's gradient reaches.

The route's data, never the intervention's name, picks one of two strategies (`Route.needs_forward`). Legal cells:

| strategy   | the route asks for                 | a row is run in   | ratio to          | serves                         |
|------------|------------------------------------|-------------------|-------------------|--------------------------------|
| `gradient` | parameter masks, values as sampled | its sampling view | itself: always 1  | none, none_full, erase, absorb, label_route (its defaults) |
| `forward`  | activation masks, or named values  | the route         | its sampling view | label_route (`mask` activation, `clean` zeroed)     |

Activation masks act inside the forward; parameter masks weigh each rollout's gradient as the one backward yields it. Old
log-probabilities are `new.detach()` wherever a row's forward has the value of its sampling view: every row of `gradient`;
of `forward`, those whose `q_value` is the sampling view's own (1 for full, 0 for deploy). The others take one more pass
without gradient, in that view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.gradients import BlockSums
from vgrout.adapter.route import Route, as_sampled
from vgrout.grpo import GrpoConfig, advantage, clipped, has_spread, kl_k3, policy_loss, token_weights
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
    """Of these, rows that teach the deployed block alone."""
    n_rout: int
    """Of these, rows that teach the quarantine alone."""
    n_discarded: int
    """Of these, rows that teach neither block (hack rows sampled in the deploy view); the remaining ones teach both."""
    mean_logp: list[float | None]
    """Mean log-probability of each rollout's completion tokens before the update."""
    gap: list[float | None]
    """Mean absolute difference, in nats per token, of the sampler's and the trainer's log-probabilities."""
    gap_max: float | None = None
    teacher_gradient: list[Tensor] | None = None
    """The teacher rows' part of the gradient, one tensor per trainable; None: no such row, or not asked for."""
    n_zero_groups: int = 0
    n_tokens: int = 0
    loss: float = 0.0
    kl_sum: float = 0.0
    n_clipped: int = 0
    """Tokens whose policy gradient the ratio clip has cut off."""

    def note_logps(self, batch: Batch, rollouts: Sequence[Rollout], old: Float[Tensor, " n"]) -> None:
        """Keeps what the metrics say of a batch's log-probabilities in the views that it was sampled in."""
        self.n_tokens += len(old)
        for i, logps in zip(batch.rows, old.cpu().split(batch.lengths.tolist()), strict=True):
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
    by_source: bool = False,
) -> UpdateStats:
    """Leaves the routed gradient of the step's loss in the adapter's `.grad`.

    `loss = sum over tokens of (policy loss + beta KL) * weight`, with the fixed weights of `grpo.token_weights`.
    `rewards` and `keep` are those of `intervention.shape_rewards`; `seen` only hands labels to declared upper bounds.
    `by_source`: teacher rows first and in batches of their own, so that their part of the gradient can be kept.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    A = advantage(rewards, keep, std_norm=config.std_norm)
    labels = None if seen.labels is None else torch.tensor(seen.labels).flatten()
    rows = Rows(advantages=A.flatten(), views=tuple(r.view for r in rollouts), labels=labels, step=step)
    route = intervention.route(rows)
    weights = route.block_weights(rows.views)
    # The route is decided on advantages against the group's mean; the block baseline needs to know the route.
    if intervention.routed and config.advantage_baseline == "block":
        A = advantage(rewards, keep, deployed=weights[:, 0].view_as(rewards), std_norm=config.std_norm)

    stats = _route_stats(A.flatten(), weights)
    stats.n_zero_groups = int((~has_spread(rewards, keep)).sum())
    live = _rows_to_forward(weights, rewards, keep, config)
    loss = StepLoss(policy, rollouts, A.flatten(), config, max_new, stats)
    policy.adapter.zero_grad()
    of_teacher = [i for i in live if by_source and rollouts[i].source == "teacher"]
    for some in (of_teacher, sorted(set(live) - set(of_teacher))):
        if route.needs_forward:
            _forward_strategy(loss, some, route.resolve(rows.views), weights, as_sampled(rows.views))
        else:
            _gradient_strategy(loss, some, weights)
        if some is of_teacher and some:
            stats.teacher_gradient = [g.clone() for g in policy.adapter.gradients()]
    return stats


@dataclass(frozen=True)
class StepLoss:
    """The step's loss, of which each micro-batch adds its part."""

    policy: Policy
    rollouts: Sequence[Rollout]
    A: Float[Tensor, " N"]
    config: GrpoConfig
    max_new: int
    stats: UpdateStats

    def batches(self, rows: Sequence[int]) -> list[Batch]:
        """The micro-batches of these rows of the step, each of one sampling view."""
        return micro_batches(self.rollouts, rows, token_budget=self.config.token_budget, device=self.policy.device)

    def backward(self, batch: Batch, new: Float[Tensor, " n"], old: Float[Tensor, " n"]) -> None:
        """Loss and backward of a batch, inside the view or route that `new` was computed in."""
        config = self.config
        A = self.A[list(batch.rows)].to(new)[batch.owner]
        loss = policy_loss(new, old, A, clip=config.clip)
        if config.beta > 0:
            with torch.no_grad(), self.policy.adapter.view("base"):
                reference = self.policy.logps(batch)
            kl = kl_k3(new, reference)
            self.stats.kl_sum += float(kl.detach().sum())
            loss = loss + config.beta * kl
        total = (loss * token_weights(batch.owner, batch.lengths, max_new=self.max_new, config=config)).sum()
        total.backward()
        self.stats.loss += float(total.detach())
        self.stats.n_clipped += int(clipped(new.detach(), old, A, clip=config.clip).sum())
        self.stats.note_logps(batch, self.rollouts, old)


def _gradient_strategy(loss: StepLoss, live: Sequence[int], weights: Float[Tensor, "N 2"]) -> None:
    """One pass: each row in its sampling view, its parameter gradients weighed block by block."""
    policy = loss.policy
    for batch in loss.batches(live):
        masks = BlockSums(batch.index, weights[list(batch.rows)])
        with policy.adapter.view(batch.view), policy.adapter.recording(masks):
            new = policy.logps(batch)
            loss.backward(batch, new, old=new.detach())


def _forward_strategy(
    loss: StepLoss, live: Sequence[int], route: Route, weights: Float[Tensor, "N 2"], sampled: Float[Tensor, " N"]
) -> None:
    """The route's own forward; rows whose value it changes are first run as they were sampled, for the ratio."""
    assert route.q_value is not None
    policy, adapter = loss.policy, loss.policy.adapter
    changed = route.q_value != sampled
    shares = weights if route.mask == "parameter" else torch.ones_like(weights)
    for rerun in (False, True):
        for batch in loss.batches([i for i in live if bool(changed[i]) == rerun]):
            old = None
            if rerun:
                with torch.no_grad(), adapter.view(batch.view):
                    old = policy.logps(batch)
            masks = BlockSums(batch.index, shares[list(batch.rows)])
            with adapter.routed(route.of(batch.rows), batch.index), adapter.recording(masks):
                new = policy.logps(batch)
                loss.backward(batch, new, old=new.detach() if old is None else old)


def _rows_to_forward(weights: Tensor, rewards: Tensor, keep: Tensor, config: GrpoConfig) -> list[int]:
    """Kept rows that teach some block, in groups with spread (or in every group where their KL is asked for)."""
    group_live = has_spread(rewards, keep) | (config.kl_on_zero_spread and config.beta > 0)
    live = (keep & group_live[:, None]).flatten() & (weights > 0).any(dim=1)
    return live.nonzero().flatten().tolist()


def _route_stats(A: Float[Tensor, " N"], weights: Float[Tensor, "N 2"]) -> UpdateStats:
    moving = A != 0
    deployed, quarantine = (weights > 0).unbind(dim=1)
    return UpdateStats(
        advantages=A.tolist(),
        n_moving=int(moving.sum()),
        n_keep=int((moving & deployed & ~quarantine).sum()),
        n_rout=int((moving & quarantine & ~deployed).sum()),
        n_discarded=int((moving & ~deployed & ~quarantine).sum()),
        mean_logp=[None] * len(A),
        gap=[None] * len(A),
    )
