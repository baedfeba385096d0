"""AdamW as a proposal: the update is computed, may be edited, and only then applied (with decay toward init)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vgrout.adapter.base import Adapter
from vgrout.types import UserError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 7e-5
    """Peak learning rate."""
    warmup_steps: int = 10
    """Steps of linear warm-up; the first step's rate is peak / warm-up, never 0. Ignored where warmup_frac > 0."""
    warmup_frac: float = 0.0
    """Warm-up as a fraction of all steps; 0 uses warmup_steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine to 0, which the step after the last would have, or the peak rate to the end."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's moment decays."""
    eps: float = 1e-8
    """Adam's denominator floor."""
    weight_decay: float = 0.1
    """Decoupled decay toward the init copies, times the learning rate."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        checks = (
            ("lr", 0 < self.lr <= 1, "above 0 and at most 1"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("warmup_frac", 0 <= self.warmup_frac < 1, "at least 0 and below 1"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "both at least 0 and below 1"),
            ("eps", 0 < self.eps < math.inf, "a positive number"),
            ("weight_decay", 0 <= self.weight_decay <= 1, "from 0 (none) to 1"),
            ("grad_clip", self.grad_clip > 0, "above 0 (inf: no clipping)"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise UserError(f"--optim.{name.replace('_', '-')} {getattr(self, name)}: expected {expected}")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine to 0: `peak (s+1)/w` for s < w, else `peak/2 (1 + cos(pi (s-w)/(steps-w)))`.

    With the constant schedule the peak after the warm-up.
    """
    warmup = math.ceil(config.warmup_frac * steps) if config.warmup_frac > 0 else min(config.warmup_steps, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr / 2 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def clip_norm(parameters: Iterable[Tensor], most: float) -> float:
    """Scales the gradients to at most this global norm; returns the norm before. FloatingPointError where it is not finite."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(norm.isfinite()):
        raise FloatingPointError(f"the gradient's norm is {float(norm)}: the model has diverged; lower --optim.lr")
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


class Optimizer:
    """Runs torch's AdamW on tensors that start every step at zero, so that what it writes there is its update."""

    def __init__(self, adapter: Adapter, config: OptimConfig):
        self.adapter, self.config = adapter, config
        self.updates = [nn.Parameter(torch.zeros_like(p)) for p in adapter.parameters()]
        self.inner = torch.optim.AdamW(
            self.updates, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, foreach=True
        )

    @torch.no_grad()
    def clip(self) -> float:
        """Scales the adapter's gradients to at most `grad_clip` in global norm; returns the norm before."""
        return clip_norm(self.adapter.parameters(), self.config.grad_clip)

    @torch.no_grad()
    def propose(self, lr: float) -> list[Tensor]:
        """The additive update of each trainable for its current gradient (no decay)."""
        for update, p in zip(self.updates, self.adapter.parameters(), strict=True):
            update.zero_()
            update.grad = p.grad
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        for (
            update
        ) in self.updates:  # or the gradients of this step would be held until the end of the next one's backward
            update.grad = None
        return [update.detach() for update in self.updates]

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
        for group in self.inner.param_groups:  # what is configured now, not what the state was made with
            group["betas"], group["eps"] = self.config.betas, self.config.eps
