"""Splits of gradients on `delta_s` (spec 3.2, 5.1), per rollout and per token, against virtual copies by autograd, in fp64.

- per rollout: delta gets the sum of (1 - f) g and delta_q that of f g, in either basis; on the shared one they add up
- per token the same of each token's own gradient, for both baselines, KL, several micro-batches, in either basis
- a route is shown each token's cosine of A u + k with the direction; tokens without a gradient have 0
- the gate's edges are percentiles of the pairs' token cosines; its shares the pooled scores within [0, 1]; tokens without
  a gradient, and rows of advantage 0, are kept whole; the update is the one of those shares
- rows of the deploy view are split too: the quarantine gets exactly 0 of them
- random_label exchanges the shares of rollouts within a view
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from _gate import Gate
from _models import Gradients, largest
from _pairs import number
from _routing import (
    LIVE,
    STEP,
    VIEWS,
    Basis,
    G,
    P,
    Told,
    advantages_by_hand,
    by_hand,
    direction,
    distance,
    gated,
    percentile,
    run,
    settings,
    shares,
    soft,
    stage,
    weight_of,
)
from _virtual import Tokens, tokens_by_autograd
from vgrout.adapter.route import Route
from vgrout.directions.tokens import token_cosine
from vgrout.grpo import GrpoConfig
from vgrout.interventions.base import Intervention, Rows, TokenGradients
from vgrout.interventions.routeV import RouteV
from vgrout.types import View

gate = Gate(__doc__)
BASES: tuple[Basis, Basis] = ("shared", "distinct")
LENGTHS = [len(r.prompt_ids) + len(r.completion_ids) for r in STEP.rollouts]


class ToldTokens(Intervention):
    """Shares of tokens, given by position in the step; keeps the cosines that it was shown."""

    routed = True
    needs = "token_gradients"

    def split_tokens(self, rows: Rows, gradients: TokenGradients) -> Tensor:
        given, vectors, shown = self.settings
        for name, found in gradients.cosines(vectors).items():
            for i, cosine in zip(rows.positions, found, strict=True):
                assert not cosine[LENGTHS[i] :].any() and not cosine.requires_grad, "of padding, or with a graph"
                assert name not in shown.setdefault(i, {}), f"row {i} was shown twice"
                shown[i][name] = cosine[: LENGTHS[i]]
        width = found.shape[1]
        # What stands beyond a row's own tokens must not matter.
        return torch.stack([torch.cat([given[i], torch.full((width - LENGTHS[i],), 0.7)]) for i in rows.positions])


def arbitrary(seed: int = 0) -> list[Tensor]:
    """A share for every token, some of them 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return [(1.6 * torch.rand(n, generator=generator, dtype=torch.float64) - 0.3).clamp(0, 1) for n in LENGTHS]


