"""The step's loss, of which each micro-batch adds its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.grpo import GrpoConfig, clipped, kl_k3, policy_loss, token_weights
from vgrout.policy import Batch, Policy, micro_batches
from vgrout.types import Rollout
from vgrout.update.stats import UpdateStats


@dataclass(frozen=True)
class StepLoss:
    """`sum over tokens of (policy loss + beta KL) * weight`."""

    policy: Policy
    rollouts: Sequence[Rollout]
    config: GrpoConfig
    max_new: int
    stats: UpdateStats

    def batches(self, rows: Sequence[int]) -> list[Batch]:
        """The micro-batches of these rows of the step, each of one sampling view."""
        return micro_batches(self.rollouts, rows, token_budget=self.config.token_budget, device=self.policy.device)

    def weights(self, batch: Batch) -> Float[Tensor, " n"]:
        """Of each token in the loss."""
        return token_weights(batch.owner, batch.lengths, max_new=self.max_new, config=self.config)

    def backward(
        self, batch: Batch, new: Float[Tensor, " n"], old: Float[Tensor, " n"], advantages: Float[Tensor, " N"]
    ) -> None:
        """Loss and backward of a batch, inside the view or route that `new` was computed in."""
        A = advantages[list(batch.rows)].to(new)[batch.owner]
        loss = policy_loss(new, old, A, clip=self.config.clip)
        if self.config.beta > 0:
            loss = loss + self.config.beta * self._kl(batch, new)
        total = (loss * self.weights(batch)).sum()
        total.backward()
        self.stats.loss += float(total.detach())
        self.stats.n_clipped += int(clipped(new.detach(), old, A, clip=self.config.clip).sum())
        self.stats.note_logps(batch, self.rollouts, old, new.detach())

    def policy_term(self, batch: Batch, new: Float[Tensor, " n"], per_row: Float[Tensor, " R"]) -> Float[Tensor, ""]:
        """`-sum_t rho_t A_i w_t` at ratio 1, with one factor A per row of the batch."""
        rho = (new - new.detach()).exp()
        return -(rho * per_row.to(new)[batch.owner] * self.weights(batch)).sum()

    def kl_terms(self, batch: Batch, new: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Per token, beta times the weighted KL."""
        return self.config.beta * self._kl(batch, new) * self.weights(batch)

    def _kl(self, batch: Batch, new: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        with torch.no_grad(), self.policy.adapter.view("base"):
            reference = self.policy.logps(batch)
        kl = kl_k3(new, reference)
        self.stats.kl_sum += float(kl.detach().sum())
        return kl
