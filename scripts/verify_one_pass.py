"""The update whose route is read from its own training backward (spec 3.1, 6), in fp64.

- each rollout's gradient in the routing coordinates is the central difference in a virtual copy, in both views and adapters
- the features that a route is shown are A u + k of that row alone, from the training backward as from one of their own
- gradient, loss and advantages equal one rollout at a time, baselines in plain numbers; and to rounding those of the same
  route known beforehand, for hard and soft labels, both baselines, KL, normalisations, token budgets, both adapters
- rows of the deploy view: clean and mid teach the deployed block, the quarantine gets exactly 0, hacks are discarded
- the teachers' part is that of an update in which students have no loss; with the students' it makes the whole gradient
- live rows are shown once, with nothing of another micro-batch; `.grad` stays as it is in a backward of features' own
- activation checkpointing and folding change nothing; another forward is refused
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from _gate import Gate
from _models import block_grads, largest
from _routing import (
    KINDS,
    LIVE,
    MAX_NEW,
    STEP,
    VIEWS,
    G,
    Kind,
    Known,
    P,
    Told,
    advantages_by_hand,
    by_hand,
    distance,
    forwarded,
    gathered,
    labelled,
    run,
    settings,
    shares,
    soft,
    stage,
    weight_of,
)
from _virtual import differences, probe_by_autograd
from vgrout.adapter.gradients import PerRollout, Probes
from vgrout.adapter.route import Route
from vgrout.policy import make_batch
from vgrout.types import View
from vgrout.update.loss import StepLoss
from vgrout.update.own_pass import own_gradients
from vgrout.update.stats import empty

gate = Gate(__doc__)


def check_probes(kind: Kind, **options: Any) -> str:
    _, adapter, policy = stage(kind, **options)
    worst, slopes = 0.0, 0
    by_view: tuple[tuple[View, tuple[int, ...]], ...] = (("full", (0, 2, 13)), ("deploy", (4, 17)))
    for view, rows in by_view:
        batch = make_batch(STEP.rollouts, rows, device=policy.device)
        recorders = (PerRollout(batch.index), Probes(batch.index))
        for recorder in recorders:
            with adapter.view(view), adapter.recording(recorder):
                policy.logps(batch).sum().backward()
        probe, found = recorders[0].c_probe(), recorders[1].found  # asked for outside the view
        for at, row in enumerate(rows):
            for name, want in differences(kind, row, **options).items():
                scale, size = float(want.abs().max()), found[name].shape[1]
                worst = max(worst, largest(probe[name][at], want) / scale)
                worst = max(worst, largest(found[name][at], want[:size]) / scale)
                slopes += len(want)
        assert all(found[m.name].shape[1] == m.rank for m in adapter.modules)
    assert worst < 1e-5, worst
    return f"{slopes} slopes of 5 rollouts within {worst:.0e} (relative)"


@gate.invariant(
    "the c-probe of each rollout is the central difference in a virtual diagonal, in both views and recorders"
)
def _():
    return check_probes("lora2r")


@gate.invariant("the same of lora2r unfolded, and of delta_s in its own coordinates", slow=True)
def _():
    return f"unfolded: {check_probes('lora2r', fold=False)}; delta_s: {check_probes('delta_s')}"


def features_by_hand(kind: Kind, beta: float, rows: list[int]) -> dict[str, dict[int, Tensor]]:
    """A u + k of each row alone, its deployed block's coordinates."""
    config = settings(beta, baseline="group")
    A, found = advantages_by_hand([1.0] * P * G, config), {}
    for i in rows:
        w = weight_of(len(STEP.rollouts[i].completion_ids), config)
        for m, (logp, kl) in zip(stage(kind)[1].modules, probe_by_autograd(kind, i).values(), strict=True):
            found.setdefault(m.name, {})[i] = (w * (beta * kl - A[i] * logp))[: m.rank]
    return found


def apart(got: dict[str, dict[int, Tensor]], want: dict[str, dict[int, Tensor]]) -> float:
    """Largest difference, relative to the module's largest entry."""
    worst = 0.0
    for name, rows in want.items():
        scale = max(float(f.abs().max()) for f in rows.values())
        worst = max(worst, *(largest(got[name][i], f) / scale for i, f in rows.items()))
    return worst


@gate.invariant(
    "a route is shown each live row's A u + k, whatever the micro-batches; a backward of its own gives the same"
)
def _():
    worst, own_worst = 0.0, 0.0
    for kind, beta in itertools.product(KINDS, (0.0, 0.1)):
        _, adapter, policy = stage(kind)
        want = features_by_hand(kind, beta, LIVE)
        for budget in (1, 45) if (kind, beta) == ("lora2r", 0.1) else (45,):
            told = Told(labelled(), adapter, 0)
            run(told, policy, settings(beta, budget))
            got = gathered(told.asked)
            assert all(sorted(rows) == LIVE for rows in got.values()) and len(got) == 14
            worst = max(worst, apart(got, want))
            for rows in told.asked:
                assert rows.views == tuple(VIEWS[i] for i in rows.positions) and len(set(rows.views)) == 1
            assert budget != 1 or len(told.asked) == len(LIVE)
        assert beta or not any(bool(rows[15].any()) for rows in got.values()), "a row of advantage 0"
        own_worst = max(own_worst, check_own(kind, beta, want))
    assert worst < 1e-11 and own_worst < 1e-11, (worst, own_worst)
    return f"2 adapters x 2 betas, 1 or 2 budgets, {len(LIVE)} rows within {worst:.0e}; of their own within {own_worst:.0e}"


