"""label_route: ground-truth labels choose the route. An upper bound, marked as such everywhere it appears.

`exploited` rows are hack (the quarantine alone learns from them), all others clean (the deployed block alone).
`recall` and `false_alarm` degrade the labels, so that the quality that a label-free gate would need can be read off a
curve; `clean` and `mask` choose among the published forms of the three-way mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from vgrout.adapter.route import Clean, Mask, Route, three_way
from vgrout.interventions.base import Intervention, Rows
from vgrout.types import UserError


@dataclass(frozen=True)
class LabelRouteSettings:
    """How far the labels are degraded, and the form of the mask."""

    recall: float = 1.0
    """Share of the hacks that are labelled hack."""
    false_alarm: float = 0.0
    """Share of the other rows that are labelled hack."""
    clean: Clean = "detached"
    """Clean rows: detached leaves the quarantine in the forward as sampled, zeroed runs them without it (two passes). With
    zeroed rows or activation masks, hacks sampled in the deploy view teach the quarantine too; else they are discarded."""
    mask: Mask = "parameter"
    """What the other block is kept from: parameter, its own gradients; activation, also those of layers before it."""

    def __post_init__(self) -> None:
        for name in ("recall", "false_alarm"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"--label_route.{name} {value}: expected a rate between 0 and 1")


@final
class LabelRoute(Intervention):
    """`label_route`: needs --allow-oracle."""

    Settings = LabelRouteSettings
    routed = True
    moves = frozenset({"deployed", "quarantine"})
    oracle = True

    def route(self, rows: Rows) -> Route:
        if rows.labels is None:
            raise UserError("label_route reads ground-truth labels: allow it with --allow-oracle")
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + rows.step) % 2**63)
        draw = torch.rand(rows.n, generator=generator)
        chance = torch.where(rows.labels, self.settings.recall, self.settings.false_alarm)
        hack = draw < chance
        settings = self.settings
        return three_way(hack=hack, clean=~hack, preset=settings.clean, mask=settings.mask, views=rows.views)
