"""One step's gradients: loss, KL, backward, and which block each rollout's gradient reaches.

What the intervention needs to see and the route's data, never the intervention's name, pick the passes. Legal cells:

| the route is decided by                | and asks for                       | passes                               | serves |
|----------------------------------------|------------------------------------|--------------------------------------|--------|
| nothing, labels, no-grad features      | parameter masks, values as sampled | one, each row in its sampling view   | none, none_full, erase, absorb, reward shaping; label_route, routeA, moe (their defaults) |
| the same                               | activation masks, or named values  | one under the route, ratio to the sampling view | label_route, routeA (`mask` activation, `clean` zeroed); moe `published` |
| the training backward itself           | parameter masks, values as sampled | one (update/one_pass.py)             | routeV, rollouts or tokens |
| a backward of its own                  | either                             | one for the features, then as above  | routeV with NLL features, raw features and another forward, permuted labels |

Activation masks act inside the forward; parameter masks weigh each rollout's gradient as the one backward yields it. Old
log-probabilities are `new.detach()` wherever a row's forward has the value of its sampling view; the others take one more
pass without gradient, in that view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.grpo import GrpoConfig, advantage, has_spread
from vgrout.interventions.base import Features, Intervention, Rows
from vgrout.policy import Policy
from vgrout.types import Group, Seen
from vgrout.update.known import run_route
from vgrout.update.loss import StepLoss
from vgrout.update.one_pass import OnePass
from vgrout.update.own_pass import own_gradients
from vgrout.update.stats import UpdateStats, empty

__all__ = ["UpdateStats", "update"]


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
    features: Features | None = None,
    by_source: bool = False,
) -> UpdateStats:
    """Leaves the routed gradient of the step's loss in the adapter's `.grad`.

    `loss = sum over tokens of (policy loss + beta KL) * weight`, with the fixed weights of `grpo.token_weights`.
    `rewards` and `keep` are those of `intervention.shape_rewards`; `seen` only hands labels to declared upper bounds;
    `features` are those of `observe`. `by_source`: teacher rows first and in batches of their own, so that their part of
    the gradient can be kept.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    A = advantage(rewards, keep, std_norm=config.std_norm).flatten()
    labels = None if seen.labels is None else torch.tensor(seen.labels).flatten()
    rows = Rows(A, tuple(r.view for r in rollouts), labels, step, features or {})
    stats = empty(len(rollouts))
    stats.trains_quarantine = "quarantine" in intervention.moves
    stats.n_zero_groups = int((~has_spread(rewards, keep)).sum())
    loss = StepLoss(policy, rollouts, config, max_new, stats)
    live = _rows_to_forward(rewards, keep, config)
    policy.adapter.zero_grad()
    block = intervention.routed and config.advantage_baseline == "block"

    if intervention.needs in ("training_gradients", "token_gradients"):
        one = OnePass(loss, intervention, rows, rewards.shape[1], block)
        _in_order(loss, live, by_source, one.run)
        A = one.finish(rewards, keep, live)
        stats.note_route(A, one.weights, one.score)
        return stats

    if intervention.needs == "own_gradients":
        rows = replace(rows, features=own_gradients(loss, live, A, intervention.gradient_loss))
    route = intervention.route(rows)
    weights = route.block_weights(rows.views).detach()
    # The route is decided on advantages against the group's mean; the block baseline needs to know the route.
    if block:
        deployed = weights[:, 0].view_as(rewards)
        A = advantage(rewards, keep, deployed=deployed, std_norm=config.std_norm).flatten()
    stats.note_route(A, weights, route.score)
    taught = [i for i in live if bool((weights[i] > 0).any())]
    _in_order(loss, taught, by_source, lambda some: run_route(loss, some, route, rows.views, A))
    return stats


def _in_order(loss: StepLoss, live: Sequence[int], by_source: bool, run: Callable[[list[int]], None]) -> None:
    """Runs teacher rows before the others where their part of the gradient is asked for, and keeps it."""
    of_teacher = [i for i in live if by_source and loss.rollouts[i].source == "teacher"]
    if of_teacher:
        run(of_teacher)
        loss.stats.teacher_gradient = [g.clone() for g in loss.policy.adapter.gradients()]
    run(sorted(set(live) - set(of_teacher)))


def _rows_to_forward(rewards: Tensor, keep: Tensor, config: GrpoConfig) -> list[int]:
    """Kept rows in groups with spread (or in every group where their KL is asked for)."""
    group_live = has_spread(rewards, keep) | (config.kl_on_zero_spread and config.beta > 0)
    return (keep & group_live[:, None]).flatten().nonzero().flatten().tolist()
