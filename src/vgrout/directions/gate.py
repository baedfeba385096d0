"""The gate: what tells a rollout, or a token, apart along a direction (spec 5.1). Feature, direction, edges, unit and action
are chosen independently of one another; this file holds edges and action, for any feature and any direction.

    pooled score  sum_m (cos_m - lower_m) / sum_m (upper_m - lower_m)    over modules whose band lower_m < upper_m is not empty
                  <= 0 clean, >= 1 hack, between: mid
    lower, upper  of the cosines of the pairs' clean and hack completions: 75th percentiles (p75), means (mean), or the
                  smallest clean and the largest hack (minmax)
    live edges    score is the mean of cos_m over all modules; lower and upper are the weighted quantiles q and 1 - q of the
                  run's last features against the direction as it is now, weights 0.5 ^ (age / half-life), age in rollouts

A module's feature of norm 0 has cosine 0. Action `three_way` gives (hack, clean); `ramp` gives the share clamp(score, 0, 1),
with live edges that of the way from lower to upper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vgrout.directions.buffer import ScoreBuffer
from vgrout.types import UserError

EdgeRule = Literal["p75", "mean", "minmax", "live"]
Action = Literal["three_way", "ramp"]
Vectors = Mapping[str, Float[Tensor, " d"]]


@dataclass(frozen=True)
class GateSettings:
    """Edges and action of a gate."""

    edges: EdgeRule = "p75"
    """Band edges: p75, mean or minmax of the pairs' cosines per module, or live quantiles of the run's own scores."""
    action: Action | None = None
    """three_way labels rows clean, mid or hack; ramp splits each gradient by its score. None: three_way on lora2r, ramp
    on delta_s."""
    live_quantile: float = 0.1
    """Live edges: q; about this share of all rows is routed, also where nothing hacks."""
    live_buffer: int = 8192
    """Live edges: rollouts that are remembered, each with a feature of 4 bytes per routing coordinate."""
    live_half_life: float = 96.0
    """Live edges: rollouts after which a remembered one counts half."""
    live_warmup: int = 0
    """Live edges: rollouts before which every row is mid."""

    def check(self, name: str) -> None:
        """`UserError` with the option's name where a value is out of range."""
        checks = (
            ("live-quantile", 0 < self.live_quantile < 0.5, "above 0 and below .5"),
            ("live-buffer", self.live_buffer >= 1, "at least 1"),
            ("live-half-life", 0 < self.live_half_life < math.inf, "a number above 0"),
            ("live-warmup", 0 <= self.live_warmup <= self.live_buffer, "from 0 to the buffer's size"),
        )
        for option, holds, expected in checks:
            if not holds:
                value = getattr(self, option.replace("-", "_"))
                raise UserError(f"--{name}.{option} {value}: expected {expected}")


@dataclass(frozen=True)
class Band:
    """Edges per module; modules whose band is empty are left out."""

    lower: dict[str, float]
    upper: dict[str, float]

    def pooled(self, cosines: Mapping[str, Float[Tensor, "*n"]]) -> Float[Tensor, "*n"]:
        """The pooled score of each row or token."""
        above = sum((cosines[name].double() - lower for name, lower in self.lower.items()), torch.zeros(()))
        return above / sum(self.upper[name] - lower for name, lower in self.lower.items())


def edges(rule: EdgeRule, sides: Mapping[str, Float[Tensor, "2 ..."]]) -> Band:
    """The band of each module from the cosines of hack [0] and clean [1] completions or tokens; nan entries do not count.

    Raises `UserError` where no module has one.
    """
    lower, upper = {}, {}
    for name, cosines in sides.items():
        hack, clean = (side[~side.isnan()].double() for side in cosines.flatten(1))
        if rule == "p75":
            low, high = clean.quantile(0.75), hack.quantile(0.75)
        elif rule == "mean":
            low, high = clean.mean(), hack.mean()
        else:
            low, high = clean.min(), hack.max()
        if float(low) < float(high):
            lower[name], upper[name] = float(low), float(high)
    if not lower:
        raise UserError(
            f"gate: no module's band ({rule}) is open, so the pairs' hacks score no higher than their clean completions "
            "anywhere; choose other --pairs, or another rule for the edges"
        )
    return Band(lower, upper)


@torch.no_grad()
def cosines(features: Mapping[str, Float[Tensor, "*n d"]], vectors: Vectors) -> dict[str, Float[Tensor, "*n"]]:
    """Per module, cosines with its vector; 0 where a norm is 0. Raises `UserError` where one is not finite."""
    found = {}
    for name, v in vectors.items():
        f, v = features[name].double(), v.double().to(features[name].device)
        norm = f.norm(dim=-1) * v.norm()
        # Not `norm > 0`, which a norm of nan fails too: it must be refused, not scored 0.
        found[name] = torch.where(norm == 0, 0.0, (f @ v) / torch.where(norm == 0, 1.0, norm))
        require_finite(found[name], name)
    return found


