"""What the gates of routes share that are read from a backward pass: a step with every case in it, interventions that are
told what to route, and what an update must equal, from one rollout at a time by autograd's own backward.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from _models import Alone, Gradients, Step, adapted, alone, block_grads, largest, step_of
from _pairs import extractor_of
from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route
from vgrout.directions.gradient import Sides
from vgrout.directions.live import LiveDirection
from vgrout.grpo import GrpoConfig
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.routeV import RouteV, RouteVSettings
from vgrout.policy import Policy
from vgrout.types import View
from vgrout.update import UpdateStats, update

T, MAX_NEW, G, P = 0.8, 12, 6, 3
Kind = Literal["lora2r", "delta_s"]
Basis = Literal["shared", "distinct"]
KINDS: tuple[Kind, Kind] = ("lora2r", "delta_s")
REWARDS = [[3.5, 0.5, 0.0, 2.0, 3.5, 0.5], [0.5] * 6, [3.0, 0.5, 9.0, 1.0, 0.0, 0.5]]
"""Group 1 has no spread. Of group 2, row 2 is masked and row 3 is the mean of the kept rows: its advantage is exactly 0.
The last two rows of each group are sampled in the deploy view."""
MASKED = ((2, 2),)
TEACHERS = ((0, 0), (0, 1), (2, 0), (2, 3))


def mixed(
    rewards: list[list[float]], masked: tuple[tuple[int, int], ...] = (), teachers: Any = (), seed: int = 0
) -> Step:
    """The last third of each group is sampled in the deploy view."""
    step, groups = step_of(rewards, masked=masked, seed=seed, labels=False), []
    for p, group in enumerate(step.groups):
        full = len(group.rollouts) - len(group.rollouts) // 3
        rows = tuple(
            dataclasses.replace(
                r, view="full" if g < full else "deploy", source="teacher" if (p, g) in teachers else "student"
            )
            for g, r in enumerate(group.rollouts)
        )
        groups.append(dataclasses.replace(group, rollouts=rows))
    return Step(tuple(groups), step.seen)


STEP = mixed(REWARDS, MASKED, TEACHERS)
VIEWS = tuple(r.view for r in STEP.rollouts)
LIVE = [i for i in range(P * G) if i // G != 1 and i != 14]
"""Rows of groups with spread that are not masked."""
LABELS = ("hack", "clean", "mid", "hack", "hack", "clean") * 2 + ("clean", "mid", "hack", "clean", "mid", "hack")
"""Every label in either view, in groups of their own mixture."""


def labelled(labels: Sequence[str] = LABELS) -> Route:
    """Rows by their label; values as sampled, parameter masks."""
    d, q = torch.tensor([{"mid": (1.0, 1.0), "clean": (1.0, 0.0), "hack": (0.0, 1.0)}[x] for x in labels]).T
    return Route(d_grad=d, q_grad=q)


def soft(seed: int = 3) -> Route:
    """Shares in between, none of them special."""
    q = torch.rand(P * G, generator=torch.Generator().manual_seed(seed))
    return Route(d_grad=1 - q, q_grad=q)


class Told(Intervention):
    """A route that is given as data, but asked for micro-batch by micro-batch in the training backward."""

    routed = True
    needs = "training_gradients"

    def __init__(self, settings: Any, adapter: Adapter, seed: int):
        super().__init__(settings, adapter, seed)
        self.asked: list[Rows] = []

    def route(self, rows: Rows) -> Route:
        self.asked.append(rows)
        return self.settings.of(rows.positions)


class Known(Intervention):
    """The same route, known before the one pass."""

    routed = True

    def route(self, rows: Rows) -> Route:
        return self.settings


def stage(
    kind: Kind = "lora2r", *, basis: Basis = "shared", fold: bool = True, checkpointing: bool = False
) -> tuple[nn.Module, Adapter, Policy]:
    """One model for every case of these options: an update leaves nothing in it but `.grad`, set to zero first."""
    return _stage(kind, basis, fold, checkpointing)


@functools.cache
def _stage(kind: Kind, basis: Basis, fold: bool, checkpointing: bool) -> tuple[nn.Module, Adapter, Policy]:
    model, adapter = adapted(kind=kind, basis=basis, fold=fold, moved=0.1)
    return model, adapter, Policy(model, adapter, temperature=T, chunk=5, checkpoint_activations=checkpointing)


@functools.cache
def alone_in(kind: Kind, basis: Basis = "shared") -> tuple[Alone, ...]:
    """Every row of the step by itself."""
    model, adapter, _ = stage(kind, basis=basis)
    return tuple(alone(model, adapter, r, T) for r in STEP.rollouts)


def settings(
    beta: float = 0.0, budget: int = 10_000, baseline: str = "block", step: Step = STEP, **more: Any
) -> GrpoConfig:
    options: dict[str, Any] = {"advantage_baseline": baseline, **more}
    groups, size = len(step.groups), len(step.groups[0].rollouts)
    return GrpoConfig(prompts_per_step=groups, group_size=size, beta=beta, token_budget=budget, **options)


def run(
    intervention: Intervention,
    policy: Policy,
    config: GrpoConfig,
    step: Step = STEP,
    at: int = 0,
    by_source: bool = False,
) -> tuple[UpdateStats, Gradients]:
    """One update; its rewards are in fp64, so that advantages round nothing."""
    given = (policy, step.groups, step.seen, step.rewards.double(), step.keep, intervention, config)
    return update(*given, max_new=MAX_NEW, step=at, by_source=by_source), block_grads(policy.adapter)


def distance(got: Gradients, expected: Gradients) -> float:
    """Largest difference, relative to the largest entry."""
    scale = max(float(g.abs().max()) for g in expected.values())
    return max(largest(got[key], expected[key]) for key in expected) / scale


def advantages_by_hand(d: Sequence[float], config: GrpoConfig) -> list[float]:
    """Of the step's rows, from each row's share d of the deployed block; plain numbers only."""
    found = []
    for p, rewards in enumerate(REWARDS):
        own = d[G * p : G * p + G]
        kept = [g for g in range(G) if (p, g) not in MASKED]
        values = [rewards[g] for g in kept]
        mean, total = statistics.fmean(values), sum(own[g] for g in kept)
        block = sum(own[g] * rewards[g] for g in kept) / total if total else 0.0
        scale = statistics.stdev(values) + 1e-4 if config.std_norm else 1.0
        for g in range(G):
            centre = block if config.advantage_baseline == "block" and own[g] > 0 else mean
            idle = g not in kept or max(values) == min(values)
            found.append(0.0 if idle else (rewards[g] - centre) / scale)
    return found


def forwarded(config: GrpoConfig) -> list[int]:
    return [i for i in range(P * G) if i != 14] if config.kl_on_zero_spread and config.beta else LIVE


def weight_of(tokens: int, config: GrpoConfig) -> float:
    """Of one token in the loss, in fp32 as the loss has it."""
    return float(torch.tensor(1 / (P * G * (tokens if config.length_norm else MAX_NEW)), dtype=torch.float32))


def shares(route: Route) -> list[tuple[float, float]]:
    return list(zip(route.d_grad.tolist(), route.q_grad.tolist(), strict=True))


def by_hand(
    kind: Kind,
    weights: Sequence[tuple[float, float]],
    config: GrpoConfig,
    basis: Basis = "shared",
    source: str = "",
) -> tuple[Gradients, float, list[float]]:
    """(gradient, loss, advantages) from each row's shares (deployed, quarantine), one rollout at a time; of the rows of
    one source alone, at the advantages of the whole step, where it is named."""
    rows, A = alone_in(kind, basis), advantages_by_hand([d for d, _ in weights], config)
    totals, loss = {key: torch.zeros_like(g) for key, g in rows[0].d_logp.items()}, 0.0
    for i in (i for i in forwarded(config) if source in ("", STEP.rollouts[i].source)):
        r, share = rows[i], dict(zip(("deployed", "quarantine"), weights[i], strict=True))
        share["quarantine"] *= VIEWS[i] == "full"
        w = weight_of(r.tokens, config)
        for key in totals:
            totals[key] += share[key[0]] * w * (config.beta * r.d_kl[key] - A[i] * r.d_logp[key])
        loss += w * (config.beta * r.kl - A[i] * r.tokens) if any(share.values()) else 0.0
    return totals, loss, A


PAIRS = ((0, 1), (4, 5), (13, 16), (17, 12))
"""Rows of the step whose completions the direction is made of, so that the gate finds some of every label."""


def direction(kind: Kind, source: str = "real") -> LiveDirection:
    """One for all who ask for it."""
    return _direction(kind, source)


@functools.cache
def _direction(kind: Kind, source: str) -> LiveDirection:
    model, adapter, _ = stage(kind)
    rows = STEP.rollouts
    sides = Sides(tuple(dataclasses.replace(rows[pair[side]], view="full") for side in (0, 1) for pair in PAIRS))
    extractor = extractor_of(model, adapter, sides, source, token_budget=200)
    return LiveDirection(extractor, extractor.extract(frozenset({"grad"})), frozenset({"grad"}))


def gated(kind: Kind, source: str = "real", seed: int = 0, **options: Any) -> tuple[RouteV, list[tuple[Rows, Route]]]:
    """A prepared routeV, and what it will have been asked and have answered."""
    routeV = RouteV(RouteVSettings(**options), stage(kind)[1], seed)
    routeV.prepare(direction(kind, source))
    asked: list[tuple[Rows, Route]] = []
    decide: Callable[[Rows], Route] = routeV.route

    def route(rows: Rows) -> Route:
        asked.append((rows, decide(rows)))
        return asked[-1][1]

    routeV.route = route
    return routeV, asked


def gathered(asked: Sequence[Rows]) -> dict[str, dict[int, Tensor]]:
    """Features by module and position in the step; each row must have been shown at most once."""
    found: dict[str, dict[int, Tensor]] = {}
    for rows in asked:
        for name, f in rows.features.items():
            for i, own in zip(rows.positions, f, strict=True):
                assert i not in found.setdefault(name, {}), f"row {i} was shown twice"
                found[name][i] = own
    return found


def answers(asked: Sequence[tuple[Rows, Route]]) -> dict[int, tuple[float, float]]:
    """What the gate said of each row."""
    return {i: s for rows, route in asked for i, s in zip(rows.positions, shares(route), strict=True)}


def cosine(a: list[float], b: list[float]) -> float:
    norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def percentile(values: list[float], q: float) -> float:
    """By linear interpolation."""
    at = q * (len(values) - 1)
    low = sorted(values)[math.floor(at)]
    return low + (at - math.floor(at)) * (sorted(values)[math.ceil(at)] - low)


def edges_by_hand(kind: Kind, view: View) -> dict[str, tuple[float, float]]:
    """p75 of the pairs' clean and hack cosines, of modules where the first is below the second."""
    live, found = direction(kind), {}
    for name, v in live.grad[view].items():
        hack, clean = ([cosine(g.tolist(), v.tolist()) for g in side] for side in live.probes[view][name])
        lower, upper = percentile(clean, 0.75), percentile(hack, 0.75)
        if lower < upper:
            found[name] = (lower, upper)
    return found
