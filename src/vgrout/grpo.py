"""GRPO as pure functions on flat completion tokens: advantages, log-probabilities, loss, KL. Formula above each.

n is the number of completion tokens in a batch; `owner[n]` says which rollout a token belongs to.
Sources: GRPO, Shao et al. 2024 (arXiv 2402.03300); Dr.GRPO, Liu et al. 2025 (arXiv 2503.20783); k3, Schulman 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vgrout.types import UserError

ZERO_SPREAD = 1e-6
"""A group whose kept rewards differ by no more than this teaches nothing: its advantages are exactly 0."""


@dataclass(frozen=True)
class GrpoConfig:
    """The policy-gradient loss."""

    prompts_per_step: int = 16
    """P: prompts (groups) in a step."""
    group_size: int = 16
    """G: rollouts of one prompt; their rewards share one mean."""
    clip: float = 0.2
    """PPO ratio clip against the log-probabilities of the sampling view."""
    beta: float = 1e-3
    """Coefficient of the KL to the base view (k3 estimator); 0 skips the reference pass."""
    std_norm: bool = False
    """Divide advantages by the group's standard deviation, as GRPO did (Dr.GRPO does not)."""
    length_norm: bool = False
    """Average over each rollout's tokens first, as GRPO did; off: the fixed denominator G * max_new * P of Dr.GRPO."""
    kl_on_zero_spread: bool = False
    """Forward groups without reward spread for their KL term; off: they are not forwarded at all."""
    advantage_baseline: Literal["group", "block"] = "block"
    """block: rows that the deployed block learns from are centred among themselves (routed interventions only)."""
    token_budget: int = 16_384
    """Largest number of tokens, padding included, in one micro-batch of the update."""
    logp_chunk: int = 1024
    """Completion tokens whose logits exist at one time."""
    checkpoint_activations: bool = True
    """Recompute each layer's activations in the backward (needed above smoke size)."""

    def __post_init__(self) -> None:
        checks = (
            ("prompts_per_step", self.prompts_per_step >= 1, "at least 1"),
            ("group_size", self.group_size >= 2, "at least 2: a group of one has no spread and teaches nothing"),
            ("clip", self.clip > 0, "above 0"),
            ("beta", 0 <= self.beta < float("inf"), "0 (no KL) or a positive number"),
            ("token_budget", self.token_budget >= 1, "at least 1"),
            ("logp_chunk", self.logp_chunk >= 1, "at least 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise UserError(f"--grpo.{name} {getattr(self, name)}: expected {expected}")


def advantage(
    rewards: Float[Tensor, "P G"],
    keep: Bool[Tensor, "P G"],
    *,
    deployed: Float[Tensor, "P G"] | None = None,
    std_norm: bool = False,
) -> Float[Tensor, "P G"]:
    """`A = R - mean_group(R)` over the kept rows; masked rows and groups without spread are exactly 0.

    `deployed` is the share d of each rollout that the deployed block learns from (the `block` baseline): rows with
    d > 0 use the mean `sum d R / sum d` of their group, the others keep the group's mean. `std_norm` divides by the
    group's standard deviation + 1e-4. Masked rewards are never read: they may be anything, NaN included.
    """
    rewards = rewards.masked_fill(~keep, 0.0)
    kept = keep.to(rewards)
    mean = (rewards * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    centred = rewards - mean
    if deployed is not None:
        share = deployed.to(rewards) * kept
        total = share.sum(1, keepdim=True)
        block_mean = (rewards * share).sum(1, keepdim=True) / torch.where(total > 0, total, torch.ones_like(total))
        centred = torch.where(deployed > 0, rewards - block_mean, centred)
    if std_norm:
        n = kept.sum(1, keepdim=True).clamp(min=2)
        centred = centred / (((rewards - mean).square() * kept).sum(1, keepdim=True).div(n - 1).sqrt() + 1e-4)
    return torch.where(keep & has_spread(rewards, keep)[:, None], centred, torch.zeros_like(centred))


def has_spread(rewards: Float[Tensor, "P G"], keep: Bool[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Whether the kept rewards of a group differ at all."""
    high = rewards.masked_fill(~keep, float("-inf")).amax(1)
    low = rewards.masked_fill(~keep, float("inf")).amin(1)
    return high - low > ZERO_SPREAD


def token_logps(
    hidden: Float[Tensor, "n H"],
    head: Float[Tensor, "V H"],
    targets: Int[Tensor, " n"],
    *,
    temperature: float,
    chunk: int,
) -> Float[Tensor, " n"]:
    """`log softmax(hidden head^T / temperature)[target]` over the whole vocabulary, at least fp32, `chunk` tokens at a time.

    Top-p or top-k sampling truncates the sampler's distribution; this is the untruncated one (recorded as such).
    """

    def logps(h: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(h, head)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return logits.gather(1, y[:, None]).squeeze(1) - logits.logsumexp(1)

    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return torch.cat([logps(h, y) for h, y in pieces]) if pieces else hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat([_tensor(checkpoint(logps, h, y, use_reentrant=False)) for h, y in pieces])


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def policy_loss(
    new: Float[Tensor, " n"], old: Float[Tensor, " n"], advantages: Float[Tensor, " n"], *, clip: float
) -> Float[Tensor, " n"]:
    """Per token `-min(rho A, clip(rho, 1 - clip, 1 + clip) A)` with `rho = exp(new - old)`, old from the sampling view."""
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped(
    new: Float[Tensor, " n"], old: Float[Tensor, " n"], advantages: Float[Tensor, " n"], *, clip: float
) -> Bool[Tensor, " n"]:
    """Tokens that the clip cuts off: `rho > 1 + clip` with A > 0, or `rho < 1 - clip` with A < 0. No gradient but the
    KL's reaches the policy from them."""
    ratio = (new - old).exp()
    return ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))


def kl_k3(new: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Per token `exp(d) - d - 1` with `d = reference - new`: unbiased for KL(new || reference), never negative."""
    d = reference - new
    return d.exp() - d - 1


def token_weights(
    owner: Int[Tensor, " n"], lengths: Int[Tensor, " R"], *, max_new: int, config: GrpoConfig
) -> Float[Tensor, " n"]:
    """Weight of each token in the step's loss, so that `loss = sum(weight * token loss)`.

    Dr.GRPO: `1 / (G max_new P)` for every token, a fixed number whatever the lengths and however the step is split over
    micro-batches and processes. `length_norm`: `1 / (length of the rollout * G P)`.
    """
    rollouts = config.group_size * config.prompts_per_step
    if config.length_norm:
        return 1.0 / (lengths[owner] * rollouts)
    return torch.full(owner.shape, 1.0 / (rollouts * max_new), device=owner.device)