def require_finite(values: Tensor, name: str) -> None:
    """A gate that cannot be read must not decide anything."""
    if not bool(values.isfinite().all()):
        raise UserError(f"gate: the score at {name} is not finite: the model has diverged; lower --optim.lr")


class Gate:
    """One gate during a run: its bands by view, or its buffer, and what it has scored in the step."""

    def __init__(self, settings: GateSettings, action: Action):
        self.settings, self.action = settings, action
        self.bands: dict[str, Band] = {}
        self.buffer = ScoreBuffer(settings.live_quantile, settings.live_buffer, settings.live_half_life)
        self._scored: list[Tensor] = []

    @property
    def live(self) -> bool:
        return self.settings.edges == "live"

    def set_band(self, view: str, sides: Mapping[str, Float[Tensor, "2 ..."]]) -> None:
        """Takes the edges of rows of this view from the pairs' cosines."""
        self.bands[view] = edges(self.settings.edges, sides)

    def scores(
        self,
        features: Mapping[str, Float[Tensor, "n d"]],
        vectors: Mapping[Any, Vectors],
        view: str,
        at: Sequence[int],
    ) -> Float[Tensor, " n"]:
        """Scores of rollouts of one view against the vectors of that view, remembered until the step ends.

        `vectors` are those of every view, because live edges score what is remembered of all of them; `at` are the
        rollouts' positions in the step.
        """
        if self.live:
            self.buffer.freeze(vectors)
            score = self.buffer.score(features, vectors[view], view, at)
        else:
            score = self.bands[view].pooled(cosines(features, vectors[view]))
        require_finite(score, "the whole model")
        self._scored.append(score)
        return score

    def token_scores(self, found: Mapping[str, Float[Tensor, "R L"]], view: str) -> Float[Tensor, "R L"]:
        """Pooled scores of tokens from their cosines."""
        score = self.bands[view].pooled(found)
        require_finite(score, "the whole model")
        return score

    def share(self, score: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """How much of each gradient is routed: 0 clean, 1 hack; what lies between is mid (three_way, as .5) or the ramp."""
        if not self.live:
            lower, upper = 0.0, 1.0
        elif self.buffer.cuts is None or len(self.buffer) < max(self.settings.live_warmup, 1):
            return torch.full_like(score, 0.5)
        else:
            lower, upper = self.buffer.cuts
        if lower >= upper:
            return torch.full_like(score, 0.5)
        if self.action == "ramp":
            return ((score - lower) / (upper - lower)).clamp(0, 1)
        return 0.5 + 0.5 * (score >= upper).to(score) - 0.5 * (score <= lower).to(score)

    def note(self, scores: Tensor) -> None:
        """Remembers scores that were made elsewhere for the step's percentiles."""
        self._scored.append(scores.flatten())

    def end_step(self) -> dict[str, float | None]:
        """The columns of the step that ends; what was scored in it enters the buffer."""
        scored = torch.cat(self._scored).double() if self._scored else torch.zeros(0, dtype=torch.float64)
        self._scored = []
        found: dict[str, float | None] = dict.fromkeys(
            ("gate_p10", "gate_p50", "gate_p90", "gate_lower", "gate_upper", "gate_modules")
        )
        if len(scored):
            found |= {f"gate_p{q}": float(scored.quantile(q / 100)) for q in (10, 50, 90)}
            found |= self._edges_seen()
        self.buffer.close()
        return found

    def _edges_seen(self) -> dict[str, float | None]:
        if self.live:
            low, high = self.buffer.cuts or (None, None)
            return {"gate_lower": low, "gate_upper": high, "gate_modules": self.buffer.modules}
        bands = list(self.bands.values())
        lower = [edge for band in bands for edge in band.lower.values()]
        upper = [edge for band in bands for edge in band.upper.values()]
        return {
            "gate_lower": sum(lower) / len(lower),
            "gate_upper": sum(upper) / len(upper),
            "gate_modules": len(lower) / len(bands),
        }

    def state_dict(self) -> dict[str, Any]:
        """Between two steps."""
        bands = {view: (dict(band.lower), dict(band.upper)) for view, band in self.bands.items()}
        return {"bands": bands, "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bands = {view: Band(dict(lower), dict(upper)) for view, (lower, upper) in state["bands"].items()}
        self.buffer.load_state_dict(state["buffer"])
