"""One extracted direction in all its forms, and how it is made from pairs with the model as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.directions.activation import pair_activations
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.gradient import NllOptions, Sides, pair_gradients
from vgrout.directions.placebo import Source, blinded, haar_axes, haar_unit
from vgrout.directions.subspace import Axes, Subspace, extract
from vgrout.policy import Policy
from vgrout.types import View

GATE_VIEWS: tuple[View, ...] = ("full", "deploy")
"""A row is scored against the direction of its own sampling view."""


@dataclass(frozen=True)
class Direction:
    """What is known of the direction. Parts that were not asked for are empty."""

    hack: Subspace
    """v_hack: every extracted axis of each module in the erase coordinates, in the model's dtype."""
    grad: dict[View, dict[str, Float[Tensor, " r"]]] = field(default_factory=dict)
    """v_grad per view: unit mean difference in the routing coordinates."""
    act: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    """v_act: unit mean difference of bottleneck activations."""
    probes: dict[View, dict[str, Float[Tensor, "2 p r"]]] = field(default_factory=dict)
    """Gradients of the pairs' completions in the routing coordinates: what edges are read from."""


@dataclass(frozen=True)
class Extractor:
    """Makes directions from encoded pairs with the model and adapter as they are at the moment."""

    policy: Policy
    sides: Sides
    source: Source
    config: ExtractionConfig
    max_new: int

    @property
    def options(self) -> NllOptions:
        """The loss of a completion."""
        return NllOptions(self.config.token_norm, self.max_new, self.config.token_budget)

    def extract(self, *, everything: bool = True) -> Direction:
        """The direction now. Without `everything` only v_hack, which one backward pass yields. `.grad` stays as it is."""
        options = self.options
        own = blinded(pair_gradients(self.policy, self.sides, "deploy", options), self.source)
        hack = self._subspace(own.differences())
        if not everything:
            return Direction(hack)
        full = blinded(pair_gradients(self.policy, self.sides, "full", options, deployed=False), self.source)
        probes: dict[View, dict[str, Tensor]] = {"full": full.probe, "deploy": own.probe}
        grad = {view: self._units(probes[view], f"v_grad {view}") for view in GATE_VIEWS}
        h = pair_activations(self.policy, self.sides, token_budget=self.config.token_budget)
        return Direction(hack, grad, self._units(h, "v_act"), probes)

    def _subspace(self, D: Mapping[str, Float[Tensor, "p d"]]) -> Subspace:
        found = extract(D, self.config.top_k)
        dtype = next(iter(self.policy.adapter.modules)).weight.dtype
        axes = {}
        for name, a in found.axes.items():
            V = haar_axes(a.V, self.source.seed, name) if self.source.kind == "haar" else a.V
            axes[name] = Axes(V.to(dtype), a.S)
        return Subspace(axes, ties=found.ties)

    def _units(self, sides: Mapping[str, Float[Tensor, "2 p r"]], what: str) -> dict[str, Float[Tensor, " r"]]:
        """Unit mean difference per module; a module without a difference stays 0 and scores 0."""
        if self.source.kind == "haar":
            return {name: haar_unit(g.shape[-1], self.source.seed, f"{what} {name}") for name, g in sides.items()}
        return {name: unit((g[0] - g[1]).mean(0)) for name, g in sides.items()}


def unit(v: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """v / |v|; 0 stays 0."""
    norm = v.norm()
    return v / norm if float(norm) > 0 else torch.zeros_like(v)
