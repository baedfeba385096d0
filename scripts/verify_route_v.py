"""`routeV`, rollout by rollout (spec 5.1): what its gate reads, what it decides, and what the update makes of it, in fp64.

- signed, raw and nll scores and labels equal plain formulas on each rollout's own autograd gradient, with KL and without;
  a row is scored in its own view, and rows without a gradient to be told apart by are mid
- signed and nll have equal cosines and labels at beta 0 wherever the advantage is not 0; raw turns exactly the rows of
  negative advantage round
- one pass and two agree where they must (signed and nll at beta 0) and differ where they must (raw; zeroed, activation)
- the update under the gate equals one rollout at a time with its labels; checkpointing changes nothing
- edges are those of the direction in use, from its renewal on
- random_label: within each view the labels of moving rows, permuted by seed and step; features from a backward of its own
- what cannot be read from the training backward, split or permuted is refused in one line
"""

from __future__ import annotations

import collections
import math
from typing import Any

import torch
from torch import Tensor

from _gate import Gate, refusal
from _models import largest
from _routing import (
    KINDS,
    LIVE,
    STEP,
    VIEWS,
    G,
    Kind,
    Known,
    P,
    advantages_by_hand,
    answers,
    by_hand,
    cosine,
    direction,
    distance,
    edges_by_hand,
    gated,
    gathered,
    mixed,
    run,
    settings,
    stage,
    weight_of,
)
from _virtual import probe_by_autograd
from vgrout.adapter.route import Route, three_way
from vgrout.interventions.base import Rows
from vgrout.interventions.routeV import RouteV, RouteVSettings

gate = Gate(__doc__)
FEATURES = ("signed", "raw", "nll")
Asked = list[tuple[Rows, Route]]


def score_by_hand(kind: Kind, feature: str, beta: float, row: int) -> float | None:
    """The pooled score of a row; None where it has no gradient, or (signed) no sign."""
    config, view = settings(beta, baseline="group"), VIEWS[row]
    A = advantages_by_hand([1.0] * P * G, config)[row]
    sign = math.copysign(1.0, A) if A else 0.0
    w, above, width = weight_of(len(STEP.rollouts[row].completion_ids), config), 0.0, 0.0
    if row not in LIVE or not (feature == "nll" or A != 0 or (feature == "raw" and beta > 0)):
        return None
    edges = edges_by_hand(kind, view)
    for m in (m for m in stage(kind)[1].modules if m.name in edges):
        logp, kl = (t[: m.rank] for t in probe_by_autograd(kind, row)[m.name])
        g = -logp if feature == "nll" else w * (beta * kl - A * logp)
        g = sign * g if feature == "signed" else g
        above += cosine(g.tolist(), direction(kind).grad[view][m.name].tolist()) - edges[m.name][0]
        width += edges[m.name][1] - edges[m.name][0]
    return above / width


def label(score: float | None) -> tuple[float, float]:
    """(deployed, quarantine)"""
    return (1.0, 1.0) if score is None or 0 < score < 1 else (0.0, 1.0) if score >= 1 else (1.0, 0.0)


CASES: list[tuple[Kind, str, float]] = [
    *(("lora2r", feature, 0.1) for feature in FEATURES),
    *((kind, "signed", beta) for kind, beta in (("lora2r", 0.0), ("delta_s", 0.1))),
]


@gate.invariant("scores, labels and update equal plain formulas on each rollout's own gradient, for every feature")
def _():
    worst, wrong, seen = 0.0, 0.0, collections.Counter()
    for kind, feature, beta in CASES:
        routeV, asked = gated(kind, feature=feature, action="three_way")
        assert routeV.needs == ("own_gradients" if feature == "nll" else "training_gradients")
        config = settings(beta, 45)
        stats, got = run(routeV, stage(kind)[2], config)
        scores = [score_by_hand(kind, feature, beta, i) for i in range(P * G)]
        for i, (mine, score) in enumerate(zip(stats.scores, scores, strict=True)):
            assert (mine is None) == (score is None), (feature, beta, i, mine, score)
            worst = max(worst, abs((mine or 0.0) - (score or 0.0)))
        labels = [label(score) for score in scores]
        said = answers(asked)
        assert all(said[i] == labels[i] for i in said) and set(LIVE) <= set(said), (feature, said, labels)
        seen.update(labels)
        want, loss, A = by_hand(kind, labels, config)
        wrong = max(wrong, distance(got, want), abs(stats.loss - loss) / abs(loss))
        wrong = max(wrong, *(abs(a - b) for a, b in zip(stats.advantages, A, strict=True)))
    assert worst < 1e-9 and wrong < 1e-11 and len(seen) == 3, (worst, wrong, seen)
    return f"5 cases: scores within {worst:.0e}, updates within {wrong:.0e}; hack, clean, mid: {sorted(seen.values())}"


