"""Features from a backward of their own, before the training pass: the first pass of the two-pass form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.gradients import Probes
from vgrout.update.loss import StepLoss
from vgrout.update.stats import empty


def own_gradients(
    loss: StepLoss, rows: Sequence[int], A: Float[Tensor, " N"], of: Literal["grpo", "nll"]
) -> dict[str, Float[Tensor, "N d"]]:
    """Per module, each row's gradient in the routing coordinates, in its sampling view and without any mask: of the step's
    loss at these advantages, or of its summed NLL. Rows that are not named have 0. `.grad` stays as it is."""
    policy = loss.policy
    # What this pass sees of log-probabilities is seen again in the training pass, which is the one that is reported.
    apart = StepLoss(policy, loss.rollouts, loss.config, loss.max_new, empty(len(loss.rollouts)))
    features: dict[str, Tensor] = {}
    for batch in apart.batches(rows):
        probes = Probes(batch.index)
        with policy.adapter.view(batch.view), policy.adapter.recording(probes):
            new = policy.logps(batch)
            if of == "nll":
                (-new.sum()).backward()
            else:
                apart.backward(batch, new, new.detach(), A)
        for name, g in probes.found.items():
            g = g.cpu()
            features.setdefault(name, g.new_zeros((len(loss.rollouts), g.shape[1])))[list(batch.rows)] = g
    return features
