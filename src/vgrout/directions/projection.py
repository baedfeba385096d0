"""The projection of `erase`, and how much of a gradient lies along the direction (spec 5, 6). Pure functions.

With c = V g for a module's gradient g and its axes V:

    one_sided   g' = g - overshoot * sum_i relu(c_i) v_i      what would make hacks likelier is taken out
    no_gate     g' = g - overshoot * sum_i c_i v_i            both signs are
    reverse     g' = g - overshoot * sum_i 2 c_i v_i          both signs are turned round
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.directions.subspace import Axes

EraseMode = Literal["one_sided", "no_gate", "reverse"]


def removed(c: Float[Tensor, " k"], mode: EraseMode) -> Float[Tensor, " k"]:
    """The coefficients that the projection takes away."""
    if mode == "one_sided":
        return c.relu()
    return c if mode == "no_gate" else 2 * c


def project(
    g: Float[Tensor, " d"],
    V: Float[Tensor, "k d"],
    *,
    mode: EraseMode = "one_sided",
    overshoot: float = 1.0,
    preserve_magnitude: bool = False,
    keep: Bool[Tensor, " k"] | None = None,
) -> Float[Tensor, " d"]:
    """g' of the formula above; `keep` says which axes are projected (all by default).

    `preserve_magnitude` gives g' the norm of g again, unless nothing of it is left.
    """
    V = V.to(g)
    take = removed(V @ g, mode)
    if keep is not None:
        take = take * keep
    after = g - overshoot * (take @ V)
    if not preserve_magnitude:
        return after
    norm, before = float(after.norm()), float(g.norm())
    # What rounding leaves of a gradient that lay in the span is no direction to be given the whole norm.
    return after * (before / norm) if norm > 1e3 * torch.finfo(g.dtype).eps * before else after


def suspicion(
    gradients: Mapping[str, Float[Tensor, " d"]], axes: Mapping[str, Axes], drop_frac: float
) -> dict[str, Bool[Tensor, " k"]]:
    """Per module, the axes that the suspicion gate lets be projected.

    `r_i = (|c_i| / |g|) / (S_i / |S|)` within a module; the `drop_frac` of all axes of the step with the largest r, pooled
    over modules, are not projected: their live energy is large beside what the pairs gave them.
    """
    ratios = {}
    for name, a in axes.items():
        g = gradients[name]
        share = (a.V.to(g) @ g).abs() / g.norm().clamp(min=torch.finfo(g.dtype).tiny)
        S = a.S.to(share)
        ratios[name] = share / (S / S.norm())
    pooled = torch.cat(list(ratios.values()))
    drop = torch.zeros_like(pooled, dtype=torch.bool)
    drop[pooled.argsort(descending=True, stable=True)[: int(drop_frac * len(pooled))]] = True
    parts = drop.split([len(r) for r in ratios.values()])
    return {name: ~part for name, part in zip(ratios, parts, strict=True)}


def alignment(g: Float[Tensor, " d"], V: Float[Tensor, "k d"]) -> tuple[float, float, int] | None:
    """(|relu(V g)| / |g|, cosine of g with the first axis, axes with c > 0); None for a zero gradient."""
    norm = float(g.norm())
    if norm == 0:
        return None
    c = V.to(g) @ g
    return float(c.relu().norm()) / norm, float(c[0]) / norm, int((c > 0).sum())
