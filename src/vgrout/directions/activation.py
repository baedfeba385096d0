"""Activation directions: v_act[m] = unit(mean over pairs of (h_hack - h_clean)) (spec 4.3).

h is the mean, over the completion's tokens, of what the module's deployed block reads of its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vgrout.adapter.linear import AdaptedLinear
from vgrout.directions.gradient import Sides
from vgrout.policy import Policy, micro_batches
from vgrout.types import Rollout, View


class _Means:
    """Means over each row's completion tokens, module by module."""

    def __init__(self, at: Int[Tensor, " n"], owner: Int[Tensor, " n"], lengths: Int[Tensor, " R"]):
        self.at, self.owner, self.lengths = at, owner, lengths
        self.found: dict[str, Float[Tensor, "R k"]] = {}

    def see(self, module: AdaptedLinear, x: Float[Tensor, "R L i"]) -> None:
        """Implements `Observer`."""
        h = module.bottleneck(x.flatten(0, 1)[self.at])
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        total = h.new_zeros((len(self.lengths), h.shape[1])).index_add_(0, self.owner, h)
        self.found[module.name] = total / self.lengths[:, None]


@torch.no_grad()
def activations(
    policy: Policy, rows: Sequence[Rollout], view: View = "deploy", *, token_budget: int
) -> dict[str, Float[Tensor, "n k"]]:
    """Per module, the mean bottleneck of each row's completion tokens, from one pass without gradient."""
    features: dict[str, Tensor] = {}
    for batch in micro_batches(rows, list(range(len(rows))), token_budget=token_budget, device=policy.device):
        means = _Means(batch.predict_at + 1, batch.owner, batch.lengths)
        with policy.adapter.view(view), policy.adapter.observed(means):
            policy.backbone(input_ids=batch.tokens, use_cache=False)
        for name, mean in means.found.items():
            features.setdefault(name, mean.new_zeros((len(rows), mean.shape[1]), device="cpu"))[list(batch.rows)] = (
                mean.cpu()
            )
    return features


def pair_activations(policy: Policy, sides: Sides, *, token_budget: int) -> dict[str, Float[Tensor, "2 p k"]]:
    """Per module, the features of both completions of every pair, quarantine ablated."""
    found = activations(policy, sides.rows, token_budget=token_budget)
    return {name: h.unflatten(0, (2, sides.n)) for name, h in found.items()}
