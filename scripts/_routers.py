"""What the gates on gates and routers share: an intervention on the small model with everything a run gives it, the step
of the training loop in its order, a gate in plain Python, and planted features in place of the pairs' own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from _mixed_step import MAX_NEW, T
from _mixed_step import STEP as MIXED
from _models import Gradients, Step, adapted, block_grads
from _pairs import extractor_of, sides_of
from _plain_route import Reference
from _planted import Planted
from vgrout.adapter.base import Adapter
from vgrout.directions.direction import Extractor, Part
from vgrout.directions.gradient import Gradients as PairGradients
from vgrout.directions.live import LiveDirection
from vgrout.directions.pairs import Pair
from vgrout.directions.placebo import parse_source, relabelled
from vgrout.grpo import GrpoConfig
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.base import Intervention, Rows
from vgrout.observe import observe
from vgrout.optim import OptimConfig, Optimizer
from vgrout.policy import Policy
from vgrout.types import Rollout, Seen
from vgrout.update import UpdateStats, update

SIDES = sides_of(6, seed=3)
PARTS: dict[str, frozenset[Part]] = {name: frozenset({"act"}) for name in ("routeA", "moe")} | {
    "routeV": frozenset({"grad"})
}
"""Of the direction, by intervention; the others read v_hack or nothing."""


@dataclass
class Rig:
    """One intervention in a run of its own."""

    model: nn.Module
    adapter: Adapter
    policy: Policy
    direction: LiveDirection
    intervention: Any
    optimizer: Optimizer

    def gradient(self, n: int, *, step: Step = MIXED, seen: Seen | None = None, **options: Any) -> UpdateStats:
        """The routed gradient of step n, in `.grad`."""
        config = config_of(step, **options)
        it = self.intervention
        seen = seen or Seen(step.seen.rewards, step.seen.keep, *([step.seen.labels] * 2 if it.oracle else ()))
        features = observe(self.policy, step.groups, it.needs, token_budget=config.token_budget)
        rewards, keep = it.shape_rewards(seen, features, n)
        return update(
            self.policy,
            step.groups,
            seen,
            rewards,
            keep,
            it,
            config,
            max_new=MAX_NEW,
            step=n,
            features=features,
        )

    def step(self, n: int, *, lr: float = 1e-2, **options: Any) -> tuple[UpdateStats, Gradients]:
        """Step n of the training loop; what it did, and the gradient before clipping."""
        stats = self.gradient(n, **options)
        self.intervention.edit_gradients(self.adapter)
        grads = block_grads(self.adapter)
        self.optimizer.clip()
        self.adapter.apply(self.intervention.edit_update(self.optimizer.propose(lr)), decay=0.1 * lr)
        self.intervention.after_step(n)
        self.direction.after_step(n)
        return stats, grads


def config_of(step: Step, **options: Any) -> GrpoConfig:
    sizes: dict[str, Any] = {"prompts_per_step": len(step.groups), "group_size": len(step.groups[0].rollouts)}
    defaults: dict[str, Any] = {"beta": 0.0, "token_budget": 10_000, "checkpoint_activations": False}
    return GrpoConfig(**sizes, **(defaults | options))


def rig(
    name: str,
    *,
    kind: Any = "lora2r",
    source: str = "real",
    moved: float = 0.1,
    refresh_every: int = 2,
    seed: int = 0,
    **settings: Any,
) -> Rig:
    """The intervention with these settings on the small model in fp64, whose blocks have both moved."""
    model, adapter = adapted(kind=kind, moved=moved)
    options: dict[str, Any] = {"refresh_every": refresh_every, "top_k": 4, "k_use": 3, "noise_floor": 0.0}
    extractor = extractor_of(model, adapter, SIDES, source, **options)
    cls = INTERVENTIONS[name]
    direction = LiveDirection(extractor, extractor.extract(PARTS.get(name, frozenset({"hack"}))), cls.renews)
    intervention = cls(cls.Settings(**settings), adapter, seed)
    intervention.prepare(direction)
    optimizer = Optimizer(adapter, OptimConfig(lr=1e-2, grad_clip=0.5))
    return Rig(model, adapter, extractor.policy, direction, intervention, optimizer)


@torch.no_grad()
def move(adapter: Adapter, by: float, seed: int = 11) -> None:
    """Every trained entry by a normal draw of this size."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p += by * torch.randn(p.shape, generator=generator).to(p)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through nested containers; nan equals nan."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool(torch.eq(a, b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def percentile(values: list[float], q: float) -> float:
    """Linear between the sorted values."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def edges_by_hand(rule: str, hack: list[float], clean: list[float]) -> tuple[float, float]:
    if rule == "p75":
        return percentile(clean, 0.75), percentile(hack, 0.75)
    if rule == "mean":
        return sum(clean) / len(clean), sum(hack) / len(hack)
    return min(clean), max(hack)


def cosine_by_hand(x: list[float], y: list[float]) -> float:
    norm = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else 0.0


def pooled_by_hand(of: dict[str, float], bands: dict[str, tuple[float, float]]) -> float:
    kept = {m: band for m, band in bands.items() if band[0] < band[1]}
    above = sum(of[m] - low for m, (low, _) in kept.items())
    return above / sum(high - low for low, high in kept.values())


def features_by_hand(reference: Reference, rows: tuple[Rollout, ...] | list[Rollout]) -> dict[str, list[list[float]]]:
    """Of each row by itself: the input of every module in the deploy forward, times A's deployed rows, averaged."""
    found: dict[str, list[list[float]]] = {name: [] for name in reference.modules}
    for row in rows:
        inputs: dict[str, Tensor] = {}
        handles = [
            m.register_forward_pre_hook(lambda _, x, name=name, to=inputs: to.update({name: x[0][0]}))
            for name, m in reference.modules.items()
        ]
        with torch.no_grad():
            reference.logps(row, (0.0, 1.0, 1.0), "activation", T)
        for handle in handles:
            handle.remove()
        start, n = len(row.prompt_ids), len(row.completion_ids)
        for name, m in reference.modules.items():
            tokens = [m.A[: m.rank] @ inputs[name][start + t] for t in range(n)]
            found[name].append((sum(tokens[1:], tokens[0]) / n).tolist())
    return found


def rows_of(features: Mapping[str, Tensor], *, view: Any = "full") -> Rows:
    """Rows with these features and advantages of either sign."""
    n = len(next(iter(features.values())))
    return Rows(torch.ones(n), (view,) * n, None, 0, features)


def of_w(reference: Reference, w: list[float], A: list[float], formula: bool) -> list[float]:
    """The derivative of the step's loss by each row's w: of the formula by autograd, or by finite differences."""

    def loss(i: int, value: float | Tensor) -> Tensor:
        row = MIXED.rollouts[i]
        reference.now.q_value, reference.now.q_grad, reference.now.d_grad = value, 1.0, 1 - w[i]
        ratio = (reference.logps(row, (value, 1.0, 1 - w[i]), "activation", T) - old[i]).exp()  # ty: ignore[invalid-argument-type]
        return -torch.minimum(ratio * A[i], ratio.clamp(0.8, 1.2) * A[i]).sum() / (12 * MAX_NEW)

    old, found, e = [reference.in_view(row, row.view, T) for row in MIXED.rollouts], [], 1e-5
    for i, x in enumerate(w):
        if formula:
            leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            loss(i, leaf).backward()
            assert leaf.grad is not None
            found.append(float(leaf.grad))
        else:
            with torch.no_grad():
                found.append(float(loss(i, x + e) - loss(i, x - e)) / (2 * e))
    return found


def differences(f: Callable[[], Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Central differences of each entry of f by each entry of the parameters: [entry of f, entry] per parameter."""
    found, e = [], 1e-6
    with torch.no_grad():
        for p in parameters:
            columns = []
            for j in range(p.numel()):
                flat, values = p.view(-1), []
                for sign in (1, -1):
                    flat[j] += sign * e
                    values.append(f().clone())
                    flat[j] -= sign * e
                columns.append((values[0] - values[1]) / (2 * e))
            found.append(torch.stack(columns, -1))
    return found


def exchanged_sides(sides: dict[str, Tensor], pairs: list[Pair], source: str) -> dict[str, Tensor]:
    """The sides as a run of this source encodes its pairs: those of `shuffled` are exchanged before anything is computed."""
    used = relabelled(pairs, parse_source(source))
    swapped = torch.tensor([mine is not given for mine, given in zip(used, pairs, strict=False)]).view(1, -1, 1)
    return {m: torch.where(swapped, g[:, : len(used)].flip(0), g[:, : len(used)]) for m, g in sides.items()}


@contextmanager
def showing(sides: dict[str, Tensor]) -> Generator[None]:
    """Inside, every extractor reads these features and gradients off its pairs, in either view."""
    where = "vgrout.directions.direction"
    with (
        mock.patch(f"{where}.pair_activations", lambda *_, **__: copy.copy(sides)),
        mock.patch(f"{where}.pair_gradients", lambda *_, **__: PairGradients({}, copy.copy(sides))),
    ):
        yield


def on_planted(
    cls: type[Intervention], settings: Any, p: Planted, source: str, parts: frozenset[Part], base: Extractor
) -> Any:
    """The intervention prepared on planted pairs under a source; route it inside `showing` of the same sides."""
    extractor = Extractor(base.policy, base.sides, parse_source(source), base.config, base.max_new)
    with showing(exchanged_sides(p.sides, p.pairs, source)):
        live = LiveDirection(extractor, extractor.extract(parts), cls.renews)
        intervention = cls(settings, base.policy.adapter, 0)
        intervention.prepare(live)
    return intervention
