"""Placebos of what routes: they take the same way as the real direction, and nothing on it knows a true label (spec 4.5).

Invariants of routeA, routeV and moe, prepared and run by their own code on planted features where it says so:
- haar: vectors without any pair. Edges are those of blinded sides; with all sides exchanged, the lower and the upper edge
  of every module change places. moe's labels are the upper half per side by score; exchanging all sides changes nothing
  that trains, exchanging one pair's changes only which completions are ranked together
- random_label permutes labels, or w, among rows of non-zero advantage within a sampling view, step by step; scores stay
- planted signal: real AUROC is high, the medians over 40 draws of haar and of shuffled lie in .4-.6 (of moe at init, and
  over 20 draws after pinning); edges, or a pin loss, that see the true labels are caught
"""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from _gate import Gate
from _mixed_step import STEP, VIEWS
from _models import largest
from _planted import DRAWS, Planted, planted
from _routers import Rig, exchanged_sides, on_planted, rig, rows_of, same, showing
from vgrout.directions.detection import auroc
from vgrout.directions.direction import Part
from vgrout.directions.gate import cosines, edges
from vgrout.directions.placebo import blinded_sides, haar_unit, parse_source
from vgrout.grpo import advantage
from vgrout.interventions.base import Intervention
from vgrout.interventions.moe import Moe, MoeSettings
from vgrout.interventions.routeA import RouteA, RouteASettings
from vgrout.interventions.router import haar_labels
from vgrout.interventions.routeV import RouteV, RouteVSettings
from vgrout.observe import observe
from vgrout.types import UserError, View

gate = Gate(__doc__)
BOTH: tuple[tuple[type[Intervention], Any, frozenset[Part]], ...] = (
    (RouteA, RouteASettings(), frozenset({"act"})),
    (RouteV, RouteVSettings(feature="raw"), frozenset({"grad"})),
)


@gate.invariant(
    "haar: no pair in its vectors, edges of blinded sides; all sides exchanged exchange lower and upper edges"
)
def _():
    r = rig("routeA", source="haar:4", edges="mean")
    for name, v in r.direction.act.items():
        assert torch.equal(v, haar_unit(len(v), 4, f"v_act {name}"))
    r.gradient(0)
    extractor = r.direction.extractor
    truth = dataclasses.replace(extractor, source=parse_source("real")).activations()
    found, band = blinded_sides(truth, extractor.source), r.intervention.gate.bands["deploy"]
    assert same(dict(band.lower), edges("mean", cosines(found, r.direction.act)).lower)
    assert band != edges("mean", cosines(truth, r.direction.act)), "the edges know which side is the hack"
    exchanged = [sum(not torch.equal(f[0, i], truth[m][0, i]) for i in range(6)) for m, f in found.items()]
    assert exchanged == [3] * len(exchanged), exchanged
    p, checked = planted(2.0, rows=8), 0
    for cls, settings, parts in BOTH:
        for rule in ("p75", "mean"):
            bands = []
            for flip in (False, True):
                turned = dataclasses.replace(p, sides={m: g.flip(0) if flip else g for m, g in p.sides.items()})
                own = dataclasses.replace(settings, edges=rule)
                it = on_planted(cls, own, turned, "haar:1", parts, extractor)
                with showing(turned.sides):
                    it.route(rows_of(p.features))
                (view,) = {"deploy"} & set(it.gate.bands)
                bands.append(it.gate.bands[view])
            a, b = bands
            assert not a.lower.keys() & b.lower.keys() and a.lower.keys() | b.lower.keys() == p.sides.keys()
            checked += len(a.lower) + len(b.lower)
    return f"3 of 6 exchanged in each of {len(exchanged)} modules; {checked} bands open on one way round and shut on the other"


