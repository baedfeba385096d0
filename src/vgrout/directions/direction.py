"""One extracted direction in all its forms, and how it is made from pairs with the model as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.directions.activation import pair_activations
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.gradient import Gradients, NllOptions, Sides, pair_gradients
from vgrout.directions.placebo import Source, blinded, blinded_sides, haar_axes, haar_unit
from vgrout.directions.subspace import Axes, Subspace, extract
from vgrout.policy import Policy
from vgrout.types import View

T = TypeVar("T")
Part = Literal["hack", "grad", "act"]
"""v_hack; v_grad with the pairs' gradients that its edges are read from; v_act."""
ALL_PARTS: frozenset[Part] = frozenset({"hack", "grad", "act"})

GATE_VIEWS: tuple[View, ...] = ("full", "deploy")
"""A row is scored against the direction of its own sampling view."""


@dataclass(frozen=True)
class Direction:
    """What is known of the direction. Parts that were not asked for are empty.

    Modules are in the order of their names, wherever a direction comes from: what lays them side by side (a buffer of
    features, a router) must find them where it left them.
    """

    hack: Subspace
    """v_hack: every extracted axis of each module in the erase coordinates, in the model's dtype."""
    grad: dict[View, dict[str, Float[Tensor, " r"]]] = field(default_factory=dict)
    """v_grad per view: unit mean difference in the routing coordinates."""
    act: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    """v_act: unit mean difference of bottleneck activations."""
    probes: dict[View, dict[str, Float[Tensor, "2 p r"]]] = field(default_factory=dict)
    """Gradients of the pairs' completions in the routing coordinates: what edges are read from."""

    def __post_init__(self) -> None:
        ordered = {
            "hack": replace(self.hack, axes=by_name(self.hack.axes)),
            "act": by_name(self.act),
            "grad": {view: by_name(found) for view, found in self.grad.items()},
            "probes": {view: by_name(found) for view, found in self.probes.items()},
        }
        for name, value in ordered.items():
            object.__setattr__(self, name, value)


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

    def extract(self, parts: frozenset[Part] = ALL_PARTS) -> Direction:
        """These parts of the direction as it is now; v_hack alone takes one backward pass. `.grad` stays as it is."""
        hack, probes = Subspace({}), {}
        if parts & {"hack", "grad"}:
            own = self._gradients("deploy", deployed="hack" in parts)
            probes["deploy"] = own.probe
            hack = self._subspace(own.differences()) if "hack" in parts else hack
        if "grad" not in parts:
            probes = {}
        else:
            probes["full"] = self._gradients("full", deployed=False).probe
        grad: dict[View, dict[str, Tensor]] = {view: self._units(p, f"v_grad {view}") for view, p in probes.items()}
        act = self._units(self.activations(), "v_act") if "act" in parts else {}
        return Direction(hack, grad, act, probes)

    def activations(self, *, blind: bool = True) -> dict[str, Float[Tensor, "2 p k"]]:
        """The pairs' bottleneck features now, quarantine ablated; with their sides as the source lets them be seen, unless
        the caller does without the sides."""
        features = pair_activations(self.policy, self.sides, token_budget=self.config.token_budget)
        return by_name(blinded_sides(features, self.source) if blind else features)

    def _gradients(self, view: View, *, deployed: bool) -> Gradients:
        return blinded(pair_gradients(self.policy, self.sides, view, self.options, deployed=deployed), self.source)

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


def by_name(found: Mapping[str, T]) -> dict[str, T]:
    """The same entries in the order of their names."""
    return {name: found[name] for name in sorted(found)}


def unit(v: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """v / |v|; 0 stays 0."""
    norm = v.norm()
    return v / norm if float(norm) > 0 else torch.zeros_like(v)
