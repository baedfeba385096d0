"""What the gated interventions share: from shares to a route, and the labels of the trained control."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Clean, Mask, Route, three_way
from vgrout.directions.gate import Action, GateSettings
from vgrout.directions.placebo import Source, permuted
from vgrout.interventions.base import Rows
from vgrout.types import UserError


def action_of(settings: GateSettings, adapter: Adapter) -> Action:
    """The action that is set, or the adapter's own."""
    return settings.action or ("ramp" if adapter.kind == "delta_s" else "three_way")


def routed(
    share: Float[Tensor, " N"],
    score: Float[Tensor, " N"],
    rows: Rows,
    *,
    action: Action,
    clean: Clean,
    mask: Mask,
) -> Route:
    """The route of rows by how much of each is routed: labels 0, .5 and 1 (three_way), or a ramp's shares."""
    if action == "ramp":
        return Route(d_grad=(1 - share).float(), q_grad=share.float(), score=score)
    route = three_way(share == 1, share == 0, preset=clean, mask=mask, views=rows.views)
    return Route(d_grad=route.d_grad, q_grad=route.q_grad, q_value=route.q_value, mask=mask, score=score)


def exchanged(share: Float[Tensor, " N"], rows: Rows, source: Source, seed: int) -> Float[Tensor, " N"]:
    """The shares as they are; under `random_label` permuted among the moving rows of each sampling view."""
    if source.kind != "random_label":
        return share
    return share[permuted(rows.advantages, rows.views, seed, rows.step)]


def require_cell(name: str, action: Action, clean: Clean, mask: Mask) -> None:
    """A ramp is a split of each row's own gradients, so it has no other forward."""
    if action == "ramp" and (clean, mask) != ("detached", "parameter"):
        raise UserError(
            f"--{name}.action ramp: splits each row's gradients as sampled; expected --{name}.clean detached and "
            f"--{name}.mask parameter, not {clean} and {mask}"
        )


def nothing_scored(rows: Rows) -> Float[Tensor, " N"]:
    """The score of rows that are not scored."""
    return torch.full((rows.n,), float("nan"), dtype=torch.float64)