@gate.invariant("random_label permutes among rows of non-zero advantage within a view, anew in every step; scores stay")
def _():
    A = advantage(STEP.rewards, STEP.keep).flatten()
    A[[1, 7, 9]] = 0.0
    figures = []
    cases: tuple[tuple[str, dict[str, Any]], ...] = (("routeA", {"edges": "mean"}), ("moe", {}))
    for name, settings in cases:
        real, placebo = (rig(name, source=source, **settings) for source in ("real", "random_label"))
        features, patterns, differ = observe(real.policy, STEP.groups, "activations", token_budget=10_000), set(), 0
        for step, seed in ((s, k) for s in range(6) for k in (0, 1)):
            placebo.intervention.seed = seed
            rows = dataclasses.replace(rows_of(features), advantages=A, views=VIEWS, step=step)
            a, b = (r.intervention.route(rows) for r in (real, placebo))
            shares = [torch.stack([x.d_grad, x.q_grad], dim=1) for x in (a, b)]
            assert same(a.score, b.score) and torch.equal(*(s[A == 0] for s in shares))
            for view in ("full", "deploy"):
                at = torch.tensor([v == view for v in VIEWS]) & (A != 0)
                assert sorted(shares[0][at].tolist()) == sorted(shares[1][at].tolist()), (name, step, view)
            differ += not torch.equal(*shares)
            patterns.add(tuple(shares[1].flatten().tolist()))
        assert differ > 6 and len(patterns) > 4, (name, differ, len(patterns))
        figures.append(f"{name} {differ} of 12 permuted, {len(patterns)} patterns")
    return "; ".join(figures)


def auroc_of(cls: type[Intervention], settings: Any, parts: frozenset[Part], source: str, base: Rig, p: Any) -> float:
    """AUROC of the gate's own score for the planted rows."""
    extractor = base.direction.extractor
    it = on_planted(cls, settings, p, source, parts, extractor)
    with showing(exchanged_sides(p.sides, p.pairs, source)):
        views: tuple[View, ...] = ("full", "deploy") * (len(p.rows.positive) // 2)
        route = it.route(dataclasses.replace(rows_of(p.features), views=views))
    return float(auroc(route.score[:, None], p.rows.positive))


def median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def at_chance(cls: type[Intervention], settings: Any, parts: frozenset[Part]) -> str:
    p, base = planted(2.0, rows=200), rig("routeA")
    draw = lambda source: auroc_of(cls, settings, parts, source, base, p)  # noqa: E731
    real = draw("real")
    haar, shuffled = (median([draw(f"{kind}:{seed}") for seed in range(DRAWS)]) for kind in ("haar", "shuffled"))
    with (
        mock.patch("vgrout.directions.direction.blinded_sides", lambda found, _: dict(found)),
        mock.patch("vgrout.directions.direction.blinded", lambda found, _: found),
    ):
        leaky = median([draw(f"haar:{seed}") for seed in range(DRAWS)])
    assert real > 0.9 and 0.4 <= haar <= 0.6 and 0.4 <= shuffled <= 0.6, (real, haar, shuffled)
    assert leaky > 0.7, f"the test cannot tell edges that leak: {leaky}"
    return f"real {real:.2f}; medians of 40: haar {haar:.2f}, shuffled {shuffled:.2f}, leaky {leaky:.2f}"


@gate.invariant(
    "planted signal, routeA: real is high, haar and shuffled at chance over 40 draws, edges with true labels not"
)
def _():
    return at_chance(*BOTH[0])


@gate.invariant("planted signal, routeV: the same", slow=True)
def _():
    return at_chance(*BOTH[1])


def flipped(p: Planted, pairs: slice) -> dict[str, Tensor]:
    """The sides with those of some pairs exchanged."""
    found = {m: g.clone() for m, g in p.sides.items()}
    for g in found.values():
        g[:, pairs] = g[:, pairs].flip(0)
    return found


def planted_moe(p: Planted, source: str, base: Rig, pinned: int = 0) -> tuple[Any, Tensor]:
    """The intervention on planted pairs, and w of the planted rows, after so many steps of the pin loss."""
    settings = MoeSettings(lr=0.05)
    it = on_planted(Moe, settings, p, source, frozenset({"act"}), base.direction.extractor)
    with showing(exchanged_sides(p.sides, p.pairs, source)):
        for _ in range(pinned):
            it.route(rows_of(p.features))
            it.edit_gradients(base.adapter)
        return it, it.route(rows_of(p.features)).score


@gate.invariant(
    "haar: labels are the upper half per side; exchanging all sides changes nothing, one pair's only the ranking"
)
def _():
    p, base = planted(2.0, rows=40), rig("moe")
    it, w = planted_moe(p, "haar:2", base, pinned=3)
    assert all(torch.equal(v, haar_unit(len(v), 2, f"v_act {m}")) for m, v in it.direction.act.items())
    start, _ = planted_moe(p, "haar:2", base)
    score = start.router.score(start.pairs).detach().tolist()
    for side in (range(20), range(20, 40)):
        upper = sorted(side, key=lambda i: -score[i])[:10]
        assert [i for i in side if start.labels[i] == 1] == sorted(upper), "not the upper half of its side"
    assert haar_labels(torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0, 7.0])).tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    all_turned, again = planted_moe(dataclasses.replace(p, sides=flipped(p, slice(None))), "haar:2", base, pinned=3)
    assert torch.equal(all_turned.labels.view(2, -1).flip(0).flatten(), it.labels) and largest(w, again) < 1e-4
    one, _ = planted_moe(dataclasses.replace(p, sides=flipped(p, slice(7, 8))), "haar:2", base)
    assert same(dict(one.direction.act), dict(start.direction.act)) and largest(one.centre, start.centre) < 1e-6
    exchanged = torch.tensor(score)
    exchanged[[7, 27]] = exchanged[[27, 7]]
    assert largest(one.router.score(one.pairs), exchanged) < 1e-5
    assert torch.equal(one.labels, haar_labels(exchanged)), "more than the ranking has changed"
    changed = int((one.labels != start.labels).sum())
    assert changed <= 4, changed  # the pair's two entries, and one at the median of each side
    return f"exchanging one of 20 pairs changes {changed} of 40 labels"


