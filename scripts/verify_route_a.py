"""routeA: the gate on activations (spec 5.1); its placebos are verify_placebos.py's.

Invariants, in fp64:
- a row's feature is the mean of what the deployed block reads over its completion tokens, in the deploy view whatever it
  was sampled in; edges are those of the pairs' features as they are now; scores and labels as computed by hand
- moving the adapter moves the edges in the same step; v_act changes at a refresh alone
- the route is `three_way` of the labels in all four forms, or the ramp's shares, and the gradient is that of the same
  route given as data, bit for bit
- delta_s, a missing direction and a ramp with another forward are refused
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from _gate import Gate, refusal
from _mixed_step import STEP, VIEWS, Fixed, labelled
from _models import block_grads, largest
from _pairs import number
from _plain_route import Reference
from _routers import (
    SIDES,
    Rig,
    cosine_by_hand,
    edges_by_hand,
    features_by_hand,
    move,
    pooled_by_hand,
    rig,
    same,
)
from vgrout.adapter.route import Route
from vgrout.direction_inputs import require_use
from vgrout.interventions.routeA import RouteA, RouteASettings
from vgrout.observe import observe
from vgrout.presets import preset

gate = Gate(__doc__)


def labels_by_hand(r: Rig, rule: str) -> tuple[list[float], list[str], dict[str, tuple[float, float]]]:
    """(scores, labels, bands) of the mixed step with the adapter as it is and v_act as the intervention has it."""
    reference = Reference(r.adapter)
    pairs, rows = features_by_hand(reference, SIDES.rows), features_by_hand(reference, STEP.rollouts)
    act = {name: v.tolist() for name, v in r.intervention.direction.act.items()}
    bands = {}
    for name, v in act.items():
        own = [cosine_by_hand(h, v) for h in pairs[name]]
        bands[name] = edges_by_hand(rule, own[: SIDES.n], own[SIDES.n :])
    scores = [
        pooled_by_hand({name: cosine_by_hand(rows[name][i], v) for name, v in act.items()}, bands)
        for i in range(len(STEP.rollouts))
    ]
    return scores, ["hack" if s >= 1 else "clean" if s <= 0 else "mid" for s in scores], bands


@gate.invariant("features, edges, scores and labels as computed by hand from the deploy forward, row by row")
def _():
    r = rig("routeA", edges="mean")
    reference = Reference(r.adapter)
    assert VIEWS[:3] == ("full",) * 3 and float(r.adapter.block_norm("quarantine", "moved")) > 0
    worst = 0.0
    for budget in (10_000, 25):
        seen = observe(r.policy, STEP.groups, r.intervention.needs, token_budget=budget)
        for name, by_hand in features_by_hand(reference, STEP.rollouts).items():
            worst = max(worst, largest(seen[name], torch.tensor(by_hand, dtype=torch.float64)))
    assert worst < 1e-12, worst
    seen_labels = set()
    for rule in ("p75", "mean", "minmax"):
        r.intervention.gate.settings = RouteASettings(edges=rule)
        stats = r.gradient(0)
        scores, labels, bands = labels_by_hand(r, rule)
        worst = max(worst, *(abs(number(a) - b) for a, b in zip(stats.scores, scores, strict=True)))
        band = r.intervention.gate.bands["deploy"]
        for name, (low, high) in bands.items():
            assert (low < high) == (name in band.lower), (rule, name)
            worst = max(worst, abs(band.lower.get(name, low) - low), abs(band.upper.get(name, high) - high))
        d = [{"hack": 0.0, "clean": 1.0, "mid": 1.0}[label] for label in labels]
        assert [w[0] for w in stats.weights] == d, (rule, stats.weights, labels)
        seen_labels |= set(labels)
    assert worst < 1e-9 and seen_labels == {"hack", "clean", "mid"}, (worst, seen_labels)
    return f"3 rules x 12 rows x {len(bands)} modules: within {worst:.0e}"


@gate.invariant(
    "the edges follow the adapter in the same step; v_act changes at a refresh alone, and is then the new one"
)
def _():
    r = rig("routeA", edges="mean", refresh_every=3)
    first, bands, kept = dict(r.direction.act), [], []
    for n in range(4):
        r.step(n, lr=3e-2)
        bands.append(r.intervention.gate.bands["deploy"])
        kept.append(same(dict(r.direction.act), first))
    assert kept == [True, True, False, False], kept
    assert all(a != b for a, b in itertools.pairwise(bands)), "edges of the step before"
    # Bands of step n are read before its update, so the last ones are those of the refreshed v_act.
    r.gradient(4)
    scores, _, by_hand = labels_by_hand(r, "mean")
    now = r.intervention.gate.bands["deploy"]
    assert all(abs(now.lower[m] - low) < 1e-9 for m, (low, high) in by_hand.items() if low < high)
    move(r.adapter, 0.05)
    r.gradient(5)
    moved, _, _ = labels_by_hand(r, "mean")
    after = r.intervention.gate.bands["deploy"]
    step = max(abs(after.lower[m] - now.lower[m]) for m in after.lower.keys() & now.lower.keys())
    assert step > 1e-3 and moved != scores
    return f"an adapter moved by hand moves an edge by {step:.3f}"


@gate.invariant(
    "the route is three_way of the labels in all four forms, or the ramp; the gradient is the fixed route's"
)
def _():
    forms: list[dict[str, Any]] = [{"clean": c, "mask": m} for c in ("detached", "zeroed") for m in ("parameter", "activation")]  # fmt: skip
    forms.append({"action": "ramp"})
    scores, labels = list[float](), list[str]()
    for form in forms:
        r = rig("routeA", edges="mean", **form)
        stats = r.gradient(0, beta=0.1)
        mine, weights = block_grads(r.adapter), stats.weights
        if not labels:  # the same adapter and pairs in every form
            scores, labels, _ = labels_by_hand(r, "mean")
        assert {"hack", "clean", "mid"} <= set(labels), labels
        if "action" in form:
            share = torch.tensor(scores).clamp(0, 1)
            fixed = Route(d_grad=1 - share, q_grad=share)
        else:
            fixed = labelled(tuple(labels), form["clean"], form["mask"])
        r.intervention = Fixed(fixed, r.adapter, 0)
        again = r.gradient(0, beta=0.1)
        theirs = block_grads(r.adapter)
        scale = max(float(g.abs().max()) for g in theirs.values())
        worst = max(largest(g, theirs[key]) for key, g in mine.items()) / scale
        exact = 1e-6 if "action" in form else 0.0  # a ramp's share is a number of its own, rounded to fp32
        assert worst <= exact and largest(torch.tensor(weights), torch.tensor(again.weights)) <= exact, (form, worst)
    return "4 forms bit-equal, ramp within 1e-6"


@gate.invariant("delta_s, a missing direction, and a ramp with another forward are refused")
def _():
    r = rig("routeA")
    assert "lora2r" in refusal(lambda: require_use(preset("smoke", "routeA", "delta_s")))
    assert "--pairs" in refusal(lambda: RouteA(RouteASettings(), r.adapter, 0).prepare(None))
    forms: tuple[dict[str, Any], ...] = ({"clean": "zeroed"}, {"mask": "activation"})
    for form in forms:
        it = RouteA(RouteASettings(action="ramp", **form), r.adapter, 0)
        assert "ramp" in refusal(lambda it=it: it.prepare(r.direction))
    return "4 refusals"


if __name__ == "__main__":
    gate.main()
