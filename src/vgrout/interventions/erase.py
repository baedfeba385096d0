"""erase: what of each update lies along the hack direction is taken out before it reaches the weights.

Module by module, c = V g for the deployed block's gradient g and the direction's axes V, and g' = g - overshoot *
sum_i relu(c_i) v_i (vgrout.directions.projection has the other modes). The quarantine is absent, as in `none`. Adam's
moments can carry the direction past a projection of the gradient; `project = update` projects what the optimizer
proposes instead: an additive update U is projected as the gradient -U.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route, constant
from vgrout.directions.live import LiveDirection
from vgrout.directions.projection import EraseMode, project, suspicion
from vgrout.interventions.base import Intervention, Rows
from vgrout.types import UserError


@dataclass(frozen=True)
class EraseSettings:
    """What the projection does."""

    mode: EraseMode = "one_sided"
    """one_sided removes what would make hacks likelier, no_gate both signs, reverse turns both signs round."""
    overshoot: float = 1.0
    """Factor of what is removed; 1 removes it exactly."""
    preserve_magnitude: bool = False
    """Give each module's gradient its norm back."""
    susp_drop_frac: float = 0.0
    """Share of all axes of a step that are not projected: those most energetic beside their singular value."""
    project: Literal["gradient", "update"] = "gradient"
    """What is projected: the gradient before clipping, or the update that the optimizer proposes."""

    def __post_init__(self) -> None:
        if not 0 < self.overshoot <= 10:
            raise UserError(f"--erase.overshoot {self.overshoot}: expected a factor above 0 and at most 10")
        if not 0 <= self.susp_drop_frac < 1:
            raise UserError(f"--erase.susp-drop-frac {self.susp_drop_frac}: expected a share of at least 0 and below 1")


@final
class Erase(Intervention):
    """`erase`: needs a direction."""

    Settings = EraseSettings
    default_adapter = "delta_s"
    needs_direction = True
    renews = frozenset({"hack"})

    def prepare(self, direction: LiveDirection | None) -> None:
        if direction is None:
            raise UserError("erase projects along a direction; name pairs with --pairs")
        self.direction = direction

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=0.0)

    def edit_gradients(self, adapter: Adapter) -> None:
        if self.settings.project == "gradient":
            self._project(adapter, adapter.gradients(), sign=1.0)

    def edit_update(self, updates: list[Tensor]) -> list[Tensor]:
        if self.settings.project == "update":
            self._project(self.adapter, updates, sign=-1.0)
        return updates

    @torch.no_grad()
    def _project(self, adapter: Adapter, tensors: Sequence[Tensor], sign: float) -> None:
        """Projects, in place, the tensors (one per trainable) times `sign` as a gradient."""
        settings, axes = self.settings, self.direction.subspace.axes
        found = {name: sign * g for name, g in adapter.deployed(tensors).items() if name in axes}
        keep = suspicion(found, axes, settings.susp_drop_frac) if settings.susp_drop_frac > 0 else {}
        adapter.set_deployed(
            tensors,
            {
                name: sign
                * project(
                    g,
                    axes[name].V,
                    mode=settings.mode,
                    overshoot=settings.overshoot,
                    preserve_magnitude=settings.preserve_magnitude,
                    keep=keep.get(name),
                )
                for name, g in found.items()
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self.direction.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.direction.load_state_dict(state["direction"])
