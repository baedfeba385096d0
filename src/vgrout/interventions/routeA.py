"""routeA: the gate of routeV on activations: which block learns from a rollout is decided before it is backpropagated.

A row's feature is the mean bottleneck activation of its completion, quarantine ablated; the direction is v_act. The pairs'
own features are read anew in every step, because the bottleneck they are read at moves with every update.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, final

from vgrout.adapter.route import Clean, Mask, Route
from vgrout.directions.gate import Gate, GateSettings, cosines
from vgrout.directions.live import LiveDirection
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.gating import action_of, exchanged, require_cell, routed
from vgrout.types import UserError

VIEW = "deploy"
"""The view that every feature is read in, whatever a row was sampled in."""


@dataclass(frozen=True)
class RouteASettings(GateSettings):
    """The gate, and the form of the mask."""

    clean: Clean = "detached"
    """Clean rows: detached leaves the quarantine in the forward as sampled, zeroed runs them without it (two passes)."""
    mask: Mask = "parameter"
    """What the other block is kept from: parameter, its own gradients; activation, also those of layers before it."""

    def __post_init__(self) -> None:
        self.check("routeA")


@final
class RouteA(Intervention):
    """`routeA`: lora2r only."""

    Settings = RouteASettings
    routed = True
    moves = frozenset({"deployed", "quarantine"})
    needs_direction = True
    permutes_labels = True
    renews = frozenset({"act"})
    needs = "activations"
    adapters = ("lora2r",)  # features are read at the bottleneck of a deployed block that learns; delta_s's is frozen

    def prepare(self, direction: LiveDirection | None) -> None:
        if direction is None:
            raise UserError("routeA compares activations with a direction; name pairs with --pairs")
        settings, self.direction = self.settings, direction
        action = action_of(settings, self.adapter)
        require_cell("routeA", action, settings.clean, settings.mask)
        self.gate = Gate(settings, action)
        self._measured: dict[str, float | None] = {}

    def route(self, rows: Rows) -> Route:
        start = perf_counter()
        if not self.gate.live:
            self.gate.set_band(VIEW, cosines(self.direction.extractor.activations(), self.direction.act))
        self._measured = {} if self.gate.live else {"seconds_pairs": perf_counter() - start}
        score = self.gate.scores(rows.features, {VIEW: self.direction.act}, VIEW, rows.positions)
        share = exchanged(self.gate.share(score), rows, self.direction.source, self.seed)
        settings = self.settings
        return routed(share, score, rows, action=self.gate.action, clean=settings.clean, mask=settings.mask)

    def after_step(self, step: int) -> None:
        self._measured |= self.gate.end_step()

    def stats(self) -> dict[str, float | None]:
        return self._measured

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self.direction.state_dict(), "gate": self.gate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.direction.load_state_dict(state["direction"])
        self.gate.load_state_dict(state["gate"])
