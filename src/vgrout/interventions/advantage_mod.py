"""advantage_mod: rewards of rollouts that look like hacks are lowered before the group's mean is taken (Wu and Tang 2026).

The concept vector of a layer is d = mean over pairs of (h_hack - h_clean), h the residual stream at the last completion
token, in the layers at 60-75 % of the depth. (At the prompt's last token h is one vector for the whole group, so it could
not tell its rows apart.) A rollout's score is s = mean over layers of h . d, and within its group

    z = (s - mean s) / max(std s, std_floor)        mean and population std over the kept rows
    additive         r' = r - alpha max(z, 0)
    multiplicative   r' = r (1 - alpha sigmoid(z) [z > 0])

Nothing of a verdict but the reward is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgrout.adapter.route import Route, constant
from vgrout.directions.activation import last_hidden
from vgrout.directions.live import LiveDirection
from vgrout.directions.placebo import blinded_sides, haar_unit, permuted
from vgrout.interventions.base import Features, Intervention, Rows
from vgrout.types import Seen, UserError

Mode = Literal["additive", "multiplicative"]


@dataclass(frozen=True)
class AdvantageModSettings:
    """How a score changes a reward."""

    mode: Mode = "additive"
    """additive takes alpha max(z, 0) off; multiplicative scales rewards of z > 0, and turns their sign from alpha 2 on."""
    alpha: float = 2.0
    """Strength of either."""
    std_floor: float = 0.1
    """Smallest standard deviation that a group's scores are divided by."""

    def __post_init__(self) -> None:
        for name in ("alpha", "std_floor"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"--advantage_mod.{name.replace('_', '-')} {value}: expected a number above 0")


@final
class AdvantageMod(Intervention):
    """`advantage_mod`: the quarantine is absent, as in `none`."""

    Settings = AdvantageModSettings
    needs_direction = True
    permutes_labels = True
    needs = "hidden"

    def prepare(self, direction: LiveDirection | None) -> None:
        if direction is None:
            raise UserError("advantage_mod scores rollouts along a direction; name pairs with --pairs")
        self.direction = direction
        self.concept, self.age = self._extract(), 0
        self._stats: dict[str, float | None] = {"n_shaped": None, "reward_shift": None}

    @torch.no_grad()
    def _extract(self) -> dict[str, Float[Tensor, " H"]]:
        """The concept vector of each layer with the adapter as it is. Of a Haar draw only the length is taken from pairs,
        and from pairs whose sides are blinded, so that it knows no label."""
        extractor, source = self.direction.extractor, self.direction.source
        sides = extractor.sides
        # By their tokens: the same tokens in other rows of a batch may differ in the last bit.
        if all(a.completion_ids == b.completion_ids for a, b in zip(sides.rows[: sides.n], sides.rows[sides.n :])):
            raise UserError("advantage_mod: both sides of every pair are the same tokens; choose other --pairs")
        hidden = last_hidden(extractor.policy, sides.rows, token_budget=extractor.config.token_budget)
        seen = blinded_sides({name: h.unflatten(0, (2, sides.n)) for name, h in hidden.items()}, source)
        concept = {name: (h[0] - h[1]).mean(0) for name, h in seen.items()}
        if not all(bool(d.isfinite().all()) for d in concept.values()):
            raise FloatingPointError("advantage_mod: the pairs' hidden states are not finite")
        if source.kind != "haar":
            return concept
        return {name: d.norm() * haar_unit(len(d), source.seed, f"concept {name}").to(d) for name, d in concept.items()}

    def shape_rewards(
        self, seen: Seen, features: Features, step: int
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
        rewards, keep = torch.tensor(seen.rewards, dtype=torch.float64), torch.tensor(seen.keep)
        z = group_z(self._scores(features).view_as(rewards), keep, self.settings.std_floor)
        if self.direction.source.kind == "random_label":
            scored = (keep & (keep.sum(1, keepdim=True) > 1)).flatten()
            z = z.flatten()[permuted(scored.double(), ("full",) * len(scored), self.seed, step)].view_as(z)
        shaped = shape(rewards, z, self.settings.mode, self.settings.alpha)
        change = (shaped - rewards)[keep]
        self._stats = {
            "n_shaped": float((change != 0).sum()),
            "reward_shift": float(change.mean()) if len(change) else None,
        }
        return shaped.float(), keep

    def _scores(self, features: Features) -> Float[Tensor, " N"]:
        """s of every row of the step."""
        if features.keys() != self.concept.keys():
            raise ValueError(f"advantage_mod reads {sorted(self.concept)}, but was given {sorted(features)}")
        layers = [features[name].double() @ d.double() for name, d in self.concept.items()]
        scores = torch.stack(layers).mean(0)
        if not bool(scores.isfinite().all()):
            raise FloatingPointError("advantage_mod: a rollout's score is not finite")
        return scores

    def route(self, rows: Rows) -> Route:
        return constant(rows.n, deployed=1.0, quarantine=0.0)

    def after_step(self, step: int) -> None:
        every = self.direction.config.refresh_every
        self.age += 1
        if every and (step + 1) % every == 0:
            start = perf_counter()
            self.concept, self.age = self._extract(), 0
            self._stats["seconds_pairs"] = perf_counter() - start
        # Of the concept vector; the direction's other columns are of v_hack, which nothing here reads.
        self._stats["direction_age"] = float(self.age)

    def stats(self) -> dict[str, float | None]:
        return dict(self._stats)

    def state_dict(self) -> dict[str, Any]:
        return {"concept": _cloned(self.concept), "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.concept, self.age = _cloned(state["concept"]), state["age"]


def group_z(s: Float[Tensor, "P G"], keep: Bool[Tensor, "P G"], floor: float) -> Float[Tensor, "P G"]:
    """z of each kept row within its group; 0 in masked rows and in groups with fewer than two kept rows."""
    kept = keep.to(s)
    n = kept.sum(1, keepdim=True)
    s = s.masked_fill(~keep, 0.0)
    centred = (s - s.sum(1, keepdim=True) / n.clamp(min=1)) * kept
    std = (centred.square().sum(1, keepdim=True) / n.clamp(min=1)).sqrt()
    return torch.where(n > 1, centred / std.clamp(min=floor), torch.zeros_like(centred))


def shape(rewards: Float[Tensor, "P G"], z: Float[Tensor, "P G"], mode: Mode, alpha: float) -> Float[Tensor, "P G"]:
    """Rewards lowered where z is above 0; exactly as they were elsewhere."""
    if mode == "additive":
        return rewards - alpha * z.clamp(min=0)
    return rewards * (1 - alpha * z.sigmoid() * (z > 0))


def _cloned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in found.items()}
