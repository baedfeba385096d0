"""Forward and backward under a route that is known beforehand: in one pass where the sampling forward serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.gradients import BlockSums
from vgrout.adapter.route import Route, as_sampled
from vgrout.types import View
from vgrout.update.loss import StepLoss


def run_route(loss: StepLoss, live: Sequence[int], route: Route, views: Sequence[View], A: Float[Tensor, " N"]) -> None:
    """Adds the routed gradient of the rows `live` to `.grad`, with the strategy that the route's data asks for."""
    weights = route.block_weights(views).detach()
    if route.needs_forward:
        _forward_strategy(loss, live, route.resolve(views), weights, as_sampled(views), A)
    else:
        _gradient_strategy(loss, live, weights, A)


def _gradient_strategy(
    loss: StepLoss, live: Sequence[int], weights: Float[Tensor, "N 2"], A: Float[Tensor, " N"]
) -> None:
    """One pass: each row in its sampling view, its parameter gradients weighed block by block."""
    policy = loss.policy
    for batch in loss.batches(live):
        masks = BlockSums(batch.index, weights[list(batch.rows)])
        with policy.adapter.view(batch.view), policy.adapter.recording(masks):
            new = policy.logps(batch)
            loss.backward(batch, new, new.detach(), A)


def _forward_strategy(
    loss: StepLoss,
    live: Sequence[int],
    route: Route,
    weights: Float[Tensor, "N 2"],
    sampled: Float[Tensor, " N"],
    A: Float[Tensor, " N"],
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
                loss.backward(batch, new, new.detach() if old is None else old, A)
