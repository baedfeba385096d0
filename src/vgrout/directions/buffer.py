"""A run's last features, re-scored against the direction as it is now: what live edges are quantiles of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Mapping[str, Float[Tensor, " d"]]


def weighted_quantile(values: Float[Tensor, " n"], weights: Float[Tensor, " n"], q: float) -> float:
    """The smallest value at which the weights of all values up to it reach the share q of their sum."""
    order = values.argsort(stable=True)
    reached = weights[order].double().cumsum(0)
    at = int(torch.searchsorted(reached, q * reached[-1]).clamp(max=len(values) - 1))
    return float(values[order][at])


class ScoreBuffer:
    """Unit features per module of the last `size` rollouts, each with the view that it was sampled in.

    The edges are frozen within a step: `freeze` computes them once, from what former steps have left; rows of the step are
    remembered when it ends (`close`).
    """

    def __init__(self, q: float, size: int, half_life: float):
        self.q, self.size, self.half_life = q, size, half_life
        self.cuts: tuple[float, float] | None = None
        """Lower and upper edge of the step; None while nothing is remembered."""
        self.names: tuple[str, ...] = ()
        """The modules, in the order in which their features lie side by side."""
        self._rows: Float[Tensor, "n D"] | None = None
        """Unit features of all modules side by side, the oldest row first."""
        self._views: list[str] = []
        self._pending: list[tuple[int, str, Tensor]] = []
        """Of this step: each rollout's position in it, its view, its features."""
        self._frozen = False

    def __len__(self) -> int:
        return len(self._views)

    def score(
        self, features: Mapping[str, Float[Tensor, "n d"]], vectors: Vectors, view: str, at: Sequence[int]
    ) -> Float[Tensor, " n"]:
        """Mean over the modules of cos, and remembers the rows; `at` are their positions in the step."""
        self._require_same(vectors)
        rows = torch.cat([_units(features[name]) for name in vectors], dim=1)
        self._pending += [(i, view, row) for i, row in zip(at, rows.float(), strict=True)]
        return rows @ _side_by_side(vectors) / len(vectors)

    def freeze(self, vectors: Mapping[Any, Vectors]) -> None:
        """The edges of this step against the vectors of each view; later calls within the step change nothing."""
        if self._frozen:
            return
        self._frozen, self.cuts = True, None
        if self._rows is None:
            return
        values = torch.zeros(len(self), dtype=torch.float64)
        for view in sorted(set(self._views)):
            self._require_same(vectors[view])
            at = torch.tensor([v == view for v in self._views])
            values[at] = self._rows[at].double() @ _side_by_side(vectors[view]) / len(vectors[view])
        ages = torch.arange(len(self) - 1, -1, -1, dtype=torch.float64)
        weights = 0.5 ** (ages / self.half_life)
        self.cuts = weighted_quantile(values, weights, self.q), weighted_quantile(values, weights, 1 - self.q)

    @property
    def modules(self) -> int:
        return len(self.names)

    def _require_same(self, vectors: Vectors) -> None:
        """Features of one module must never meet the vector of another."""
        names = tuple(vectors)
        if self.names and names != self.names:
            raise ValueError(f"live edges remember features of {list(self.names)[:3]}..., not of {list(names)[:3]}...")
        self.names = names

    def close(self) -> None:
        """The step ends: its rows are remembered, the oldest beyond the size forgotten."""
        if self._pending:
            self._pending.sort(key=lambda entry: entry[0])  # whatever order micro-batches came in
            rows = torch.stack([row for _, _, row in self._pending])
            rows = rows if self._rows is None else torch.cat([self._rows, rows])
            views = [*self._views, *(view for _, view, _ in self._pending)]
            self._rows, self._views = rows[-self.size :], views[-self.size :]
        self._pending, self._frozen = [], False

    def state_dict(self) -> dict[str, Any]:
        """Between two steps."""
        rows = None if self._rows is None else self._rows.clone()
        return {"rows": rows, "views": list(self._views), "names": self.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows, self._views, self.names = state["rows"], list(state["views"]), tuple(state["names"])
        self._rows = None if self._rows is None else self._rows.clone()
        self._pending, self._frozen, self.cuts = [], False, None


def _units(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    x = x.double()
    norm = x.norm(dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)  # a norm of nan stays nan, so that the score is refused


def _side_by_side(vectors: Vectors) -> Float[Tensor, " D"]:
    return torch.cat([_units(v[None])[0].cpu() for v in vectors.values()])
