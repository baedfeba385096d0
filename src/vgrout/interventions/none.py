"""The controls without routing: plain GRPO on the deployed block, or on the whole adapter."""

from __future__ import annotations

from typing import final

from vgrout.adapter.route import Route, constant
from vgrout.interventions.base import Intervention, Rows


@final
class NoIntervention(Intervention):
    """`none`: the quarantine is absent (it stays at its init); rank r trains and ships."""

    measures_direction = True

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=0.0)


@final
class NoneFull(Intervention):
    """`none_full`: all 2r train and ship; the control at the full adapter's capacity."""

    deploy_view = "full"
    measures_direction = True
    moves = frozenset({"deployed", "quarantine"})

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=1.0)
