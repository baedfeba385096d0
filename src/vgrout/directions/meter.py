"""How much of each step's gradient and update lies along the direction: cin, cout, cout_update (spec 6).

    cin = mean over modules of |relu(V g)| / |g|      of a gradient that has nothing to do with V: about sqrt(k / 2d)

Measured with every intervention, so that what an edit takes away can be compared with what is there without it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vgrout.adapter.base import Adapter
from vgrout.directions.projection import alignment
from vgrout.directions.subspace import Subspace

MEASURES = (
    "cin",
    "cin_cos",
    "cin_null",
    "cin_cos_null",
    "cin_s",
    "cin_t",
    "cout",
    "cout_update",
    "frac_fired",
    "frac_modules",
)
"""Columns that a meter fills, undefined where there is no direction."""


@runtime_checkable
class HasSubspace(Protocol):
    """The direction in use."""

    @property
    def subspace(self) -> Subspace: ...


class Meter:
    """Measures one step; without a direction it measures nothing and every column is undefined."""

    def __init__(self, adapter: Adapter, direction: HasSubspace | None):
        self.adapter, self.direction = adapter, direction
        self.values: dict[str, float | None] = dict.fromkeys(MEASURES)

    @property
    def active(self) -> bool:
        return self.direction is not None

    @contextmanager
    def edit(self, teacher: Sequence[Tensor] | None) -> Generator[None]:
        """Measures the gradient before and after what happens inside.

        `teacher` is the part of the gradient that came from teacher rows, one tensor per trainable; None: no such row.
        """
        self.values = dict.fromkeys(MEASURES)
        if self.direction is not None:
            before = self.adapter.gradients()
            self.values |= _whole(self.adapter, before, self.direction.subspace)
            if teacher is None:
                self.values["cin_s"] = self.values["cin"]
            else:
                student = [g - t for g, t in zip(before, teacher, strict=True)]
                self.values["cin_s"] = _share(self.adapter, student, self.direction.subspace)
                self.values["cin_t"] = _share(self.adapter, teacher, self.direction.subspace)
        yield
        if self.direction is not None:
            self.values["cout"] = _share(self.adapter, self.adapter.gradients(), self.direction.subspace)

    def update(self, updates: list[Tensor]) -> list[Tensor]:
        """Measures the update that is about to be applied, as the step that it is: -U points as a gradient does."""
        if self.direction is not None:
            self.values["cout_update"] = _share(self.adapter, [-u for u in updates], self.direction.subspace)
        return updates


@torch.no_grad()
def _share(adapter: Adapter, tensors: Sequence[Tensor], subspace: Subspace) -> float | None:
    return _whole(adapter, tensors, subspace)["cin"]


@torch.no_grad()
def _whole(adapter: Adapter, tensors: Sequence[Tensor], subspace: Subspace) -> dict[str, float | None]:
    """Means over the modules that have axes and a gradient; None where there is no such module."""
    shares, cosines, nulls, cosine_nulls, fired, axes = [], [], [], [], [], 0
    for name, g in adapter.deployed(tensors).items():
        if name not in subspace.axes:
            continue
        V = subspace.axes[name].V
        found = alignment(g, V)
        if found is None:
            continue
        shares.append(found[0])
        cosines.append(found[1])
        fired.append(found[2])
        axes += len(V)
        nulls.append((len(V) / (2 * len(g))) ** 0.5)
        cosine_nulls.append(len(g) ** -0.5)
    if not shares:
        return dict.fromkeys(("cin", "cin_cos", "cin_null", "cin_cos_null", "frac_fired", "frac_modules"))
    n = len(shares)
    return {
        "cin": sum(shares) / n,
        "cin_cos": sum(cosines) / n,
        "cin_null": sum(nulls) / n,
        "cin_cos_null": sum(cosine_nulls) / n,
        "frac_fired": sum(fired) / axes,
        "frac_modules": sum(f > 0 for f in fired) / n,
    }