@gate.invariant(
    "signed and nll: equal cosines and labels at beta 0 where rows move; raw turns rows of negative advantage"
)
def _():
    worst, turned = 0.0, 0
    A = advantages_by_hand([1.0] * P * G, settings(baseline="group"))
    for kind in KINDS:
        found: dict[str, tuple[dict[int, tuple[float, float]], dict[str, dict[int, Tensor]], Any]] = {}
        for feature in FEATURES:
            routeV, asked = gated(kind, feature=feature, action="three_way")
            stats, _ = run(routeV, stage(kind)[2], settings(0.0, 45))
            found[feature] = answers(asked), gathered([rows for rows, _ in asked]), stats.scores
        moving = [i for i in LIVE if A[i] != 0]
        assert len(moving) == 10 and all(found["signed"][0][i] == found["nll"][0][i] for i in moving)
        band = edges_by_hand(kind, "full"), edges_by_hand(kind, "deploy")
        for i in moving:
            for name, v in direction(kind).grad[VIEWS[i]].items():
                cos = {f: cosine(found[f][1][name][i].tolist(), v.tolist()) for f in FEATURES}
                sign = math.copysign(1.0, A[i])
                worst = max(worst, abs(sign * cos["signed"] - cos["nll"]), abs(cos["raw"] - sign * cos["nll"]))
            edges = band[VIEWS[i] == "deploy"].values()
            width, low = sum(b - a for a, b in edges), sum(a for a, _ in edges)
            own = {f: found[f][2][i] * width + low for f in FEATURES}
            worst = max(worst, abs(own["signed"] - own["nll"]), abs(own["raw"] - sign * own["nll"]))
            turned += found["raw"][0][i] != found["signed"][0][i]
        assert found["signed"][0][15] == (1.0, 1.0) and found["signed"][2][15] is None, "advantage 0 is not routed"
    assert worst < 1e-11 and turned > 4, (worst, turned)
    return f"2 adapters x 10 moving rows within {worst:.0e}; raw gives {turned} other labels"


@gate.invariant("one pass and two agree for signed and nll at beta 0, and differ for raw and for another forward")
def _():
    worst, differ = 0.0, []
    pairs: list[tuple[Kind, str]] = [("lora2r", "block"), ("delta_s", "group")]
    for kind, baseline in pairs:
        config, policy = settings(0.0, 45, baseline), stage(kind)[2]
        (one, signed), (_, raw), (two, nll) = (
            run(gated(kind, feature=f, action="three_way")[0], policy, config) for f in FEATURES
        )
        worst = max(worst, distance(nll, signed), abs(one.loss - two.loss) / abs(two.loss))
        assert one.weights == two.weights and (one.n_rout, one.n_discarded) == (two.n_rout, two.n_discarded)
        differ.append(distance(raw, signed))
    for clean, mask in (("detached", "activation"), ("zeroed", "parameter")):
        policy, config = stage()[2], settings(0.1, 45)
        routeV, asked = gated("lora2r", feature="raw", clean=clean, mask=mask)
        assert routeV.needs == "own_gradients" and routeV.gradient_loss == "grpo"
        _, got = run(routeV, policy, config)
        one_pass, asked_once = gated("lora2r", feature="raw")
        _, as_sampled = run(one_pass, policy, config)
        said = answers(asked)
        assert all(said[i] == s for i, s in answers(asked_once).items())
        hack, is_clean = (torch.tensor([said[i] == s for i in range(P * G)]) for s in ((0.0, 1.0), (1.0, 0.0)))
        route: Any = three_way(hack, is_clean, preset=clean, mask=mask, views=VIEWS)
        worst = max(worst, distance(got, run(Known(route, stage()[1], 0), policy, config)[1]))
        differ.append(distance(got, as_sampled))
    assert worst < 1e-11 and min(differ) > 0.01, (worst, differ)
    return f"equal within {worst:.0e}; apart by at least {min(differ):.2f} (relative)"


