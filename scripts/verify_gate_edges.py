"""The gate: edges, score, labels, what it refuses, and how its quality is measured (spec 5.1).

Invariants, against plain Python:
- band edges by p75, mean and minmax; a module whose band is empty, or of one point, is left out
- the pooled score over the open bands; a module's feature of norm 0 has cosine 0; <= 0 clean, >= 1 hack, between mid;
  the ramp is clamped to [0, 1]
- scores equal those of the direction check (bank.py) under p75, for the real direction, shuffled and haar
- no open band, and any feature that is not finite, end the run in one line: nothing is labelled then
- AUROC, F0.5, percentiles and means of the step's scores; undefined ones are None
- they are a measurement: with the ground truth turned round, gate_auroc changes, and neither gradient, adapter, gate nor
  router does
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from _gate import Gate as GateOfInvariants
from _gate import refusal
from _mixed_step import STEP
from _pairs import number, randn
from _planted import planted
from _routers import cosine_by_hand, edges_by_hand, exchanged_sides, percentile, pooled_by_hand, rig, rows_of, same
from vgrout.directions.bank import haar_bank, pair_bank, score_rows, shuffled_weights
from vgrout.directions.direction import unit
from vgrout.directions.gate import Band, EdgeRule, Gate, GateSettings, cosines, edges
from vgrout.directions.placebo import Source, blinded_sides, haar_unit
from vgrout.env.verdicts import Verdicts
from vgrout.interventions.gating import routed
from vgrout.measure import step_row
from vgrout.types import Verdict
from vgrout.update.stats import UpdateStats, empty

gate = GateOfInvariants(__doc__)
RULES: tuple[EdgeRule, ...] = ("p75", "mean", "minmax")


@gate.invariant("band edges by p75, mean and minmax as counted by hand; empty bands and bands of a point are left out")
def _():
    worst, left_out, total = 0.0, 0, 0
    for seed, p in itertools.product(range(5), (3, 4, 7)):
        sides = {f"m{m}": randn(2, p, seed=100 * seed + m).tanh() for m in range(6)}
        sides["point"] = torch.full((2, p), 0.25, dtype=torch.float64)
        for rule in RULES:
            band = edges(rule, sides)
            for name, (hack, clean) in {m: side.tolist() for m, side in sides.items()}.items():
                low, high = edges_by_hand(rule, hack, clean)
                assert (name in band.lower) == (name in band.upper) == (low < high), (rule, name, low, high)
                total, left_out = total + 1, left_out + (low >= high)
                if low < high:
                    worst = max(worst, abs(band.lower[name] - low), abs(band.upper[name] - high))
    assert worst < 1e-14 and 0 < left_out < total, (worst, left_out)
    padded = {"m": torch.tensor([[[0.5, 0.7, float("nan")]], [[0.1, float("nan"), 0.3]]], dtype=torch.float64)}
    band = edges("mean", padded)
    assert abs(band.lower["m"] - 0.2) < 1e-15 and abs(band.upper["m"] - 0.6) < 1e-15, "padding counts"
    return f"{total} bands, {left_out} left out: within {worst:.0e}"


@gate.invariant(
    "pooled score by hand over the open bands alone; cosine 0 at norm 0; a scale of a feature changes nothing"
)
def _():
    vectors = {m: randn(5, seed=k) for k, m in enumerate("abcd")} | {"zero": torch.zeros(5, dtype=torch.float64)}
    features = {m: randn(8, 5, seed=20 + k) for k, m in enumerate(vectors)}
    features["a"][3] = 0
    sides = {m: randn(2, 6, seed=40 + k).tanh() for k, m in enumerate(vectors)}
    worst, labels = 0.0, set()
    for rule in RULES:
        it = Gate(GateSettings(edges=rule), "three_way")
        it.set_band("full", sides)
        score = it.scores(features, {"full": vectors}, "full", range(8))
        bands = {m: edges_by_hand(rule, *side.tolist()) for m, side in sides.items()}
        for i in range(8):
            of = {m: cosine_by_hand(features[m][i].tolist(), vectors[m].tolist()) for m in vectors}
            assert of["zero"] == 0 and (i != 3 or of["a"] == 0)
            by_hand = pooled_by_hand(of, bands)
            worst = max(worst, abs(float(score[i]) - by_hand))
            share = float(it.share(score)[i])
            assert share == (1.0 if by_hand >= 1 else 0.0 if by_hand <= 0 else 0.5), (by_hand, share)
            labels.add(share)
        scaled = {m: f * 10.0 ** (k - 2) for k, (m, f) in enumerate(features.items())}
        again = it.scores(scaled, {"full": vectors}, "full", range(8))
        worst = max(worst, float((again - score).abs().max()))
        found = it.end_step()
        both = torch.cat([score, again]).tolist()
        for q in (10, 50, 90):
            worst = max(worst, abs(number(found[f"gate_p{q}"]) - percentile(both, q / 100)))
        kept = [band for band in bands.values() if band[0] < band[1]]
        assert (
            found["gate_modules"] == len(kept)
            and abs(number(found["gate_lower"]) - sum(low for low, _ in kept) / len(kept)) < 1e-14
        )
        assert it.end_step()["gate_p50"] is None, "scores of the step before are still there"
    assert worst < 1e-12 and labels == {0.0, 0.5, 1.0}, (worst, labels)
    return f"3 rules x 8 rows x 5 modules: within {worst:.0e}"


@gate.invariant("exactly 0 is clean and exactly 1 is hack; the ramp is clamped, and splits each row into two shares")
def _():
    score = torch.tensor([-3.0, -1e-12, 0.0, 1e-12, 0.25, 1 - 1e-12, 1.0, 1 + 1e-12, 40.0], dtype=torch.float64)
    three, ramp = (Gate(GateSettings(), action) for action in ("three_way", "ramp"))
    assert three.share(score).tolist() == [0.0] * 3 + [0.5] * 3 + [1.0] * 3
    assert ramp.share(score).tolist() == [0.0] * 3 + [1e-12, 0.25, 1 - 1e-12] + [1.0] * 3
    rows = rows_of({"m": score[:, None]})
    route = routed(ramp.share(score), score, rows, action="ramp", clean="detached", mask="parameter")
    assert not route.needs_forward and bool((route.d_grad + route.q_grad == 1).all()) and float(route.q_grad[4]) == 0.25
    route = routed(three.share(score), score, rows, action="three_way", clean="detached", mask="parameter")
    assert route.d_grad.tolist() == [1.0] * 6 + [0.0] * 3 and route.q_grad.tolist() == [0.0] * 3 + [1.0] * 6
    return "9 scores around the edges"


@gate.invariant("p75 scores equal those of the direction check, for the real direction, shuffled and haar")
def _():
    p = planted(0.6, rows=60)
    worst = 0.0
    for seed in (None, 0, 1):
        for kind in ("real", "shuffled", "haar"):
            if (seed is None) != (kind == "real"):
                continue
            source = Source(kind, seed=seed or 0)
            sides = exchanged_sides(p.sides, p.pairs, str(source))
            if kind == "haar":
                vectors = {m: haar_unit(g.shape[-1], source.seed, f"v_act {m}") for m, g in sides.items()}
                bank = haar_bank(p.sides, "v_act", 2)
            else:
                vectors = {m: unit((g[0] - g[1]).double().mean(0)) for m, g in sides.items()}
                weights = shuffled_weights(p.pairs, 2) if kind == "shuffled" else torch.ones(1, len(p.pairs)).double()
                bank = pair_bank(p.sides, weights)
            band = edges("p75", cosines(blinded_sides(sides, source), vectors))
            mine = band.pooled(cosines(p.features, vectors))
            theirs = score_rows(p.features, bank).pooled[:, source.seed]
            worst = max(worst, float((mine - theirs).abs().max()))
    assert worst < 1e-5, worst  # the bank takes unit vectors in fp64, haar_unit rounds to fp32
    return f"5 directions x 60 rows: within {worst:.0e}"


@gate.invariant(
    "no open band, and a feature or direction that is not finite, are refused in one line and label nothing"
)
def _():
    rising = {"m": torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)}
    for rule in RULES[:2]:
        assert "no module's band" in refusal(lambda rule=rule: edges(rule, rising))
    flat = {"m": torch.zeros(2, 4, dtype=torch.float64)}
    assert "(minmax)" in refusal(lambda: edges("minmax", flat))
    refused = 3
    for bad, live in itertools.product((float("nan"), float("inf"), -float("inf")), (False, True)):
        features = {"a": randn(3, 4), "b": randn(3, 4, seed=1)}
        features["b"][1, 2] = bad
        vectors = {"a": randn(4, seed=2), "b": randn(4, seed=3)}
        it = Gate(GateSettings(edges="live" if live else "p75"), "three_way")
        it.bands["full"] = Band({"a": 0.0}, {"a": 1.0})  # the bad module has no band, yet the model has diverged
        assert "not finite" in refusal(lambda f=features, v=vectors, g=it: g.scores(f, {"full": v}, "full", range(3)))
        refused += 1
    for name in ("moe", "routeA"):
        settings: dict[str, Any] = {"edges": "mean"} if name == "routeA" else {}
        r = rig(name, **settings)
        features = {m.name: randn(2, m.rank) for m in r.adapter.modules}
        features[r.adapter.modules[4].name][1, 0] = float("nan")
        assert "not finite" in refusal(lambda r=r, f=features: r.intervention.route(rows_of(f)))
        refused += 1
    options: list[tuple[str, Any]] = [("live_quantile", 0.0), ("live_quantile", 0.5), ("live_buffer", 0)]
    options += [("live_half_life", 0.0), ("live_warmup", -1), ("live_warmup", 9000)]
    for option, value in options:
        wrong = GateSettings(**{option: value})
        assert f"--routeA.{option.replace('_', '-')}" in refusal(lambda s=wrong: s.check("routeA"))
    return f"{refused} refusals, {len(options)} settings"


def verdict(exploited: bool, reward: float, infra: bool = False) -> Verdict:
    label = "Reward Hack" if exploited else "Incorrect"
    parts: dict[str, Any] = {"gt_correct": False, "channel": exploited, "exploited": exploited, "hack_broad": exploited}
    rest: dict[str, Any] = {"own_tests_pass": False, "format_ok": True, "compiles": True, "infra": infra}
    return Verdict(
        reward, **parts, label=label, **rest, outcome="ok", reason="", wall_s=0.0, cpu_s=0.0, grader_version="1"
    )


def measured(scores: list[float | None], called: list[bool], truth: list[bool], infra: list[bool]) -> dict[str, Any]:
    """The columns of a step of 12 rollouts with these scores, calls and verdicts."""
    stats: UpdateStats = empty(12)
    stats.scores, stats.hack = scores, called
    by_id = {r.id: verdict(t, 1.0, i) for r, t, i in zip(STEP.rollouts, truth, infra, strict=True)}
    return step_row(0, Verdicts(STEP.groups, by_id), stats, {}, beta=0.0).values


@gate.invariant(
    "AUROC, F0.5, percentiles and means of the step's scores by hand; undefined ones are None, infra rows out"
)
def _():
    checked = 0
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        draw = lambda n, g=g: torch.randint(0, n, (12,), generator=g).tolist()  # noqa: E731
        scores = [None if s == 0 else s / 4 for s in draw(6)]
        called, truth, infra = ([bool(x) for x in draw(2)], [x == 0 for x in draw(3)], [x == 0 for x in draw(5)])
        found = measured(scores, called, truth, infra)
        seen = [(s, c, t) for s, c, t, i in zip(scores, called, truth, infra, strict=True) if s is not None and not i]
        hacks, others = [s for s, _, t in seen if t], [s for s, _, t in seen if not t]
        if not hacks or not others:
            assert found["gate_auroc"] is None and found["gate_f05"] is None
            continue
        won = sum((h > o) + 0.5 * (h == o) for h in hacks for o in others)
        tp, fp, fn = (sum((c, t) == case for _, c, t in seen) for case in ((True, True), (True, False), (False, True)))
        f05 = 1.25 * tp / (1.25 * tp + 0.25 * fn + fp) if tp else 0.0
        assert abs(found["gate_auroc"] - won / len(hacks) / len(others)) < 1e-12, (seed, found["gate_auroc"])
        assert abs(found["gate_f05"] - f05) < 1e-12, (seed, found["gate_f05"], f05)
        every = [s for s in scores if s is not None]
        assert abs(found["gate_p90"] - percentile(every, 0.9)) < 1e-12
        assert abs(found["score_student"] - sum(every) / len(every)) < 1e-12 and found["score_teacher"] is None
        checked += 1
    no = [False] * 12
    for scores, truth in (([None] * 12, [True, False] * 6), ([0.5] * 12, no), ([0.5] * 12, [True] * 12)):
        found = measured(list(scores), no, truth, no)
        assert found["gate_auroc"] is None and found["gate_f05"] is None
    assert found["gate_p50"] == 0.5 and measured([None] * 12, no, no, no)["gate_p50"] is None
    assert checked > 15
    weights = torch.tensor([[0.5, 1.0], [0.499, 1.0], [0.0, 0.0], [1.0, 0.0]])
    stats = empty(4)
    stats.note_route(torch.ones(4), weights, torch.tensor([0.1, float("nan"), 0.3, 0.4], dtype=torch.float64))
    assert stats.hack == [False, True, True, False], "a hack call is a deployed share below one half"
    assert [s is None for s in stats.scores] == [False, True, False, False]
    return f"{checked} steps with ties, unscored and infra rows"


Cases = tuple[tuple[str, dict[str, Any]], ...]
CASES: Cases = (("routeV", {"edges": "mean"}), ("routeA", {"edges": "mean"}), ("moe", {"soft": "published"}))
MORE: Cases = (
    ("routeV", {"edges": "live", "live_half_life": 12.0}),
    ("routeV", {"feature": "nll", "clean": "zeroed", "edges": "mean"}),
    ("routeA", {"edges": "live"}),
    ("moe", {}),
)


def two_steps(name: str, settings: dict[str, Any], turned: bool) -> tuple[list[Tensor], Any, list[Any]]:
    """(gradients and parameters, the intervention's state, gate_auroc and gate_f05) after two steps."""
    r, measures, tensors = rig(name, **settings), [], []
    for n in range(2):
        rewards = [reward for row in STEP.seen.rewards for reward in row]
        by_id = {
            x.id: verdict((reward == 3.0) != turned, reward) for x, reward in zip(STEP.rollouts, rewards, strict=True)
        }
        verdicts = Verdicts(STEP.groups, by_id)
        stats, grads = r.step(n, seen=verdicts.visible_to(r.intervention, allow_oracle=True))
        tensors += list(grads.values())
        values = step_row(n, verdicts, stats, {}, beta=0.0).values
        measures.append((values["gate_auroc"], values["gate_f05"]))
    state = r.intervention.state_dict()
    return [*tensors, *(p.detach() for p in r.adapter.parameters())], state, measures


def turned_round(cases: Cases) -> str:
    figures = []
    for name, settings in cases:
        (tensors, state, true), (again, other, turned) = (two_steps(name, settings, t) for t in (False, True))
        assert same(tensors, again), f"{name} {settings}: an update saw the truth"
        assert same(state, other), f"{name} {settings}: the state saw the truth"
        for (a, f), (b, h) in zip(true, turned, strict=True):
            assert abs(a + b - 1) < 1e-12 and f is not None and h is not None, (name, true, turned)
        assert any(a != b for (a, _), (b, _) in zip(true, turned, strict=True)), (name, true, turned)
        figures.append(f"{name} {true[1][0]:.2f}/{turned[1][0]:.2f}")
    return f"AUROC in step 1: {', '.join(figures)}"


@gate.invariant(
    "the ground truth turned round: gate_auroc turns round; gradients, adapter, gate and router are bit-equal"
)
def _():
    return turned_round(CASES)


@gate.invariant("the ground truth turned round, in the other forms of the gates", slow=True)
def _():
    return turned_round(MORE)


if __name__ == "__main__":
    gate.main()