def moe_at_chance(p: Planted, base: Rig, pinned: int, draws: int) -> str:
    of = lambda source: float(auroc(planted_moe(p, source, base, pinned)[1][:, None], p.rows.positive))  # noqa: E731
    real = of("real")
    haar, shuffled = (median([of(f"{kind}:{seed}") for seed in range(draws)]) for kind in ("haar", "shuffled"))
    assert real > 0.9 and 0.4 <= haar <= 0.6 and 0.4 <= shuffled <= 0.6, (pinned, real, haar, shuffled)
    return f"real {real:.2f}; medians of {draws}: haar {haar:.2f}, shuffled {shuffled:.2f}"


@gate.invariant("planted signal, w of moe at init: real is high, haar and shuffled at chance over 40 draws")
def _():
    return moe_at_chance(planted(2.0, rows=200), rig("moe"), 0, DRAWS)


@gate.invariant(
    "planted signal, moe after 12 pin steps: the same over 20 draws; pinned to true labels it is caught", slow=True
)
def _():
    p, base, leaky, upside_down = planted(2.0, rows=200), rig("moe"), [], 0
    figure = moe_at_chance(p, base, 12, DRAWS // 2)
    with mock.patch("vgrout.interventions.moe.haar_labels", lambda score: (torch.arange(40) < 20).float()):
        for seed in range(12):
            try:
                _, w = planted_moe(p, f"haar:{seed}", base, 12)
            except UserError:  # true labels, upside down along this draw
                upside_down += 1
                continue
            leaky.append(float(auroc(w[:, None], p.rows.positive)))
    assert len(leaky) > 2 and median(leaky) > 0.7, f"the test cannot tell labels that leak: {leaky}"
    return f"{figure}; pinned to true labels {median(leaky):.2f} ({upside_down} of 12 upside down)"


if __name__ == "__main__":
    gate.main()