@gate.invariant("with activation checkpointing the gate sees and decides the same")
def _():
    # The second model is the first's twin, weight by weight, so that the gate of one serves both.
    policies = (stage()[2], stage(checkpointing=True)[2])
    done = [run(gated("lora2r")[0], policy, settings(0.1, 45)) for policy in policies]
    error = distance(done[1][1], done[0][1])
    scores = [torch.tensor([s or 0.0 for s in stats.scores], dtype=torch.float64) for stats, _ in done]
    assert error < 1e-11 and largest(*scores) < 1e-9 and done[0][0].weights == done[1][0].weights
    return f"gradients within {error:.0e}, scores within {largest(*scores):.0e}"


@gate.invariant("edges are those of the direction in use: they change with its renewal and not before")
def _():
    routeV, _ = gated("lora2r")
    live, policy = direction("lora2r"), stage()[2]
    run(routeV, policy, settings(0.0, 45))
    before, first = {v: dict(b.lower) for v, b in routeV.gate.bands.items()}, live.probes
    for view in ("full", "deploy"):
        want = {name: low for name, (low, _) in edges_by_hand("lora2r", view).items()}
        assert want.keys() == before[view].keys()
        assert all(abs(want[name] - low) < 1e-12 for name, low in before[view].items())
    try:
        live.probes = {view: {n: g.flip(1) + 0.1 * g for n, g in found.items()} for view, found in first.items()}
        run(routeV, policy, settings(0.0, 45))
        assert {v: b.lower for v, b in routeV.gate.bands.items()} == before, "edges moved before the direction did"
        live.version += 1
        run(routeV, policy, settings(0.0, 45))
        after = {v: b.lower for v, b in routeV.gate.bands.items()}
        want = {name: low for name, (low, _) in edges_by_hand("lora2r", "deploy").items()}
        assert after != before and after["deploy"].keys() == want.keys()
        assert all(abs(after["deploy"][name] - low) < 1e-12 for name, low in want.items())
    finally:
        live.probes, live.version = first, live.version - 1
    return f"{len(before['full'])} and {len(before['deploy'])} of 14 modules have a band"


LARGE = mixed(
    [[3.5, 0.5, 0.0, 3.5, 0.5, 2.0, 0.0, 3.5, 1.5], [0.0, 2.0, 1.0, 3.0, 0.5, 1.0, 0.5, 0.0, 1.0]] * 2, seed=4
)
"""Four groups of nine, of which six are sampled in full; rows of group 1 and 3 whose reward is 1 have advantage 0."""


def labels_of(source: str, step: int, seed: int = 0) -> tuple[Asked, Any, int]:
    """What the gate said of the large step, its update, and how many rows were run."""
    routeV, asked = gated("lora2r", source, seed)
    policy, rows = stage()[2], [0]
    hook = policy.backbone.register_forward_pre_hook(
        lambda _m, _a, kwargs: rows.__setitem__(0, rows[0] + len(kwargs["input_ids"])), with_kwargs=True
    )
    done = run(routeV, policy, settings(0.0, 60, step=LARGE), LARGE, at=step)
    hook.remove()
    return asked, done, rows[0]


