"""The direction of a run: the one in use, renewed every so many steps with the adapter as it then is."""

from __future__ import annotations

from typing import Any

from vgrout.directions.direction import Direction, Extractor
from vgrout.directions.subspace import Axes, Subspace, overlap, usable
from vgrout.types import UserError


class LiveDirection:
    """v_hack as it is used: above the noise floor, the first k_use axes of each module."""

    def __init__(self, extractor: Extractor, first: Direction):
        self.extractor, self.config = extractor, extractor.config
        self.subspace = self._usable(first)
        self.age = 0
        """Updates since it was extracted."""
        self.overlap: float | None = None
        """With the one before, at the last renewal."""
        self.to_device()

    def to_device(self) -> None:
        device = self.extractor.policy.device
        axes = {name: Axes(a.V.to(device), a.S.to(device)) for name, a in self.subspace.axes.items()}
        self.subspace = Subspace(axes, self.subspace.ties, self.subspace.dropped, self.subspace.skipped)

    def after_step(self, step: int) -> None:
        """Renews the direction where `refresh_every` steps have passed."""
        self.age += 1
        every = self.config.refresh_every
        if every and (step + 1) % every == 0:
            before = self.subspace
            self.subspace = self._usable(self.extractor.extract(everything=False))
            if not self.subspace.axes:
                raise UserError(
                    f"step {step}: the renewed direction has no axis, as the two sides of every pair have the same gradients; "
                    "keep the first one with --extraction.refresh-every 0"
                )
            self.to_device()
            self.overlap, self.age = overlap(before, self.subspace), 0

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
            "age": self.age,
            "overlap": self.overlap,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        axes = {name: Axes(V.clone(), state["S"][name].clone()) for name, V in state["V"].items()}
        self.subspace = Subspace(axes, *state["counts"])
        self.age, self.overlap = state["age"], state["overlap"]
        self.to_device()

    def _usable(self, direction: Direction) -> Subspace:
        return usable(direction.hack, noise_floor=self.config.noise_floor, k_use=self.config.k_use)
