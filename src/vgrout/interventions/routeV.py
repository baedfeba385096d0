"""routeV: a gate on each rollout's own gradient decides which block learns from it.

A row's gradient in the routing coordinates is compared with v_grad of its sampling view (vgrout.directions.gate). Features:

    signed  gradient of the step's loss, as the one training backward gives it, times the sign of the row's advantage, so
            that it points as the gradient of the NLL would; rows of zero advantage are not routed
    raw     the same without the sign, as published with the three-way mask
    nll     gradient of the completion's NLL, from a backward of its own

On `delta_s` the unit may be the token: each token's gradient is split by its own score.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.route import Clean, Mask, Route
from vgrout.directions.direction import GATE_VIEWS
from vgrout.directions.gate import Gate, GateSettings, cosines
from vgrout.directions.live import LiveDirection
from vgrout.directions.tokens import token_cosines
from vgrout.interventions.base import Intervention, Rows, TokenGradients
from vgrout.interventions.gating import action_of, exchanged, nothing_scored, require_cell, routed
from vgrout.types import UserError, View


@dataclass(frozen=True)
class RouteVSettings(GateSettings):
    """The gate, what it reads, and the form of the mask."""

    feature: Literal["signed", "raw", "nll"] = "signed"
    """signed: loss gradient times the sign of the advantage, from the training backward; raw: without the sign; nll: of the
    completion's NLL, from a backward of its own."""
    unit: Literal["rollout", "token"] | None = None
    """What is routed as a whole. None: rollout on lora2r, token on delta_s."""
    clean: Clean = "detached"
    """Clean rows: detached leaves the quarantine in the forward as sampled, zeroed runs them without it (two passes)."""
    mask: Mask = "parameter"
    """What the other block is kept from: parameter, its own gradients; activation, also those of layers before it."""

    def __post_init__(self) -> None:
        self.check("routeV")


@final
class RouteV(Intervention):
    """`routeV`: one pass by default."""

    Settings = RouteVSettings
    routed = True
    moves = frozenset({"deployed", "quarantine"})
    needs_direction = True
    permutes_labels = True
    renews = frozenset({"grad"})

    def prepare(self, direction: LiveDirection | None) -> None:
        if direction is None:
            raise UserError("routeV compares gradients with a direction; name pairs with --pairs")
        settings, self.direction = self.settings, direction
        action = action_of(settings, self.adapter)
        require_cell("routeV", action, settings.clean, settings.mask)
        self.gate = Gate(settings, action)
        own_forward = (settings.clean, settings.mask) != ("detached", "parameter")
        if settings.feature == "signed" and own_forward:
            raise UserError(
                "--routeV.feature signed is read from the training backward, which a zeroed or activation-masked forward "
                "does not leave as it was; expected --routeV.feature raw or nll with them"
            )
        unit = settings.unit or ("token" if self.adapter.kind == "delta_s" and action == "ramp" else "rollout")
        if unit == "token":
            self._require_tokens(action)
            self.needs = "token_gradients"
        elif settings.feature == "nll" or own_forward or direction.source.kind == "random_label":
            self.needs = "own_gradients"
            self.gradient_loss = "nll" if settings.feature == "nll" else "grpo"
        else:
            self.needs = "training_gradients"
        self._of_version = -1
        self._measured: dict[str, float | None] = {}
        self._pairs: dict[str, float | None] = {}

    def _require_tokens(self, action: str) -> None:
        for holds, what in (
            (self.adapter.kind == "delta_s", "--adapter.kind delta_s"),
            (action == "ramp", "--routeV.action ramp"),
            (self.settings.feature != "nll", "--routeV.feature signed or raw"),
            (self.settings.edges != "live", "edges of the pairs, since live ones remember rollouts"),
            (self.direction.source.kind != "random_label", "another --direction, since labels are permuted by rollout"),
        ):
            if not holds:
                raise UserError(f"--routeV.unit token: expected {what}; or choose --routeV.unit rollout")

    def route(self, rows: Rows) -> Route:
        self._renew()
        share = torch.full((rows.n,), self._untold, dtype=torch.float64)
        score = nothing_scored(rows)
        features = self._pointing(rows)
        told = torch.zeros(rows.n, dtype=torch.bool)  # all of them, where no group of the step has spread
        for f in features.values():
            told |= f.any(dim=1)
        for view in GATE_VIEWS:
            at = (told & torch.tensor([v == view for v in rows.views])).nonzero().flatten()
            if len(at):
                own = {name: f[at] for name, f in features.items()}
                positions = [rows.positions[i] for i in at.tolist()]
                score[at] = self.gate.scores(own, self.direction.grad, view, positions)
                share[at] = self.gate.share(score[at])
        share = exchanged(share, rows, self.direction.source, self.seed)
        settings = self.settings
        return routed(share, score, rows, action=self.gate.action, clean=settings.clean, mask=settings.mask)

    def _pointing(self, rows: Rows) -> dict[str, Float[Tensor, "N d"]]:
        """The features, pointing as the NLL's gradient does where they are signed; all 0 in a row that is not told apart."""
        if self.settings.feature != "signed":
            return dict(rows.features)
        return {name: rows.advantages.sign().to(f)[:, None] * f for name, f in rows.features.items()}

    def split_tokens(self, rows: Rows, gradients: TokenGradients) -> Float[Tensor, "R L"]:
        self._renew()
        (view,) = set(rows.views)
        found = gradients.cosines(self.direction.grad[view])
        if self.settings.feature == "signed":
            found = {name: rows.advantages.sign().to(c)[:, None] * c for name, c in found.items()}
        score = self.gate.token_scores(found, view)
        told = torch.stack([c != 0 for c in found.values()]).any(dim=0)
        self.gate.note(score[told])
        return torch.where(told, self.gate.share(score), self._untold)

    @property
    def _untold(self) -> float:
        """The share of what has no gradient to be told apart by: mid, or all of it kept."""
        return 0.0 if self.gate.action == "ramp" else 0.5

    def _renew(self) -> None:
        """New edges where the direction is a new one."""
        if self._of_version == self.direction.version:
            return
        self._of_version = self.direction.version
        if self.gate.live:
            return
        start = perf_counter()
        for view in GATE_VIEWS:
            self.gate.set_band(view, self._sides(view))
        if self.needs == "token_gradients":
            self._pairs = {"seconds_pairs": perf_counter() - start}

    def _sides(self, view: View) -> dict[str, Tensor]:
        """The pairs' own cosines in this view: per completion, or per token."""
        if self.needs == "token_gradients":
            return token_cosines(self.direction.extractor, view, self.direction.grad[view])
        return cosines(self.direction.probes[view], self.direction.grad[view])

    def after_step(self, step: int) -> None:
        self._measured, self._pairs = self.gate.end_step() | self._pairs, {}

    def stats(self) -> dict[str, float | None]:
        return self._measured

    def state_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction.state_dict(),
            "gate": self.gate.state_dict(),
            "of_version": self._of_version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.direction.load_state_dict(state["direction"])
        self.gate.load_state_dict(state["gate"])
        self._of_version = state["of_version"]