@gate.invariant("random_label permutes the labels of moving rows within each view, by seed and step; two passes")
def _():
    real, _, once = labels_of("real", 0)
    wanted, want_f = answers(real), gathered([rows for rows, _ in real])
    views = [r.view for r in LARGE.rollouts]
    centred = (LARGE.rewards.double() - LARGE.rewards.double().mean(1, keepdim=True)).flatten()
    moving = [i for i in range(36) if centred[i] != 0]
    assert 0 < len(moving) < 36 == once
    drawn = []
    for step, seed in ((0, 0), (1, 0), (0, 1), (0, 0)):
        asked, (_, got), twice = labels_of("random_label", step, seed)
        ((rows, route),) = asked
        said = answers(asked)
        assert twice == 72 and all(said[i] == wanted[i] for i in range(36) if i not in moving)
        for view in ("full", "deploy"):
            pools = [collections.Counter(s[i] for i in moving if views[i] == view) for s in (said, wanted)]
            assert pools[0] == pools[1] and len(pools[0]) > 1, pools
        for name, f in rows.features.items():
            assert largest(f, torch.stack([want_f[name][i] for i in range(36)])) < 1e-12 * float(f.abs().max())
        drawn.append(tuple(said[i] for i in range(36)))
        if not drawn[1:]:
            same = run(Known(route, stage()[1], 0), stage()[2], settings(0.0, 60, step=LARGE), LARGE)[1]
            assert distance(got, same) < 1e-12
    assert len(set(drawn)) == 3 and drawn[0] == drawn[3] != tuple(wanted[i] for i in range(36))
    return f"{len(moving)} of 36 rows exchange labels ({dict(collections.Counter(wanted.values()))}); 3 draws differ"


@gate.invariant("random_label: over many steps a row's label is that of its view, whatever its own is")
def _():
    asked, _, _ = labels_of("random_label", 0)
    ((rows, _),), n = asked, 150
    routeV, _ = gated("lora2r", "random_label")
    kept = torch.stack(
        [routeV.route(Rows(rows.advantages, rows.views, None, s, rows.features)).q_grad for s in range(n)]
    )
    worst = 0.0
    for view in ("full", "deploy"):
        at = [i for i in range(36) if rows.views[i] == view and rows.advantages[i] != 0]
        mean = kept[:, at].mean()
        sd = float((mean * (1 - mean) / n).sqrt())
        worst = max(worst, float((kept[:, at].mean(0) - mean).abs().max()) / sd)
        assert torch.equal(kept[:, at].sum(1), kept[0, at].sum().expand(n)) and sd > 0
    assert worst < 4, worst
    return f"{n} steps: rows' means within {worst:.1f} standard errors of their view's"


@gate.invariant("what cannot be read, split or permuted is refused in one line that names the option and a remedy")
def _():
    def prepare(kind: Kind, source: str = "real", **options: Any) -> str:
        routeV = RouteV(RouteVSettings(**options), stage(kind)[1], 0)
        return refusal(lambda: routeV.prepare(direction(kind, source)))

    cases = [
        (prepare("lora2r", clean="zeroed"), "--routeV.feature raw or nll"),
        (prepare("lora2r", mask="activation"), "--routeV.feature raw or nll"),
        (prepare("lora2r", feature="nll", action="ramp", clean="zeroed"), "--routeV.clean detached"),
        (prepare("delta_s", feature="raw", mask="activation"), "--routeV.mask parameter"),
        (prepare("lora2r", unit="token", action="ramp"), "--adapter.kind delta_s"),
        (prepare("delta_s", unit="token", action="three_way"), "--routeV.action ramp"),
        (prepare("delta_s", unit="token", feature="nll"), "--routeV.unit rollout"),
        (prepare("delta_s", feature="nll"), "--routeV.unit rollout"),
        (prepare("delta_s", edges="live"), "--routeV.unit rollout"),
        (prepare("delta_s", "random_label"), "--routeV.unit rollout"),
        (refusal(lambda: RouteV(RouteVSettings(), stage()[1], 0).prepare(None)), "--pairs"),
    ]
    for message, part in cases:
        assert part in message, (part, message)
    needs = [
        gated(kind, unit=unit)[0].needs for kind, unit in (("lora2r", None), ("delta_s", None), ("delta_s", "rollout"))
    ]
    assert needs == ["training_gradients", "token_gradients", "training_gradients"]
    return f"{len(cases)} refusals; the default unit is the rollout on lora2r, the token on delta_s"


if __name__ == "__main__":
    gate.main()
