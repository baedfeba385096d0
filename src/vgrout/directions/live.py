"""The direction of a run: the one in use, renewed every so many steps with the adapter as it then is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vgrout.directions.direction import Direction, Extractor, Part
from vgrout.directions.placebo import Source
from vgrout.directions.subspace import Axes, Subspace, overlap, usable
from vgrout.types import UserError


class LiveDirection:
    """What is used of a direction: v_hack above the noise floor (the first k_use axes of each module), v_grad, v_act.

    `renews` names the parts that are extracted anew every `refresh_every` steps; the others stay as they were at first.
    """

    def __init__(self, extractor: Extractor, first: Direction, renews: frozenset[Part] = frozenset({"hack"})):
        self.extractor, self.config, self.renews = extractor, extractor.config, renews
        self.subspace = self._usable(first)
        self.grad, self.probes, self.act = first.grad, first.probes, first.act
        self.version = 0
        """Renewals so far, so that what is derived from the direction knows when it is stale."""
        self.age = 0
        """Updates since it was extracted."""
        self.overlap: float | None = None
        """With the one before, at the last renewal."""

    @property
    def source(self) -> Source:
        return self.extractor.source

    def after_step(self, step: int) -> None:
        """Renews the direction where `refresh_every` steps have passed."""
        self.age += 1
        every = self.config.refresh_every
        if every and self.renews and (step + 1) % every == 0:
            before = self._spans()
            self._take(self.extractor.extract(self.renews), step)
            self.overlap, self.age, self.version = overlap(before, self._spans()), 0, self.version + 1

    def _take(self, found: Direction, step: int) -> None:
        if "hack" in self.renews:
            self.subspace = self._usable(found)
            if not self.subspace.axes:
                raise UserError(
                    f"step {step}: the renewed direction has no axis, as the two sides of every pair have the same gradients; "
                    "keep the first one with --extraction.refresh-every 0"
                )
        if "grad" in self.renews:
            self.grad, self.probes = found.grad, found.probes
        if "act" in self.renews:
            self.act = found.act

    def _spans(self) -> Subspace:
        """What renewals are compared by: the vectors of the part that a gate reads, else the axes of v_hack."""
        vectors = self.grad["deploy"] if "grad" in self.renews else self.act if "act" in self.renews else None
        if vectors is None:
            return self.subspace
        return Subspace({name: Axes(v[None], v.new_ones(1)) for name, v in vectors.items() if bool(v.any())})

    def stats(self) -> dict[str, float | None]:
        """Columns of the metrics."""
        axes = sum(len(a.V) for a in self.subspace.axes.values())
        return {
            "direction_age": float(self.age),
            "direction_overlap": self.overlap,
            "direction_axes": float(axes),
            "direction_skipped": float(self.subspace.skipped),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from, in the middle of a refresh cycle too."""
        s = self.subspace
        return {
            "V": {name: a.V.clone() for name, a in s.axes.items()},
            "S": {name: a.S.clone() for name, a in s.axes.items()},
            "counts": (s.ties, s.dropped, s.skipped),
            "grad": {view: _cloned(found) for view, found in self.grad.items()},
            "probes": {view: _cloned(found) for view, found in self.probes.items()},
            "act": _cloned(self.act),
            "age": self.age,
            "overlap": self.overlap,
            "version": self.version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        axes = {name: Axes(V.clone(), state["S"][name].clone()) for name, V in state["V"].items()}
        self.subspace = self._on_device(Subspace(axes, *state["counts"]))
        self.grad = {view: _cloned(found) for view, found in state["grad"].items()}
        self.probes = {view: _cloned(found) for view, found in state["probes"].items()}
        self.act = _cloned(state["act"])
        self.age, self.overlap, self.version = state["age"], state["overlap"], state["version"]

    def _usable(self, direction: Direction) -> Subspace:
        return self._on_device(usable(direction.hack, noise_floor=self.config.noise_floor, k_use=self.config.k_use))

    def _on_device(self, subspace: Subspace) -> Subspace:
        device = self.extractor.policy.device
        axes = {name: Axes(a.V.to(device), a.S.to(device)) for name, a in subspace.axes.items()}
        return Subspace(axes, subspace.ties, subspace.dropped, subspace.skipped)


def _cloned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in found.items()}
