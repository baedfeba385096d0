"""absorb: both blocks train on every rollout and no gate decides anything; the quarantine is ablated at deployment.

What remains after the ablation is what the deployed block learned from the same rollouts at half of the shared change.
"""

from __future__ import annotations

from typing import final

from vgrout.adapter.route import Route, constant
from vgrout.interventions.base import Intervention, Rows


@final
class Absorb(Intervention):
    """`absorb`: the route is pinned to mid = (q_grad 1, d_grad 1)."""

    routed = True
    moves = frozenset({"deployed", "quarantine"})

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=1.0)
