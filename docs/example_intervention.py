"""A route that knows nothing of hacking: rollouts with the largest activations train the quarantine. A control for gates.

    cd docs && vgrout train smoke --intervention example_intervention:NormGate --NormGate.quantile 0.5

Score: mean over modules of the row's activation norm, divided by the module's mean over the step. Rows above the
quantile of all scores seen so far are routed to the quarantine alone, the others to the deployed block alone.
"""

from dataclasses import dataclass
from typing import final

import torch

from vgrout.adapter.route import Route, three_way
from vgrout.interventions.base import Intervention, Rows
from vgrout.types import UserError


@dataclass(frozen=True)
class NormGateSettings:
    """Every field needs a default; its docstring is its help text."""

    quantile: float = 0.75
    """Share of the rows so far that lies below the gate."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise UserError(f"--NormGate.quantile {self.quantile}: expected a share between 0 and 1")


@final
class NormGate(Intervention):
    """`example_intervention:NormGate`."""

    Settings = NormGateSettings
    routed = True  # two blocks train, so part of the rows is sampled in the deploy view
    moves = frozenset({"deployed", "quarantine"})  # asserted at the end of a run
    needs = "activations"  # what `rows.features` holds: a pass without gradient, quarantine ablated

    def prepare(self, direction: object) -> None:
        self.seen = torch.zeros(0)

    def route(self, rows: Rows) -> Route:
        norms = torch.stack([h.norm(dim=1) for h in rows.features.values()])
        score = (norms / norms.mean(dim=1, keepdim=True)).mean(dim=0)
        self.seen = torch.cat([self.seen, score])
        hack = score > torch.quantile(self.seen, self.settings.quantile)
        return three_way(hack=hack, clean=~hack)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = state["seen"]
