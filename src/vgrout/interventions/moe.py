"""moe: a learned soft router says, per rollout, how much the quarantine learns of it and the deployed block does not.

    w = sigmoid(a * mean_m cos(h_m - c_m, u_m) + b)      h: mean bottleneck of the completion, quarantine ablated
    detached   (q_value, q_grad, d_grad) = (as sampled, w, 1 - w)      GRPO never reaches the router
    published  (w, 1, 1 - w)      GRPO reaches it through w times the quarantine's branch, which is 0 until that has moved

u starts at v_act; c is the mean of the pairs' features; a and b are calibrated on the pairs. In every step the pin loss, the
binary cross-entropy of the router on the pairs, is added with coefficient 1. Features are detached, so that neither loss
reaches the adapter through the router. w is known only after sampling, so rows are sampled in the views of any routed run.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.directions.live import LiveDirection
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.gating import exchanged
from vgrout.interventions.router import Router, haar_labels
from vgrout.optim import clip_norm
from vgrout.types import UserError


@dataclass(frozen=True)
class MoeSettings:
    """The router and its optimizer."""

    soft: Literal["detached", "published"] = "detached"
    """detached: w splits the gradients of the sampled forward; published: w also scales the quarantine in a forward of its
    own."""
    lr: float = 1e-3
    """Learning rate of the router's own AdamW: constant, without decay."""
    grad_clip: float = 1.0
    """Largest norm of the router's gradient."""
    pin: float = 1.0
    """Coefficient of the pin loss."""

    def __post_init__(self) -> None:
        checks = (
            ("lr", 0 <= self.lr <= 1, "from 0 (frozen) to 1"),
            ("grad-clip", 0 < self.grad_clip < math.inf, "a number above 0"),
            ("pin", 0 <= self.pin < math.inf, "a number of at least 0"),
        )
        for option, holds, expected in checks:
            if not holds:
                raise UserError(f"--moe.{option} {getattr(self, option.replace('-', '_'))}: expected {expected}")


@final
class Moe(Intervention):
    """`moe`: lora2r only."""

    Settings = MoeSettings
    routed = True
    moves = frozenset({"deployed", "quarantine"})
    needs_direction = True
    permutes_labels = True
    needs = "activations"
    adapters = ("lora2r",)  # features as routeA's

    def prepare(self, direction: LiveDirection | None) -> None:
        if direction is None:
            raise UserError("moe starts at a direction and is pinned to pairs; name them with --pairs")
        self.direction = direction
        self._measured: dict[str, float | None] = {}
        self.router = Router(direction.act)
        pairs = self._centred_pairs()
        p = len(pairs) // 2
        with torch.no_grad():
            score = self.router.score(pairs)
        haar = direction.source.kind == "haar"
        self.labels = haar_labels(score) if haar else torch.tensor([1.0] * p + [0.0] * p)
        self.router.calibrate(pairs, self.labels)
        self.optimizer = torch.optim.AdamW(self.router.parameters(), lr=self.settings.lr, weight_decay=0.0)
        self.w: Tensor | None = None
        """Of the step's rows, with the router's graph."""

    def _centred_pairs(self) -> Float[Tensor, "two_p D"]:
        """The pairs' features now, centred; keeps their mean as the centre of everything that is scored."""
        # The labels of a haar placebo are made from scores, so the sides are no label and need no exchange.
        found = self.direction.extractor.activations(blind=False)
        flat = self.router.flat({name: h.flatten(0, 1) for name, h in found.items()})
        self.centre = flat.mean(dim=0)
        return flat - self.centre

    def route(self, rows: Rows) -> Route:
        start = perf_counter()
        self.pairs = self._centred_pairs()
        self._measured = {"seconds_pairs": perf_counter() - start}
        w = torch.sigmoid(self.router(self.router.flat(rows.features) - self.centre))
        if not bool(w.isfinite().all()):
            raise UserError("moe: the router's weight is not finite: the model has diverged; lower --optim.lr")
        self.w = exchanged(w, rows, self.direction.source, self.seed)
        self.leaf = self.w.detach().clone().requires_grad_(self.settings.soft == "published")
        fixed = self.leaf.detach()
        if self.settings.soft == "detached":
            return Route(d_grad=1 - fixed, q_grad=fixed, score=w.detach())
        ones = torch.ones_like(fixed)
        return Route(d_grad=1 - fixed, q_grad=ones, q_value=self.leaf, mask="activation", score=w.detach())

    def edit_gradients(self, adapter: Adapter) -> None:
        """The router's own step: what GRPO says of it, then the pin loss; norms apart, before clipping."""
        assert self.w is not None
        self.optimizer.zero_grad()
        if self.leaf.grad is not None:
            self.w.backward(self.leaf.grad.to(self.w))
        grpo = self._gradients()
        loss = self.router.pin_loss(self.pairs, self.labels)
        (self.settings.pin * loss).backward()
        pin = [g - before for g, before in zip(self._gradients(), grpo, strict=True)]
        self._measured |= {
            "router_grad_grpo": _norm(grpo),
            "router_grad_pin": _norm(pin),
            "pin_loss": float(loss.detach()),
            "router_scale": float(self.router.a.detach()),
            "router_bias": float(self.router.b.detach()),
        }
        clip_norm(self.router.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self.w = None

    def _gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.router.parameters()]

    def stats(self) -> dict[str, float | None]:
        return self._measured

    def state_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction.state_dict(),
            "router": {name: value.clone() for name, value in self.router.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),  # the optimizer writes into its moments in place
            "labels": self.labels.clone(),
            "modules": self.router.names,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if tuple(state["modules"]) != self.router.names:
            raise ValueError("moe: the stored router reads other modules, or in another order")
        self.direction.load_state_dict(state["direction"])
        self.router.load_state_dict(state["router"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.labels = state["labels"].clone()


def _norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
