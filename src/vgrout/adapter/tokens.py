"""Which rollout each token of a batch belongs to.

A token belongs to a rollout by an index, never by its row, so rows may be packed; where each row is one rollout, the
segment sum is a batched product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenIndex:
    """`rollout[R, L]`: position, within this batch of n rollouts, of the one a token belongs to; -1 is padding."""

    def __init__(self, rollout: Int[Tensor, "R L"], n: int):
        self.rollout, self.n = rollout, n
        rows = torch.arange(rollout.shape[0], device=rollout.device)[:, None]
        self.row_is_rollout = rollout.shape[0] == n and bool(((rollout == rows) | (rollout < 0)).all())
        """Row j holds tokens of rollout j and padding only; padding carries no gradient."""

    def segment_outer(self, u: Float[Tensor, "R L p"], v: Float[Tensor, "R L q"]) -> Float[Tensor, "n p q"]:
        """Per rollout, the sum over its tokens of the outer products u_t v_t^T."""
        if self.row_is_rollout:
            return u.transpose(1, 2) @ v
        flat_u, flat_v, owner = u.flatten(0, 1), v.flatten(0, 1), self.rollout.flatten()
        return torch.stack([flat_u[owner == i].T @ flat_v[owner == i] for i in range(self.n)])

    def segment_sum(self, u: Float[Tensor, "R L p"]) -> Float[Tensor, "n p"]:
        """Per rollout, the sum of its tokens' vectors."""
        if self.row_is_rollout:
            return u.sum(1)
        flat, owner = u.flatten(0, 1), self.rollout.flatten()
        return torch.stack([flat[owner == i].sum(0) for i in range(self.n)])

    def spread(self, weights: Float[Tensor, " n"]) -> Float[Tensor, "R L 1"]:
        """Each token's copy of its rollout's weight; 0 on padding."""
        return (weights[self.rollout.clamp(min=0)] * (self.rollout >= 0)).unsqueeze(-1)
