"""The routed model written out by its formula, with autograd's own `.detach()`: what the gates of masked forwards
compare with. One rollout at a time, its route in plain numbers; nothing of the package's forward or loss is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from _models import Gradients, lora, norms_in_fp64, plain_logps, qwen3
from vgrout.adapter.base import Adapter
from vgrout.types import Rollout, View

Kind = Literal["parameter", "activation"]
BLOCKS = ("deployed", "quarantine")


@dataclass
class Numbers:
    """The route of the one rollout that is being run."""

    q_value: float | Tensor = 1.0
    q_grad: float = 1.0
    d_grad: float = 1.0
    kind: Kind = "activation"


def partly(x: Tensor, share: float) -> Tensor:
    """x, of which only this share carries a gradient."""
    return share * x + (1 - share) * x.detach()


class PlainRouted(nn.Module):
    """`y = Wx + b + [d dep + (1-d) sg(dep)] + q [e quar + (1-e) sg(quar)]` with net branches, as written."""

    def __init__(self, linear: nn.Linear, A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, now: Numbers):
        super().__init__()
        self.linear, self.now = linear, now
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.A0, self.B0, self.rank = A0, B0, A.shape[0] // 2

    def net(self, x: Tensor, k: slice, share: float) -> Tensor:
        """The net branch of the rank entries k, of which this share learns."""
        A, B = self.A[k], self.B[:, k]
        if self.now.kind == "parameter":
            return (x @ partly(A, share).T) @ partly(B, share).T - (x @ self.A0[k].T) @ self.B0[:, k].T
        return partly((x @ A.T) @ B.T - (x @ self.A0[k].T) @ self.B0[:, k].T, share)

    def forward(self, x: Tensor) -> Tensor:
        now, r = self.now, self.rank
        quarantine = now.q_value * self.net(x, slice(r, 2 * r), now.q_grad)
        return self.linear(x) + self.net(x, slice(0, r), now.d_grad) + quarantine


class Reference:
    """A model of its own with the adapter's factors copied into plain modules, in fp64."""

    def __init__(self, adapter: Adapter):
        self.now = Numbers()
        self.model, self.original = (qwen3().double().requires_grad_(False) for _ in range(2))
        norms_in_fp64(self.model)
        norms_in_fp64(self.original)
        self.seen: dict[tuple[Rollout, View, float], Tensor] = {}
        self.modules: dict[str, PlainRouted] = {}
        for m in lora(adapter):
            linear = self.model.get_submodule(m.name)
            assert isinstance(linear, nn.Linear)
            module = PlainRouted(linear, m.A, m.B, m.A0, m.B0, self.now)
            parent, _, child = m.name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, module)
            self.modules[m.name] = module

    def logps(self, rollout: Rollout, route: tuple[float, float, float], kind: Kind, temperature: float) -> Tensor:
        """Of the completion's tokens under (q_value, q_grad, d_grad)."""
        self.now.q_value, self.now.q_grad, self.now.d_grad = route
        self.now.kind = kind
        return plain_logps(self.model, rollout, temperature)

    def in_view(self, rollout: Rollout, view: View, temperature: float) -> Tensor:
        """Without gradient, in a view; the base view is the model without any of our modules."""
        key = (rollout, view, temperature)
        if key not in self.seen:
            with torch.no_grad():
                if view == "base":
                    self.seen[key] = plain_logps(self.original, rollout, temperature)
                else:
                    self.seen[key] = self.logps(rollout, (float(view == "full"), 1.0, 1.0), "activation", temperature)
        return self.seen[key]

    def zero_grad(self) -> None:
        for m in self.modules.values():
            m.A.grad, m.B.grad = torch.zeros_like(m.A), torch.zeros_like(m.B)

    def grads(self) -> Gradients:
        """What lies in `.grad`, by block, under the adapter's parameter names."""
        found: Gradients = {}
        for name, m in self.modules.items():
            assert m.A.grad is not None and m.B.grad is not None
            for block, k in zip(BLOCKS, (slice(0, m.rank), slice(m.rank, 2 * m.rank)), strict=True):
                found[block, f"{name}.A"], found[block, f"{name}.B"] = m.A.grad[k].clone(), m.B.grad[:, k].clone()
        return found


@dataclass(frozen=True)
class Outcome:
    """A step's gradient and what the metrics say of it."""

    grads: Gradients
    loss: float
    kl: float
    clipped: int
    tokens: int


def step_by_hand(
    reference: Reference,
    rollouts: Sequence[Rollout],
    routes: Sequence[tuple[float, float, float]],
    kind: Kind,
    advantages: Sequence[float],
    *,
    denominators: Sequence[float],
    temperature: float,
    beta: float,
    clip: float = 0.2,
) -> Outcome:
    """`sum over tokens of (-min(rho A, clip(rho) A) + beta k3) / denominator`, backward, rollout by rollout.

    The ratio rho is to the sampling view, whatever the route; rollouts that teach no block are left out.
    """
    reference.zero_grad()
    loss = kl = 0.0
    clipped = tokens = 0
    for rollout, route, A, denominator in zip(rollouts, routes, advantages, denominators, strict=True):
        q_value, q_grad, d_grad = route
        if d_grad == 0 and q_value * q_grad == 0:
            continue
        old = reference.in_view(rollout, rollout.view, temperature)
        base = reference.in_view(rollout, "base", temperature)
        new = reference.logps(rollout, route, kind, temperature)
        total = torch.zeros((), dtype=torch.float64)
        for t in range(len(new)):
            rho, d = torch.exp(new[t] - old[t]), base[t] - new[t]
            cut = bool(rho > 1 + clip) if A > 0 else bool(rho < 1 - clip) and A < 0
            k3 = torch.exp(d) - d - 1
            surrogate = torch.tensor(1 + clip if A > 0 else 1 - clip) if cut else rho
            total = total + (-surrogate * A + beta * k3) / denominator
            kl, clipped = kl + float(k3.detach()), clipped + cut
        if total.requires_grad:
            total.backward()
        loss, tokens = loss + float(total.detach()), tokens + len(new)
    return Outcome(reference.grads(), loss, kl, clipped, tokens)