def check_own(kind: Kind, beta: float, want: dict[str, dict[int, Tensor]]) -> float:
    """The largest difference of features from a backward of their own, which must leave `.grad` alone."""
    _, adapter, policy = stage(kind)
    for i, p in enumerate(adapter.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
    before = [None if p.grad is None else p.grad.clone() for p in adapter.parameters()]
    config, worst = settings(beta, 45, "group"), 0.0
    loss = StepLoss(policy, STEP.rollouts, config, MAX_NEW, empty(P * G))
    A = torch.tensor(advantages_by_hand([1.0] * P * G, config), dtype=torch.float64)
    for of in ("grpo", "nll"):
        found = own_gradients(loss, LIVE, A, of)
        for name, f in found.items():
            assert f.shape[0] == P * G and not f[[i for i in range(P * G) if i not in LIVE]].any()
            if of == "grpo":
                worst = max(worst, apart({name: dict(enumerate(f))}, {name: want[name]}))
        if of == "nll":
            for i in LIVE:
                for name, (logp, _) in probe_by_autograd(kind, i).items():
                    g = found[name][i]
                    worst = max(worst, largest(g, -logp[: len(g)]) / float(logp.abs().max()))
    assert loss.stats == empty(P * G), "what the features' own pass has seen is reported as the training pass's"
    for p, g in zip(adapter.parameters(), before, strict=True):
        assert (p.grad is None) == (g is None) and (g is None or p.grad is None or torch.equal(p.grad, g))
    return worst


OPTIONS: list[dict[str, Any]] = [
    {"budget": 45},
    {"beta": 0.1, "budget": 1},
    {"beta": 0.1, "budget": 45, "baseline": "group", "std_norm": True},
    {"beta": 0.5, "budget": 10_000, "length_norm": True, "std_norm": True, "kl_on_zero_spread": True},
]
MORE: list[dict[str, Any]] = [
    {"beta": beta, "budget": budget, "baseline": baseline, **norms}
    for beta, budget, baseline, norms in itertools.product(
        (0.0, 0.3), (30, 70), ("block", "group"), ({}, {"std_norm": True}, {"length_norm": True})
    )
]


def check_updates(kinds: tuple[Kind, ...], options: list[dict[str, Any]], routes: list[Route]) -> str:
    exact, hand, cases = 0.0, 0.0, 0
    for kind, option, route in itertools.product(kinds, options, routes):
        config, (_, adapter, policy) = settings(**option), stage(kind)
        told = Told(route, adapter, 0)
        stats, got = run(told, policy, config)
        known, same = run(Known(route, adapter, 0), policy, config)
        want, loss, A = by_hand(kind, shares(route), config)
        shown = [i for rows in told.asked for i in rows.positions]
        assert sorted(shown) == forwarded(config) and len(told.asked) > (config.token_budget < 100)
        counts = ("n_moving", "n_keep", "n_rout", "n_discarded", "n_zero_groups", "n_clipped")
        assert all(getattr(stats, c) == getattr(known, c) for c in counts), (option, stats, known)
        assert [stats.weights[i] for i in shown] == [known.weights[i] for i in shown]
        exact = max(exact, distance(got, same), abs(stats.loss - known.loss) / abs(loss))
        exact = max(exact, *(abs(a - b) for a, b in zip(stats.advantages, known.advantages, strict=True)))
        hand = max(hand, distance(got, want), abs(stats.loss - loss) / abs(loss))
        hand = max(hand, *(abs(a - b) for a, b in zip(stats.advantages, A, strict=True)))
        cases += 1
    assert exact < 1e-12 and hand < 1e-11, (exact, hand)
    return f"{cases} cases: {exact:.0e} to the known route, {hand:.0e} to one rollout at a time (relative)"


@gate.invariant("gradient, loss, advantages and counts equal the known route's and those of one rollout at a time")
def _():
    hard = check_updates(("lora2r",), OPTIONS[1:3], [labelled()])
    return f"hard labels on lora2r, {hard}; soft ones on delta_s, {check_updates(('delta_s',), OPTIONS[3:], [soft()])}"


@gate.invariant("the same for every product of options, and for groups of one label alone", slow=True)
def _():
    routes = [labelled(), soft(), *(labelled([label] * P * G) for label in ("hack", "clean", "mid"))]
    return f"{check_updates(('lora2r',), MORE, routes[:1])}; {check_updates(KINDS, OPTIONS, routes)}"


@gate.invariant("the block baseline by hand, and what it changes")
def _():
    _, adapter, policy = stage()
    stats, block = run(Told(labelled(), adapter, 0), policy, settings(0.1, 45))
    # Group 0: rows 1, 2 and 5 teach the deployed block (.5, 0, .5); group 2: 0, 1, 3 and 4 (3, .5, 1, 0), row 2 masked.
    third, mean0 = 1 / 3, 10 / 6
    want = [3.5 - mean0, 0.5 - third, -third, 2 - mean0, 3.5 - mean0, 0.5 - third] + [0.0] * 6
    want += [1.875, -0.625, 0.0, -0.125, -1.125, -0.5]
    worst = max(abs(a - b) for a, b in zip(stats.advantages, want, strict=True))
    assert worst < 1e-12, stats.advantages
    assert (stats.n_moving, stats.n_keep, stats.n_rout, stats.n_discarded) == (11, 5, 2, 2), stats
    group = run(Told(labelled(), adapter, 0), policy, settings(0.1, 45, "group"))
    assert group[0].advantages[15] == 0.0 != stats.advantages[15] and distance(block, group[1]) > 0.1
    return f"18 advantages within {worst:.0e}; a row of advantage 0 moves with its block"


@gate.invariant("deploy-view rows: clean and mid teach the deployed block as sampled, hacks nothing and are counted")
def _():
    for kind in KINDS:
        _, adapter, policy = stage(kind)
        config, grads, counted = settings(0.1, 45, "group"), {}, {}
        for label in ("hack", "clean", "mid"):
            # Rows of the full view teach no block, so that all of the gradient is of deploy rows.
            d = torch.tensor([float(label != "hack" and view == "deploy") for view in VIEWS])
            q = torch.tensor([float(label != "clean" and view == "deploy") for view in VIEWS])
            stats, grads[label] = run(Told(Route(d_grad=d, q_grad=q), adapter, 0), policy, config)
            counted[label] = stats.n_discarded
            assert not any(bool(g.any()) for (block, _), g in grads[label].items() if block == "quarantine")
        assert not any(bool(g.any()) for g in grads["hack"].values()), "a discarded row taught something"
        assert distance(grads["mid"], grads["clean"]) == 0 < max(float(g.abs().max()) for g in grads["mid"].values())
        want, _, _ = by_hand(kind, [(float(view == "deploy"), 0.0) for view in VIEWS], config)
        assert distance(grads["clean"], want) < 1e-11
        assert counted == {"hack": 10, "clean": 6, "mid": 6}, counted
    return "2 adapters: 4 deploy rows that move; quarantine exactly 0, hacks 10 of 10 discarded"


def check_sources(kinds: tuple[Kind, ...], interventions: tuple[type[Told] | type[Known], ...]) -> str:
    worst = 0.0
    for kind, baseline, intervention in itertools.product(kinds, ("block", "group"), interventions):
        _, adapter, policy = stage(kind)
        config = settings(0.1, 45, baseline)
        stats, whole = run(intervention(labelled(), adapter, 0), policy, config, by_source=True)
        unasked, mixed = run(intervention(labelled(), adapter, 0), policy, config)
        assert stats.teacher_gradient is not None and unasked.teacher_gradient is None
        for p, g in zip(adapter.parameters(), stats.teacher_gradient, strict=True):
            p.grad = g.clone()
        of_teacher = block_grads(adapter)
        teacher, student = (by_hand(kind, shares(labelled()), config, source=who)[0] for who in ("teacher", "student"))
        worst = max(worst, distance(whole, mixed), distance(of_teacher, teacher))
        worst = max(worst, distance({k: g - of_teacher[k] for k, g in whole.items()}, student))
    assert worst < 1e-11, worst
    return f"{2 * len(kinds) * len(interventions)} cases: teachers' and students' parts within {worst:.0e} (relative)"


@gate.invariant("the teachers' part is an update without the students' loss; with the students' it is the whole")
def _():
    return check_sources(("lora2r",), (Told,))


@gate.invariant("the same on both adapters, and of a route that is known beforehand", slow=True)
def _():
    return check_sources(KINDS, (Told, Known))


@gate.invariant("micro-batches of any budget, checkpointing and folding change nothing")
def _():
    worst = 0.0
    want = run(Told(labelled(), stage()[1], 0), stage()[2], settings(0.1))
    stages = (stage(), stage(), stage(checkpointing=True), stage(fold=False))
    for budget, (_, adapter, policy) in zip((1, 30, 45, 80), stages, strict=True):
        stats, got = run(Told(labelled(), adapter, 0), policy, settings(0.1, budget))
        worst = max(worst, distance(got, want[1]), abs(stats.loss - want[0].loss) / abs(want[0].loss))
    assert len(stages[2][2].checkpointed) == 2
    assert worst < 1e-11, worst
    return f"4 variants within {worst:.0e} (relative)"


@gate.invariant("a route that asks for another forward than the one it was read from is refused")
def _():
    _, adapter, policy = stage()
    for route in (replace(labelled(), q_value=torch.ones(P * G)), replace(labelled(), mask="activation")):
        with contextlib.suppress(ValueError):
            run(Told(route, adapter, 0), policy, settings())
            raise AssertionError(route)
    return "2 refused"


if __name__ == "__main__":
    gate.main()