def vectors_of(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {m.name: m.rank for m in stage("delta_s")[1].modules}
    return {name: torch.randn(n, generator=generator, dtype=torch.float64) for name, n in sizes.items()}


@functools.cache
def tokens(row: int, basis: Basis = "shared") -> tuple[Tokens, Tokens]:
    return tokens_by_autograd(STEP.rollouts[row], VIEWS[row], basis)


def gradient(row: int, config: GrpoConfig, A: float, block: str, name: str, basis: Basis = "shared") -> Tensor:
    """A u + k of each token."""
    logp, kl = tokens(row, basis)
    w = weight_of(len(STEP.rollouts[row].completion_ids), config)
    return w * (config.beta * kl[block][name] - A * logp[block][name])


def split_by_hand(given: list[Tensor], config: GrpoConfig, basis: Basis) -> tuple[Gradients, list[float]]:
    """(gradient, advantages): the sums over tokens of (1 - f) g and of f g."""
    kept = [float((1 - f).mean().float()) for f in given]
    A = advantages_by_hand(kept, config)
    found: Gradients = {}
    for m in stage("delta_s", basis=basis)[1].modules:
        of = {"deployed": torch.zeros(m.rank, dtype=torch.float64), "quarantine": torch.zeros(m.rank).double()}
        for i in LIVE:
            of["deployed"] += (1 - given[i]) @ gradient(i, config, A[i], "deployed", m.name, basis)
            if VIEWS[i] == "full":
                of["quarantine"] += given[i] @ gradient(i, config, A[i], "quarantine", m.name, basis)
        found["deployed", f"{m.name}.delta"], found["quarantine", f"{m.name}.delta_q"] = of.values()
    return found, A


@gate.invariant("per rollout: delta gets the sum of (1 - f) g, delta_q that of f g; on the shared basis they add up")
def _():
    worst, added = 0.0, 0.0
    for basis, baseline in itertools.product(BASES, ("block", "group")):
        _, adapter, policy = stage("delta_s", basis=basis)
        config = settings(0.1, 45, baseline)
        _, got = run(Told(soft(), adapter, 0), policy, config)
        worst = max(worst, distance(got, by_hand("delta_s", shares(soft()), config, basis)[0]))
    policy, config = stage("delta_s")[2], settings(0.1, 45, "group")
    f = soft().q_grad * torch.tensor([float(view == "full") for view in VIEWS])
    _, got = run(Told(Route(d_grad=1 - f, q_grad=f), stage("delta_s")[1], 0), policy, config)
    _, whole = run(Told(Route(d_grad=1 + 0 * f, q_grad=0 * f), stage("delta_s")[1], 0), policy, config)
    for (block, name), g in whole.items():
        if block == "deployed":
            added = max(added, largest(got[block, name] + got["quarantine", f"{name}_q"], g) / float(g.abs().max()))
    assert worst < 1e-11 and added < 1e-6, (worst, added)  # 1 - f is rounded to fp32
    routeV, _ = gated("delta_s", unit="rollout")
    stats, got = run(routeV, policy, settings(0.1, 45))
    ramp = [min(max(s or 0.0, 0.0), 1.0) for s in stats.scores]
    assert sum(0 < f < 1 for f in ramp) > 3
    as_fp32 = [(float(torch.tensor(1 - f).float()), float(torch.tensor(f).float())) for f in ramp]
    gate_error = distance(got, by_hand("delta_s", as_fp32, settings(0.1, 45))[0])
    assert gate_error < 1e-6, gate_error
    return f"2 bases within {worst:.0e}; parts add up within {added:.0e}; the gate's ramp within {gate_error:.0e}"


def check_tokens(bases: tuple[Basis, ...], options: list[dict[str, Any]]) -> str:
    worst, cosines, zeros, given, vectors = 0.0, 0.0, 0, arbitrary(), vectors_of()
    for basis, option in itertools.product(bases, options):
        _, adapter, policy = stage("delta_s", basis=basis)
        config, shown = settings(**option), {}
        stats, got = run(ToldTokens((given, vectors, shown), adapter, 0), policy, config)
        want, A = split_by_hand(given, config, basis)
        worst = max(worst, distance(got, want), *(abs(a - b) for a, b in zip(stats.advantages, A, strict=True)))
        of_group = advantages_by_hand([1.0] * P * G, config)
        assert sorted(shown) == LIVE
        for i, (name, v) in itertools.product(LIVE, vectors.items()):
            g = gradient(i, config, of_group[i], "deployed", name, basis)
            cosines = max(cosines, largest(shown[i][name], torch.tensor(cosines_of(g, v), dtype=torch.float64)))
            zeros += int((shown[i][name] == 0).sum())
    assert worst < 1e-11 and cosines < 1e-9 and zeros > 100, (worst, cosines, zeros)
    return f"{len(bases) * len(options)} cases: gradients within {worst:.0e}, cosines within {cosines:.0e}"


TOKEN_OPTIONS: list[dict[str, Any]] = [
    {"beta": 0.1, "budget": 45},
    {"beta": 0.0, "budget": 60, "std_norm": True},
    {"beta": 0.1, "budget": 10_000, "baseline": "group", "length_norm": True},
    {"beta": 0.0, "budget": 1, "baseline": "group"},
]


@gate.invariant("per token: the sums of (1 - f) g and of f g, and the cosines that a route is shown, token by token")
def _():
    return f"{check_tokens(('shared',), TOKEN_OPTIONS[:2])}; distinct: {check_tokens(('distinct',), TOKEN_OPTIONS[:1])}"


@gate.invariant("the same with other baselines, norms and micro-batches, in both bases", slow=True)
def _():
    return check_tokens(BASES, TOKEN_OPTIONS)


@functools.cache
def edges_by_hand(view: View) -> dict[str, tuple[float, float]]:
    """p75 over the tokens of the pairs' clean and hack completions, prompts included, of modules with a band."""
    live, found = direction("delta_s"), {}
    rows = [tokens_by_autograd(r, view)[0]["deployed"] for r in live.extractor.sides.rows]
    for name, v in live.grad[view].items():
        hack, clean = (
            [c for own in side for c in cosines_of(-own[name], v)]
            for side in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
        )
        lower, upper = percentile(clean, 0.75), percentile(hack, 0.75)
        if lower < upper:
            found[name] = (lower, upper)
    return found


def cosines_of(g: Tensor, v: Tensor) -> list[float]:
    """0 for tokens whose gradient is 0 but for rounding, as is that of the query of a row's first token."""
    least = 1e-12 * float(g.norm(dim=1).max())
    return [float(t @ v / (t.norm() * v.norm())) if float(t.norm()) > least else 0.0 for t in g]


def shares_by_hand(row: int, config: GrpoConfig, sign: bool = True) -> Tensor:
    """Of each token: the pooled score of sign(A) (A u + k) within [0, 1], 0 where no module has a gradient."""
    A, view = advantages_by_hand([1.0] * P * G, config)[row], VIEWS[row]
    edges, above = edges_by_hand(view), torch.zeros(LENGTHS[row], dtype=torch.float64)
    told = torch.zeros(LENGTHS[row], dtype=torch.bool)
    for name, v in direction("delta_s").grad[view].items():
        g = gradient(row, config, A, "deployed", name) * (float((A > 0) - (A < 0)) if sign else 1.0)
        cosine = torch.tensor(cosines_of(g, v), dtype=torch.float64)
        told |= cosine != 0
        if name in edges:
            above += cosine - edges[name][0]
    share = (above / sum(upper - lower for lower, upper in edges.values())).clamp(0, 1)
    return torch.where(told, share, 0.0)


def spied(routeV: RouteV) -> dict[int, Tensor]:
    """Will hold the share of each token that the gate is asked for."""
    seen, split = {}, routeV.split_tokens

    def split_tokens(rows: Rows, gradients: TokenGradients) -> Tensor:
        found = split(rows, gradients)
        seen.update({i: f[: LENGTHS[i]] for i, f in zip(rows.positions, found, strict=True)})
        return found

    routeV.split_tokens = split_tokens
    return seen


@gate.invariant("token edges and shares by hand; tokens without a gradient and rows of advantage 0 are kept whole")
def _():
    edge_error = share_error = update_error = between = 0.0
    for feature, beta, baseline in (("signed", 0.1, "block"), ("raw", 0.1, "block"), ("signed", 0.0, "group")):
        routeV, _ = gated("delta_s", feature=feature)
        assert routeV.needs == "token_gradients"
        seen, config = spied(routeV), settings(beta, 45, baseline)
        stats, got = run(routeV, stage("delta_s")[2], config)
        for view in ("full", "deploy"):
            band, want = routeV.gate.bands[view], edges_by_hand(view)
            assert band.lower.keys() == want.keys() != set()
            edge_error = max(
                edge_error, *(abs(band.lower[n] - e[0]) + abs(band.upper[n] - e[1]) for n, e in want.items())
            )
        assert sorted(seen) == LIVE
        for i in LIVE:
            want = shares_by_hand(i, settings(beta, 45, "group"), sign=feature == "signed")
            share_error = max(share_error, largest(seen[i], want))
            between += int(((want > 0) & (want < 1)).sum())
            assert seen[i][-1] == 0, "nothing depends on the last token"
            assert abs(number(stats.scores[i]) - float(want.mean())) < 1e-4
        if feature == "signed":
            assert not seen[15].any(), "a row of advantage 0 is routed"
        given = [seen.get(i, torch.zeros(n, dtype=torch.float64)) for i, n in enumerate(LENGTHS)]
        update_error = max(update_error, distance(got, split_by_hand(given, config, "shared")[0]))
    errors = (edge_error, share_error, update_error, between)  # the pairs' cosines are kept in fp32
    assert edge_error < 1e-6 and share_error < 1e-5 and update_error < 1e-11 and between > 50, errors
    return f"edges within {edge_error:.0e}, shares within {share_error:.0e} ({between} in between), updates {update_error:.0e}"


@gate.invariant("deploy-view rows: each token's kept share teaches the deployed block, the quarantine gets exactly 0")
def _():
    _, adapter, policy = stage("delta_s")
    ones = [torch.ones(n, dtype=torch.float64) for n in LENGTHS]
    given = [mine if view == "deploy" else one for mine, one, view in zip(arbitrary(1), ones, VIEWS, strict=True)]
    config = settings(0.1, 45, "group")
    stats, got = run(ToldTokens((given, vectors_of(), {}), adapter, 0), policy, config)
    want, _ = split_by_hand(given, config, "shared")
    worst = largest(torch.cat([*got.values()]), torch.cat([*want.values()]))
    hacks, all_hack = run(ToldTokens((ones, vectors_of(), {}), adapter, 0), policy, config)
    assert not any(bool(g.any()) for (block, _), g in all_hack.items() if block == "deployed")
    assert all(torch.equal(got[k], g) for k, g in all_hack.items() if k[0] == "quarantine")
    assert (hacks.n_rout, hacks.n_discarded, stats.n_discarded) == (6, 4, 0), (hacks.n_rout, hacks.n_discarded)
    assert worst < 1e-11 and all(stats.weights[i][1] == 0 for i in (4, 5, 16, 17)), worst
    return f"within {worst:.0e}; 4 rows routed whole are discarded and counted"


@gate.invariant("random_label exchanges the ramp's shares among moving rollouts of a view")
def _():
    said = {}
    for source in ("real", "random_label"):
        routeV, asked = gated("delta_s", source, unit="rollout")
        run(routeV, stage("delta_s")[2], settings(0.0, 60))
        said[source] = {i: float(f) for rows, route in asked for i, f in zip(rows.positions, route.q_grad, strict=True)}
    moving = [i for i in LIVE if i != 15]
    for view in ("full", "deploy"):
        pools = [sorted(said[s][i] for i in moving if VIEWS[i] == view) for s in said]
        assert pools[0] == pools[1] and len(set(pools[0])) > 1, pools
    assert said["random_label"][15] == said["real"][15] == 0.0 and said["real"] != said["random_label"]
    moved = sum(said["real"][i] != said["random_label"][i] for i in moving)
    return f"{moved} of {len(moving)} rows have another's share"


@gate.invariant("a token's gradient that is not finite has no cosine at all, so that its score is refused")
def _():
    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    g[0, 1, 2], g[1, 0] = float("nan"), 0.0
    cosine = token_cosine(g, torch.ones(4))
    assert bool(cosine[0, 1].isnan()) and cosine[1, 0] == 0 and bool(cosine[1, 1:].all()), cosine
    return "1 nan of 6, 1 zero"


if __name__ == "__main__":
    gate.main()
