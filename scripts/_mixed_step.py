"""A step that holds every label (mid, hack, clean) sampled in either view, its updates, and what they must equal."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from _models import Gradients, Step, adapted, block_grads, largest, plain_logps, step_of
from _plain_route import Kind, Outcome, Reference, step_by_hand
from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route, three_way
from vgrout.grpo import GrpoConfig
from vgrout.interventions.base import Intervention, Rows
from vgrout.interventions.label_route import LabelRoute, LabelRouteSettings
from vgrout.policy import Policy
from vgrout.types import Rollout, View
from vgrout.update import UpdateStats, update

T, MAX_NEW, MOVED = 0.8, 12, 0.1
Triple = tuple[float, float, float]
KINDS: tuple[Kind, Kind] = ("parameter", "activation")
LABELS = ("mid", "hack", "clean") * 4
REWARDS = [[1.0, 3.0, 0.5, 2.0, 3.0, 0.0], [0.5, 3.0, 2.0, 0.0, 3.0, 1.5]]
"""Hacks are rewarded 3. The first three rows of each group are sampled in full, the last three in deploy."""


def mixed_step() -> Step:
    step = step_of(REWARDS)
    views: tuple[View, ...] = ("full", "full", "full", "deploy", "deploy", "deploy")
    groups = tuple(
        dataclasses.replace(
            g, rollouts=tuple(dataclasses.replace(r, view=v) for r, v in zip(g.rollouts, views, strict=True))
        )
        for g in step.groups
    )
    return Step(groups, step.seen)


STEP = mixed_step()
VIEWS = tuple(r.view for r in STEP.rollouts)


class Fixed(Intervention):
    """Any route at all, given as data."""

    routed = True

    def route(self, rows: Rows) -> Route:
        return self.settings


def stage(*, fold: bool = True, checkpointing: bool = False) -> tuple[nn.Module, Adapter, Policy]:
    """One model for every case of these options: an update leaves nothing in it but `.grad`, set to zero first."""
    return _stage(fold, checkpointing)


@functools.cache
def _stage(fold: bool, checkpointing: bool) -> tuple[nn.Module, Adapter, Policy]:
    model, adapter = adapted(fold=fold, moved=MOVED)
    return model, adapter, Policy(model, adapter, temperature=T, chunk=5, checkpoint_activations=checkpointing)


@functools.cache
def reference() -> Reference:
    return Reference(stage()[1])


def settings(baseline: str = "block", beta: float = 0.0, budget: int = 10_000, length: bool = False) -> GrpoConfig:
    options: dict[str, Any] = {"advantage_baseline": baseline, "length_norm": length}
    return GrpoConfig(prompts_per_step=2, group_size=6, beta=beta, token_budget=budget, **options)


def run(
    route: Route | LabelRouteSettings,
    config: GrpoConfig,
    step: Step = STEP,
    *,
    fold: bool = True,
    checkpointing: bool = False,
) -> tuple[UpdateStats, Gradients]:
    """One update under a fixed route, or under label_route with these settings."""
    _, adapter, policy = stage(fold=fold, checkpointing=checkpointing)
    intervention = (Fixed if isinstance(route, Route) else LabelRoute)(route, adapter, 0)
    rewards, keep = intervention.shape_rewards(step.seen, {}, 0)
    stats = update(policy, step.groups, step.seen, rewards, keep, intervention, config, max_new=MAX_NEW, step=0)
    return stats, block_grads(adapter)


def triples(labels: tuple[str, ...], clean: str, views: tuple[View, ...] = VIEWS) -> list[Triple]:
    """(q_value, q_grad, d_grad) of each row by its label, as the specification lists the presets."""
    sampled = [1.0 if view == "full" else 0.0 for view in views]
    return [
        {"mid": (1.0, 1.0, 1.0), "hack": (1.0, 1.0, 0.0), "clean": (s if clean == "detached" else 0.0, 0.0, 1.0)}[label]
        for label, s in zip(labels, sampled, strict=True)
    ]


def labelled(labels: tuple[str, ...], clean: Any, kind: Kind) -> Route:
    hack, is_clean = (torch.tensor([label == name for label in labels]) for name in ("hack", "clean"))
    return three_way(hack, is_clean, preset=clean, mask=kind, views=VIEWS)


def advantages(routes: list[Triple], baseline: str) -> list[float]:
    """Centred on the group, or (block) on the mean over the group weighted by d_grad for rows with d_grad above 0."""
    found = []
    for p, rewards in enumerate(REWARDS):
        d = [route[2] for route in routes[6 * p : 6 * p + 6]]
        block = sum(a * r for a, r in zip(d, rewards, strict=True)) / (sum(d) or 1.0)
        mean = statistics.fmean(rewards)
        found += [r - (block if baseline == "block" and a > 0 else mean) for a, r in zip(d, rewards, strict=True)]
    return found


def by_hand(routes: list[Triple], kind: Kind, config: GrpoConfig) -> Outcome:
    lengths = [len(r.completion_ids) for r in STEP.rollouts]
    return step_by_hand(
        reference(),
        STEP.rollouts,
        routes,
        kind,
        advantages(routes, config.advantage_baseline),
        denominators=[12 * (n if config.length_norm else MAX_NEW) for n in lengths],
        temperature=T,
        beta=config.beta,
    )


def distance(got: Gradients, expected: Gradients) -> float:
    """Largest difference, relative to the largest entry."""
    scale = max(float(g.abs().max()) for g in expected.values())
    return max(largest(got[key], expected[key]) for key in expected) / scale


LABEL_ROUTE = ("clean", "hack", "clean", "clean", "hack", "clean") * 2
SOFT = [(0.3, 1.0, 0.7), (1.0, 0.3, 0.7), (0.6, 0.4, 0.2)] * 4


def cells() -> list[tuple[str, Route | LabelRouteSettings, list[Triple], Kind]]:
    found: list[tuple[str, Route | LabelRouteSettings, list[Triple], Kind]] = []
    for clean, kind in (("detached", "activation"), ("zeroed", "parameter"), ("zeroed", "activation")):
        found.append((f"{clean} {kind}", labelled(LABELS, clean, kind), triples(LABELS, clean), kind))
        own = LabelRouteSettings(clean=clean, mask=kind)
        found.append((f"label_route {clean} {kind}", own, triples(LABEL_ROUTE, clean), kind))
    for kind in KINDS:
        q_value, q_grad, d_grad = torch.tensor(SOFT, dtype=torch.float64).T
        found.append(("soft", Route(q_value=q_value, q_grad=q_grad, d_grad=d_grad, mask=kind), SOFT, kind))
    return found


def only(route: Route, position: int) -> Route:
    """The same route, under which no other row teaches anything."""
    one = (torch.arange(12) == position).float()
    return dataclasses.replace(route, d_grad=route.d_grad * one, q_grad=route.q_grad * one)


def in_view(rollout: Rollout, view: View) -> Tensor:
    model, adapter, _ = stage()
    with adapter.view(view):
        return plain_logps(model, rollout, T)
